//! Streams and events on a device.

use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::sys::{self, CUevent_flags};
use cudarc::driver::{CudaEvent, CudaStream, result};

use super::Device;
use crate::dtype::Dtype;
use crate::error::Result;

/// An ordered queue of work on a device. It does not wait for the legacy default stream.
#[derive(Debug, Clone)]
pub struct Stream {
    device: Device,
    inner: Arc<CudaStream>,
}

impl Stream {
    /// A new stream.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda), [`Error::ContextLost`](crate::Error::ContextLost).
    pub fn new(device: &Device) -> Result<Self> {
        device.enter()?;
        let inner = device.check("creating a stream", device.context().new_stream())?;
        Ok(Self { device: device.clone(), inner })
    }

    /// Waits for everything that was launched on the stream.
    ///
    /// # Errors
    /// An error of any kernel that ran before.
    pub fn synchronize(&self) -> Result<()> {
        self.device.enter()?;
        // SAFETY: the stream is live.
        self.device.check("synchronising a stream", unsafe { result::stream::synchronize(self.raw()) })
    }

    /// Whether what is launched on it is recorded instead of run.
    pub(in crate::gpu) fn is_capturing(&self) -> Result<bool> {
        self.device.enter()?;
        let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        // SAFETY: the stream is live; the driver writes one value.
        let asked = unsafe { sys::cuStreamIsCapturing(self.raw(), &mut status) }.result();
        self.device.check("asking whether a stream captures", asked)?;
        Ok(status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
    }

    /// The device that it belongs to.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Enqueues a kernel that occupies the stream for `time` and touches nothing: for tests of asynchrony and ordering.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda), [`Error::ContextLost`](crate::Error::ContextLost).
    pub fn hold_back(&self, time: Duration) -> Result<()> {
        self.device.enter()?;
        // The kernel is the same whatever the element type.
        self.device.kernels(Dtype::Bf16)?.hold_back(self, time)
    }

    /// Lets what is launched on this stream from now on wait for `event`.
    pub(in crate::gpu) fn wait(&self, event: &Event) -> Result<()> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: stream and event are live; the driver keeps what it needs of the event.
        let waiting = unsafe { result::stream::wait_event(self.raw(), event.inner.cu_event(), flags) };
        self.device.check("making a stream wait", waiting)
    }

    /// A stream that is there already.
    pub(in crate::gpu) fn of(device: &Device, inner: Arc<CudaStream>) -> Self {
        Self { device: device.clone(), inner }
    }

    pub(in crate::gpu) fn raw(&self) -> sys::CUstream {
        self.inner.cu_stream()
    }

    pub(in crate::gpu) fn cudarc(&self) -> &CudaStream {
        &self.inner
    }
}

/// A point in a stream's work.
#[derive(Debug)]
pub struct Event {
    device: Device,
    inner: CudaEvent,
}

impl Event {
    /// An event that can tell the time between itself and another.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda), [`Error::ContextLost`](crate::Error::ContextLost).
    pub fn new_timing(device: &Device) -> Result<Self> {
        Self::with_flags(device, CUevent_flags::CU_EVENT_DEFAULT)
    }

    /// An event for ordering only, which is cheaper.
    pub(in crate::gpu) fn new_ordering(device: &Device) -> Result<Self> {
        Self::with_flags(device, CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    fn with_flags(device: &Device, flags: CUevent_flags) -> Result<Self> {
        device.enter()?;
        let inner = device.check("creating an event", device.context().new_event(Some(flags)))?;
        Ok(Self { device: device.clone(), inner })
    }

    /// Marks the end of what has been launched on `stream` so far.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda), [`Error::ContextLost`](crate::Error::ContextLost).
    pub fn record(&self, stream: &Stream) -> Result<()> {
        self.device.enter()?;
        self.mark(stream)
    }

    /// [`record`](Self::record) on a thread that has entered the context.
    pub(in crate::gpu) fn mark(&self, stream: &Stream) -> Result<()> {
        // SAFETY: event and stream are live.
        let recorded = unsafe { result::event::record(self.inner.cu_event(), stream.raw()) };
        self.device.check("recording an event", recorded)
    }

    /// Waits until the stream has reached the event.
    ///
    /// # Errors
    /// An error of any kernel that ran before.
    pub fn synchronize(&self) -> Result<()> {
        self.device.enter()?;
        // SAFETY: the event is live.
        self.device.check("waiting for an event", unsafe { result::event::synchronize(self.inner.cu_event()) })
    }

    /// Device time from `start` to this event, µs; both must have been reached.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda) if one was not recorded, not reached, or does not keep time.
    pub fn elapsed_us_since(&self, start: &Self) -> Result<f64> {
        self.device.enter()?;
        // SAFETY: both events are live.
        let elapsed = unsafe { result::event::elapsed(start.inner.cu_event(), self.inner.cu_event()) };
        Ok(f64::from(self.device.check("reading the time between events", elapsed)?) * 1e3)
    }
}
