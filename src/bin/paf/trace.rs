//! `paf trace`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};
use paf_cuda::gpu::Plan;
use paf_cuda::gpu::cupti::Place;
use paf_cuda::measure::report::shape_name;
use paf_cuda::measure::speedup::{Choice, Step};
use paf_cuda::measure::trace::{Experiment, Source};
use paf_cuda::{Dtype, Error};

use super::options::{Launch, ModelArguments, ShapeArguments};
use super::output::{Sink, progress, write_result};
use super::select::DeviceArguments;

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Run the serial design, instead of the parallel one.
    #[arg(long)]
    saf: bool,
    #[command(flatten)]
    shapes: ShapeArguments,
    /// Schedule, or a whole plan as `paf plan` prints it; auto is what the planner finds to be the fastest.
    #[arg(long, default_value = "auto")]
    schedule: String,
    /// How to launch.
    #[arg(long, value_enum, default_value = "graph")]
    mode: Launch,
    /// Element type, bf16 or f16.
    #[arg(long, default_value = "bf16")]
    dtype: Dtype,
    #[command(flatten)]
    device: DeviceArguments,
    /// Where times come from: cupti; events, for --mode eager, which keep kernels of one stream apart; auto, the first if it is there
    #[arg(long, value_enum, default_value = "auto")]
    times: Times,
    /// libcupti.so, or the folder that it is in [default: PAF_CUPTI, else where the loader and CUDA installations have it]
    #[arg(long, value_name = "PATH")]
    cupti: Option<PathBuf>,
    /// Keep the device waiting before each call for so many µs, while the host launches it: what the device makes of an eager call by
    /// itself, without the gaps of a host that launches more slowly than the device runs.
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    head_start: u32,
    /// Seed of weights and activations.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the timeline to a file, which ui.perfetto.dev and chrome://tracing open, or to stdout (-).
    #[arg(long, value_name = "FILE|-")]
    json: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Times {
    Auto,
    Cupti,
    Events,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let experiment = experiment(arguments)?;
    let sink = Sink::open(arguments.json.as_deref())?;
    experiment.validate()?;
    let device = arguments.device.open()?;
    let bar = progress(experiment.config.num_hidden_layers);
    let shape = &experiment.shape;
    let shape = shape_name(shape.batch(), shape.seq_len(), shape.is_packed());
    let trace = experiment.run(&device, arguments.dtype, |step| match step {
        Step::Weights { n, of } => {
            bar.set_position(n as u64);
            bar.set_message(format!("weights of layer {n} of {of}"));
        }
        Step::Plan => bar.set_message(format!("planning {shape}")),
        Step::Verify => bar.set_message(format!("verifying {shape}")),
        Step::Round(_) => bar.set_message(format!("measuring {shape}")),
    });
    bar.finish_and_clear();
    let trace = trace?;
    let notes: String = trace.notes().iter().map(|line| format!("{line}\n")).collect();
    write_result(sink, &format!("{}\n{notes}", trace.table()), &trace.json())
}

fn experiment(arguments: &Arguments) -> Result<Experiment> {
    let model = arguments.model.model(false)?;
    let mut config = model.config;
    if arguments.saf {
        config.layer.design = config.layer.design.serial();
    }
    let plan = match arguments.schedule.contains(' ') {
        true => Some(arguments.schedule.parse()?),
        false => match arguments.schedule.parse()? {
            Choice::Fixed(schedule) => Some(Plan::from(schedule)),
            Choice::Auto => None,
        },
    };
    plan.map_or(Ok(()), |plan| plan.schedule().check(config.layer.design))?;
    let mut shapes = arguments.shapes.shapes(&[1], &[128])?;
    let shape = match (shapes.pop(), shapes.is_empty()) {
        (Some(shape), true) => shape,
        (_, _) => {
            let got = format!("{} shapes", shapes.len() + 1);
            return Err(Error::InvalidConfig { field: "batch, seq", got, expected: "one shape".into() }.into());
        }
    };
    let cupti = arguments.cupti.clone().or_else(|| std::env::var_os("PAF_CUPTI").map(PathBuf::from));
    // SAFETY: who names a file has it loaded as CUPTI, as with any library that a program is told to load.
    let cupti = cupti.map(|path| unsafe { Place::new(path) });
    Ok(Experiment {
        model: model.name,
        config,
        rotary_left_out: model.rotary_left_out,
        plan,
        mode: arguments.mode.into(),
        shape,
        seed: arguments.seed,
        source: match arguments.times {
            Times::Auto => Source::Auto(cupti),
            Times::Cupti => Source::Cupti(cupti),
            Times::Events => Source::Events,
        },
        head_start: Duration::from_micros(arguments.head_start.into()),
    })
}
