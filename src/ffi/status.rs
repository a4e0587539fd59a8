//! What a call came to.

use crate::error::Error;

/// What a call came to. 0 is success; paf_last_error has the text of every other.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PafStatus {
    /// Done, or enqueued.
    Ok = 0,
    /// A pointer, number, shape, alignment or text that the call cannot take.
    InvalidArgument = 1,
    /// A handle that was destroyed, is null, is of another kind, or never was one.
    InvalidHandle = 2,
    /// Valid, but nothing that this version or this device can do.
    Unsupported = 3,
    /// The CUDA driver library is not on this machine.
    NoDriver = 4,
    /// There is a driver but no device, or not the one asked for.
    NoDevice = 5,
    /// The driver cannot load this build's kernels.
    DriverTooOld = 6,
    /// The device's memory is exhausted. Everything that was there before still works.
    OutOfMemory = 7,
    /// A CUDA call failed; the context still works.
    CudaError = 8,
    /// A CUDA error has destroyed the context, in this call or before: no call with it can succeed any more. Handles can be destroyed.
    ContextLost = 9,
    /// Another thread is in a call with this encoder. Nothing was done. paf_encoder_clone makes one for each thread.
    Busy = 10,
    /// The workspace is smaller than paf_encoder_workspace_bytes says.
    WorkspaceTooSmall = 11,
    /// A defect of this library, which the text describes.
    Internal = 12,
}

/// A status that is not success, with its text.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) status: PafStatus,
    pub(super) text: String,
}

impl Failure {
    pub(super) fn invalid(text: impl Into<String>) -> Self {
        Self { status: PafStatus::InvalidArgument, text: text.into() }
    }
}

/// The driver's CUDA_ERROR_OUT_OF_MEMORY.
const OUT_OF_MEMORY: u32 = 2;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = match &error {
            Error::InvalidConfig { .. } | Error::Mismatch { .. } | Error::UnknownModel { .. } => {
                PafStatus::InvalidArgument
            }
            Error::Unsupported { .. } => PafStatus::Unsupported,
            Error::NoDriver => PafStatus::NoDriver,
            Error::NoDevice { .. } => PafStatus::NoDevice,
            Error::DriverTooOld { .. } => PafStatus::DriverTooOld,
            Error::OutOfMemory { .. } => PafStatus::OutOfMemory,
            Error::WorkspaceTooSmall { .. } => PafStatus::WorkspaceTooSmall,
            // Memory that was asked for by way of modules, streams, events.
            Error::Cuda { code: OUT_OF_MEMORY, .. } => PafStatus::OutOfMemory,
            Error::Cuda { .. } => PafStatus::CudaError,
            Error::ContextLost { .. } => PafStatus::ContextLost,
            Error::Verification(_) => PafStatus::Internal,
            // What the other features have is no part of this interface.
            #[cfg(feature = "checkpoint")]
            Error::Checkpoint(_) => PafStatus::Internal,
            #[cfg(feature = "cli")]
            Error::Peer { .. } => PafStatus::Internal,
        };
        Self { status, text: error.to_string() }
    }
}
