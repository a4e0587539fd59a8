//! `paf speedup`.

use std::path::PathBuf;

use anyhow::Result;
#[cfg(feature = "tokenizers")]
use clap::ArgGroup;
use clap::Args;
use paf_cuda::measure::report::{self, Report, shape_name};
use paf_cuda::measure::speedup::{Choice, Engine, Experiment, Mode, Step, Weights};
use paf_cuda::measure::timing::Effort;
use paf_cuda::{BatchShape, Dtype, Error};

use super::baseline::{BaselineArguments, compared, some};
use super::options::{Launch, SamplingArguments, ShapeArguments, StackArguments};
use super::output::{Sink, note, print, progress, warnings};
#[cfg(feature = "tokenizers")]
use super::run::texts::TextArguments;
use super::select::{self, Backend, DeviceArguments};

#[derive(Debug, Args)]
#[cfg_attr(
    feature = "tokenizers",
    command(group(
        ArgGroup::new("texts")
            .args(["text", "input"])
            .requires("checkpoint")
            .conflicts_with_all(["batch", "seq", "lengths", "packed"])
    ))
)]
pub struct Arguments {
    #[command(flatten)]
    stack: StackArguments,
    #[command(flatten)]
    shapes: ShapeArguments,
    /// Schedules of the parallel design; auto is what the planner finds to be the fastest, for SAF as well [default: all four and
    /// auto; on the CPU serial and two-stream]
    #[arg(long, value_delimiter = ',')]
    schedules: Vec<Choice>,
    /// Ways to launch.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "eager,graph")]
    modes: Vec<Launch>,
    /// Element type on a GPU, bf16 or f16. The CPU engine computes in f32.
    #[arg(long, default_value = "bf16")]
    dtype: Dtype,
    /// Where to run.
    #[arg(long, value_enum, default_value = "auto")]
    backend: Backend,
    #[command(flatten)]
    device: DeviceArguments,
    /// Threads of the CPU engine [default: all]
    #[arg(long)]
    threads: Option<usize>,
    #[command(flatten)]
    sampling: SamplingArguments,
    /// Write everything, with all raw samples, to a file, or to stdout (-).
    #[arg(long, value_name = "FILE|-")]
    json: Option<PathBuf>,
    /// Write a line a variant to a file, or to stdout (-).
    #[arg(long, value_name = "FILE|-")]
    csv: Option<PathBuf>,
    #[command(flatten)]
    baseline: BaselineArguments,
    #[cfg(feature = "tokenizers")]
    #[command(flatten, next_help_heading = "Texts, whose lengths in the checkpoint's tokens are one packed batch")]
    texts: TextArguments,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let effort = arguments.sampling.effort()?;
    if let Some(threads) = arguments.threads {
        if threads == 0 || threads > 4096 {
            let got = threads.to_string();
            return Err(Error::InvalidConfig { field: "threads", got, expected: "1 to 4096".into() }.into());
        }
        // Before anything runs on the pool, as texts' tokens are made on it: the first use makes it, and there is but one.
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    }
    let baseline = arguments.baseline.open::<Report>(report::SCHEMA)?;
    let engine = engine(arguments)?;
    let experiment = experiment(arguments, matches!(engine, Engine::Cpu), effort)?;
    let sinks = [Sink::open(arguments.json.as_deref())?, Sink::open(arguments.csv.as_deref())?];
    if sinks.iter().flatten().filter(|sink| sink.is_stdout()).count() > 1 {
        let expected = "stdout for at most one of --json and --csv".into();
        return Err(Error::InvalidConfig { field: "csv", got: "\"-\"".into(), expected }.into());
    }
    baseline.as_ref().map_or(Ok(()), |baseline| baseline.check(&experiment.identity(&engine)))?;

    let bar = progress(experiment.shapes.len() * (experiment.effort.max_rounds + experiment.effort.warm_up_rounds));
    let measured = |experiment: &Experiment| {
        experiment.run(&engine, |i, step| {
            let shape = &experiment.shapes[i];
            let shape = shape_name(shape.batch(), shape.seq_len(), shape.is_packed());
            match step {
                Step::Weights { n, of } => bar.set_message(format!("weights of layer {n} of {of}")),
                Step::Plan => {
                    bar.set_position((i * experiment.effort.max_rounds) as u64);
                    bar.set_message(format!("planning {shape}"));
                }
                Step::Verify => {
                    bar.set_message(format!("verifying {shape}"));
                }
                Step::Round(_) => {
                    bar.set_message(format!("measuring {shape}"));
                    bar.inc(1);
                }
            }
        })
    };
    let report = measured(&experiment).inspect_err(|_| bar.finish_and_clear())?;
    let (beside, verdict) = compared(baseline.as_ref(), &report, |doubtful| {
        let shapes = some(&experiment.shapes, doubtful);
        Ok(measured(&Experiment { shapes, ..experiment.clone() })?)
    });
    bar.finish_and_clear();
    write(&report, &beside, sinks)?;
    verdict
}

fn engine(arguments: &Arguments) -> Result<Engine> {
    #[cfg(feature = "cuda")]
    if let Some(device) = select::device(arguments.backend, &arguments.device)? {
        return Ok(Engine::Gpu(device, arguments.dtype));
    }
    #[cfg(not(feature = "cuda"))]
    select::check(arguments.backend)?;
    Ok(Engine::Cpu)
}

fn experiment(arguments: &Arguments, cpu: bool, effort: Effort) -> Result<Experiment> {
    let (model, weights) = arguments.stack.stack(cpu)?;
    let shapes = shapes(arguments, &weights, cpu)?;
    Ok(Experiment {
        model: model.name,
        config: model.config,
        rotary_left_out: model.rotary_left_out,
        schedules: arguments.schedules.clone(),
        modes: arguments.modes.iter().copied().map(Mode::from).collect(),
        shapes,
        weights,
        seed: arguments.sampling.seed,
        effort,
    })
}

/// The batches: that of the texts, if there are any.
#[cfg_attr(not(feature = "tokenizers"), expect(unused_variables, reason = "texts need a tokenizer"))]
fn shapes(arguments: &Arguments, weights: &Weights, cpu: bool) -> Result<Vec<BatchShape>> {
    #[cfg(feature = "tokenizers")]
    if let (Weights::Checkpoint(checkpoint), Some(folder), false) =
        (weights, &arguments.stack.checkpoint, arguments.texts.are_absent())
    {
        return Ok(vec![BatchShape::packed(arguments.texts.lengths(folder, checkpoint)?)?]);
    }
    arguments.shapes.shapes(if cpu { &[1] } else { &[1, 8] }, &[128, 512])
}

/// The table and what it means on stdout, or on stderr where stdout carries data; the data where it was asked for.
fn write(report: &Report, beside: &str, sinks: [Option<Sink>; 2]) -> Result<()> {
    let of_checkpoint = report.checkpoint.as_ref().map(|checkpoint| checkpoint.name.as_str());
    let name = of_checkpoint.or(report.model.as_deref()).unwrap_or("custom dimensions");
    let mut text = format!(
        "{}: {} layers of {} on {}, {}{}\n{}\n",
        name,
        report.config.num_hidden_layers,
        report.config.hidden_size,
        report.run.machine.name(),
        report.dtype,
        if report.config.rotary_left_out { ", rotary embeddings left out" } else { "" },
        report.table()
    );
    let checked: usize = report.cases.iter().map(|case| case.verified.len()).sum();
    text += &format!(
        "verified before timing: {checked} comparisons with the f64 oracle; variants with the same kernels bitwise equal\n"
    );
    text += &format!("roofline: {}\n", report.ceilings.source);
    for line in report.picks() {
        text += &format!("auto: {line}\n");
    }
    for line in report.losses() {
        text += &format!("note: {line}\n");
    }
    text += &warnings(&report.warnings());
    text += beside;
    if sinks.iter().flatten().any(Sink::is_stdout) {
        note(text.trim_end());
    } else {
        print(&text)?;
    }
    for (sink, data) in sinks.into_iter().zip([report.json(), report.csv()]) {
        if let Some(sink) = sink {
            sink.write(&data)?;
        }
    }
    Ok(())
}
