//! How far a result may be from the oracle's.

use std::fmt;

use super::plant;
use crate::error::{Error, Result};

/// What a comparison with the oracle found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Comparison {
    /// `max|got − exact|`; NaN or infinite if an element of `got` is.
    pub max_error: f64,
    /// What `max_error` may be at most.
    pub bound: f64,
    /// `‖got − exact‖₂ / ‖exact‖₂`; 0 where both norms are 0.
    pub relative_l2: f64,
    /// What `relative_l2` may be at most.
    pub relative_l2_bound: f64,
    /// Row and column of the element with the largest error; the first that is not finite, if there is one.
    pub worst: (usize, usize),
    /// That element.
    pub got: f32,
    /// The oracle's value of it.
    pub expected: f64,
    /// Rows and columns.
    pub shape: (usize, usize),
}

impl Comparison {
    /// Whether both errors are within their bounds.
    pub fn passed(&self) -> bool {
        // Written so that NaN fails.
        self.max_error <= self.bound && self.relative_l2 <= self.relative_l2_bound
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { max_error, bound, relative_l2, relative_l2_bound, worst, got, expected, shape } = self;
        write!(
            f,
            "max error {max_error:.3e} (bound {bound:.3e}) at row {}, column {} of [{}, {}]: got {got:e}, expected \
             {expected:e}; relative L2 error {relative_l2:.3e} (bound {relative_l2_bound:.3e})",
            worst.0, worst.1, shape.0, shape.1
        )
    }
}

/// Compares `got` with the oracle's `exact`, under bounds that the naive implementation's result sets.
///
/// An implementation in a 16-bit type cannot be exact, and how inexact it may be depends on the layer's depth, width
/// and values. So the yardstick is measured on the same inputs: the error of the naive implementation in the same type
/// ([`Rounding::To`](crate::cpu::oracle::Rounding::To)). A kernel fuses operations and so rounds less often than the
/// naive one, but it sums in f32 and in another order; the practice of FlashAttention's tests is to allow it twice the
/// naive error. Two bounds, both of which must hold:
///
/// - **The largest error of any element**: `max|got − exact| ≤ 2·max|naive − exact| + u·max|exact|`, where
///   `u = epsilon/2` is the relative error of one rounding to nearest. The second term is what storing an exact result
///   costs at most; without it, a tensor so small that all its naive values happen to round well would leave no room.
///   A maximum excuses no element: a million right ones do not make up for a wrong one.
/// - **The relative L2 error**: `‖got − exact‖/‖exact‖ ≤ 2·‖naive − exact‖/‖exact‖ + u`. Where one element is far
///   larger than the rest, the first bound is loose for all others; this one still sees a systematic error among them.
///
/// A bound that an all-zero result would satisfy proves nothing, and a reference that overflowed even less: both are
/// failures of their own.
///
/// `epsilon` is the distance from 1 to the next number of the type: [`Dtype::epsilon`](crate::Dtype::epsilon), or
/// `f32::EPSILON`. `got`, `exact` and `naive` are `[len / cols, cols]`, row-major.
///
/// # Errors
/// [`Error::Mismatch`] if the lengths differ, or are no positive multiple of `cols`. [`Error::Verification`], with the
/// worst element's coordinate, both values, the shape and the bounds, if a bound is broken or an element of `got` is
/// NaN or infinite; also if `exact` or `naive` is not finite, or `naive` is so far off that zeros would pass.
pub fn compare(got: &[f32], exact: &[f64], naive: &[f64], epsilon: f64, cols: usize) -> Result<Comparison> {
    if got.is_empty() || cols == 0 || !got.len().is_multiple_of(cols) {
        return Err(Error::mismatch("compare", "got", format!("{} elements", got.len()), format!("rows of {cols}")));
    }
    for (what, values) in [("exact", exact), ("naive", naive)] {
        if values.len() != got.len() {
            return Err(Error::mismatch("compare", what, format!("{} elements", values.len()), got.len()));
        }
        if let Some(i) = values.iter().position(|value| !value.is_finite()) {
            return Err(Error::Verification(format!(
                "the {what} reference is {} at row {}, column {}: nothing can be compared with it; use smaller inputs",
                values[i],
                i / cols,
                i % cols
            )));
        }
    }
    let got = &*plant::seen(got);
    let unit_roundoff = epsilon / 2.0;
    let widened = || got.iter().map(|&value| f64::from(value));
    let largest = exact.iter().fold(0.0, |max: f64, value| max.max(value.abs()));
    let worst = worst(widened(), exact);
    let comparison = Comparison {
        max_error: (f64::from(got[worst]) - exact[worst]).abs(),
        bound: 2.0 * max_error(naive, exact) + unit_roundoff * largest,
        relative_l2: relative_l2(widened(), exact),
        relative_l2_bound: 2.0 * relative_l2(naive.iter().copied(), exact) + unit_roundoff,
        worst: (worst / cols, worst % cols),
        got: got[worst],
        expected: exact[worst],
        shape: (got.len() / cols, cols),
    };
    if !comparison.passed() {
        return Err(Error::Verification(comparison.to_string()));
    }
    if comparison.relative_l2_bound >= 1.0 {
        return Err(Error::Verification(format!(
            "the naive implementation is so far off that zeros would pass: {comparison}"
        )));
    }
    Ok(comparison)
}

/// Index of the element with the largest error; of the first that is not finite, if there is one.
fn worst(got: impl Iterator<Item = f64>, exact: &[f64]) -> usize {
    let mut worst = (0, 0.0);
    for (i, (got, exact)) in got.zip(exact).enumerate() {
        if !got.is_finite() {
            return i;
        }
        let error = (got - exact).abs();
        if error > worst.1 {
            worst = (i, error);
        }
    }
    worst.0
}

fn max_error(values: &[f64], exact: &[f64]) -> f64 {
    values.iter().zip(exact).fold(0.0, |max, (value, exact)| max.max((value - exact).abs()))
}

fn relative_l2(values: impl Iterator<Item = f64>, exact: &[f64]) -> f64 {
    let (difference, norm) = values.zip(exact).fold((0.0, 0.0), |(difference, norm), (value, exact)| {
        (difference + (value - exact).powi(2), norm + exact.powi(2))
    });
    if difference == 0.0 { 0.0 } else { (difference / norm).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dtype;
    use crate::weights::random_activations;

    const COLS: usize = 1000;
    const EPSILON: f64 = Dtype::Bf16.epsilon();

    /// A million values, and the same rounded to bf16: the result of the best kernel and of the naive one.
    fn million() -> (Vec<f32>, Vec<f64>, Vec<f64>) {
        let values = random_activations(1000, COLS, 1);
        let got: Vec<f32> = values.iter().map(|&value| Dtype::Bf16.round(value)).collect();
        let exact = values.iter().map(|&value| f64::from(value)).collect();
        let naive = got.iter().map(|&value| f64::from(value)).collect();
        (got, exact, naive)
    }

    fn failure(got: &[f32], exact: &[f64], naive: &[f64]) -> String {
        match compare(got, exact, naive, EPSILON, COLS) {
            Err(Error::Verification(message)) => message,
            other => panic!("expected a failed verification, got {other:?}"),
        }
    }

    #[test]
    fn rounded_values_pass() {
        let (got, exact, naive) = million();
        let comparison = compare(&got, &exact, &naive, EPSILON, COLS).unwrap();
        assert!(comparison.max_error > 0.0 && comparison.max_error < comparison.bound);
        assert_eq!(comparison.shape, (1000, COLS));
        // An exact naive implementation still leaves room for one rounding.
        compare(&got, &exact, &exact, EPSILON, COLS).unwrap();
    }

    #[test]
    fn one_bad_element_among_a_million_fails_with_its_coordinate_and_values() {
        let (mut got, exact, naive) = million();
        let at = 123 * COLS + 45;
        got[at] += 0.1;
        let message = failure(&got, &exact, &naive);
        for part in ["row 123, column 45 of [1000, 1000]", &format!("got {:e}", got[at]), &format!("{:e}", exact[at])] {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
    }

    #[test]
    fn nan_and_infinity_fail() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let (mut got, exact, naive) = million();
            // A large finite error beside it must not hide it.
            got[7] = 1e30;
            got[654_321] = bad;
            assert!(failure(&got, &exact, &naive).contains("row 654, column 321"), "{bad}");
        }
    }

    #[test]
    fn zeros_and_small_systematic_errors_fail() {
        let (got, exact, naive) = million();
        failure(&vec![0.0; got.len()], &exact, &naive);
        // 1% too large everywhere: each element within the largest error's bound, all together not.
        let (mut got, mut exact, mut naive) = (got, exact, naive);
        (got[0], exact[0], naive[0]) = (512.0, 512.0, 512.0);
        got[1..].iter_mut().for_each(|value| *value *= 1.01);
        exact[1..].iter_mut().zip(&naive[1..]).for_each(|(exact, naive)| *exact = *naive);
        assert!(failure(&got, &exact, &naive).contains("relative L2"));
    }

    #[test]
    fn useless_references_fail() {
        let (got, exact, naive) = million();
        let mut overflowed = naive.clone();
        overflowed[3] = f64::INFINITY;
        assert!(failure(&got, &exact, &overflowed).contains("naive reference is inf at row 0, column 3"));
        let zeros = vec![0.0; naive.len()];
        assert!(failure(&vec![0.0; naive.len()], &exact, &zeros).contains("zeros would pass"));
    }

    #[test]
    fn where_zeros_are_expected_nothing_else_passes() {
        let (zeros, mut got) = ([0.0; 4], [0.0f32; 4]);
        compare(&got, &zeros, &zeros, EPSILON, 2).unwrap();
        got[2] = 1e-30;
        assert!(compare(&got, &zeros, &zeros, EPSILON, 2).is_err());
    }

    #[test]
    fn wrong_lengths_are_errors() {
        for (got, exact, naive, cols) in [(0, 0, 0, 1), (4, 4, 4, 0), (4, 4, 4, 3), (4, 3, 4, 2), (4, 4, 5, 2)] {
            let error = compare(&vec![1.0; got], &vec![1.0; exact], &vec![1.0; naive], EPSILON, cols).unwrap_err();
            assert!(matches!(error, Error::Mismatch { .. }), "{error}");
        }
    }
}
