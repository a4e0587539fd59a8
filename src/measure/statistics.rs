//! Medians with intervals that hold for any distribution.

use std::sync::OnceLock;

use statrs::distribution::{Binomial, DiscreteCDF};

/// What the intervals are made for.
pub(super) const CONFIDENCE: f64 = 0.95;

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

/// Which of `n` samples are the ends of the interval, the k-th smallest and the k-th largest, and with what confidence: the largest k
/// that gives 95 %. The number of samples below the true median is binomial with p = ½ whatever the distribution (David and Nagaraja,
/// *Order Statistics*, section 7.1). For as many samples as measurements have it is found once: sampling asks again and again.
fn ends(n: usize) -> Option<(usize, f64)> {
    static KNOWN: [OnceLock<Option<(usize, f64)>>; 256] = [const { OnceLock::new() }; 256];
    let find = || {
        let below = Binomial::new(0.5, n as u64).ok()?;
        // P(the true median lies outside [x₍ₖ₎, x₍ₙ₊₁₋ₖ₎]) = 2·P(B ≤ k − 1).
        let miss = |k: usize| (2.0 * below.cdf(k as u64 - 1)).min(1.0);
        let k = (1..=n.div_ceil(2)).take_while(|&k| miss(k) <= 1.0 - CONFIDENCE).last().unwrap_or(1);
        Some((k, 1.0 - miss(k)))
    };
    KNOWN.get(n).map_or_else(find, |known| *known.get_or_init(find))
}

impl Median {
    /// Median and interval of a sample; `None` if it is empty or holds a NaN.
    pub fn of(samples: &[f64]) -> Option<Self> {
        if samples.is_empty() || samples.iter().any(|sample| sample.is_nan()) {
            return None;
        }
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        let value = (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0;
        let (k, confidence) = ends(n)?;
        Some(Self { value, low: sorted[k - 1], high: sorted[n - k], confidence })
    }

    /// The larger distance from the median to an end of the interval.
    pub fn half_width(&self) -> f64 {
        (self.high - self.value).max(self.value - self.low)
    }

    /// Whether the interval is one of 95 % and reaches no further than that share of the median to either side.
    pub fn is_within(&self, share: f64) -> bool {
        self.confidence >= CONFIDENCE && self.half_width() <= share * self.value.abs()
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

/// Ratio of the medians of two samples that have nothing to do with each other, as two runs at different times. `None` if one is empty,
/// or holds anything but positive numbers.
///
/// On a logarithmic scale a ratio is a difference, and each median has its own interval there, the one of [`Median::of`], which assumes
/// nothing about the distribution. Each end of the difference's interval is as far from the difference as both distances that can lead
/// there together, which add up as errors of independent samples do, by their squares: the *method of variance estimates recovery*
/// (Zou and Donner, Statistics in Medicine 27, 2008), which needs neither the two spreads to be alike nor the intervals to be symmetric.
/// Ends that simply combine the two intervals' ends would cover 99 % and hide what the samples show. The confidence stated is that of the
/// two intervals, the lesser one; by simulation the true ratio is covered as often as that, or more.
pub fn ratio_of_medians(numerators: &[f64], denominators: &[f64]) -> Option<Median> {
    let (top, bottom) = (Median::of(numerators)?, Median::of(denominators)?);
    if !(top.low > 0.0 && bottom.low > 0.0) {
        return None;
    }
    let above = |of: &Median| (of.high / of.value).ln();
    let below = |of: &Median| (of.value / of.low).ln();
    let value = top.value / bottom.value;
    Some(Median {
        value,
        low: value * (-below(&top).hypot(above(&bottom))).exp(),
        high: value * above(&top).hypot(below(&bottom)).exp(),
        confidence: top.confidence.min(bottom.confidence),
    })
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_distr::{Distribution, LogNormal};
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
        assert!(median.is_within(3.5 / 5.5) && !median.is_within(0.63));
        // Narrow, but of too few samples.
        assert!(!one.is_within(1.0));
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
    fn a_ratio_of_medians_is_that_and_its_interval_has_both_in_it() {
        let (a, b) = ([99.0, 100.0, 100.0, 100.0, 100.0, 102.0], [50.0; 6]);
        let ratio = ratio_of_medians(&a, &b).unwrap();
        assert!(
            (ratio.value - 2.0).abs() < 1e-12 && (ratio.low - 1.98).abs() < 1e-12 && (ratio.high - 2.04).abs() < 1e-12
        );
        // The other way round it is the reciprocal, ends swapped.
        let other = ratio_of_medians(&b, &a).unwrap();
        assert!((other.value * ratio.value - 1.0).abs() < 1e-12);
        assert!((other.low * ratio.high - 1.0).abs() < 1e-12 && (other.high * ratio.low - 1.0).abs() < 1e-12);
        // Two errors of a hundredth make one of a hundredth and a half.
        let ratio = ratio_of_medians(&a, &a).unwrap();
        let half = (100f64 / 99.0).ln().hypot(1.02f64.ln());
        assert!((ratio.low - (-half).exp()).abs() < 1e-12 && (ratio.high - half.exp()).abs() < 1e-12, "{ratio:?}");
        for bad in [&[][..], &[0.0; 6], &[-1.0; 6], &[f64::NAN; 6]] {
            assert_eq!((ratio_of_medians(&a, bad), ratio_of_medians(bad, &a)), (None, None), "{bad:?}");
        }
    }

    /// Times with a tail, whose median is known.
    fn times(rng: &mut Pcg64Mcg, median: f64, sigma: f64, n: usize) -> Vec<f64> {
        let normal = LogNormal::new(median.ln(), sigma).unwrap();
        // One in ten is late.
        (0..n).map(|_| normal.sample(rng) * if rng.random::<f64>() < 0.1 { 1.5 } else { 1.0 }).collect()
    }

    #[test]
    fn a_ratio_of_medians_covers_the_true_one_as_often_as_it_says() {
        let mut rng = Pcg64Mcg::seed_from_u64(3);
        for ((n, sigma), (other_n, other_sigma)) in
            [((11, 0.01), (11, 0.01)), ((201, 0.02), (11, 0.003)), ((7, 0.03), (101, 0.03)), ((59, 0.002), (59, 0.05))]
        {
            const TIMES: usize = 4000;
            // The late ones move the medians, in proportion the same where the spreads are: so the truth is a large sample's.
            let truth = Median::of(&times(&mut rng, 1.1, sigma, 400_001)).unwrap().value
                / Median::of(&times(&mut rng, 1.0, other_sigma, 400_001)).unwrap().value;
            let (mut covered, mut confidence) = (0, 0.0);
            for _ in 0..TIMES {
                let (a, b) = (times(&mut rng, 1.1, sigma, n), times(&mut rng, 1.0, other_sigma, other_n));
                let ratio = ratio_of_medians(&a, &b).unwrap();
                covered += usize::from((ratio.low..=ratio.high).contains(&truth));
                confidence = ratio.confidence;
            }
            let coverage = covered as f64 / TIMES as f64;
            let case = format!("{n} of {sigma} over {other_n} of {other_sigma}");
            assert!(confidence >= 0.95 && coverage > confidence - 0.01, "{case}: {coverage} for {confidence}");
            // Nor does it cover everything.
            assert!(coverage < 0.999, "{case}: {coverage}");
        }
    }

    #[test]
    fn an_outlier_does_not_move_the_median() {
        let mut samples = vec![10.0; 30];
        samples[7] = 1e6;
        assert_eq!(Median::of(&samples).unwrap().value, 10.0);
    }
}
