//! A wrong result that tests plant, to see that whatever verifies refuses it.

use std::borrow::Cow;
use std::sync::OnceLock;

/// Set to anything but 0, it makes the first element that a check looks at wrong. Nothing but tests sets it, and only builds that have
/// the program look at it: others check for a program that they are part of.
const VARIABLE: &str = "PAF_PLANT_WRONG";

fn is_planted() -> bool {
    static PLANTED: OnceLock<bool> = OnceLock::new();
    let found = || std::env::var_os(VARIABLE).is_some_and(|value| !value.is_empty() && value != "0");
    cfg!(any(test, feature = "cli")) && *PLANTED.get_or_init(found)
}

/// Farther from the value than any bound is.
fn spoiled(value: f32) -> f32 {
    value + value.abs() + 1.0
}

/// What a check is to take for the result.
pub(crate) fn seen(got: &[f32]) -> Cow<'_, [f32]> {
    if !is_planted() {
        return Cow::Borrowed(got);
    }
    let mut got = got.to_vec();
    got.iter_mut().take(1).for_each(|value| *value = spoiled(*value));
    Cow::Owned(got)
}

/// The same of a result's bits.
#[cfg(feature = "cuda")]
pub(crate) fn seen_bits(mut got: Vec<u16>, dtype: crate::Dtype) -> Vec<u16> {
    if is_planted() {
        got.iter_mut().take(1).for_each(|bits| *bits = dtype.to_bits(spoiled(dtype.from_bits(*bits))));
    }
    got
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_variable_results_are_as_they_are() {
        let got = [1.5, -2.0];
        assert!(matches!(seen(&got), Cow::Borrowed(same) if same == got));
    }

    #[test]
    fn what_is_spoiled_is_far_off() {
        for value in [0.0, 1e-3, -0.25, -3.0, 700.0] {
            assert!((spoiled(value) - value).abs() >= 1.0 + f32::abs(value) * 0.99, "{value}");
        }
    }
}
