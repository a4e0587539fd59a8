//! `paf report`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use paf_cuda::measure::report::{Report, SCHEMA};

use super::output::print;

#[derive(Debug, Args)]
pub struct Arguments {
    /// A file that `paf speedup --json` wrote.
    file: PathBuf,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let name = arguments.file.display();
    let text = std::fs::read_to_string(&arguments.file).with_context(|| format!("cannot read {name}"))?;
    let report: Report =
        serde_json::from_str(&text).with_context(|| format!("{name} is no result of `paf speedup`"))?;
    if report.schema != SCHEMA {
        bail!("{name} has schema {:?}, this build reads {SCHEMA:?}", report.schema);
    }
    print(&report.markdown())
}
