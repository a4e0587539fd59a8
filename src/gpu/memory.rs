//! Device memory: raw buffers, and 16-bit matrices in them.

use cudarc::driver::{DriverError, result, sys};
use rayon::prelude::*;

use super::device::{Device, Stream};
use super::staging::Staging;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::weights::Elements;

/// An owned allocation. Dropping it waits for the device first, so that no kernel can still be using it.
#[derive(Debug)]
pub(super) struct Buffer {
    device: Device,
    pointer: sys::CUdeviceptr,
    bytes: usize,
}

impl Buffer {
    /// `bytes` (at least 1) of uninitialised memory for `what`, aligned to 256 bytes.
    pub(super) fn new(device: &Device, what: &str, bytes: usize) -> Result<Self> {
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
        Ok(Self { device: device.clone(), pointer, bytes })
    }

    pub(super) fn pointer(&self) -> u64 {
        self.pointer
    }

    /// Copies `values` to `offset_bytes`, and waits until they are there.
    pub(super) fn write<T: bytemuck::NoUninit>(&self, offset_bytes: usize, values: &[T]) -> Result<()> {
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
    pub(super) fn read_u16(&self) -> Result<Vec<u16>> {
        self.device.synchronize()?;
        let mut values = vec![0u16; self.bytes / 2];
        // SAFETY: the vector has the allocation's size.
        let copied = unsafe { result::memcpy_dtoh_sync(&mut values, self.pointer) };
        self.device.check("copying from the device", copied)?;
        Ok(values)
    }

    /// `len` values from `offset_bytes` on, after everything launched on the device has finished.
    pub(super) fn read_part<T: bytemuck::Pod>(&self, offset_bytes: usize, len: usize) -> Result<Vec<T>> {
        assert!(offset_bytes + len * size_of::<T>() <= self.bytes, "a read past the end of a buffer");
        self.device.synchronize()?;
        let mut values = vec![T::zeroed(); len];
        // SAFETY: inside the allocation, as just checked; any bits are a value.
        let copied = unsafe { result::memcpy_dtoh_sync(&mut values, self.pointer + offset_bytes as u64) };
        self.device.check("copying from the device", copied)?;
        Ok(values)
    }

    /// Enqueues a copy of `values` to `offset_bytes` on `stream`, in its order. The values may change when this returns.
    pub(super) fn write_on<T: bytemuck::NoUninit>(
        &self,
        stream: &Stream,
        offset_bytes: usize,
        values: &[T],
    ) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        assert!(offset_bytes + bytes.len() <= self.bytes, "a write past the end of a buffer");
        self.device.enter()?;
        // SAFETY: inside the allocation, as just checked, which outlives the copy since it waits for the device before it is
        // freed. The source is pageable memory, of which the driver has made its own copy when the call returns.
        let copied = unsafe { result::memcpy_htod_async(self.pointer + offset_bytes as u64, bytes, stream.raw()) };
        self.device.check("copying to the device", copied)
    }

    /// Enqueues a copy of `values` to `offset_bytes` on `stream`, in its order, and returns without waiting for it.
    ///
    /// # Safety
    /// `values` are page-locked memory, which stays as it is until the stream has run the copy.
    pub(super) unsafe fn write_from_page_locked<T: bytemuck::NoUninit>(
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
    fn repeat(&self, from: &Self) -> Result<()> {
        self.device.synchronize()?;
        for offset in (0..self.bytes).step_by(from.bytes) {
            let bytes = from.bytes.min(self.bytes - offset);
            // SAFETY: inside both allocations.
            let copied = unsafe { result::memcpy_dtod_sync(self.pointer + offset as u64, from.pointer, bytes) };
            self.device.check("copying on the device", copied)?;
        }
        self.device.synchronize()
    }

    /// Sets every 16-bit word, after everything launched on the device has finished.
    pub(super) fn fill_u16(&self, word: u16) -> Result<()> {
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
        if self.device.synchronize().is_ok() {
            // SAFETY: allocated by `new`, freed only here, and nothing runs on the device.
            let _ = unsafe { result::free_sync(self.pointer) };
        }
    }
}

/// A matrix on the device: row-major, without gaps, 16-bit elements. Activations are `[rows, hidden_size]`.
#[derive(Debug)]
pub struct Tensor {
    buffer: Buffer,
    dtype: Dtype,
    rows: usize,
    cols: usize,
}

impl Tensor {
    /// A matrix of `rows · cols` values, each rounded to `dtype`.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if there are not `rows · cols` values, or none; [`Error::OutOfMemory`], [`Error::Cuda`],
    /// [`Error::ContextLost`].
    pub fn from_host(device: &Device, dtype: Dtype, rows: usize, cols: usize, values: &[f32]) -> Result<Self> {
        if rows.checked_mul(cols) != Some(values.len()) {
            return Err(Error::mismatch(
                "Tensor::from_host",
                "number of values",
                values.len(),
                format!("{rows} rows · {cols} columns"),
            ));
        }
        let tensor = Self::uninitialised(device, dtype, rows, cols)?;
        tensor.buffer.write(0, &to_bits(dtype, values))?;
        Ok(tensor)
    }

    /// A matrix in which every element is NaN: what a kernel fails to write stays visible.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for an empty matrix; [`Error::OutOfMemory`], [`Error::Cuda`], [`Error::ContextLost`].
    pub fn poisoned(device: &Device, dtype: Dtype, rows: usize, cols: usize) -> Result<Self> {
        let mut tensor = Self::uninitialised(device, dtype, rows, cols)?;
        tensor.poison()?;
        Ok(tensor)
    }

    /// A matrix on the same device that holds this one's elements in memory order, over and over: large operands for
    /// measurements without their passing through the host.
    ///
    /// # Errors
    /// As [`poisoned`](Self::poisoned).
    pub fn repeated(&self, rows: usize, cols: usize) -> Result<Self> {
        let tensor = Self::uninitialised(self.device(), self.dtype, rows, cols)?;
        tensor.buffer.repeat(&self.buffer)?;
        Ok(tensor)
    }

    /// One row as f32, after everything launched on the device has finished.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for a row that is not there; an error of any kernel that ran before.
    pub fn row(&self, row: usize) -> Result<Vec<f32>> {
        if row >= self.rows {
            return Err(Error::mismatch("Tensor::row", "row", row, format!("less than {}", self.rows)));
        }
        let bits: Vec<u16> = self.buffer.read_part(row * self.cols * Dtype::BYTES, self.cols)?;
        Ok(bits.into_iter().map(|bits| self.dtype.from_bits(bits)).collect())
    }

    /// Sets every element to NaN, after everything launched on the device has finished.
    ///
    /// # Errors
    /// [`Error::Cuda`], [`Error::ContextLost`].
    pub fn poison(&mut self) -> Result<()> {
        self.buffer.fill_u16(self.dtype.to_bits(f32::NAN))
    }

    /// `elements`, a matrix of `cols` columns, rounded to `dtype`, with rows of zeros after its own up to a multiple of
    /// `multiple` of them. They are there when `staging` has finished.
    pub(super) fn from_elements(
        staging: &mut Staging,
        device: &Device,
        dtype: Dtype,
        what: &'static str,
        elements: &dyn Elements,
        cols: usize,
        multiple: usize,
    ) -> Result<Self> {
        let len = elements.len();
        if len == 0 || !len.is_multiple_of(cols) {
            return Err(Error::mismatch("weights", what, format!("{len} elements"), format!("rows of {cols}")));
        }
        let rows = len / cols;
        let tensor = Self::uninitialised(device, dtype, rows.next_multiple_of(multiple), cols)?;
        staging.write(&tensor.buffer, 0, dtype, elements)?;
        if tensor.rows > rows {
            tensor.buffer.write(len * Dtype::BYTES, &vec![0u16; (tensor.rows - rows) * cols])?;
        }
        Ok(tensor)
    }

    /// The elements of the first `rows` rows as f32, after everything launched on the device has finished.
    pub(super) fn first_rows(&self, rows: usize) -> Result<Vec<f32>> {
        let bits: Vec<u16> = self.buffer.read_part(0, rows * self.cols)?;
        Ok(bits.par_iter().map(|&bits| self.dtype.from_bits(bits)).collect())
    }

    fn uninitialised(device: &Device, dtype: Dtype, rows: usize, cols: usize) -> Result<Self> {
        let bytes = rows.checked_mul(cols).and_then(|elements| elements.checked_mul(Dtype::BYTES));
        let Some(bytes) = bytes.filter(|&bytes| bytes > 0) else {
            return Err(Error::mismatch("Tensor", "shape", format!("{rows} × {cols}"), "a positive, addressable size"));
        };
        let buffer = Buffer::new(device, "a tensor", bytes)?;
        Ok(Self { buffer, dtype, rows, cols })
    }

    /// The elements as f32 (exact), after everything launched on the device has finished.
    ///
    /// # Errors
    /// An error of any kernel that ran before.
    pub fn to_host(&self) -> Result<Vec<f32>> {
        Ok(self.to_bits()?.par_iter().map(|&bits| self.dtype.from_bits(bits)).collect())
    }

    /// The elements' bits, after everything launched on the device has finished.
    ///
    /// # Errors
    /// An error of any kernel that ran before.
    pub fn to_bits(&self) -> Result<Vec<u16>> {
        self.buffer.read_u16()
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// (rows, columns).
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// The device that it lives on.
    pub fn device(&self) -> &Device {
        &self.buffer.device
    }

    #[cfg(feature = "cli")]
    pub(super) fn pointer(&self) -> u64 {
        self.buffer.pointer
    }

    pub(super) fn matrix(&self) -> Matrix {
        Matrix { pointer: self.buffer.pointer, rows: self.rows, cols: self.cols, stride: self.cols }
    }
}

/// f32 values on the device, for what kernels give beside 16-bit tensors.
#[derive(Debug)]
pub struct Floats {
    buffer: Buffer,
    len: usize,
}

impl Floats {
    /// `len` values, each NaN.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for a length of 0, or one that no address space holds; [`Error::OutOfMemory`], [`Error::Cuda`],
    /// [`Error::ContextLost`].
    pub fn poisoned(device: &Device, len: usize) -> Result<Self> {
        let bytes = len.checked_mul(size_of::<f32>()).filter(|&bytes| bytes > 0);
        let bytes = bytes.ok_or_else(|| Error::mismatch("Floats", "length", len, "a positive, addressable one"))?;
        let buffer = Buffer::new(device, "f32 values", bytes)?;
        buffer.fill_u16(0xffff)?;
        Ok(Self { buffer, len })
    }

    /// The values, after everything launched on the device has finished.
    ///
    /// # Errors
    /// An error of any kernel that ran before.
    pub fn to_host(&self) -> Result<Vec<f32>> {
        self.first(self.len)
    }

    /// The first `len` of them, after everything launched on the device has finished.
    pub(super) fn first(&self, len: usize) -> Result<Vec<f32>> {
        self.buffer.read_part(0, len)
    }

    /// Sets every value to NaN, after everything launched on the device has finished.
    pub(super) fn poison(&mut self) -> Result<()> {
        self.buffer.fill_u16(0xffff)
    }

    /// Number of values.
    #[expect(clippy::len_without_is_empty, reason = "there is always at least one")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The device that they live on.
    pub fn device(&self) -> &Device {
        &self.buffer.device
    }

    pub(super) fn pointer(&self) -> u64 {
        self.buffer.pointer
    }
}

pub(super) fn to_bits(dtype: Dtype, values: &[f32]) -> Vec<u16> {
    values.par_iter().map(|&value| dtype.to_bits(value)).collect()
}

/// Where a matrix of 16-bit elements lies on the device; owns nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Matrix {
    pub(super) pointer: u64,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Elements from one row to the next.
    pub(super) stride: usize,
}

impl Matrix {
    /// Bytes from the first element to the end of the last row.
    fn span(&self) -> (u64, u64) {
        let elements = (self.rows.max(1) - 1) * self.stride + self.cols;
        (self.pointer, self.pointer + (elements * Dtype::BYTES) as u64)
    }

    /// Whether the memory ranges of the two have a byte in common.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let ((a, a_end), (b, b_end)) = (self.span(), other.span());
        a < b_end && b < a_end
    }

    /// Checks what every kernel needs: rows that start on 16 bytes.
    pub(super) fn check_aligned(&self, operation: &'static str, what: &'static str) -> Result<()> {
        if !self.pointer.is_multiple_of(16) || !self.stride.is_multiple_of(8) || self.stride < self.cols {
            return Err(Error::mismatch(
                operation,
                what,
                format!("at {:#x} with {} columns, stride {}", self.pointer, self.cols, self.stride),
                "a 16-byte aligned pointer and a stride that is a multiple of 8, at least the columns",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_is_by_bytes() {
        let at = |pointer| Matrix { pointer, rows: 2, cols: 8, stride: 16 };
        // 16 + 8 elements: 48 bytes.
        assert!(at(0).overlaps(&at(46)));
        assert!(!at(0).overlaps(&at(48)));
        assert!(at(48).overlaps(&at(48)));
    }

    #[test]
    fn misaligned_matrices_are_refused_with_their_values() {
        let good = Matrix { pointer: 0x100, rows: 2, cols: 8, stride: 8 };
        good.check_aligned("gemm", "a").unwrap();
        for bad in [Matrix { pointer: 0x102, ..good }, Matrix { stride: 12, ..good }, Matrix { cols: 16, ..good }] {
            let message = bad.check_aligned("gemm", "a").unwrap_err().to_string();
            assert!(message.contains(&format!("{:#x}", bad.pointer)) && message.contains("stride"), "{message}");
        }
    }
}
