//! Raw allocations: where they come from, how the host writes and reads them, when they are freed.

use cudarc::driver::{DriverError, result, sys};

use crate::error::{Error, Result};
use crate::gpu::device::{Device, Stream};

/// An allocation, owned or someone else's. Dropping an owned one waits for the device first, so that no kernel can still be using it.
#[derive(Debug)]
pub(in crate::gpu) struct Buffer {
    device: Device,
    pointer: sys::CUdeviceptr,
    bytes: usize,
    owner: Owner,
}

/// Who frees an allocation.
#[derive(Debug)]
enum Owner {
    /// The buffer.
    Buffer,
    /// Someone else, who has it longer than it is used here.
    Other,
    /// What is dropped with the buffer.
    #[cfg(feature = "dlpack")]
    Kept(#[expect(dead_code, reason = "is dropped, nothing more")] Box<dyn std::any::Any + Send + Sync>),
}

impl Buffer {
    /// `bytes` (at least 1) of uninitialised memory for `what`, aligned to 256 bytes.
    pub(in crate::gpu) fn new(device: &Device, what: &str, bytes: usize) -> Result<Self> {
        device.enter()?;
        // SAFETY: the result is owned here, and freed once, in `drop`.
        let pointer = match unsafe { result::malloc_sync(bytes) } {
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let (free_bytes, total_bytes) = device.memory_info().unwrap_or_default();
                return Err(Error::OutOfMemory {
                    what: what.to_owned(),
                    requested_bytes: bytes,
                    free_bytes,
                    total_bytes,
                });
            }
            answer => device.check("allocating", answer)?,
        };
        Ok(Self { device: device.clone(), pointer, bytes, owner: Owner::Buffer })
    }

    /// Memory that someone else frees.
    ///
    /// # Safety
    /// `bytes` from `pointer` on are the device's memory as long as the buffer, and what was enqueued with it, is in use.
    pub(in crate::gpu) unsafe fn borrowed(device: &Device, pointer: sys::CUdeviceptr, bytes: usize) -> Self {
        Self { device: device.clone(), pointer, bytes, owner: Owner::Other }
    }

    /// The same borrowed memory, whose owner is dropped with the buffer, when nothing uses it any more.
    #[cfg(feature = "dlpack")]
    pub(in crate::gpu) fn keeping(mut self, owner: Box<dyn std::any::Any + Send + Sync>) -> Self {
        self.owner = Owner::Kept(owner);
        self
    }

    pub(in crate::gpu) fn device(&self) -> &Device {
        &self.device
    }

    pub(in crate::gpu) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(in crate::gpu) fn pointer(&self) -> u64 {
        self.pointer
    }

    /// Copies `values` to `offset_bytes`, and waits until they are there.
    pub(in crate::gpu) fn write<T: bytemuck::NoUninit>(&self, offset_bytes: usize, values: &[T]) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        assert!(offset_bytes + bytes.len() <= self.bytes, "a write past the end of a buffer");
        self.device.enter()?;
        // SAFETY: inside the allocation, as just checked.
        let copied = unsafe { result::memcpy_htod_sync(self.pointer + offset_bytes as u64, bytes) };
        self.device.check("copying to the device", copied)?;
        // From pageable memory the call returns when the values are staged, not when they have arrived, and the streams of
        // this crate do not wait for the default stream that carries them.
        self.device.synchronize()
    }

    /// The whole content, after everything launched on the device has finished.
    pub(in crate::gpu) fn read_u16(&self) -> Result<Vec<u16>> {
        self.device.synchronize()?;
        let mut values = vec![0u16; self.bytes / 2];
        // SAFETY: the vector has the allocation's size.
        let copied = unsafe { result::memcpy_dtoh_sync(&mut values, self.pointer) };
        self.device.check("copying from the device", copied)?;
        Ok(values)
    }

    /// `len` values from `offset_bytes` on, after everything launched on the device has finished.
    pub(in crate::gpu) fn read_part<T: bytemuck::Pod>(&self, offset_bytes: usize, len: usize) -> Result<Vec<T>> {
        assert!(offset_bytes + len * size_of::<T>() <= self.bytes, "a read past the end of a buffer");
        self.device.synchronize()?;
        let mut values = vec![T::zeroed(); len];
        // SAFETY: inside the allocation, as just checked; any bits are a value.
        let copied = unsafe { result::memcpy_dtoh_sync(&mut values, self.pointer + offset_bytes as u64) };
        self.device.check("copying from the device", copied)?;
        Ok(values)
    }

    /// Enqueues a copy of `values` to `offset_bytes` on `stream`, in its order. The values may change when this returns.
    pub(in crate::gpu) fn write_on<T: bytemuck::NoUninit>(
        &self,
        stream: &Stream,
        offset_bytes: usize,
        values: &[T],
    ) -> Result<()> {
        if stream.is_capturing()? {
            return Err(Error::Unsupported {
                what: "a copy of the host's numbers in a stream capture".into(),
                remedy: "capture calls of an encoder, whose batch is on the device already".into(),
            });
        }
        // SAFETY: pageable memory, of which the driver has made its own copy when the call returns, in no capture.
        unsafe { self.write_from_page_locked(stream, offset_bytes, values) }
    }

    /// Enqueues a copy of `values` to `offset_bytes` on `stream`, in its order, and returns without waiting for it.
    ///
    /// # Safety
    /// `values` are page-locked memory, which stays as it is until the stream has run the copy.
    pub(in crate::gpu) unsafe fn write_from_page_locked<T: bytemuck::NoUninit>(
        &self,
        stream: &Stream,
        offset_bytes: usize,
        values: &[T],
    ) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        assert!(offset_bytes + bytes.len() <= self.bytes, "a write past the end of a buffer");
        self.device.enter()?;
        // SAFETY: inside the allocation, as just checked, which outlives the copy since it waits for the device before it is
        // freed; the source by the caller's promise.
        let copied = unsafe { result::memcpy_htod_async(self.pointer + offset_bytes as u64, bytes, stream.raw()) };
        self.device.check("copying to the device", copied)
    }

    /// Copies from `from` over and over until this buffer is full.
    pub(in crate::gpu) fn repeat(&self, from: &Self) -> Result<()> {
        self.device.synchronize()?;
        for offset in (0..self.bytes).step_by(from.bytes) {
            let bytes = from.bytes.min(self.bytes - offset);
            // SAFETY: inside both allocations.
            let copied = unsafe { result::memcpy_dtod_sync(self.pointer + offset as u64, from.pointer, bytes) };
            self.device.check("copying on the device", copied)?;
        }
        self.device.synchronize()
    }

    /// Enqueues on `stream`, in its order, the setting of every byte to 0.
    pub(in crate::gpu) fn zero_on(&self, stream: &Stream) -> Result<()> {
        self.device.enter()?;
        // SAFETY: inside the allocation, which outlives what is enqueued since it waits for the device before it is freed.
        let filled = unsafe { result::memset_d8_async(self.pointer, 0, self.bytes, stream.raw()) };
        self.device.check("clearing memory", filled)
    }

    /// Sets every 16-bit word, after everything launched on the device has finished.
    pub(in crate::gpu) fn fill_u16(&self, word: u16) -> Result<()> {
        self.device.synchronize()?;
        // SAFETY: inside the allocation.
        let filled = unsafe { sys::cuMemsetD16_v2(self.pointer, word, self.bytes / 2) }.result();
        self.device.check("filling memory", filled)?;
        self.device.synchronize()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // Errors here belong to earlier work, which reports them where it is waited for; in a lost context the memory is
        // gone already.
        if matches!(self.owner, Owner::Other) {
            return;
        }
        match (self.device.synchronize(), &mut self.owner) {
            // SAFETY: allocated by `new`, freed only here, and nothing runs on the device.
            (Ok(()), Owner::Buffer) => drop(unsafe { result::free_sync(self.pointer) }),
            // As inside a capture: something may still run that uses what would be given back.
            #[cfg(feature = "dlpack")]
            (Err(error), Owner::Kept(_)) if !matches!(error, Error::ContextLost { .. }) => {
                std::mem::forget(std::mem::replace(&mut self.owner, Owner::Other));
            }
            _ => {}
        }
    }
}
