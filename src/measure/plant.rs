//! A slowdown that tests plant, to see that a comparison with an earlier result finds it. A result that it is in says so.

use std::sync::OnceLock;
use std::time::Duration;

use super::statistics::Median;
use crate::error::{Error, Result};

/// `WHAT:FACTOR`, as `gemm:1.05`: those candidates of a measurement whose name begins with WHAT then take that many times as long as
/// they do, by work that is done within what is timed; peers never do. Nothing but tests sets it.
const VARIABLE: &str = "PAF_PLANT_SLOWDOWN";

fn parse(text: &str) -> Option<(String, f64)> {
    let (what, factor) = text.rsplit_once(':')?;
    let factor = factor.parse().ok().filter(|factor| (1.0..=100.0).contains(factor))?;
    Some((what.to_owned(), factor))
}

/// What the variable is set to, if it is.
fn set() -> Option<String> {
    std::env::var(VARIABLE).ok().filter(|text| !text.is_empty())
}

/// What a result says of it, whether anything has that name or not.
pub(super) fn trace() -> Option<String> {
    set().map(|text| format!("{VARIABLE}={text}"))
}

/// By what a candidate of that name is to take longer.
fn factor(name: &str) -> Result<Option<f64>> {
    static PLANTED: OnceLock<Option<Option<(String, f64)>>> = OnceLock::new();
    match PLANTED.get_or_init(|| set().map(|text| parse(&text))) {
        None => Ok(None),
        Some(Some((what, factor))) => Ok(name.starts_with(what.as_str()).then_some(*factor)),
        Some(None) => Err(Error::InvalidConfig {
            field: VARIABLE,
            got: set().unwrap_or_default(),
            expected: "WHAT:FACTOR, the factor from 1 to 100".into(),
        }),
    }
}

/// How much longer a candidate of that name is to take each time, going by some samples of it, µs; `None` where nothing is planted.
pub(super) fn extra(name: &str, mut sample: impl FnMut() -> Result<f64>) -> Result<Option<Duration>> {
    const WARM_UP: usize = 2;
    const SAMPLES: usize = 9;
    let Some(factor) = factor(name)? else { return Ok(None) };
    let samples = (0..WARM_UP + SAMPLES).map(|_| sample()).collect::<Result<Vec<_>>>()?;
    let median = Median::of(&samples[WARM_UP..]).ok_or_else(|| Error::Verification("a time is not a number".into()))?;
    Ok(Some(Duration::from_secs_f64((factor - 1.0) * median.value * 1e-6)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_and_factor_are_read() {
        assert_eq!(parse("gemm:1.05"), Some(("gemm".into(), 1.05)));
        assert_eq!(parse("sm90:128x64:1.5"), Some(("sm90:128x64".into(), 1.5)));
        for bad in ["gemm", "gemm:", "gemm:0.9", "gemm:NaN", "gemm:101", ""] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn without_the_variable_nothing_takes_longer() {
        assert_eq!(extra("gemm", || panic!("nothing is to be sampled")).unwrap(), None);
        assert_eq!(trace(), None);
    }
}
