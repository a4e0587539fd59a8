//! What calls of a model need beside its weights: where the batch, its hidden states and results are.

use std::time::Duration;

use super::Model;
use super::weights::DeviceWeights;
use crate::config::{BatchShape, check_dimension};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::gpu::batch::Batch;
use crate::gpu::device::{Device, Stream};
use crate::gpu::memory::{Buffer, Floats, Matrix, Tensor};
use crate::gpu::workspace::{Branch, Workspace};

/// Rows whose logits are computed at a time: a vocabulary of 250,000 then takes 32 MB.
pub(super) const LOGITS_ROWS: usize = 64;

/// Device memory of a [`Model`]'s calls, for batches of up to so many rows and sequences, and the stream that they run on.
/// Between calls it holds the hidden states of the last batch. Made by [`Model::workspace`].
#[derive(Debug)]
pub struct ModelWorkspace {
    pub(super) stream: Stream,
    /// Of the batch whose hidden states are there.
    pub(super) batch: Batch,
    pub(super) encoder: Workspace,
    pub(super) room: Room,
    /// Whether there are hidden states.
    pub(super) filled: bool,
    /// i32: numbers of rows of the three tables, `[3, rows]`, then those to gather, `[max(sequences, LOGITS_ROWS)]`.
    pub(super) indices: Buffer,
    /// The first layer's input, `[rows, hidden_size]`.
    pub(super) x: Tensor,
    /// The hidden states, `[rows, hidden_size]`.
    pub(super) hidden: Tensor,
    /// `[sequences, hidden_size]`.
    pub(super) pooled: Floats,
    /// `[gathered, hidden_size]` each: rows of hidden states, and what a product makes of them.
    pub(super) gathered: Tensor,
    pub(super) transformed: Tensor,
    /// `[LOGITS_ROWS, vocab_size padded]`, with a head.
    pub(super) logits: Option<Tensor>,
}

/// What fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) rows: usize,
    pub(super) sequences: usize,
    hidden_size: usize,
    /// Columns of logits; 0 without a head.
    logits: usize,
}

impl Room {
    pub(super) fn new(model: &Model, rows: usize, sequences: usize) -> Self {
        let DeviceWeights { word, head, .. } = &model.weights;
        let logits = if head.is_some() { word.shape().0 } else { 0 };
        Self { rows, sequences, hidden_size: model.hidden_size(), logits }
    }

    /// Rows that are gathered at a time.
    fn gathered(&self) -> usize {
        let with_head = if self.logits > 0 { LOGITS_ROWS } else { 0 };
        with_head.max(self.sequences)
    }

    fn indices_bytes(&self) -> usize {
        (3 * self.rows + self.gathered()) * size_of::<i32>()
    }

    /// Device memory beside the encoder's workspace, bytes.
    pub(super) fn bytes(&self) -> usize {
        let elements = (2 * self.rows + 2 * self.gathered()) * self.hidden_size + LOGITS_ROWS * self.logits;
        let floats = self.sequences * self.hidden_size * size_of::<f32>();
        Batch::room_bytes(self.rows, self.sequences) + self.indices_bytes() + elements * Dtype::BYTES + floats
    }
}

impl ModelWorkspace {
    pub(super) fn new(model: &Model, stream: &Stream, rows: usize, sequences: usize) -> Result<Self> {
        let (device, dtype, room) = (stream.device(), model.encoder.dtype(), Room::new(model, rows, sequences));
        check_dimension("rows", rows)?;
        check_dimension("sequences", sequences)?;
        // NaN at first, in the two types alike: what is read before it is written stays visible.
        let matrix = |rows| Tensor::poisoned(device, dtype, rows, room.hidden_size);
        let logits = (room.logits > 0).then(|| Tensor::poisoned(device, dtype, LOGITS_ROWS, room.logits));
        Ok(Self {
            stream: stream.clone(),
            batch: Batch::with_room(device, rows, sequences)?,
            encoder: Workspace::new(device, &model.encoder.config().layer, rows)?,
            room,
            filled: false,
            indices: Buffer::new(device, "numbers of rows", room.indices_bytes())?,
            x: matrix(rows)?,
            hidden: matrix(rows)?,
            pooled: Floats::poisoned(device, sequences * room.hidden_size)?,
            gathered: matrix(room.gathered())?,
            transformed: matrix(room.gathered())?,
            logits: logits.transpose()?,
        })
    }

    /// The stream that calls run on.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// The batch whose hidden states are there, if a forward call has left some.
    pub fn shape(&self) -> Option<&BatchShape> {
        self.filled.then(|| self.batch.shape())
    }

    /// The hidden states that the last forward call has left, `[rows, hidden_size]`, zeros where padding, after everything
    /// launched on the device has finished.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if there are none; an error of any kernel that ran before.
    pub fn hidden(&self) -> Result<Vec<f32>> {
        self.check_filled("ModelWorkspace::hidden")?;
        self.hidden.first_rows(self.batch.shape().rows())
    }

    /// [`Workspace::set_overlap`] for the encoder's calls.
    pub fn set_overlap(&mut self, overlap: bool) {
        self.encoder.set_overlap(overlap);
    }

    /// [`Workspace::hold_back`] for the encoder's calls.
    pub fn hold_back(&mut self, branch: Branch, time: Duration) {
        self.encoder.hold_back(branch, time);
    }

    /// Overwrites all of it with NaN, after everything launched on the device has finished: what is read before it is written
    /// becomes visible.
    ///
    /// # Errors
    /// [`Error::Cuda`], [`Error::ContextLost`].
    pub fn poison(&mut self) -> Result<()> {
        self.filled = false;
        self.encoder.poison()?;
        self.pooled.poison()?;
        let Self { x, hidden, gathered, transformed, logits, .. } = self;
        [x, hidden, gathered, transformed].into_iter().chain(logits).try_for_each(Tensor::poison)
    }

    pub(super) fn device(&self) -> &Device {
        self.stream.device()
    }

    pub(super) fn check_filled(&self, operation: &'static str) -> Result<()> {
        if !self.filled {
            return Err(Error::mismatch(operation, "workspace", "without hidden states", "one after a forward call"));
        }
        Ok(())
    }

    /// Checks that it is one for `model`, of no other device, and that the batch fits.
    pub(super) fn check(&self, operation: &'static str, model: &Model, shape: &BatchShape) -> Result<()> {
        if !self.device().same_as(model.encoder.device()) {
            let got = self.device().info().ordinal;
            let expected = format!("the model's device object (ordinal {})", model.encoder.device().info().ordinal);
            return Err(Error::mismatch(operation, "device of the workspace", got, expected));
        }
        let Room { rows, sequences, .. } = self.room;
        let (own, needed) = (self.room, Room::new(model, rows, sequences));
        if own != needed || self.x.dtype() != model.encoder.dtype() {
            let got = format!("{own:?} in {}", self.x.dtype());
            let expected = format!("the model's own: {needed:?} in {}", model.encoder.dtype());
            return Err(Error::mismatch(operation, "workspace", got, expected));
        }
        if shape.rows() > rows || shape.batch() > sequences {
            let got = format!("for {rows} rows and {sequences} sequences");
            let expected = format!("at least {} rows and {} sequences", shape.rows(), shape.batch());
            return Err(Error::mismatch(operation, "workspace", got, expected));
        }
        Ok(())
    }

    /// Pointer to the numbers of rows of table `i`, with its offset in bytes.
    pub(super) fn table_indices(&self, i: usize) -> (u64, usize) {
        self.indices_at(i * self.room.rows)
    }

    /// The same of the rows to gather.
    pub(super) fn gather_indices(&self) -> (u64, usize) {
        self.indices_at(3 * self.room.rows)
    }

    fn indices_at(&self, index: usize) -> (u64, usize) {
        let offset = index * size_of::<i32>();
        (self.indices.pointer() + offset as u64, offset)
    }
}

/// The first rows of a tensor.
pub(super) fn first(tensor: &Tensor, rows: usize) -> Matrix {
    let matrix = tensor.matrix();
    debug_assert!(rows <= matrix.rows);
    Matrix { rows, ..matrix }
}
