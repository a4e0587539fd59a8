//! `paf peak`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use paf_cuda::Dtype;
use paf_cuda::measure::peak;
use paf_cuda::measure::timing::Effort;

use super::options::{self, NoiseArguments};
use super::output::{Sink, warnings, write_result};
use super::select::{self, Backend, DeviceArguments};

#[derive(Debug, Args)]
pub struct Arguments {
    /// Element type of the product on a GPU, bf16 or f16. The CPU engine computes in f32.
    #[arg(long, default_value = "bf16")]
    dtype: Dtype,
    /// Where to run.
    #[arg(long, value_enum, default_value = "auto")]
    backend: Backend,
    #[command(flatten)]
    device: DeviceArguments,
    #[arg(long, default_value_t = 1.0, help = options::seconds_help("products", Effort::default().min_rounds))]
    seconds: f64,
    #[command(flatten)]
    noise: NoiseArguments,
    /// Write everything, with all raw samples, to a file, or to stdout (-).
    #[arg(long, value_name = "FILE|-")]
    json: Option<PathBuf>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let (budget, noise) = (options::seconds(arguments.seconds)?, arguments.noise.share()?);
    let sink = Sink::open(arguments.json.as_deref())?;
    #[cfg(feature = "cuda")]
    let report = match select::device(arguments.backend, &arguments.device)? {
        Some(device) => {
            let effort = Effort { budget, noise: Some(noise), ..Effort::default() };
            peak::of_device(&device, arguments.dtype, effort)?
        }
        None => peak::of_cpu()?,
    };
    #[cfg(not(feature = "cuda"))]
    let report = {
        let _ = (budget, noise);
        select::check(arguments.backend)?;
        peak::of_cpu()?
    };
    let text = report.text() + &warnings(&report.warnings());
    write_result(sink, &text, &report.json())
}
