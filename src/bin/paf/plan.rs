//! `paf plan`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use paf_cuda::measure::plan::{Experiment, Report, Step};
use paf_cuda::measure::report::shape_name;
use paf_cuda::{BatchShape, Dtype};

use super::options::{self, ModelArguments, ShapeArguments};
use super::output::{Sink, progress, warnings, write_result};
use super::select::DeviceArguments;

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Plan the serial design (SAF) of these layers, which has but one schedule: the variants of its kernels.
    #[arg(long)]
    saf: bool,
    #[command(flatten)]
    shapes: ShapeArguments,
    /// Element type, bf16 or f16.
    #[arg(long, default_value = "bf16")]
    dtype: Dtype,
    #[command(flatten)]
    device: DeviceArguments,
    /// Seconds to measure each batch shape for.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Seed of the weights.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where plans are kept [default: $XDG_CACHE_HOME/paf-cuda/plans.json, or the same in ~/.cache]
    #[arg(long, value_name = "FILE")]
    cache: Option<PathBuf>,
    /// Measure again, and keep nothing.
    #[arg(long, conflicts_with = "cache")]
    no_cache: bool,
    /// List every plan that was measured.
    #[arg(long)]
    candidates: bool,
    /// Write everything to a file, or to stdout (-).
    #[arg(long, value_name = "FILE|-")]
    json: Option<PathBuf>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let budget = options::seconds(arguments.seconds)?;
    let model = arguments.model.model(false)?;
    let design = model.config.layer.design;
    let config = model.config.with_design(if arguments.saf { design.serial() } else { design });
    let shapes = match arguments.shapes.are_absent() {
        true => ladder()?,
        false => arguments.shapes.shapes(&[1], &[128])?,
    };
    let sink = Sink::open(arguments.json.as_deref())?;
    let device = arguments.device.open()?;
    let experiment = Experiment {
        model: model.name,
        config,
        rotary_left_out: model.rotary_left_out,
        dtype: arguments.dtype,
        shapes,
        seed: arguments.seed,
        budget,
        cache: cache(arguments),
    };
    let bar = progress(experiment.shapes.len());
    let report = experiment.run(&device, |step| match step {
        Step::Weights { n, of } => bar.set_message(format!("weights of layer {n} of {of}")),
        Step::Shape(i) => {
            let shape = &experiment.shapes[i];
            bar.set_position(i as u64);
            bar.set_message(format!("planning {}", shape_name(shape.batch(), shape.seq_len(), shape.is_packed())));
        }
    });
    bar.finish_and_clear();
    let report = report?;
    let text = text(&report, arguments.candidates) + &warnings(&report.warnings());
    write_result(sink, &text, &report.json())
}

/// Tokens from 64 to 16384, in sequences of 128 where they are more than one.
fn ladder() -> paf_cuda::Result<Vec<BatchShape>> {
    let doubled = (0..8).map(|log2| BatchShape::new(1 << log2, 128));
    std::iter::once(BatchShape::new(1, 64)).chain(doubled).collect()
}

fn cache(arguments: &Arguments) -> Option<PathBuf> {
    if arguments.no_cache {
        return None;
    }
    let folder = |variable| std::env::var_os(variable).map(PathBuf::from);
    arguments.cache.clone().or_else(|| default_cache(folder("XDG_CACHE_HOME"), folder("HOME")))
}

/// Where the XDG base directory specification has such files, which ignores relative folders; nowhere if there is not even a home.
fn default_cache(xdg: Option<PathBuf>, home: Option<PathBuf>) -> Option<PathBuf> {
    let absolute = |folder: Option<PathBuf>| folder.filter(|folder| folder.is_absolute());
    let folder = absolute(xdg).or_else(|| Some(absolute(home)?.join(".cache")))?;
    Some(folder.join("paf-cuda/plans.json"))
}

fn text(report: &Report, candidates: bool) -> String {
    let mut text = format!(
        "{}: {} layers of {}, {}, on {}, {}{}\n{}\n",
        report.model.as_deref().unwrap_or("custom dimensions"),
        report.config.num_hidden_layers,
        report.config.hidden_size,
        report.design,
        report.run.machine.name(),
        report.dtype,
        if report.config.rotary_left_out { ", rotary embeddings left out" } else { "" },
        report.table()
    );
    let mut part = |title: &str, lines: Vec<String>| text += &format!("{title}\n  {}\n", lines.join("\n  "));
    part("choices:", report.choices());
    if candidates {
        part("all that was measured:", report.candidates());
    }
    part("the fastest schedule by tokens, as measured:", report.crossover());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_are_kept_where_caches_are() {
        let path = |xdg: Option<&str>, home: Option<&str>| default_cache(xdg.map(Into::into), home.map(Into::into));
        assert_eq!(path(Some("/x"), Some("/h")), Some("/x/paf-cuda/plans.json".into()));
        for xdg in [None, Some(""), Some("relative")] {
            assert_eq!(path(xdg, Some("/h")), Some("/h/.cache/paf-cuda/plans.json".into()));
        }
        assert_eq!(path(None, None), None);
        assert_eq!(path(Some("relative"), Some("relative")), None);
    }

    #[test]
    fn the_ladder_doubles_tokens() {
        let tokens: Vec<_> = ladder().unwrap().iter().map(BatchShape::tokens).collect();
        assert_eq!(tokens, [64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384]);
    }
}
