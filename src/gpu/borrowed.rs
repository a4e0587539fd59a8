//! What someone else owns: their context and streams, and the slices that cudarc has.

mod weights;

use std::mem::ManuallyDrop;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{CudaContext, CudaStream, DevicePtr, DevicePtrMut, DriverError, result};
pub use weights::{BorrowedLayer, ElementType, Location};

use super::batch::Batch;
use super::device::{Device, Stream, cuda_error, device_count};
use super::encoder::Encoder;
use super::memory::Tensor;
use super::plan::Plan;
use super::workspace::Workspace;
use crate::dtype::Dtype;
use crate::error::{Error, Result};

impl Device {
    /// The device of a context that cudarc has, which is kept for as long as the device is.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn from_cudarc(context: &Arc<CudaContext>) -> Result<Self> {
        Self::in_context(context.clone(), false)
    }

    /// The device of someone else's context, which is left to them: it is not destroyed when the device is dropped. Makes it current on
    /// this thread.
    ///
    /// # Errors
    /// As [`new`](Self::new); [`Error::Mismatch`] for a null context.
    ///
    /// # Safety
    /// The context is a live one, and stays so until the device and everything made on it are dropped.
    pub unsafe fn from_context(context: sys::CUcontext) -> Result<Self> {
        if context.is_null() {
            return Err(Error::mismatch("Device::from_context", "context", "null", "a CUcontext"));
        }
        let count = device_count()?;
        let failed = |error| cuda_error("entering a context", error);
        // SAFETY: the context is live, by the caller's promise.
        unsafe { result::ctx::set_current(context) }.map_err(failed)?;
        let mut device = 0;
        // SAFETY: writes one int to a live variable.
        unsafe { sys::cuCtxGetDevice(&mut device) }.result().map_err(failed)?;
        let ordinal = (0..count).find(|&ordinal| result::device::get(ordinal as i32) == Ok(device));
        let ordinal = ordinal.ok_or(Error::NoDevice { ordinal: device as usize, count })?;
        // SAFETY: a live context with its device. cudarc takes it as its own, to destroy it with the last reference: one is never
        // dropped, so that the context stays the caller's.
        let context = unsafe { CudaContext::from_raw_context(ordinal, device, context) }.map_err(failed)?;
        let _never_dropped = ManuallyDrop::new(context.clone());
        // SAFETY: no slice of cudarc's is ever made with this object.
        unsafe { context.disable_event_tracking() };
        Self::in_context(context, false)
    }
}

impl Stream {
    /// A stream that cudarc has, which is kept for as long as this one is.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for one of another context than the device's.
    pub fn from_cudarc(device: &Device, stream: &Arc<CudaStream>) -> Result<Self> {
        check_context("Stream::from_cudarc", device, stream.context().cu_ctx())?;
        Ok(Self::of(device, stream.clone()))
    }

    /// Someone else's stream, which is left to them; null and the driver's two handles of default streams are streams, too. Costs no
    /// more than a look at its context: it can be made anew for each call.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for one of another context than the device's, or one that the driver does not know, as far as it notices.
    ///
    /// # Safety
    /// The stream is live, and stays so for as long as this one is used.
    pub unsafe fn from_raw(device: &Device, stream: sys::CUstream) -> Result<Self> {
        const OPERATION: &str = "Stream::from_raw";
        device.enter()?;
        // 1 and 2 are the legacy and the thread's default stream, of whatever context is current.
        if stream.addr() > 2 {
            let mut context = std::ptr::null_mut();
            // SAFETY: the stream is live, by the caller's promise; the driver writes one handle.
            match unsafe { sys::cuStreamGetCtx(stream, &mut context) }.result() {
                // About the stream, not about the device's context.
                Err(
                    error @ DriverError(
                        CUresult::CUDA_ERROR_INVALID_HANDLE
                        | CUresult::CUDA_ERROR_INVALID_CONTEXT
                        | CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED,
                    ),
                ) => {
                    let got = format!("{stream:?}, of which the driver says {error}");
                    return Err(Error::mismatch(OPERATION, "stream", got, "a live stream"));
                }
                answer => device.check("asking for a stream's context", answer)?,
            }
            check_context(OPERATION, device, context)?;
        }
        // SAFETY: a live stream of this context, by the caller's promise; ordering is by its own events and ours.
        Ok(Self::of(device, unsafe { device.context().wrap_borrowed_stream(stream) }))
    }
}

fn check_context(operation: &'static str, device: &Device, context: sys::CUcontext) -> Result<()> {
    let own = device.context().cu_ctx();
    if context != own {
        let expected = format!("the device's, {own:?}");
        return Err(Error::mismatch(operation, "context", format!("{context:?}"), expected));
    }
    Ok(())
}

/// Gives this thread, when it is dropped, the context back that was current when it was made: for entries from other programs, which need
/// not know that ours makes its own current.
#[derive(Debug)]
pub(crate) struct CurrentContext(sys::CUcontext);

impl CurrentContext {
    /// There must be a driver.
    pub(crate) fn keep() -> Self {
        // An error is that of an earlier call, or that nothing has been initialised: then nothing was current.
        Self(result::ctx::get_current().ok().flatten().unwrap_or(std::ptr::null_mut()))
    }
}

impl Drop for CurrentContext {
    fn drop(&mut self) {
        // SAFETY: it was current before, or null, which makes none current.
        let _ = unsafe { result::ctx::set_current(self.0) };
    }
}

/// The element types of slices that kernels compute in: [`half::bf16`] and [`half::f16`].
pub trait Element: sealed::Sealed {
    /// Which one it is.
    const DTYPE: Dtype;
}

impl Element for half::bf16 {
    const DTYPE: Dtype = Dtype::Bf16;
}

impl Element for half::f16 {
    const DTYPE: Dtype = Dtype::F16;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for half::bf16 {}
    impl Sealed for half::f16 {}
}

impl Encoder {
    /// [`forward`](Self::forward) on slices or views of cudarc's, `[rows, hidden_size]` each, in the order that cudarc keeps: the call
    /// waits for what has written them, and what uses or frees them later waits for the call, unless their context's event tracking
    /// is disabled, when that order is the caller's affair. cudarc keeps it among what shares one `CudaContext` object: make the stream
    /// with [`Stream::from_cudarc`], of one of that object's streams.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); [`Error::Mismatch`] for a slice of another context, or whose `CudaContext` is not the stream's.
    pub fn forward_slices<T: Element>(
        &self,
        stream: &Stream,
        plan: impl Into<Plan>,
        batch: &Batch,
        x: &impl DevicePtr<T>,
        y: &mut impl DevicePtrMut<T>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        const OPERATION: &str = "Encoder::forward_slices";
        let (rows, cols) = (batch.shape().rows(), self.config().layer.hidden_size);
        for (what, len, context) in [("x", x.len(), x.stream().context()), ("y", y.len(), y.stream().context())] {
            if len != rows * cols {
                let expected = format!("{rows} rows · {cols} columns");
                return Err(Error::mismatch(OPERATION, what, format!("{len} elements"), expected));
            }
            check_context(OPERATION, self.device(), context.cu_ctx())?;
            // Another object of the same context would hear nothing of what the stream does.
            if !Arc::ptr_eq(context, stream.cudarc().context()) {
                let expected = "that of the stream, which Stream::from_cudarc takes from one of the object's streams";
                return Err(Error::mismatch(OPERATION, "CudaContext object of a slice", "another", expected));
            }
        }
        // These make the stream wait for what has used the slices, and when they are dropped tell later uses of what was enqueued.
        let (x, _read) = x.device_ptr(stream.cudarc());
        let (y, _written) = y.device_ptr_mut(stream.cudarc());
        // SAFETY: slices of this many elements, borrowed until all is enqueued, after which cudarc knows of the stream's uses.
        let (x, mut y) = unsafe {
            (
                Tensor::from_raw(self.device(), T::DTYPE, x, rows, cols)?,
                Tensor::from_raw(self.device(), T::DTYPE, y, rows, cols)?,
            )
        };
        self.forward(stream, plan, batch, &x, &mut y, workspace)
    }
}
