//! Which rows of a tensor belong to which sequence, on a device.

use super::device::{Device, Stream};
use super::memory::Buffer;
use crate::config::{BatchShape, check_dimension};
use crate::error::{Error, Result};

/// The shape of a batch, with what kernels need to know of its sequences on the device.
#[derive(Debug)]
pub struct Batch {
    shape: BatchShape,
    device: Device,
    /// i32 lengths, if there are any; for packed sequences then their first rows, then the position of each row.
    buffer: Option<Buffer>,
    /// Of a batch in someone else's memory, what it says.
    borrowed: Option<Sequences>,
}

/// Which rows are which sequences, as someone else's memory on a device says. Pointers (`CUdeviceptr`) are to i32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BorrowedSequences {
    /// `batch` sequences of `seq_len` rows each.
    Padded {
        /// Number of sequences.
        batch: usize,
        /// Rows of each, padding included.
        seq_len: usize,
        /// `[batch]`, valid tokens of each, 0 to `seq_len`; 0: no row is padding.
        lengths: u64,
    },
    /// `batch` sequences one after the other without padding.
    Packed {
        /// Number of sequences.
        batch: usize,
        /// Tokens of the longest, or more: what attention's grid is made for.
        seq_len: usize,
        /// Tokens of all together.
        rows: usize,
        /// `[batch]`, tokens of each.
        lengths: u64,
        /// `[batch]`, the row of each one's first token.
        first_rows: u64,
        /// `[rows]`, the position of each row in its sequence.
        positions: u64,
    },
}

/// What `Batch::buffer` holds.
fn values(shape: &BatchShape) -> Vec<i32> {
    let mut values: Vec<i32> = shape.lengths().unwrap_or_default().iter().map(|&len| len as i32).collect();
    if shape.is_packed() {
        values.extend((0..shape.batch()).map(|i| shape.first_row(i) as i32));
        values.extend((0..shape.batch()).flat_map(|i| 0..shape.length(i) as i32));
    }
    values
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
    /// `[rows]`, the position of each row in its sequence, where sequences are packed; else 0: row `r` has `r % seq_len`.
    pub(super) positions: u64,
}

impl Sequences {
    /// Whether sequences follow each other without padding.
    pub(super) fn are_packed(&self) -> bool {
        self.first_rows != 0
    }

    /// Pointer to the lengths of padded sequences, or 0 where no row is padding.
    pub(super) fn padding(&self) -> u64 {
        if self.are_packed() { 0 } else { self.lengths }
    }

    /// Query tiles of so many rows that are not empty; where sequences are packed, about.
    pub(super) fn tiles(&self, rows: usize) -> usize {
        if self.are_packed() { self.rows.div_ceil(rows) } else { self.batch * self.seq_len.div_ceil(rows) }
    }

    /// The same, at most: of packed sequences the last tile of each may be nearly empty.
    pub(super) fn most_tiles(&self, rows: usize) -> usize {
        let padded = self.batch * self.seq_len.div_ceil(rows);
        if self.are_packed() { padded.min(self.rows / rows + self.batch) } else { padded }
    }

    /// Checks that numbers and pointers fit each other.
    pub(super) fn check(&self, operation: &'static str) -> Result<()> {
        let &Self { batch, seq_len, rows, lengths, first_rows, positions } = self;
        if batch == 0 || seq_len == 0 || rows == 0 || (!self.are_packed() && rows != batch * seq_len) {
            let got = format!("{rows} (batch {batch}, seq_len {seq_len})");
            return Err(Error::mismatch(operation, "number of rows", got, "batch · seq_len, none of them 0"));
        }
        if self.are_packed() && (lengths == 0 || positions == 0) {
            return Err(Error::mismatch(operation, "lengths and positions", "absent", "those of the packed sequences"));
        }
        for (what, pointer) in [("lengths", lengths), ("first rows", first_rows), ("positions", positions)] {
            if !pointer.is_multiple_of(4) {
                return Err(Error::mismatch(operation, what, format!("at {pointer:#x}"), "a 4-byte aligned pointer"));
            }
        }
        Ok(())
    }
}

impl Batch {
    /// Copies the lengths, if there are any, to the device, and where packed sequences begin.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Cuda`], [`Error::ContextLost`].
    pub fn new(device: &Device, shape: &BatchShape) -> Result<Self> {
        let values = values(shape);
        let mut buffer = None;
        if !values.is_empty() {
            let bytes = values.len() * size_of::<i32>();
            let new = buffer.insert(Buffer::new(device, "the lengths of a batch", bytes)?);
            new.write(0, &values)?;
        }
        Ok(Self { shape: shape.clone(), device: device.clone(), buffer, borrowed: None })
    }

    /// A batch that someone else's memory on the device describes. Nothing is copied, nothing enqueued, and none of it read until a
    /// call's kernels run.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for a number that is 0 or above 2²⁰, or more than 2²⁰ rows, or 2³¹ or more of `batch · seq_len`;
    /// [`Error::Mismatch`] for a pointer that is not aligned to 4 bytes, or missing, or more rows than sequences of that length have.
    ///
    /// # Safety
    /// The pointers lead to that many numbers in the device's memory, which are as [`BorrowedSequences`] says and stay so from each call
    /// with the batch on until its stream has run it.
    pub unsafe fn from_raw(device: &Device, sequences: BorrowedSequences) -> Result<Self> {
        const OPERATION: &str = "Batch::from_raw";
        let (shape, sequences) = match sequences {
            BorrowedSequences::Padded { batch, seq_len, lengths } => {
                let shape = BatchShape::new(batch, seq_len)?;
                let rows = shape.rows();
                (shape, Sequences { batch, seq_len, rows, lengths, first_rows: 0, positions: 0 })
            }
            BorrowedSequences::Packed { batch, seq_len, rows, lengths, first_rows, positions } => {
                check_dimension("batch", batch)?;
                check_dimension("seq_len", seq_len)?;
                check_dimension("rows", rows)?;
                // Each factor is at most 2²⁰, so the product cannot wrap. Kernels count blocks as if every sequence were this long.
                if rows > batch * seq_len || batch * seq_len > i32::MAX as usize {
                    let got = format!("{rows} (batch {batch}, seq_len {seq_len})");
                    let expected = "at most batch · seq_len, which is less than 2³¹";
                    return Err(Error::mismatch(OPERATION, "number of rows", got, expected));
                }
                if first_rows == 0 {
                    return Err(Error::mismatch(OPERATION, "first rows", "absent", "those of the packed sequences"));
                }
                (BatchShape::new(1, rows)?, Sequences { batch, seq_len, rows, lengths, first_rows, positions })
            }
        };
        sequences.check(OPERATION)?;
        Ok(Self { shape, device: device.clone(), buffer: None, borrowed: Some(sequences) })
    }

    /// Device memory that [`with_room`](Self::with_room) takes, bytes.
    pub(super) fn room_bytes(rows: usize, sequences: usize) -> usize {
        (2 * sequences + rows) * size_of::<i32>()
    }

    /// A batch of one token, with room for [`set`](Self::set) to make another of it.
    pub(super) fn with_room(device: &Device, rows: usize, sequences: usize) -> Result<Self> {
        let buffer = Buffer::new(device, "the lengths of a batch", Self::room_bytes(rows, sequences))?;
        Ok(Self { shape: BatchShape::new(1, 1)?, device: device.clone(), buffer: Some(buffer), borrowed: None })
    }

    /// Another batch in the same memory, in the order of `stream`: what was launched there before has still seen the last one.
    /// There must be room for it.
    pub(super) fn set(&mut self, stream: &Stream, shape: &BatchShape) -> Result<()> {
        let values = values(shape);
        if let Some(buffer) = self.buffer.as_ref().filter(|_| !values.is_empty()) {
            buffer.write_on(stream, 0, &values)?;
        }
        self.shape = shape.clone();
        Ok(())
    }

    /// The shape. Of a batch in someone else's memory, whose lengths only the device knows, the rows alone are certain.
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

    /// Whether the device alone knows how long its sequences are.
    pub(super) fn hides_lengths(&self) -> bool {
        self.borrowed.is_some_and(|sequences| sequences.lengths != 0)
    }

    pub(super) fn sequences(&self) -> Sequences {
        if let Some(sequences) = self.borrowed {
            return sequences;
        }
        // A batch with room for others has a buffer that may hold nothing of this one.
        let buffer = self.buffer.as_ref().filter(|_| self.shape.lengths().is_some());
        let (batch, lengths) = (self.shape.batch(), buffer.map_or(0, Buffer::pointer));
        // In the order of `buffer`.
        let packed =
            |before: usize| if self.shape.is_packed() { lengths + (before * size_of::<i32>()) as u64 } else { 0 };
        Sequences {
            batch,
            seq_len: self.shape.seq_len(),
            rows: self.shape.rows(),
            lengths,
            first_rows: packed(batch),
            positions: packed(2 * batch),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_sequences_have_a_tile_each_and_no_more_than_padded_ones() {
        let packed = |batch, seq_len, rows| Sequences { batch, seq_len, rows, lengths: 4, first_rows: 4, positions: 4 };
        assert_eq!(packed(100, 10, 1000).most_tiles(64), 100);
        assert_eq!(packed(2, 2048, 200).most_tiles(64), 3 + 2);
        let padded = Sequences { lengths: 0, first_rows: 0, positions: 0, ..packed(3, 65, 195) };
        assert_eq!((padded.most_tiles(64), padded.tiles(64)), (6, 6));
    }
}
