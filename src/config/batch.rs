//! Which rows of the activations are which sequences.

use std::ops::Range;

use super::check_dimension;
use crate::error::{Error, Result};

/// A batch of sequences: the rows of tokens that a forward call takes. Either each is padded to `seq_len` rows, or they are
/// packed, one after the other without padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchShape {
    batch: usize,
    seq_len: usize,
    lengths: Option<Vec<usize>>,
    /// Of packed sequences, the row where each begins.
    first_rows: Option<Vec<usize>>,
}

impl BatchShape {
    /// `batch` sequences of `seq_len` tokens each, none padded.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if one is 0, or `batch · seq_len` is above 2²⁰ rows.
    pub fn new(batch: usize, seq_len: usize) -> Result<Self> {
        check_dimension("batch", batch)?;
        check_dimension("seq_len", seq_len)?;
        check_dimension("batch · seq_len", batch * seq_len)?;
        Ok(Self { batch, seq_len, lengths: None, first_rows: None })
    }

    /// Sequences of these lengths (0 is allowed), one after the other without padding: as many rows as tokens.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if there are no sequences or no tokens, more than 2²⁰ of either, or the number of sequences
    /// times the longest length is 2³¹ or more.
    pub fn packed(lengths: Vec<usize>) -> Result<Self> {
        check_dimension("batch", lengths.len())?;
        let rows = lengths.iter().fold(0, |sum: usize, &len| sum.saturating_add(len));
        check_dimension("Σ lengths", rows)?;
        let seq_len = lengths.iter().copied().max().unwrap_or(0);
        // Kernels count blocks as if every sequence were as long as the longest.
        if lengths.len() * seq_len > i32::MAX as usize {
            return Err(Error::InvalidConfig {
                field: "batch · longest length",
                got: format!("{} · {seq_len}", lengths.len()),
                expected: "less than 2³¹".into(),
            });
        }
        let first_rows = lengths.iter().scan(0, |end, len| Some(std::mem::replace(end, *end + len))).collect();
        Ok(Self { batch: lengths.len(), seq_len, lengths: Some(lengths), first_rows: Some(first_rows) })
    }

    /// The same batch in which sequence `i` has only `lengths[i]` valid tokens (0 is allowed) and is padded at its end.
    /// Padded keys get no weight; padded rows of the output are zeros.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if there are not `batch` lengths, one is above `seq_len`, or the batch is packed.
    pub fn with_lengths(self, lengths: Vec<usize>) -> Result<Self> {
        if self.is_packed() {
            return Err(Error::mismatch("batch", "layout", "packed", "padded sequences, which can be shorter"));
        }
        if lengths.len() != self.batch {
            return Err(Error::mismatch(
                "batch",
                "number of lengths",
                lengths.len(),
                format!("batch = {}", self.batch),
            ));
        }
        if let Some((i, len)) = lengths.iter().enumerate().find(|&(_, &len)| len > self.seq_len) {
            return Err(Error::mismatch(
                "batch",
                "length",
                format!("{len} (sequence {i})"),
                format!("at most seq_len = {}", self.seq_len),
            ));
        }
        Ok(Self { lengths: Some(lengths), ..self })
    }

    /// Number of sequences.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Tokens of a sequence, padding included; of packed sequences, those of the longest.
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// Rows of the activations: `batch · seq_len`, or `Σ lengths` of packed sequences.
    pub fn rows(&self) -> usize {
        self.rows_of(self.batch - 1).end
    }

    /// Whether sequences follow each other without padding.
    pub fn is_packed(&self) -> bool {
        self.first_rows.is_some()
    }

    /// Valid tokens of each sequence, where given.
    pub fn lengths(&self) -> Option<&[usize]> {
        self.lengths.as_deref()
    }

    /// Valid tokens of sequence `i`.
    pub fn length(&self, i: usize) -> usize {
        self.lengths.as_ref().map_or(self.seq_len, |lengths| lengths[i])
    }

    /// Row of the first token of sequence `i`; if it is empty, where that would be.
    pub fn first_row(&self, i: usize) -> usize {
        self.first_rows.as_ref().map_or(i * self.seq_len, |first_rows| first_rows[i])
    }

    /// Rows of sequence `i`, padding included.
    pub fn rows_of(&self, i: usize) -> Range<usize> {
        let first = self.first_row(i);
        first..first + if self.is_packed() { self.length(i) } else { self.seq_len }
    }

    /// Rows of sequence `i` that are padding.
    pub fn padding_of(&self, i: usize) -> Range<usize> {
        self.first_row(i) + self.length(i)..self.rows_of(i).end
    }

    /// The sequence that a row belongs to.
    pub fn sequence_of(&self, row: usize) -> usize {
        match &self.first_rows {
            None => row / self.seq_len,
            // Empty sequences begin where the next one does: the last that begins there has the row.
            Some(first_rows) => first_rows.partition_point(|&first| first <= row) - 1,
        }
    }

    /// Valid tokens of all sequences together.
    pub fn tokens(&self) -> usize {
        (0..self.batch).map(|i| self.length(i)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MAX_DIMENSION;

    #[test]
    fn batch_dimensions_and_lengths_are_checked() {
        assert!(BatchShape::new(0, 128).is_err());
        assert!(BatchShape::new(1 << 12, 1 << 12).is_err());
        assert!(BatchShape::new(usize::MAX, usize::MAX).is_err());
        let shape = BatchShape::new(2, 8).unwrap();
        let error = shape.clone().with_lengths(vec![3, 9]).unwrap_err().to_string();
        assert!(error.contains("9 (sequence 1)") && error.contains("seq_len = 8"), "{error}");
        assert!(shape.clone().with_lengths(vec![3]).is_err());
        let shape = shape.with_lengths(vec![0, 8]).unwrap();
        assert_eq!((shape.tokens(), shape.rows(), shape.length(1)), (8, 16, 8));
        assert_eq!((shape.first_row(1), shape.padding_of(0), shape.padding_of(1)), (8, 0..8, 16..16));
    }

    #[test]
    fn packed_sequences_follow_each_other() {
        let shape = BatchShape::packed(vec![0, 3, 0, 1, 5, 0]).unwrap();
        assert_eq!((shape.batch(), shape.seq_len(), shape.rows(), shape.tokens()), (6, 5, 9, 9));
        assert_eq!([0, 1, 2, 3, 4, 5].map(|i| shape.first_row(i)), [0, 0, 3, 3, 4, 9]);
        assert_eq!([0, 2, 3, 4, 8].map(|row| shape.sequence_of(row)), [1, 1, 3, 4, 4]);
        assert!((0..6).all(|i| shape.padding_of(i).is_empty()));
        assert!(shape.with_lengths(vec![0; 6]).unwrap_err().to_string().contains("packed"));
        for (lengths, part) in [
            (vec![], "batch = 0"),
            (vec![0, 0], "Σ lengths = 0"),
            (vec![MAX_DIMENSION, 1], "Σ lengths = 1048577"),
            (vec![usize::MAX, 1], "Σ lengths"),
            ([vec![5000], vec![0; 1 << 19]].concat(), "524289 · 5000"),
        ] {
            let error = BatchShape::packed(lengths).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
