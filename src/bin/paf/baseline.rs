//! `--baseline`, which several commands have.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use clap::Args;
use paf_cuda::Error;
use paf_cuda::measure::baseline::{Identity, Timed, compare};
use paf_cuda::measure::report::percent;
use paf_cuda::measure::results::{self, Unreadable};
use serde::de::DeserializeOwned;

use super::options;
use super::report::read;

#[derive(Debug, Args)]
pub struct BaselineArguments {
    /// Compare with an earlier result of this command, which --json wrote, and exit with 3 if a row has become slower.
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// By how many per cent a time has to have grown to count; the 95 % interval of the ratio has to lie above 1 as well.
    #[arg(long, value_name = "PERCENT", default_value_t = 2.0, requires = "baseline")]
    threshold: f64,
}

/// An earlier result, read before anything is measured.
pub struct Baseline<R> {
    path: PathBuf,
    report: R,
    threshold: f64,
}

/// Rows that have become slower: not an error of the run, whose results are written.
#[derive(Debug)]
pub struct Slower(String);

impl std::fmt::Display for Slower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Slower {}

impl BaselineArguments {
    /// The earlier result, if there is to be one: of the command whose results have that schema.
    pub fn open<R: DeserializeOwned>(&self, schema: &'static str) -> Result<Option<Baseline<R>>> {
        let threshold = options::percent("threshold", self.threshold)?;
        let read = |path: &Path| {
            let text = read(path)?;
            let unreadable = |error: Unreadable| anyhow!("{} {error}", path.display());
            let found = results::schema(&text).map_err(unreadable)?;
            if found != schema {
                return Err(Error::Mismatch {
                    operation: "baseline",
                    what: "schema",
                    got: format!("{found:?} in {}", path.display()),
                    expected: format!("{schema:?}"),
                }
                .into());
            }
            Ok(Baseline {
                path: path.to_owned(),
                report: serde_json::from_str(&text).map_err(|error| unreadable(error.into()))?,
                threshold,
            })
        };
        self.baseline.as_deref().map(read).transpose()
    }
}

impl<R: Timed> Baseline<R> {
    /// Refuses a result that what will be measured cannot be compared with.
    pub fn check(&self, now: &Identity) -> Result<()> {
        Ok(now.check(&self.report.identity())?)
    }

    fn compare(&self, now: &R, again: impl FnOnce(&BTreeSet<usize>) -> Result<R>) -> (String, Result<()>) {
        let compared = || {
            let mut comparison = compare(now, &self.report, self.threshold)?;
            let doubtful = comparison.doubtful();
            if !doubtful.is_empty() {
                comparison.confirm(&compare(&again(&doubtful)?, &self.report, self.threshold)?);
            }
            Ok(comparison)
        };
        let comparison = match compared() {
            Ok(comparison) => comparison,
            Err(error) => return (String::new(), Err(error)),
        };
        let name = self.path.display();
        let text = format!("Beside {name}:\n{}", comparison.table());
        let slower: Vec<_> = comparison.regressions().collect();
        let worst = slower.iter().max_by(|a, b| a.ratio.median.total_cmp(&b.ratio.median));
        let verdict = worst.map_or(Ok(()), |worst| {
            Err(Slower(format!(
                "{} of {} rows are slower than in {name} by more than {} % and the noise; {} takes {:.3} times as long",
                slower.len(),
                comparison.rows.len(),
                percent(self.threshold),
                worst.name,
                worst.ratio.median
            ))
            .into())
        });
        (text, verdict)
    }
}

/// What the baseline says of a result, if there is one: text for under the table; and an error, for when the result is written, if
/// something has become slower or they cannot be compared. `again` measures the shapes of those indices once more.
pub fn compared<R: Timed>(
    baseline: Option<&Baseline<R>>,
    now: &R,
    again: impl FnOnce(&BTreeSet<usize>) -> Result<R>,
) -> (String, Result<()>) {
    baseline.map_or_else(|| (String::new(), Ok(())), |baseline| baseline.compare(now, again))
}

/// The shapes of those indices.
pub fn some<T: Clone>(shapes: &[T], indices: &BTreeSet<usize>) -> Vec<T> {
    indices.iter().map(|&i| shapes[i].clone()).collect()
}
