//! `paf report`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use paf_cuda::measure::{attention, gemm, plan, report};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::output::print;

#[derive(Debug, Args)]
pub struct Arguments {
    /// A file that `paf speedup`, `paf plan` or `paf kernels …` wrote with --json.
    file: PathBuf,
}

#[derive(Deserialize)]
struct Schema {
    schema: String,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let name = arguments.file.display();
    let text = std::fs::read_to_string(&arguments.file).with_context(|| format!("cannot read {name}"))?;
    let Schema { schema } = parse(&text, &name)?;
    print(&match schema.as_str() {
        report::SCHEMA => parse::<report::Report>(&text, &name)?.markdown(),
        gemm::SCHEMA => parse::<gemm::Report>(&text, &name)?.markdown(),
        attention::SCHEMA => parse::<attention::Report>(&text, &name)?.markdown(),
        plan::SCHEMA => parse::<plan::Report>(&text, &name)?.markdown(),
        _ => bail!(
            "{name} has schema {schema:?}, this build reads {:?}",
            [report::SCHEMA, gemm::SCHEMA, attention::SCHEMA, plan::SCHEMA]
        ),
    })
}

fn parse<T: DeserializeOwned>(text: &str, name: &dyn std::fmt::Display) -> Result<T> {
    serde_json::from_str(text)
        .with_context(|| format!("{name} is no result of `paf speedup`, `paf plan` or `paf kernels`"))
}
