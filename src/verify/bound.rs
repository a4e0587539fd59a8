//! How far a result may be from the oracle.
//!
//! After FlashAttention's practice: a kernel may be at most twice as far from the exact result as a naive implementation in
//! the same element type is, on the same rounded inputs. To the maximum comes one rounding of the largest magnitude of
//! the output, since a naive result can be exact by luck (a single element, say) while any correct result may be one rounding
//! off. The relative L2 error is bounded likewise, so that no average excuses one bad element and no maximum a drift of all.

use crate::error::{Error, Result};

/// Errors of a result, beside their bounds.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Largest |got − exact|.
    pub max_error: f64,
    /// What it may be.
    pub max_error_bound: f64,
    /// ‖got − exact‖₂ / ‖exact‖₂.
    pub relative_l2: f64,
    /// What it may be.
    pub relative_l2_bound: f64,
}

/// Compares `got` (rows of `cols` values) with the exact result. `naive` is the same-type naive result, and `epsilon` the
/// distance from 1 to the next number of that type.
///
/// # Errors
/// [`Error::Verification`] naming `what`, the worst element's coordinate, both its values, the shape and the bound: if a
/// bound is exceeded, a value is NaN or infinite where the exact one is not, or the sizes differ.
pub fn compare(what: &str, got: &[f32], exact: &[f64], naive: &[f64], epsilon: f64, cols: usize) -> Result<Comparison> {
    if got.len() != exact.len() || naive.len() != exact.len() {
        let (got, exact, naive) = (got.len(), exact.len(), naive.len());
        return Err(Error::Verification(format!("{what}: {got} values beside {exact} exact and {naive} naive ones")));
    }
    let largest = exact.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
    let naive_max = naive.iter().zip(exact).fold(0.0f64, |max, (naive, exact)| max.max((naive - exact).abs()));
    let max_error_bound = 2.0 * naive_max + largest * epsilon / 2.0;
    let relative_l2_bound = 2.0 * relative_l2(naive.iter().copied(), exact) + epsilon / 2.0;

    let (mut worst, mut max_error) = (0, 0.0);
    for (i, (got, exact)) in got.iter().zip(exact).enumerate() {
        let error = (f64::from(*got) - exact).abs();
        // Not `>`: a NaN must win.
        #[expect(clippy::neg_cmp_op_on_partial_ord, reason = "NaN is the case that it is written for")]
        if !(error <= max_error) {
            (worst, max_error) = (i, error);
            if error.is_nan() {
                break;
            }
        }
    }
    let comparison = Comparison {
        max_error,
        max_error_bound,
        relative_l2: relative_l2(got.iter().map(|&x| f64::from(x)), exact),
        relative_l2_bound,
    };
    if max_error <= max_error_bound && comparison.relative_l2 <= relative_l2_bound {
        return Ok(comparison);
    }
    Err(Error::Verification(format!(
        "{what}: element ({}, {}) of {} × {cols} is {}, exactly {}; maximum error {max_error:.3e} (bound \
         {max_error_bound:.3e}), relative L2 error {:.3e} (bound {relative_l2_bound:.3e})",
        worst / cols,
        worst % cols,
        got.len() / cols,
        got[worst],
        exact[worst],
        comparison.relative_l2,
    )))
}

/// ‖values − exact‖₂ / ‖exact‖₂; 0 where both norms are 0.
fn relative_l2(values: impl Iterator<Item = f64>, exact: &[f64]) -> f64 {
    let difference: f64 = values.zip(exact).map(|(value, exact)| (value - exact).powi(2)).sum();
    let norm: f64 = exact.iter().map(|x| x * x).sum();
    if difference == 0.0 { 0.0 } else { (difference / norm).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(got: &[f32], exact: &[f64]) -> Result<Comparison> {
        let naive: Vec<f64> = exact.iter().map(|x| x * 1.001).collect();
        compare("test", got, exact, &naive, 1.0 / 128.0, 10)
    }

    #[test]
    fn one_bad_element_in_a_million_is_found_and_named() {
        let exact: Vec<f64> = (0..1_000_000).map(|i| f64::from(i % 97) / 97.0).collect();
        let mut got: Vec<f32> = exact.iter().map(|&x| x as f32).collect();
        check(&got, &exact).unwrap();
        got[123_456] += 0.02;
        let message = check(&got, &exact).unwrap_err().to_string();
        assert!(message.contains("(12345, 6) of 100000 × 10"), "{message}");
    }

    #[test]
    fn a_drift_of_all_elements_is_found() {
        let exact = vec![1.0; 1000];
        let got = vec![1.0 + 0.0058f32; 1000]; // inside the maximum's bound, 0.0059
        assert!(check(&got, &exact).is_ok());
        let mut large = exact.clone();
        large[0] = 100.0;
        let mut drifted: Vec<f32> = large.iter().map(|&x| x as f32 * 1.0f32).collect();
        drifted[1..].iter_mut().for_each(|x| *x += 0.3);
        assert!(check(&drifted, &large).unwrap_err().to_string().contains("relative L2"));
    }

    #[test]
    fn nan_infinity_zeros_and_wrong_sizes_fail() {
        let exact = vec![1.0; 100];
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut got = vec![1.0f32; 100];
            got[42] = bad;
            assert!(check(&got, &exact).unwrap_err().to_string().contains("(4, 2)"));
        }
        assert!(check(&[0.0; 100], &exact).is_err());
        assert!(check(&[1.0; 99], &exact).is_err());
    }

    #[test]
    fn exact_zeros_must_be_zeros() {
        assert!(compare("zeros", &[0.0; 4], &[0.0; 4], &[0.0; 4], 1.0 / 128.0, 2).is_ok());
        assert!(compare("zeros", &[0.0, 1e-30, 0.0, 0.0], &[0.0; 4], &[0.0; 4], 1.0 / 128.0, 2).is_err());
    }
}
