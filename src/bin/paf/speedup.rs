//! `paf speedup`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};
use paf_cuda::config::{Rotary, preset};
use paf_cuda::measure::report::{Report, shape_name};
use paf_cuda::measure::speedup::{Engine, Experiment, Mode, Step};
use paf_cuda::measure::timing::Effort;
use paf_cuda::{BatchShape, Design, Dtype, EncoderConfig, Error, LayerConfig, Schedule};

use super::output::{Sink, note, print, progress};
use super::select::{self, Backend, DeviceArguments};

#[derive(Debug, Args)]
pub struct Arguments {
    /// A model's dimensions, by name (`paf models` lists them); roberta-large if no dimensions are given.
    #[arg(long, conflicts_with_all = ["hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size", "head_dim"])]
    model: Option<String>,
    #[arg(long, requires_all = ["num_attention_heads", "intermediate_size"])]
    hidden_size: Option<usize>,
    #[arg(long, requires = "hidden_size")]
    num_attention_heads: Option<usize>,
    /// Key and value heads, if they are fewer: a divisor of num_attention_heads.
    #[arg(long, requires = "hidden_size")]
    num_key_value_heads: Option<usize>,
    #[arg(long, requires = "hidden_size")]
    intermediate_size: Option<usize>,
    /// Width of a head, if it is not hidden_size / num_attention_heads.
    #[arg(long, requires = "hidden_size")]
    head_dim: Option<usize>,
    /// Where the norms are [default: as in the model]
    #[arg(long, value_enum)]
    design: Option<Norms>,
    /// Let a position attend only to itself and earlier ones, also where the model does not.
    #[arg(long)]
    causal: bool,
    /// Rotate so many dimensions of each query and key head.
    #[arg(long, requires = "hidden_size")]
    rotary_dim: Option<usize>,
    /// Base of the rotary angles.
    #[arg(long, requires = "rotary_dim", default_value_t = 10_000.0)]
    rotary_base: f32,
    /// Rotate neighbouring dimensions, as GPT-J does, instead of those half of rotary_dim apart.
    #[arg(long, requires = "rotary_dim")]
    rotary_interleaved: bool,
    /// Leave out a model's rotary embeddings, to see what they cost.
    #[arg(long, conflicts_with = "rotary_dim")]
    without_rotary: bool,
    /// Number of layers [default: the model's; on the CPU 4]
    #[arg(long)]
    layers: Option<usize>,
    /// Batch sizes [default: 1,8; on the CPU 1]
    #[arg(long, value_delimiter = ',')]
    batch: Vec<usize>,
    /// Sequence lengths.
    #[arg(long, value_delimiter = ',', default_value = "128,512")]
    seq: Vec<usize>,
    /// Valid tokens of each sequence of the batch; the rest is padding.
    #[arg(long, value_delimiter = ',')]
    lengths: Vec<usize>,
    /// Sequences of these lengths, one after the other without padding, instead of --batch and --seq.
    #[arg(long, value_delimiter = ',', conflicts_with_all = ["batch", "seq", "lengths"])]
    packed: Vec<usize>,
    /// Schedules of the parallel design [default: all four; on the CPU serial and two-stream]
    #[arg(long, value_delimiter = ',')]
    schedules: Vec<Schedule>,
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
    /// Seconds to sample each batch shape for.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Seed of weights and activations.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write everything, with all raw samples, to a file, or to stdout (-).
    #[arg(long, value_name = "FILE|-")]
    json: Option<PathBuf>,
    /// Write a line a variant to a file, or to stdout (-).
    #[arg(long, value_name = "FILE|-")]
    csv: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Norms {
    /// After the residual sum.
    Post,
    /// One, before both branches.
    Pre,
    /// One before each branch.
    PreTwo,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Launch {
    Eager,
    Graph,
}

/// Layers on the CPU if none are asked for: three variants of 1 × 512 then take seconds, not minutes, on two cores.
const CPU_LAYERS: usize = 4;

pub fn run(arguments: &Arguments) -> Result<()> {
    if !(arguments.seconds > 0.0 && arguments.seconds <= 3600.0) {
        let got = arguments.seconds.to_string();
        return Err(Error::InvalidConfig { field: "seconds", got, expected: "a number up to 3600".into() }.into());
    }
    let engine = engine(arguments)?;
    let experiment = experiment(arguments, matches!(engine, Engine::Cpu))?;
    let sinks = [Sink::open(arguments.json.as_deref())?, Sink::open(arguments.csv.as_deref())?];
    if sinks.iter().flatten().filter(|sink| sink.is_stdout()).count() > 1 {
        let expected = "stdout for at most one of --json and --csv".into();
        return Err(Error::InvalidConfig { field: "csv", got: "\"-\"".into(), expected }.into());
    }
    if let Some(threads) = arguments.threads {
        if threads == 0 || threads > 4096 {
            let got = threads.to_string();
            return Err(Error::InvalidConfig { field: "threads", got, expected: "1 to 4096".into() }.into());
        }
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    }

    let bar = progress(experiment.shapes.len() * (experiment.effort.max_rounds + experiment.effort.warm_up_rounds));
    let report = experiment.run(&engine, |i, step| {
        let shape = &experiment.shapes[i];
        let shape = shape_name(shape.batch(), shape.seq_len(), shape.is_packed());
        match step {
            Step::Weights { n, of } => bar.set_message(format!("weights of layer {n} of {of}")),
            Step::Verify => {
                bar.set_position((i * experiment.effort.max_rounds) as u64);
                bar.set_message(format!("verifying {shape}"));
            }
            Step::Round(_) => {
                bar.set_message(format!("measuring {shape}"));
                bar.inc(1);
            }
        }
    });
    bar.finish_and_clear();
    write(&report?, sinks)
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

fn experiment(arguments: &Arguments, cpu: bool) -> Result<Experiment> {
    let mut model = None;
    let mut config = match (arguments.hidden_size, arguments.num_attention_heads, arguments.intermediate_size) {
        (Some(hidden_size), Some(heads), Some(intermediate_size)) => {
            let mut layer = match arguments.head_dim {
                None => LayerConfig::new(hidden_size, heads, intermediate_size)?,
                // The default division need not work out: any valid one is the start.
                Some(head_dim) => {
                    let any = LayerConfig::new(hidden_size, 1, intermediate_size)?;
                    LayerConfig { num_attention_heads: heads, num_key_value_heads: heads, head_dim, ..any }
                }
            };
            layer.num_key_value_heads = arguments.num_key_value_heads.unwrap_or(heads);
            let (base, interleaved) = (arguments.rotary_base, arguments.rotary_interleaved);
            layer.rotary = arguments.rotary_dim.map(|dim| Rotary { dim, base, interleaved });
            layer.causal = arguments.causal;
            layer.validate()?;
            EncoderConfig { layer, num_hidden_layers: 24 }
        }
        _ => {
            let preset = preset(arguments.model.as_deref().unwrap_or("roberta-large"))?;
            model = Some(preset.name.to_owned());
            preset.config
        }
    };
    let layer = &mut config.layer;
    layer.causal |= arguments.causal;
    layer.design = match arguments.design {
        Some(Norms::Post) => Design::PafPostNorm,
        Some(Norms::Pre) => Design::PafPreNorm,
        Some(Norms::PreTwo) => Design::PafPreNormTwo,
        None => layer.design.parallel(),
    };
    let rotary_left_out = arguments.without_rotary && layer.rotary.take().is_some();
    config.num_hidden_layers = match arguments.layers {
        Some(layers) => layers,
        None if cpu => CPU_LAYERS.min(config.num_hidden_layers),
        None => config.num_hidden_layers,
    };
    config.validate()?;

    let mut shapes = Vec::new();
    if !arguments.packed.is_empty() {
        shapes.push(BatchShape::packed(arguments.packed.clone())?);
    }
    let default_batch: &[usize] = if cpu { &[1] } else { &[1, 8] };
    let batches = if arguments.batch.is_empty() { default_batch } else { &arguments.batch };
    let seqs = if shapes.is_empty() { arguments.seq.as_slice() } else { &[] };
    for &batch in batches {
        for &seq in seqs {
            let shape = BatchShape::new(batch, seq)?;
            let lengths = &arguments.lengths;
            shapes.push(if lengths.is_empty() { shape } else { shape.with_lengths(lengths.clone())? });
        }
    }
    let modes = arguments.modes.iter().map(|mode| match mode {
        Launch::Eager => Mode::Eager,
        Launch::Graph => Mode::Graph,
    });
    let (budget, effort) = (Duration::from_secs_f64(arguments.seconds), Effort::default());
    Ok(Experiment {
        model,
        config,
        rotary_left_out,
        schedules: arguments.schedules.clone(),
        modes: modes.collect(),
        shapes,
        seed: arguments.seed,
        effort: Effort { budget, ..effort },
    })
}

/// The table and what it means on stdout, or on stderr where stdout carries data; the data where it was asked for.
fn write(report: &Report, sinks: [Option<Sink>; 2]) -> Result<()> {
    let mut text = format!(
        "{}: {} layers of {} on {}, {}{}\n{}\n",
        report.model.as_deref().unwrap_or("custom dimensions"),
        report.config.num_hidden_layers,
        report.config.hidden_size,
        report.run.machine.device.as_deref().unwrap_or(&report.run.machine.cpu),
        report.dtype,
        if report.config.rotary_left_out { ", rotary embeddings left out" } else { "" },
        report.table()
    );
    let checked: usize = report.cases.iter().map(|case| case.verified.len()).sum();
    text += &format!(
        "verified before timing: {checked} comparisons with the f64 oracle; variants with the same kernels bitwise equal\n"
    );
    text += &format!("roofline: {}\n", report.ceilings.source);
    for line in report.losses() {
        text += &format!("note: {line}\n");
    }
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
