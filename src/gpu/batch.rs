//! Which rows of a tensor belong to which sequence, on a device.

use super::device::Device;
use super::memory::Buffer;
use crate::config::BatchShape;
use crate::error::{Error, Result};

/// The shape of a batch, with what kernels need to know of its sequences on the device.
#[derive(Debug)]
pub struct Batch {
    shape: BatchShape,
    device: Device,
    lengths: Option<Buffer>,
}

/// A batch as the launchers see it. Pointers are to i32 on the device; 0 stands for what follows from the numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sequences {
    pub(super) batch: usize,
    /// Tokens of the longest sequence; of each, padding included, where they are padded.
    pub(super) seq_len: usize,
    /// Rows of all together.
    pub(super) rows: usize,
    /// `[batch]`, valid tokens; 0: all have `seq_len`.
    pub(super) lengths: u64,
    /// `[batch]`, the row of the first token; 0: sequence `i` begins at row `i · seq_len` and is padded up to the next.
    pub(super) first_rows: u64,
}

impl Sequences {
    /// Whether sequences follow each other without padding.
    pub(super) fn are_packed(&self) -> bool {
        self.first_rows != 0
    }

    /// Query tiles of so many rows that are not empty; where sequences are packed, about.
    pub(super) fn tiles(&self, rows: usize) -> usize {
        if self.are_packed() { self.rows.div_ceil(rows) } else { self.batch * self.seq_len.div_ceil(rows) }
    }

    /// Checks that numbers and pointers fit each other.
    pub(super) fn check(&self, operation: &'static str) -> Result<()> {
        let &Self { batch, seq_len, rows, lengths, first_rows } = self;
        if batch == 0 || seq_len == 0 || rows == 0 || (!self.are_packed() && rows != batch * seq_len) {
            let got = format!("{rows} (batch {batch}, seq_len {seq_len})");
            return Err(Error::mismatch(operation, "number of rows", got, "batch · seq_len, none of them 0"));
        }
        if self.are_packed() && lengths == 0 {
            return Err(Error::mismatch(operation, "lengths", "absent", "those of the packed sequences"));
        }
        for (what, pointer) in [("lengths", lengths), ("first rows", first_rows)] {
            if !pointer.is_multiple_of(4) {
                return Err(Error::mismatch(operation, what, format!("at {pointer:#x}"), "a 4-byte aligned pointer"));
            }
        }
        Ok(())
    }
}

impl Batch {
    /// Copies the lengths, if there are any, to the device.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Cuda`], [`Error::ContextLost`].
    pub fn new(device: &Device, shape: &BatchShape) -> Result<Self> {
        let lengths = shape
            .lengths()
            .map(|lengths| {
                let values: Vec<i32> = lengths.iter().map(|&len| len as i32).collect();
                let buffer = Buffer::new(device, "the lengths of a batch", values.len() * size_of::<i32>())?;
                buffer.write(0, &values)?;
                Ok(buffer)
            })
            .transpose()?;
        Ok(Self { shape: shape.clone(), device: device.clone(), lengths })
    }

    /// The shape.
    pub fn shape(&self) -> &BatchShape {
        &self.shape
    }

    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    pub(super) fn check_device(&self, operation: &'static str, device: &Device) -> Result<()> {
        if !self.device.same_as(device) {
            let got = self.device.info().ordinal;
            let expected = format!("the stream's device object (ordinal {})", device.info().ordinal);
            return Err(Error::mismatch(operation, "device of the batch", got, expected));
        }
        Ok(())
    }

    pub(super) fn sequences(&self) -> Sequences {
        Sequences {
            batch: self.shape.batch(),
            seq_len: self.shape.seq_len(),
            rows: self.shape.rows(),
            lengths: self.lengths.as_ref().map_or(0, Buffer::pointer),
            first_rows: 0,
        }
    }

    /// Pointer to the lengths of padded sequences, or 0 where no row is padding.
    pub(super) fn padding(&self) -> u64 {
        let sequences = self.sequences();
        if sequences.are_packed() { 0 } else { sequences.lengths }
    }
}
