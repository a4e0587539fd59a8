//! `paf report`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use paf_cuda::measure::{attention, compare, gemm, norm, plan, plot, report, trace};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::output::{Sink, print};

#[derive(Debug, Args)]
pub struct Arguments {
    /// Files that `paf speedup`, `paf compare`, `paf plan`, `paf trace` or `paf kernels …` wrote with --json.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Instead of tables, draw the ratios of all files, which must be `paf speedup`'s, beside their tokens: an SVG in a
    /// file, or on stdout (-).
    #[arg(long, value_name = "FILE|-")]
    plot: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Schema {
    schema: String,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    if let Some(sink) = Sink::open(arguments.plot.as_deref())? {
        let reports: Vec<_> = arguments.files.iter().map(|path| speedup(path)).collect::<Result<_>>()?;
        return sink.write(&plot::svg(&reports)?);
    }
    let tables: Vec<_> = arguments.files.iter().map(|path| markdown(path)).collect::<Result<_>>()?;
    print(&tables.join("\n"))
}

/// The table of one file, in Markdown.
fn markdown(path: &Path) -> Result<String> {
    let (text, schema) = read(path)?;
    let name = path.display();
    Ok(match schema.as_str() {
        report::SCHEMA => parse::<report::Report>(&text, path)?.markdown(),
        gemm::SCHEMA => parse::<gemm::Report>(&text, path)?.markdown(),
        attention::SCHEMA => parse::<attention::Report>(&text, path)?.markdown(),
        norm::SCHEMA => parse::<norm::Report>(&text, path)?.markdown(),
        compare::SCHEMA => parse::<compare::Report>(&text, path)?.markdown(),
        plan::SCHEMA => parse::<plan::Report>(&text, path)?.markdown(),
        trace::SCHEMA => parse::<trace::Trace>(&text, path)?.markdown(),
        _ => bail!(
            "{name} has schema {schema:?}, this build reads {:?}",
            [
                report::SCHEMA,
                gemm::SCHEMA,
                attention::SCHEMA,
                norm::SCHEMA,
                compare::SCHEMA,
                plan::SCHEMA,
                trace::SCHEMA
            ]
        ),
    })
}

/// A result of `paf speedup`.
fn speedup(path: &Path) -> Result<report::Report> {
    let (text, schema) = read(path)?;
    if schema != report::SCHEMA {
        bail!("{} has schema {schema:?}, a plot is made of {:?}", path.display(), report::SCHEMA);
    }
    parse(&text, path)
}

/// A file's text and its schema.
fn read(path: &Path) -> Result<(String, String)> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let Schema { schema } = parse(&text, path)?;
    Ok((text, schema))
}

fn parse<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T> {
    serde_json::from_str(text).with_context(|| {
        format!(
            "{} is no result of `paf speedup`, `paf compare`, `paf plan`, `paf trace` or `paf kernels`",
            path.display()
        )
    })
}
