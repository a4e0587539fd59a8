//! Which engine to use.

use anyhow::Result;
use clap::{Args, ValueEnum};
#[cfg(feature = "cuda")]
use paf_cuda::gpu::{self, Device};

/// Where to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// The GPU if there is one, else the CPU.
    Auto,
    /// A CUDA device.
    Cuda,
    /// The f32 engine on the host.
    Cpu,
}

/// The choice of a device, for every command that runs kernels.
#[derive(Debug, Args)]
pub struct DeviceArguments {
    /// Number of the CUDA device.
    #[arg(long, default_value_t = 0)]
    device: usize,
    /// Use the kernels that run on every card, even where there are faster ones.
    #[arg(long)]
    portable: bool,
}

#[cfg(feature = "cuda")]
impl DeviceArguments {
    pub fn open(&self) -> Result<Device> {
        Ok(if self.portable { Device::portable(self.device)? } else { Device::new(self.device)? })
    }
}

#[cfg(feature = "cuda")]
pub fn device(backend: Backend, arguments: &DeviceArguments) -> Result<Option<Device>> {
    match backend {
        Backend::Cpu => Ok(None),
        Backend::Cuda => Ok(Some(arguments.open()?)),
        Backend::Auto => match gpu::device_count() {
            Ok(0) => {
                super::output::note("no CUDA device on this machine: using the CPU engine");
                Ok(None)
            }
            Err(paf_cuda::Error::NoDriver) => {
                super::output::note("no CUDA driver on this machine: using the CPU engine");
                Ok(None)
            }
            // A GPU that is there and does not work is no reason to measure something else.
            _ => Ok(Some(arguments.open()?)),
        },
    }
}

/// Without the kernels there is only one engine.
#[cfg(not(feature = "cuda"))]
pub fn check(backend: Backend) -> Result<()> {
    match backend {
        Backend::Cpu => Ok(()),
        Backend::Auto => {
            super::output::note("this build has no CUDA kernels: using the CPU engine");
            Ok(())
        }
        Backend::Cuda => anyhow::bail!("this build has no CUDA kernels: rebuild with the feature `cuda`"),
    }
}
