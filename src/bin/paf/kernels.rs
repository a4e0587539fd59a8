//! `paf kernels`.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Result;
use clap::{Args, Subcommand};
use comfy_table::Table;
use paf_cuda::gpu::kernel;
use paf_cuda::measure::attention::{self, Peer};
use paf_cuda::measure::peak::{self, Peak};
use paf_cuda::measure::timing::Effort;
use paf_cuda::measure::{gemm, norm};
use paf_cuda::{Dtype, Error};

use super::baseline::{BaselineArguments, compared, some};
use super::options::{self, NoiseArguments};
use super::output::{Sink, note, print, progress, warnings, write_result};
use super::select::DeviceArguments;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// The GEMM beside cuBLASLt (where that is installed), over the shapes of transformer layers.
    Gemm(Gemm),
    /// Attention beside PyTorch's cuDNN and FlashAttention-2 (where a Python has that).
    Attention(Attention),
    /// The join of a layer's branches, residual sum and norms, beside a copy of as many bytes.
    Norm(How),
    /// List every kernel with what it takes of a multiprocessor, as the driver compiled it.
    List(List),
}

#[derive(Debug, Args)]
pub struct List {
    /// Element type, bf16 or f16.
    #[arg(long, default_value = "bf16")]
    dtype: Dtype,
    #[command(flatten)]
    device: DeviceArguments,
}

/// Rounds that are made whatever they cost: kernels' times vary less than layers'.
const MIN_ROUNDS: usize = 7;

/// How to measure, whatever kernel.
#[derive(Debug, Args)]
pub struct How {
    /// Element type, bf16 or f16.
    #[arg(long, default_value = "bf16")]
    dtype: Dtype,
    #[command(flatten)]
    device: DeviceArguments,
    #[arg(long, default_value_t = 0.5, help = options::seconds_help("each shape", MIN_ROUNDS))]
    seconds: f64,
    #[command(flatten)]
    noise: NoiseArguments,
    #[command(flatten)]
    baseline: BaselineArguments,
    /// Write everything, with all raw samples, to a file, or to stdout (-).
    #[arg(long, value_name = "FILE|-")]
    json: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Gemm {
    /// Shapes, as MxNxK [default: 84 shapes of transformer layers]
    #[arg(long, value_delimiter = ',', value_parser = shape)]
    shapes: Vec<gemm::Shape>,
    /// Of the default shapes only those with at most so many rows; not with --shapes.
    #[arg(long, conflicts_with = "shapes")]
    max_m: Option<usize>,
    /// Of the default shapes only those with at least so many rows; not with --shapes.
    #[arg(long, conflicts_with = "shapes")]
    min_m: Option<usize>,
    /// Variants to measure beside the planned one, e.g. sm90:128x64:split4:stages8, or `all`.
    #[arg(long, value_delimiter = ',')]
    variants: Vec<String>,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, Args)]
pub struct Attention {
    /// Shapes, as BATCHxHEADSxSEQ_LENxHEAD_DIM, e.g. 8x16x512x64, 1x32/8x4096x128:causal [default: 15 of transformer layers]
    #[arg(long, value_delimiter = ',')]
    shapes: Vec<attention::Shape>,
    /// Variants to measure beside the planned one, e.g. sm90:rows128, or `all`.
    #[arg(long, value_delimiter = ',')]
    variants: Vec<String>,
    /// The Python whose PyTorch is measured beside it, or `none` [default: python3, if that has PyTorch]
    #[arg(long, value_name = "PYTHON")]
    peer: Option<String>,
    #[command(flatten)]
    how: How,
}

fn shape(text: &str) -> Result<gemm::Shape, String> {
    let positive = |part: &str| part.parse().ok().filter(|&number: &usize| number > 0);
    let numbers: Option<Vec<usize>> = text.split('x').map(positive).collect();
    match numbers.as_deref() {
        Some(&[m, n, k]) => Ok((m, n, k)),
        _ => Err(format!("{text:?} is not MxNxK, none of them 0, e.g. 128x4096x1024")),
    }
}

pub fn run(command: &Command) -> Result<()> {
    match command {
        Command::Gemm(arguments) => gemm(arguments),
        Command::Attention(arguments) => attention(arguments),
        Command::Norm(how) => norm(how),
        Command::List(arguments) => list(arguments),
    }
}

fn list(arguments: &List) -> Result<()> {
    let device = arguments.device.open()?;
    let mut table = Table::new();
    table.set_header(["module, kernel", "threads", "registers", "local bytes", "shared bytes, at most"]);
    for kernel in kernel::resources(&device, arguments.dtype)? {
        let numbers = [kernel.threads, kernel.registers, kernel.local_bytes, kernel.shared_bytes];
        table.add_row([kernel.name].into_iter().chain(numbers.map(|number| number.to_string())));
    }
    print(&table.to_string())
}

/// What the column "of measured" is about.
fn peak_line(peak: Option<&Peak>) -> String {
    peak.map_or_else(String::new, |peak| peak.line() + "\n")
}

impl How {
    fn effort(&self) -> Result<Effort> {
        let (budget, noise) = (options::seconds(self.seconds)?, Some(self.noise.share()?));
        Ok(Effort { min_rounds: MIN_ROUNDS, max_rounds: 101, budget, noise, ..Effort::default() })
    }
}

/// The variants that are named, and whether `all` is.
fn variants<V: FromStr<Err = Error>>(names: &[String]) -> Result<(Vec<V>, bool)> {
    let (all, named): (Vec<_>, Vec<_>) = names.iter().partition(|&name| name == "all");
    Ok((named.into_iter().map(|name| name.parse()).collect::<Result<_, _>>()?, !all.is_empty()))
}

fn gemm(arguments: &Gemm) -> Result<()> {
    let effort = arguments.how.effort()?;
    let (variants, every_variant) = variants(&arguments.variants)?;
    let mut shapes = if arguments.shapes.is_empty() { gemm::layer_shapes() } else { arguments.shapes.clone() };
    let rows = arguments.min_m.unwrap_or(0)..=arguments.max_m.unwrap_or(usize::MAX);
    shapes.retain(|(m, ..)| rows.contains(m));
    if shapes.is_empty() {
        let got = format!("{rows:?}");
        return Err(
            Error::InvalidConfig { field: "min-m, max-m", got, expected: "a range with shapes in it".into() }.into()
        );
    }
    let baseline = arguments.how.baseline.open(gemm::SCHEMA)?;
    let sink = Sink::open(arguments.how.json.as_deref())?;
    let dtype = arguments.how.dtype;
    let mut experiment = gemm::Experiment { shapes, dtype, variants, every_variant, peak: None, effort };
    let device = arguments.how.device.open()?;
    baseline.as_ref().map_or(Ok(()), |baseline| baseline.check(&experiment.identity(&device)))?;
    let bar = progress(experiment.shapes.len());
    bar.set_message("measuring the peak");
    experiment.peak = Some(peak::of_device(&device, dtype, effort)?.peak);
    let measured = |experiment: &gemm::Experiment| {
        experiment.run(&device, |i, (m, n, k)| {
            bar.set_position(i as u64);
            bar.set_message(format!("{m} × {n} × {k}"));
        })
    };
    let report = measured(&experiment)?;
    let (beside, verdict) = compared(baseline.as_ref(), &report, |doubtful| {
        let shapes = some(&experiment.shapes, doubtful);
        Ok(measured(&gemm::Experiment { shapes, ..experiment.clone() })?)
    });
    bar.finish_and_clear();
    if report.cublaslt_version.is_none() {
        note("cuBLASLt was not found (libcublasLt.so on the loader's path): measured without the peer");
    }
    let means = "\nTime of cuBLASLt / ours: geometric means over the planned variants\n";
    let text = report.table()
        + &peak_line(report.measured_peak.as_ref())
        + &warnings(&report.warnings())
        + means
        + &report.markdown()
        + &beside;
    write_result(sink, &text, &report.json())?;
    verdict
}

fn norm(how: &How) -> Result<()> {
    let effort = how.effort()?;
    let baseline = how.baseline.open(norm::SCHEMA)?;
    let sink = Sink::open(how.json.as_deref())?;
    let experiment = norm::Experiment { shapes: norm::layer_shapes(), dtype: how.dtype, effort };
    let device = how.device.open()?;
    baseline.as_ref().map_or(Ok(()), |baseline| baseline.check(&experiment.identity(&device)))?;
    let bar = progress(experiment.shapes.len());
    let measured = |experiment: &norm::Experiment| {
        experiment.run(&device, |step| match step {
            norm::Step::Verify(i, shape) => {
                bar.set_position(i as u64);
                bar.set_message(format!("verifying {} × {}", shape.rows, shape.hidden_size));
            }
            norm::Step::Measure => bar.set_message("measuring"),
        })
    };
    let report = measured(&experiment)?;
    // All of them again, whichever are in doubt: samples of few shapes would lie close together in time.
    let (beside, verdict) = compared(baseline.as_ref(), &report, |_| Ok(measured(&experiment)?));
    bar.finish_and_clear();
    let text = report.markdown() + &warnings(&report.warnings()) + &beside;
    write_result(sink, &text, &report.json())?;
    verdict
}

fn attention(arguments: &Attention) -> Result<()> {
    let effort = arguments.how.effort()?;
    let (variants, every_variant) = variants(&arguments.variants)?;
    let shapes = if arguments.shapes.is_empty() { attention::layer_shapes() } else { arguments.shapes.clone() };
    let baseline = arguments.how.baseline.open(attention::SCHEMA)?;
    let sink = Sink::open(arguments.how.json.as_deref())?;
    let dtype = arguments.how.dtype;
    let mut experiment = attention::Experiment { shapes, dtype, variants, every_variant, peak: None, effort };
    let device = arguments.how.device.open()?;
    baseline.as_ref().map_or(Ok(()), |baseline| baseline.check(&experiment.identity(&device)))?;
    let mut peer = match arguments.peer.as_deref() {
        Some("none") => None,
        Some(python) => Some(Peer::start(python, device.info().ordinal)?),
        None => match Peer::start("python3", device.info().ordinal) {
            Ok(peer) => Some(peer),
            Err(error) => {
                note(&format!("{error}: measured without it; --peer names a Python that has PyTorch"));
                None
            }
        },
    };
    let bar = progress(experiment.shapes.len());
    bar.set_message("measuring the peak");
    experiment.peak = Some(peak::of_device(&device, dtype, effort)?.peak);
    let mut measured = |experiment: &attention::Experiment| {
        experiment.run(&device, peer.as_mut(), |i, shape| {
            bar.set_position(i as u64);
            bar.set_message(shape.to_string());
        })
    };
    let report = measured(&experiment)?;
    let (beside, verdict) = compared(baseline.as_ref(), &report, |doubtful| {
        let shapes = some(&experiment.shapes, doubtful);
        Ok(measured(&attention::Experiment { shapes, ..experiment.clone() })?)
    });
    bar.finish_and_clear();
    let ratios = "\nTime of PyTorch's back ends / ours\n";
    let text = report.table()
        + &peak_line(report.measured_peak.as_ref())
        + &warnings(&report.warnings())
        + ratios
        + &report.markdown()
        + &beside;
    write_result(sink, &text, &report.json())?;
    verdict
}
