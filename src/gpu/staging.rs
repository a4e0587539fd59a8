//! Weights on their way from the host to the device: through two page-locked buffers in turn, one of which is filled while the
//! other's copy is under way.
//!
//! From pageable memory the driver would copy by way of buffers of its own, and the caller would wait meanwhile.

use std::ffi::c_void;
use std::ptr::NonNull;

use cudarc::driver::result;

use super::device::{Device, Event, Stream};
use super::memory::Buffer;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::weights::{Elements, pieces};

/// Elements that a buffer has room for at most: 8 MiB. Long enough for a copy to take much longer than its launch, and for all
/// cores to have a part in filling it; short enough for a layer of a large model to be many.
const PIECE: usize = 1 << 22;

/// The buffers, and the stream that carries them.
#[derive(Debug)]
pub(super) struct Staging {
    stream: Stream,
    buffers: [PageLocked; 2],
    /// Which one is filled next.
    next: usize,
}

impl Staging {
    /// Room for tensors of up to `largest` elements, or for pieces of them.
    pub(super) fn new(device: &Device, largest: usize) -> Result<Self> {
        let len = largest.clamp(1, PIECE);
        let buffers = [PageLocked::new(device, len)?, PageLocked::new(device, len)?];
        Ok(Self { stream: Stream::new(device)?, buffers, next: 0 })
    }

    /// Rounds `elements` to `dtype` and enqueues their copies to `offset_bytes` of `to`. They are there after [`finish`](Self::finish).
    pub(super) fn write(
        &mut self,
        to: &Buffer,
        offset_bytes: usize,
        dtype: Dtype,
        elements: &dyn Elements,
    ) -> Result<()> {
        for piece in pieces(elements.len(), self.buffers[0].len) {
            let buffer = &mut self.buffers[self.next];
            // What it held before may still be on its way.
            buffer.carried.synchronize()?;
            let (first, bits) = (piece.start, &mut buffer.bits()[..piece.len()]);
            elements.read_bits(first, dtype, bits)?;
            // SAFETY: page-locked memory that is next written when the event after this copy has been reached, and freed when the
            // stream has run it.
            unsafe { to.write_from_page_locked(&self.stream, offset_bytes + first * Dtype::BYTES, bits)? };
            self.buffers[self.next].carried.record(&self.stream)?;
            self.next = 1 - self.next;
        }
        Ok(())
    }

    /// Waits until everything has arrived.
    pub(super) fn finish(self) -> Result<()> {
        self.stream.synchronize()
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Before the buffers are freed; where it fails, the context is lost, and nothing is being copied any more.
        let _ = self.stream.synchronize();
    }
}

/// Memory of the host that the device reads without the driver's help.
#[derive(Debug)]
struct PageLocked {
    device: Device,
    pointer: NonNull<u16>,
    len: usize,
    /// The last copy out of it.
    carried: Event,
}

impl PageLocked {
    /// `len` elements (at least 1), zeros.
    fn new(device: &Device, len: usize) -> Result<Self> {
        device.enter()?;
        let carried = Event::new_ordering(device)?;
        // SAFETY: the result is owned here, and freed once, in `drop`.
        let allocated = unsafe { result::malloc_host(len * size_of::<u16>(), 0) };
        let pointer = device.check("allocating page-locked host memory", allocated)?;
        let pointer = NonNull::new(pointer.cast::<u16>()).ok_or_else(|| Error::Unsupported {
            what: "page-locked host memory".into(),
            remedy: "the driver gave none, and no error".into(),
        })?;
        // SAFETY: `len` elements were allocated.
        unsafe { pointer.write_bytes(0, len) };
        Ok(Self { device: device.clone(), pointer, len, carried })
    }

    fn bits(&mut self) -> &mut [u16] {
        // SAFETY: allocated, of that length and initialised by `new`, and borrowed as `self` is.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.len) }
    }
}

impl Drop for PageLocked {
    fn drop(&mut self) {
        // In a lost context the memory goes with it.
        if self.device.enter().is_ok() {
            // SAFETY: allocated by `new`, freed only here, and `Staging` has waited for the copies.
            let _ = unsafe { result::free_host(self.pointer.as_ptr().cast::<c_void>()) };
        }
    }
}
