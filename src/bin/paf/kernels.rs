//! `paf kernels`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};
use comfy_table::Table;
use paf_cuda::gpu::kernel::{self, GemmVariant};
use paf_cuda::measure::gemm::{Experiment, Shape, layer_shapes};
use paf_cuda::measure::timing::Effort;
use paf_cuda::{Dtype, Error};

use super::output::{Sink, note, print, progress};
use super::select::DeviceArguments;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// The GEMM beside cuBLASLt (where that is installed), over the shapes of transformer layers.
    Gemm(Gemm),
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

#[derive(Debug, Args)]
pub struct Gemm {
    /// Shapes, as MxNxK [default: 84 shapes of transformer layers]
    #[arg(long, value_delimiter = ',', value_parser = shape)]
    shapes: Vec<Shape>,
    /// Of the default shapes only those with at most so many rows.
    #[arg(long)]
    max_m: Option<usize>,
    /// Of the default shapes only those with at least so many rows.
    #[arg(long)]
    min_m: Option<usize>,
    /// Element type, bf16 or f16.
    #[arg(long, default_value = "bf16")]
    dtype: Dtype,
    /// Variants to measure beside the planned one, e.g. sm90:128x64:split4:stages8, or `all`.
    #[arg(long, value_delimiter = ',')]
    variants: Vec<String>,
    #[command(flatten)]
    device: DeviceArguments,
    /// Seconds to sample each shape for.
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// Write everything, with all raw samples, to a file, or to stdout (-).
    #[arg(long, value_name = "FILE|-")]
    json: Option<PathBuf>,
}

fn shape(text: &str) -> Result<Shape, String> {
    let numbers: Option<Vec<usize>> = text.split('x').map(|part| part.parse().ok()).collect();
    match numbers.as_deref() {
        Some(&[m, n, k]) => Ok((m, n, k)),
        _ => Err(format!("{text:?} is not MxNxK, e.g. 128x4096x1024")),
    }
}

pub fn run(command: &Command) -> Result<()> {
    match command {
        Command::Gemm(arguments) => gemm(arguments),
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

fn gemm(arguments: &Gemm) -> Result<()> {
    if !(arguments.seconds > 0.0 && arguments.seconds <= 3600.0) {
        let got = arguments.seconds.to_string();
        return Err(Error::InvalidConfig { field: "seconds", got, expected: "a number up to 3600".into() }.into());
    }
    let every_variant = arguments.variants.iter().any(|variant| variant == "all");
    let named = arguments.variants.iter().filter(|&variant| variant != "all");
    let variants = named.map(|variant| variant.parse::<GemmVariant>()).collect::<Result<Vec<_>, _>>()?;
    let mut shapes = if arguments.shapes.is_empty() { layer_shapes() } else { arguments.shapes.clone() };
    let rows = arguments.min_m.unwrap_or(0)..=arguments.max_m.unwrap_or(usize::MAX);
    shapes.retain(|(m, ..)| rows.contains(m));
    if shapes.is_empty() {
        let got = format!("{rows:?}");
        return Err(
            Error::InvalidConfig { field: "min-m, max-m", got, expected: "a range with shapes in it".into() }.into()
        );
    }
    let sink = Sink::open(arguments.json.as_deref())?;
    let effort = Effort {
        min_rounds: 7,
        max_rounds: 101,
        budget: Duration::from_secs_f64(arguments.seconds),
        ..Effort::default()
    };
    let experiment = Experiment { shapes, dtype: arguments.dtype, variants, every_variant, effort };
    let device = arguments.device.open()?;
    let bar = progress(experiment.shapes.len());
    let report = experiment.run(&device, |i, (m, n, k)| {
        bar.set_position(i as u64);
        bar.set_message(format!("{m} × {n} × {k}"));
    })?;
    bar.finish_and_clear();
    if report.cublaslt_version.is_none() {
        note("cuBLASLt was not found (libcublasLt.so on the loader's path): measured without the peer");
    }
    let text =
        report.table() + "\nTime of cuBLASLt / ours: geometric means over the planned variants\n" + &report.markdown();
    match sink {
        Some(sink) => {
            if sink.is_stdout() {
                note(&text);
            } else {
                print(&text)?;
            }
            sink.write(&report.json())
        }
        None => print(&text),
    }
}
