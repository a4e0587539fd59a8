//! The one error type of the crate: what was being done, what was expected, what was found, what to do.

/// Result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong. Messages carry the actual values and, where there is one, the remedy.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A configuration field has a value that no layer can have.
    #[error("invalid configuration: {field} = {got}, expected {expected}")]
    InvalidConfig {
        /// Name of the field, as in Hugging Face's `config.json`.
        field: &'static str,
        /// The value found.
        got: String,
        /// What would be valid.
        expected: String,
    },
    /// A valid configuration that this version, engine or device cannot run.
    #[error("{what} is not supported: {remedy}")]
    Unsupported {
        /// The feature, with its value.
        what: String,
        /// What to do instead.
        remedy: String,
    },
    /// A buffer, shape, dtype or length does not fit the operation.
    #[error("{operation}: {what} is {got}, expected {expected}")]
    Mismatch {
        /// The operation that was asked for.
        operation: &'static str,
        /// The argument at fault.
        what: &'static str,
        /// The value found.
        got: String,
        /// What the operation needs.
        expected: String,
    },
    /// A model name that is no preset.
    #[error("unknown model {name:?}; known models: {known}")]
    UnknownModel {
        /// The name asked for.
        name: String,
        /// The names there are, separated by commas.
        known: String,
    },
    /// A checkpoint's files are not what a model of this crate can be read from.
    #[cfg(feature = "checkpoint")]
    #[error(transparent)]
    Checkpoint(crate::checkpoint::CheckpointError),
    /// The CUDA driver library is not on this machine.
    #[error(
        "no CUDA driver: libcuda.so could not be loaded; install NVIDIA's driver, or use the CPU engine (--backend cpu)"
    )]
    NoDriver,
    /// There is a driver but no device, or not the one asked for.
    #[error("no CUDA device {ordinal}: the driver reports {count}; check CUDA_VISIBLE_DEVICES and nvidia-smi")]
    NoDevice {
        /// The device asked for.
        ordinal: usize,
        /// How many devices the driver reports.
        count: usize,
    },
    /// The driver cannot load the PTX embedded in this build.
    #[error(
        "the CUDA driver is too old: it supports CUDA {driver}, this build's PTX needs {needed}; update the driver, or rebuild with PAF_NVCC naming an nvcc of CUDA {driver} or older"
    )]
    DriverTooOld {
        /// CUDA version that the driver supports, as `major.minor`.
        driver: String,
        /// CUDA version of the toolkit that made the PTX, as `major.minor`.
        needed: String,
    },
    /// The device's memory is exhausted.
    #[error(
        "out of device memory: {requested_bytes} bytes asked for {what}, {free_bytes} free of {total_bytes}; use fewer layers or tokens"
    )]
    OutOfMemory {
        /// What the memory was for.
        what: String,
        /// Bytes asked for.
        requested_bytes: usize,
        /// Bytes free on the device at that time.
        free_bytes: usize,
        /// Bytes the device has.
        total_bytes: usize,
    },
    /// The scratch memory that a forward call was lent is too small for it.
    #[error("the workspace has {given_bytes} bytes, this call needs {needed_bytes}")]
    WorkspaceTooSmall {
        /// Bytes that there are.
        given_bytes: usize,
        /// Bytes that the call needs.
        needed_bytes: usize,
    },
    /// A CUDA call failed; the context is still usable.
    #[error("{operation}: CUDA error {code}: {text}")]
    Cuda {
        /// The operation that was asked for.
        operation: &'static str,
        /// The driver's error code (`CUresult`).
        code: u32,
        /// The driver's name and description of it.
        text: String,
    },
    /// An earlier CUDA error destroyed the context: nothing on this device object can work any more.
    #[error(
        "the CUDA context is lost after an earlier error ({cause}); end the process, or at least make no further use of this device"
    )]
    ContextLost {
        /// The first error.
        cause: String,
    },
    /// A program that is measured beside this crate's kernels is missing or failed.
    #[cfg(feature = "cli")]
    #[error("the peer {peer} failed: {text}")]
    Peer {
        /// Its name.
        peer: &'static str,
        /// What it or the system said.
        text: String,
    },
    /// Two results that must agree do not.
    #[error("verification failed: {0}")]
    Verification(String),
}

impl Error {
    /// A [`Error::Mismatch`] from displayable values.
    pub(crate) fn mismatch(
        operation: &'static str,
        what: &'static str,
        got: impl std::fmt::Display,
        expected: impl std::fmt::Display,
    ) -> Self {
        Self::Mismatch { operation, what, got: got.to_string(), expected: expected.to_string() }
    }
}
