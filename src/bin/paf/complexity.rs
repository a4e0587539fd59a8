//! `paf complexity`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
#[cfg(feature = "cuda")]
use paf_cuda::gpu::Device;
use paf_cuda::measure::complexity::{Experiment, Report};
use paf_cuda::measure::devices::{self, Description};
use paf_cuda::measure::plot;
#[cfg(feature = "cuda")]
use paf_cuda::measure::timing::Effort;
use paf_cuda::{Dtype, Error};

#[cfg(feature = "cuda")]
use super::options::{self, SamplingArguments};
use super::options::{ShapeArguments, StackArguments};
#[cfg(feature = "cuda")]
use super::output::progress;
use super::output::{Sink, note, print, warnings};

#[derive(Debug, Args)]
#[cfg_attr(feature = "cuda", command(mut_arg("seconds", of_device)))]
pub struct Arguments {
    #[command(flatten)]
    stack: StackArguments,
    #[command(flatten)]
    shapes: ShapeArguments,
    /// Element type, bf16 or f16.
    #[arg(long, default_value = "bf16")]
    dtype: Dtype,
    /// What to predict for, without measuring: h200, h100, a100, l40s, rtx4090, or a description in a JSON file; or the number of a
    /// CUDA device, which is measured, too [default: CUDA device 0]
    #[arg(long, value_name = "NAME|FILE.json|N")]
    device: Option<String>,
    /// Use the kernels that run on every card, even where there are faster ones.
    #[cfg(feature = "cuda")]
    #[arg(long)]
    portable: bool,
    #[cfg(feature = "cuda")]
    #[command(flatten)]
    sampling: SamplingArguments,
    /// Write everything, with all raw samples, to a file, or to stdout (-).
    #[arg(long, value_name = "FILE|-")]
    json: Option<PathBuf>,
    /// Draw times and ratios beside seq_len: an SVG in a file, or on stdout (-).
    #[arg(long, value_name = "FILE|-")]
    plot: Option<PathBuf>,
}

/// `--seconds`, which is of account where there is a device.
#[cfg(feature = "cuda")]
fn of_device(seconds: clap::Arg) -> clap::Arg {
    let help = options::seconds_help("each batch shape on a CUDA device", Effort::default().min_rounds);
    seconds.default_value("2").help(help)
}

/// What `--device` names.
#[derive(Debug, PartialEq)]
enum Choice {
    Described(Description),
    /// A device that is present, by its number.
    Present(usize),
}

/// Sequence lengths, if none are asked for.
const SEQ_LENS: [usize; 8] = [64, 128, 256, 512, 1024, 2048, 4096, 8192];

pub fn run(arguments: &Arguments) -> Result<()> {
    let choice = choice(arguments.device.as_deref())?;
    let (model, weights) = arguments.stack.stack(false)?;
    let experiment = Experiment {
        model: model.name,
        config: model.config,
        rotary_left_out: model.rotary_left_out,
        weights,
        dtype: arguments.dtype,
        shapes: arguments.shapes.shapes(&[1], &SEQ_LENS)?,
    };
    let sinks = [Sink::open(arguments.json.as_deref())?, Sink::open(arguments.plot.as_deref())?];
    if sinks.iter().flatten().filter(|sink| sink.is_stdout()).count() > 1 {
        let expected = "stdout for at most one of --json and --plot".into();
        return Err(Error::InvalidConfig { field: "plot", got: "\"-\"".into(), expected }.into());
    }
    let report = match choice {
        Choice::Described(description) => experiment.predict(&description)?,
        #[cfg(feature = "cuda")]
        Choice::Present(ordinal) => measure(arguments, &experiment, ordinal)?,
        #[cfg(not(feature = "cuda"))]
        Choice::Present(_) => anyhow::bail!("this build has no CUDA kernels: {}", descriptions()),
    };
    write(&report, sinks)
}

/// What can be predicted for where there is no device.
fn descriptions() -> String {
    format!(
        "name what to predict for with --device: {}, or a JSON file that describes a device",
        devices::names().collect::<Vec<_>>().join(", ")
    )
}

fn choice(device: Option<&str>) -> Result<Choice> {
    let Some(device) = device else { return Ok(Choice::Present(0)) };
    if let Some(description) = devices::known(device) {
        return Ok(Choice::Described(description));
    }
    if let Ok(ordinal) = device.parse() {
        return Ok(Choice::Present(ordinal));
    }
    if !device.ends_with(".json") {
        let expected = format!("{}, a FILE.json, or a number", devices::names().collect::<Vec<_>>().join(", "));
        return Err(Error::InvalidConfig { field: "device", got: format!("{device:?}"), expected }.into());
    }
    let text = std::fs::read_to_string(Path::new(device)).with_context(|| format!("cannot read {device}"))?;
    Ok(Choice::Described(Description::parse(&text).with_context(|| format!("{device} describes no device"))?))
}

#[cfg(feature = "cuda")]
fn measure(arguments: &Arguments, experiment: &Experiment, ordinal: usize) -> Result<Report> {
    use paf_cuda::measure::complexity::Step;
    use paf_cuda::measure::report::shape_name;

    let effort = arguments.sampling.effort()?;
    let device = if arguments.portable { Device::portable(ordinal) } else { Device::new(ordinal) };
    let device = device.with_context(|| format!("without a device nothing can be measured: {}", descriptions()))?;
    let bar = progress(experiment.shapes.len());
    let report = experiment.measure(&device, arguments.sampling.seed, effort, |step| match step {
        Step::Weights { n, of } => bar.set_message(format!("weights of layer {n} of {of}")),
        Step::Shape(i) => {
            let shape = &experiment.shapes[i];
            bar.set_position(i as u64);
            bar.set_message(format!("measuring {}", shape_name(shape.batch(), shape.seq_len(), shape.is_packed())));
        }
    });
    bar.finish_and_clear();
    Ok(report?)
}

/// The tables on stdout, or on stderr where stdout carries data; the data where it was asked for.
fn write(report: &Report, sinks: [Option<Sink>; 2]) -> Result<()> {
    let mut text = report.table();
    for line in report.errors() {
        text += &format!("error: {line}\n");
    }
    text += &warnings(&report.warnings());
    if sinks.iter().flatten().any(Sink::is_stdout) {
        note(text.trim_end());
    } else {
        print(&text)?;
    }
    let [json, picture] = sinks;
    if let Some(sink) = json {
        sink.write(report.json())?;
    }
    if let Some(sink) = picture {
        sink.write(plot::complexity(report)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_names_numbers_and_files() {
        assert_eq!(choice(None).unwrap(), Choice::Present(0));
        assert_eq!(choice(Some("3")).unwrap(), Choice::Present(3));
        assert_eq!(choice(Some("h200")).unwrap(), Choice::Described(devices::known("h200").unwrap()));
        for (device, part) in [("h300", "l40s"), ("-1", "a number"), ("missing.json", "cannot read")] {
            let error = format!("{:#}", choice(Some(device)).unwrap_err());
            assert!(error.contains(device) && error.contains(part), "{error}");
        }
    }
}
