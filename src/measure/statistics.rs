//! Medians with intervals that hold for any distribution.

use statrs::distribution::{Binomial, DiscreteCDF};

/// A median and the interval that covers the true one with the stated confidence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Median {
    /// The sample median.
    pub value: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
    /// Probability that such an interval covers the true median: at least 0.95 from six samples on, less below.
    pub confidence: f64,
}

impl Median {
    /// Median and interval of a sample; `None` if it is empty or holds a NaN.
    ///
    /// The interval goes from the k-th smallest to the k-th largest sample, with the largest k that gives 95 %: the number
    /// of samples below the true median is binomial with p = ½ whatever the distribution (David and Nagaraja,
    /// *Order Statistics*, section 7.1).
    pub fn of(samples: &[f64]) -> Option<Self> {
        if samples.is_empty() || samples.iter().any(|sample| sample.is_nan()) {
            return None;
        }
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        let value = (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0;
        let below = Binomial::new(0.5, n as u64).ok()?;
        // P(the true median lies outside [x₍ₖ₎, x₍ₙ₊₁₋ₖ₎]) = 2·P(B ≤ k − 1).
        let miss = |k: usize| (2.0 * below.cdf(k as u64 - 1)).min(1.0);
        let k = (1..=n.div_ceil(2)).take_while(|&k| miss(k) <= 0.05).last().unwrap_or(1);
        Some(Self { value, low: sorted[k - 1], high: sorted[n - k], confidence: 1.0 - miss(k) })
    }

    /// The larger distance from the median to an end of the interval.
    pub fn half_width(&self) -> f64 {
        (self.high - self.value).max(self.value - self.low)
    }
}

/// Median of the ratios of samples taken in the same round, so that drift common to both cancels. `None` if there are no
/// rounds, or not as many of one as of the other.
pub fn paired_ratio(numerators: &[f64], denominators: &[f64]) -> Option<Median> {
    if numerators.len() != denominators.len() {
        return None;
    }
    let ratios: Vec<f64> = numerators.iter().zip(denominators).map(|(a, b)| a / b).collect();
    Median::of(&ratios)
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_pcg::Pcg64Mcg;

    use super::*;

    #[test]
    fn known_samples() {
        let median = Median::of(&[5.0, 1.0, 4.0, 2.0, 3.0]).unwrap();
        // Five samples: even the whole range covers only 1 − 2/32.
        assert_eq!((median.value, median.low, median.high), (3.0, 1.0, 5.0));
        assert!((median.confidence - 0.9375).abs() < 1e-12);
        assert_eq!(Median::of(&[1.0, 2.0]).unwrap().value, 1.5);
        let one = Median::of(&[7.0]).unwrap();
        assert_eq!((one.value, one.low, one.high), (7.0, 7.0, 7.0));
        assert!(one.confidence.abs() < 1e-12);
        // The textbook's case: n = 10 gives the 2nd and the 9th, 97.9 %.
        let ten: Vec<f64> = (1..=10).map(f64::from).collect();
        let median = Median::of(&ten).unwrap();
        assert_eq!((median.value, median.low, median.high), (5.5, 2.0, 9.0));
        assert!((median.confidence - (1.0 - 22.0 / 1024.0)).abs() < 1e-12);
        assert_eq!(median.half_width(), 3.5);
    }

    #[test]
    fn nothing_comes_of_nothing() {
        assert_eq!(Median::of(&[]), None);
        assert_eq!(Median::of(&[1.0, f64::NAN]), None);
        assert_eq!(paired_ratio(&[1.0], &[]), None);
    }

    #[test]
    fn intervals_cover_the_true_median_as_often_as_they_say() {
        // A skewed distribution with an outlier in ten: exponential, true median ln 2.
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        for n in [8, 20, 51] {
            let mut covered = 0;
            let mut confidence = 0.0;
            for _ in 0..4000 {
                let samples: Vec<f64> = (0..n).map(|_| -(1.0 - rng.random::<f64>()).ln()).collect();
                let median = Median::of(&samples).unwrap();
                covered += u32::from((median.low..=median.high).contains(&2f64.ln()));
                confidence = median.confidence;
            }
            let coverage = f64::from(covered) / 4000.0;
            assert!(
                confidence >= 0.95 && (coverage - confidence).abs() < 0.012,
                "n = {n}: {coverage} for {confidence}"
            );
        }
    }

    #[test]
    fn pairing_cancels_drift() {
        // b is 10 % faster than a, while both slow down by half over the run.
        let drift = |i: usize| 1.0 + i as f64 / 40.0;
        let a: Vec<f64> = (0..21).map(|i| 110.0 * drift(i)).collect();
        let b: Vec<f64> = (0..21).map(|i| 100.0 * drift(i)).collect();
        let ratio = paired_ratio(&a, &b).unwrap();
        assert!((ratio.value - 1.1).abs() < 1e-12 && ratio.half_width() < 1e-12);
    }

    #[test]
    fn an_outlier_does_not_move_the_median() {
        let mut samples = vec![10.0; 30];
        samples[7] = 1e6;
        assert_eq!(Median::of(&samples).unwrap().value, 10.0);
    }
}
