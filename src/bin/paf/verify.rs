//! `paf verify`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use paf_cuda::verify::{self, Case, Comparison};
use serde_json::json;

use super::output::{Sink, note, print, progress};
use super::select::{self, Backend, DeviceArguments};

#[derive(Debug, Args)]
pub struct Arguments {
    /// Where to run.
    #[arg(long, value_enum, default_value = "auto")]
    backend: Backend,
    #[command(flatten)]
    device: DeviceArguments,
    /// Only cases whose names contain this.
    #[arg(long)]
    filter: Option<String>,
    /// A row a case, not only a row a family.
    #[arg(long)]
    all: bool,
    /// Write every case's errors and bounds to a file, or to stdout (-).
    #[arg(long, value_name = "FILE|-")]
    json: Option<PathBuf>,
}

/// Errors as shares of their bounds: over 1 is out of bounds.
fn share(found: &Comparison) -> f64 {
    (found.max_error / found.bound).max(found.relative_l2 / found.relative_l2_bound)
}

fn cases(arguments: &Arguments) -> Result<Vec<Case>> {
    #[cfg(feature = "cuda")]
    if let Some(device) = select::device(arguments.backend, &arguments.device)? {
        return Ok(verify::gpu::cases(&device));
    }
    #[cfg(not(feature = "cuda"))]
    select::check(arguments.backend)?;
    Ok(verify::cpu::cases())
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let sink = Sink::open(arguments.json.as_deref())?;
    let mut cases = cases(arguments)?;
    if let Some(filter) = &arguments.filter {
        cases.retain(|case| case.name.contains(filter));
        if cases.is_empty() {
            return Err(paf_cuda::Error::InvalidConfig {
                field: "filter",
                got: format!("{filter:?}"),
                expected: "a part of some case's name (see --all)".into(),
            }
            .into());
        }
    }

    let bar = progress(cases.len()).with_message("verifying");
    let mut results = Vec::new();
    for case in &cases {
        results.push((case.name.as_str(), case.run()));
        bar.inc(1);
    }
    bar.finish_and_clear();

    let failures: Vec<String> =
        results.iter().filter_map(|(name, result)| Some(format!("{name}: {}", result.as_ref().err()?))).collect();
    let table = if arguments.all { every_case(&results) } else { families(&results) };
    let summary = format!("{table}\n{} cases, {} failed\n", results.len(), failures.len());
    match sink {
        Some(sink) => {
            if sink.is_stdout() {
                note(summary.trim_end());
            } else {
                print(&summary)?;
            }
            sink.write(&(serde_json::to_string_pretty(&records(&results))? + "\n"))?;
        }
        None => print(&summary)?,
    }
    if !failures.is_empty() {
        bail!("{} of {} cases failed:\n{}", failures.len(), results.len(), failures.join("\n"));
    }
    Ok(())
}

type Named<'a> = (&'a str, paf_cuda::Result<Comparison>);

fn new_table(header: &[&str]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED).set_header(header.iter().copied());
    table
}

/// A row for each first two words of the names: kernel and element type.
fn families(results: &[Named<'_>]) -> comfy_table::Table {
    let mut families: BTreeMap<String, Vec<&Named<'_>>> = BTreeMap::new();
    for result in results {
        let family = result.0.split(' ').take(2).collect::<Vec<_>>().join(" ");
        families.entry(family).or_default().push(result);
    }
    let mut table = new_table(&["family", "cases", "failed", "worst error / bound", "in"]);
    for (family, results) in families {
        let passed = results.iter().filter_map(|(name, result)| Some((share(result.as_ref().ok()?), *name)));
        let worst = passed.max_by(|a, b| a.0.total_cmp(&b.0));
        let failed = results.iter().filter(|(_, result)| result.is_err()).count();
        table.add_row([
            family,
            results.len().to_string(),
            failed.to_string(),
            worst.map_or_else(|| "–".to_owned(), |(share, _)| format!("{share:.3}")),
            worst.map_or_else(String::new, |(_, name)| name.to_owned()),
        ]);
    }
    table
}

fn every_case(results: &[Named<'_>]) -> comfy_table::Table {
    let mut table = new_table(&["case", "max error", "bound", "relative L2", "bound", "result"]);
    for (name, result) in results {
        match result {
            Ok(found) => table.add_row([
                (*name).to_owned(),
                format!("{:.2e}", found.max_error),
                format!("{:.2e}", found.bound),
                format!("{:.2e}", found.relative_l2),
                format!("{:.2e}", found.relative_l2_bound),
                "ok".to_owned(),
            ]),
            Err(_) => table.add_row([name, "", "", "", "", "FAILED"]),
        };
    }
    table
}

fn records(results: &[Named<'_>]) -> serde_json::Value {
    let record = |(name, result): &Named<'_>| match result {
        Ok(found) => json!({
            "case": name,
            "max_error": found.max_error,
            "bound": found.bound,
            "relative_l2": found.relative_l2,
            "relative_l2_bound": found.relative_l2_bound,
        }),
        Err(error) => json!({ "case": name, "error": error.to_string() }),
    };
    json!({ "schema": "paf-cuda/verify/1", "cases": results.iter().map(record).collect::<Vec<_>>() })
}
