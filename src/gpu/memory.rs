//! Device memory: raw buffers, and 16-bit matrices in them.

mod buffer;

pub(super) use buffer::Buffer;
use rayon::prelude::*;

use super::device::Device;
use super::staging::Staging;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::weights::Elements;

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

    /// A matrix in memory that someone else owns and frees, at `pointer` (a `CUdeviceptr`, aligned to 16 bytes).
    ///
    /// # Errors
    /// [`Error::Mismatch`] for an empty matrix, one that no address space holds, or a pointer that is null or not aligned.
    ///
    /// # Safety
    /// `pointer` is the device's memory, `rows · cols` elements of `dtype` long, for as long as the tensor is used and whatever was
    /// enqueued with it has not run. Nothing else touches that memory meanwhile, or writes it if the tensor is only read, but in the
    /// order of the streams on which the tensor is used.
    pub unsafe fn from_raw(device: &Device, dtype: Dtype, pointer: u64, rows: usize, cols: usize) -> Result<Self> {
        let bytes = Self::bytes(rows, cols)?;
        check_pointer("Tensor::from_raw", pointer, bytes, 16)?;
        // SAFETY: the caller's promise.
        let buffer = unsafe { Buffer::borrowed(device, pointer, bytes) };
        Ok(Self { buffer, dtype, rows, cols })
    }

    /// The same borrowed matrix, whose owner is dropped with it, when nothing on the device uses it any more.
    #[cfg(feature = "dlpack")]
    pub(super) fn keeping(self, owner: Box<dyn std::any::Any + Send + Sync>) -> Self {
        Self { buffer: self.buffer.keeping(owner), ..self }
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

    fn bytes(rows: usize, cols: usize) -> Result<usize> {
        let bytes = rows.checked_mul(cols).and_then(|elements| elements.checked_mul(Dtype::BYTES));
        bytes.filter(|&bytes| bytes > 0).ok_or_else(|| {
            Error::mismatch("Tensor", "shape", format!("{rows} × {cols}"), "a positive, addressable size")
        })
    }

    fn uninitialised(device: &Device, dtype: Dtype, rows: usize, cols: usize) -> Result<Self> {
        let bytes = Self::bytes(rows, cols)?;
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
        self.buffer.device()
    }

    #[cfg(feature = "cli")]
    pub(super) fn pointer(&self) -> u64 {
        self.buffer.pointer()
    }

    pub(super) fn matrix(&self) -> Matrix {
        Matrix { pointer: self.buffer.pointer(), rows: self.rows, cols: self.cols, stride: self.cols }
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
        let bytes = Self::bytes(len)?;
        let buffer = Buffer::new(device, "f32 values", bytes)?;
        buffer.fill_u16(0xffff)?;
        Ok(Self { buffer, len })
    }

    /// `len` values in memory that someone else owns and frees, at `pointer` (a `CUdeviceptr`, aligned to 4 bytes).
    ///
    /// # Errors
    /// [`Error::Mismatch`] as for [`poisoned`](Self::poisoned), or for a pointer that is null or not aligned.
    ///
    /// # Safety
    /// As for [`Tensor::from_raw`].
    pub unsafe fn from_raw(device: &Device, pointer: u64, len: usize) -> Result<Self> {
        let bytes = Self::bytes(len)?;
        check_pointer("Floats::from_raw", pointer, bytes, size_of::<f32>() as u64)?;
        // SAFETY: the caller's promise.
        Ok(Self { buffer: unsafe { Buffer::borrowed(device, pointer, bytes) }, len })
    }

    fn bytes(len: usize) -> Result<usize> {
        let bytes = len.checked_mul(size_of::<f32>()).filter(|&bytes| bytes > 0);
        bytes.ok_or_else(|| Error::mismatch("Floats", "length", len, "a positive, addressable one"))
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
        self.buffer.device()
    }

    pub(super) fn pointer(&self) -> u64 {
        self.buffer.pointer()
    }
}

/// Checks an address that someone else gave: not null, aligned, and `bytes` from it are inside the address space.
pub(super) fn check_pointer(operation: &'static str, pointer: u64, bytes: usize, alignment: u64) -> Result<()> {
    if pointer == 0 || !pointer.is_multiple_of(alignment) || pointer.checked_add(bytes as u64).is_none() {
        let expected = format!("the address of {bytes} bytes, aligned to {alignment}");
        return Err(Error::mismatch(operation, "pointer", format!("{pointer:#x}"), expected));
    }
    Ok(())
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
    /// From the first element to the end of the last row, in bytes.
    pub(super) fn span(&self) -> (u64, u64) {
        let elements = (self.rows.max(1) - 1) * self.stride + self.cols;
        (self.pointer, self.pointer + (elements * Dtype::BYTES) as u64)
    }

    /// Whether the memory ranges of the two have a byte in common.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let ((a, a_end), (b, b_end)) = (self.span(), other.span());
        a < b_end && b < a_end
    }

    /// Whether it has a byte in common with so many from `pointer` on.
    pub(super) fn overlaps_bytes(&self, pointer: u64, bytes: usize) -> bool {
        let (start, end) = self.span();
        start < pointer.saturating_add(bytes as u64) && pointer < end
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
