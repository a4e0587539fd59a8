//! A device: its context, capability and kernels; streams and events on it; the one place where CUDA's errors become ours.

mod stream;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};
use cudarc::driver::{CudaContext, DriverError, result};
pub use stream::{Event, Stream};

use super::launch::Kernels;
use super::memory::Buffer;
use super::once::Once;
use super::ptx;
use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its number among the devices that the process sees.
    pub ordinal: usize,
    /// The driver's name for it.
    pub name: String,
    /// Compute capability, (major, minor).
    pub compute_capability: (u32, u32),
    /// Newest CUDA version that the driver supports, (major, minor).
    pub cuda_driver_version: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Device memory.
    pub memory_bytes: u64,
    /// Level-2 cache.
    pub l2_bytes: u64,
    /// Shared memory that one block may ask for.
    pub shared_bytes_per_block: u32,
    /// Highest clock of the multiprocessors, kHz.
    pub sm_clock_khz: u32,
    /// The driver's identifier of this one card, as `nvidia-smi -L` prints it; empty where it tells none.
    pub uuid: String,
    /// PCI address, `domain:bus:device.function`: what other tools know the device by.
    pub pci_bus_id: String,
}

/// How many CUDA devices the process sees; 0 where the driver finds none.
///
/// # Errors
/// [`Error::NoDriver`] where the driver library cannot be loaded; [`Error::Cuda`] where it does not initialise.
pub fn device_count() -> Result<usize> {
    // SAFETY: only looks for the library; every other call of cudarc panics where it is missing.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::NoDriver);
    }
    match result::init() {
        Ok(()) => {}
        Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => return Ok(0),
        Err(error) => return Err(cuda_error("cuInit", error)),
    }
    let count = result::device::get_count().map_err(|error| cuda_error("cuDeviceGetCount", error))?;
    Ok(count.max(0) as usize)
}

/// Newest CUDA version that the installed driver supports, (major, minor).
///
/// # Errors
/// [`Error::NoDriver`] where there is none.
pub fn driver_version() -> Result<(u32, u32)> {
    // SAFETY: as in `device_count`.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::NoDriver);
    }
    let mut version = 0;
    // SAFETY: writes one int to a live variable.
    unsafe { sys::cuDriverGetVersion(&mut version) }
        .result()
        .map_err(|error| cuda_error("cuDriverGetVersion", error))?;
    Ok((version as u32 / 1000, version as u32 % 1000 / 10))
}

/// The driver's version, if it can load this build's PTX.
fn check_driver() -> Result<(u32, u32)> {
    let version = driver_version()?;
    if version < ptx::TOOLKIT_VERSION {
        let text = |(major, minor): (u32, u32)| format!("{major}.{minor}");
        return Err(Error::DriverTooOld { driver: text(version), needed: text(ptx::TOOLKIT_VERSION) });
    }
    Ok(version)
}

/// One CUDA device with a context on it: its primary one, or [someone else's](Self::from_context). Cheap to clone; usable from any thread.
#[derive(Clone)]
pub struct Device {
    inner: Arc<Inner>,
}

struct Inner {
    // Declared, so dropped, before the context that they live in.
    kernels: [Once<Kernels>; 2],
    context: Arc<CudaContext>,
    info: DeviceInfo,
    portable: bool,
    lost: OnceLock<String>,
}

/// Held while a stream captures and while a device is synchronised: the driver lets neither happen during the other in one
/// context, whichever threads they are on. One for all, since devices opened twice share their context.
static CAPTURING: Mutex<()> = Mutex::new(());

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Device").field(&self.inner.info).finish()
    }
}

impl Device {
    /// Opens device `ordinal`.
    ///
    /// # Errors
    /// [`Error::NoDriver`], [`Error::NoDevice`]; [`Error::DriverTooOld`] for this build's PTX; [`Error::Unsupported`]
    /// below compute capability 8.0; [`Error::Cuda`] for whatever else the driver says.
    pub fn new(ordinal: usize) -> Result<Self> {
        Self::open(ordinal, false)
    }

    /// Opens device `ordinal` for the portable kernels only, which run on every card: to test and to measure them on one that
    /// has kernels of its own.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn portable(ordinal: usize) -> Result<Self> {
        Self::open(ordinal, true)
    }

    fn open(ordinal: usize, portable: bool) -> Result<Self> {
        let count = device_count()?;
        if ordinal >= count {
            return Err(Error::NoDevice { ordinal, count });
        }
        check_driver()?;
        let context = CudaContext::new(ordinal).map_err(|error| cuda_error("opening the device", error))?;
        // SAFETY: no slice of cudarc's is ever made with this object, so there is nothing for its tracking to protect;
        // all ordering is by explicit events.
        unsafe { context.disable_event_tracking() };
        Self::in_context(context, portable)
    }

    /// A device in a context that is there.
    pub(super) fn in_context(context: Arc<CudaContext>, portable: bool) -> Result<Self> {
        let cuda_driver_version = check_driver()?;
        let info = describe(&context, context.ordinal(), cuda_driver_version)
            .map_err(|error| cuda_error("reading the device's attributes", error))?;
        if info.compute_capability < (8, 0) {
            let (major, minor) = info.compute_capability;
            return Err(Error::Unsupported {
                what: format!("{} (compute capability {major}.{minor})", info.name),
                remedy: "the kernels need 8.0 (Ampere) or newer; use the CPU engine (--backend cpu)".into(),
            });
        }
        let kernels = Default::default();
        Ok(Self { inner: Arc::new(Inner { kernels, context, info, portable, lost: OnceLock::new() }) })
    }

    /// What the device is.
    pub fn info(&self) -> &DeviceInfo {
        &self.inner.info
    }

    /// Waits for everything that was launched on the device, and for graphs that other threads are capturing through this
    /// crate. A capture by someone else in the same context would be broken by it, as the driver documents.
    ///
    /// # Errors
    /// An error of any kernel that ran before.
    pub fn synchronize(&self) -> Result<()> {
        self.enter()?;
        let _guard = Self::while_not_capturing();
        self.check("synchronising the device", result::ctx::synchronize())
    }

    /// Keeps this crate's captures and its synchronisations of whole devices apart.
    pub(super) fn while_not_capturing() -> MutexGuard<'static, ()> {
        // The mutex guards no data, so a panic while it was held has broken none.
        CAPTURING.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of device memory that are free now, and in all.
    ///
    /// # Errors
    /// [`Error::Cuda`], [`Error::ContextLost`].
    pub fn memory_info(&self) -> Result<(usize, usize)> {
        self.enter()?;
        self.check("reading free memory", result::mem_get_info())
    }

    /// Measured rate of a large device-to-device copy, bytes a second, counting both the read and the write; the median
    /// of ten copies of a quarter of the free memory, 1 GiB at most.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if less than 8 MiB can be had; [`Error::Cuda`], [`Error::ContextLost`].
    pub fn copy_bandwidth(&self) -> Result<f64> {
        let bytes = (self.memory_info()?.0 / 4).clamp(4 << 20, 1 << 30);
        let from = Buffer::new(self, "measuring bandwidth", bytes)?;
        let to = Buffer::new(self, "measuring bandwidth", bytes)?;
        let stream = Stream::new(self)?;
        let (start, end) = (Event::new_timing(self)?, Event::new_timing(self)?);
        from.fill_u16(0x3f80)?;
        let mut rates = Vec::new();
        for _ in 0..12 {
            start.record(&stream)?;
            // SAFETY: both buffers are live and of this size until the event below has passed.
            let copied = unsafe { result::memcpy_dtod_async(to.pointer(), from.pointer(), bytes, stream.raw()) };
            self.check("copying", copied)?;
            end.record(&stream)?;
            end.synchronize()?;
            rates.push(2.0 * bytes as f64 / (end.elapsed_us_since(&start)? * 1e-6));
        }
        let rates = &mut rates[2..]; // the first two warm up
        rates.sort_by(f64::total_cmp);
        Ok(rates[rates.len() / 2])
    }

    /// Makes the context current on this thread. Every entry starts here; after a sticky error none goes further.
    pub(crate) fn enter(&self) -> Result<()> {
        if let Some(cause) = self.inner.lost.get() {
            return Err(Error::ContextLost { cause: cause.clone() });
        }
        // SAFETY: the context lives as long as `inner`.
        self.check("entering the context", unsafe { result::ctx::set_current(self.inner.context.cu_ctx()) })
    }

    /// Turns the driver's answer into ours, and remembers errors that destroy the context.
    pub(super) fn check<T>(&self, operation: &'static str, answer: Result<T, DriverError>) -> Result<T> {
        answer.map_err(|error| {
            let ours = cuda_error(operation, error);
            if is_sticky(error.0) {
                let cause = self.inner.lost.get_or_init(|| ours.to_string());
                return Error::ContextLost { cause: cause.clone() };
            }
            ours
        })
    }

    /// The kernels for an element type, loaded (and by the driver compiled) at first use.
    pub(super) fn kernels(&self, dtype: Dtype) -> Result<&Kernels> {
        let index = match dtype {
            Dtype::Bf16 => 0,
            Dtype::F16 => 1,
        };
        self.inner.kernels[index].get_or_try(|| Kernels::load(self, dtype))
    }

    /// Loads the kernels for an element type, which else the first call that needs them does; in a stream capture none can be loaded.
    /// Making an [`Encoder`](super::Encoder) does this, too.
    ///
    /// # Errors
    /// [`Error::Cuda`], [`Error::ContextLost`].
    pub fn prepare(&self, dtype: Dtype) -> Result<()> {
        self.kernels(dtype).map(drop)
    }

    /// Whether it was opened for the portable kernels only.
    pub(super) fn is_portable(&self) -> bool {
        self.inner.portable
    }

    /// Whether Hopper's own kernels could run here, but do not. For measuring.
    #[cfg(feature = "cli")]
    pub(crate) fn leaves_hopper_kernels(&self) -> bool {
        self.inner.portable && self.is_hopper()
    }

    /// Whether Hopper's own kernels run here.
    pub(crate) fn uses_hopper_kernels(&self) -> bool {
        self.is_hopper() && !self.inner.portable
    }

    fn is_hopper(&self) -> bool {
        // Code for 9.0 with its architecture-specific instructions runs on 9.0 alone.
        self.inner.info.compute_capability == (9, 0)
    }

    pub(super) fn context(&self) -> &Arc<CudaContext> {
        &self.inner.context
    }

    /// Whether both are handles of one opened device.
    pub(super) fn same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }
}

fn describe(context: &CudaContext, ordinal: usize, cuda_driver_version: (u32, u32)) -> Result<DeviceInfo, DriverError> {
    let attribute = |attribute| context.attribute(attribute).map(|value| value.max(0) as u32);
    Ok(DeviceInfo {
        ordinal,
        name: context.name()?,
        compute_capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        cuda_driver_version,
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        memory_bytes: context.total_mem()? as u64,
        l2_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?.into(),
        shared_bytes_per_block: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        sm_clock_khz: attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?,
        uuid: context.uuid().map_or_else(|_| String::new(), |uuid| uuid_text(uuid.bytes.map(|byte| byte as u8))),
        pci_bus_id: format!(
            "{:08x}:{:02x}:{:02x}.0",
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID)?
        ),
    })
}

fn uuid_text(bytes: [u8; 16]) -> String {
    let digits =
        |range: std::ops::Range<usize>| bytes[range].iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("GPU-{}-{}-{}-{}-{}", digits(0..4), digits(4..6), digits(6..8), digits(8..10), digits(10..16))
}

/// Errors after which every later call in the context fails (the driver's documentation of each says so).
fn is_sticky(code: CUresult) -> bool {
    matches!(
        code,
        CUresult::CUDA_ERROR_ECC_UNCORRECTABLE
            | CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
            | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
            | CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUresult::CUDA_ERROR_ASSERT
            | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
            | CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUresult::CUDA_ERROR_INVALID_PC
            | CUresult::CUDA_ERROR_LAUNCH_FAILED
    )
}

pub(super) fn cuda_error(operation: &'static str, error: DriverError) -> Error {
    let text = |part: Result<&std::ffi::CStr, DriverError>| {
        part.map_or_else(|_| "unknown".to_owned(), |text| text.to_string_lossy().into_owned())
    };
    Error::Cuda {
        operation,
        code: error.0 as u32,
        text: format!("{} ({})", text(error.error_name()), text(error.error_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_written_as_nvidia_smi_does() {
        let bytes = std::array::from_fn(|i| 0xf0 + i as u8);
        assert_eq!(uuid_text(bytes), "GPU-f0f1f2f3-f4f5-f6f7-f8f9-fafbfcfdfeff");
    }
}
