//! A whole language model on a device: token ids → embeddings → [`Encoder`] → final norm → logits or pooled vectors.

mod weights;
mod workspace;

#[cfg(feature = "checkpoint")]
use std::path::Path;

use weights::{DeviceDense, DeviceHead, DeviceNorm, DeviceWeights};
pub use workspace::ModelWorkspace;
use workspace::{LOGITS_ROWS, Room, first};

use super::device::Stream;
use super::embed::{self, Embed, Pool, as_index};
use super::encoder::Encoder;
use super::gemm::{self, Gemm, Then};
use super::launch::Kernels;
use super::memory::Matrix;
use super::norm::{self, Join, NormOutput};
use super::plan::Plan;
use super::workspace::Workspace;
#[cfg(feature = "checkpoint")]
use crate::checkpoint::Checkpoint;
use crate::config::BatchShape;
use crate::cpu::{Pooling, no_head, no_pooler, zeros};
#[cfg(feature = "checkpoint")]
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::weights::{EmbeddingSizes, ModelElements, ModelWeights};

/// A model, ready to run on a device in a 16-bit type: the counterpart of [`cpu::Model`](crate::cpu::Model).
///
/// Hidden states stay on the device, in a [`ModelWorkspace`], and what is asked for of them comes to the host: logits of some
/// rows, a vector a sequence, or all. Packed batches ([`BatchShape::packed`]) spend no work on padding.
///
/// ```no_run
/// use paf_cuda::gpu::{Device, Model, Pooling, Stream};
/// use paf_cuda::{BatchShape, Dtype, Schedule};
///
/// let device = Device::new(0)?;
/// let model = Model::from_pretrained(&device, "pythia-70m", Dtype::Bf16)?;
/// // Batches of up to 512 tokens in up to 16 texts.
/// let mut workspace = model.workspace(&Stream::new(&device)?, 512, 16)?;
///
/// let ids = [12092, 13, 1533, 12092, 13]; // two texts, of three tokens and two
/// let shape = BatchShape::packed(vec![3, 2])?;
/// model.forward(Schedule::Fused, &shape, &ids, None, &mut workspace)?; // returns before the device has run it
/// let logits = model.logits(&[2, 4], &mut workspace)?; // [2, vocab_size]: of the texts' last tokens
/// let vectors = model.pool(Pooling::Mean, &mut workspace)?; // [2, hidden_size]
/// # Ok::<(), paf_cuda::Error>(())
/// ```
#[derive(Debug)]
pub struct Model {
    encoder: Encoder,
    sizes: EmbeddingSizes,
    weights: DeviceWeights,
}

impl Model {
    /// The model of these layers and these embeddings, norms and heads, which are rounded to the encoder's element type and
    /// copied to its device.
    ///
    /// # Errors
    /// What [`ModelWeights::check`] finds; [`Error::OutOfMemory`], [`Error::Cuda`], [`Error::ContextLost`].
    pub fn new(encoder: Encoder, weights: &ModelWeights) -> Result<Self> {
        let config = &encoder.config().layer;
        weights.check(config)?;
        let sizes = weights.embeddings.sizes(config.hidden_size);
        Self::upload(encoder, sizes, &weights.into())
    }

    /// The model of the checkpoint in `folder`, in Hugging Face's format, on `device` in `dtype`. Weights go to the device a few
    /// megabytes at a time, through page-locked memory: a model that does not fit into the host's memory can be loaded.
    ///
    /// # Errors
    /// What [`Checkpoint::open`] and [`EncoderWeights::upload`](super::EncoderWeights::upload) find.
    #[cfg(feature = "checkpoint")]
    pub fn from_pretrained(device: &super::Device, folder: impl AsRef<Path>, dtype: Dtype) -> Result<Self> {
        Self::from_checkpoint(device, &Checkpoint::open(folder)?, dtype)
    }

    /// The same of a checkpoint that is open, and in its design.
    ///
    /// # Errors
    /// What [`EncoderWeights::upload`](super::EncoderWeights::upload) finds.
    #[cfg(feature = "checkpoint")]
    pub fn from_checkpoint(device: &super::Device, checkpoint: &Checkpoint, dtype: Dtype) -> Result<Self> {
        let encoder = Encoder::from_checkpoint(device, checkpoint, dtype)?;
        Self::upload(encoder, checkpoint.embedding_sizes(), &checkpoint.model_elements())
    }

    fn upload(encoder: Encoder, sizes: EmbeddingSizes, elements: &ModelElements<'_>) -> Result<Self> {
        let (device, dtype) = (encoder.device(), encoder.dtype());
        let weights = DeviceWeights::upload(device, &encoder.config().layer, dtype, &sizes, elements)?;
        Ok(Self { encoder, sizes, weights })
    }

    /// The layers.
    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    /// How many rows the embedding tables have.
    pub fn embedding_sizes(&self) -> &EmbeddingSizes {
        &self.sizes
    }

    /// Width of the hidden states.
    pub fn hidden_size(&self) -> usize {
        self.encoder.config().layer.hidden_size
    }

    /// Number of token ids, and width of the logits.
    pub fn vocab_size(&self) -> usize {
        self.sizes.vocab_size
    }

    /// Whether there are [`logits`](Self::logits).
    pub fn has_head(&self) -> bool {
        self.weights.head.is_some()
    }

    /// Whether there is a [`pooler`](Self::pooler).
    pub fn has_pooler(&self) -> bool {
        self.weights.pooler.is_some()
    }

    /// Device memory that a workspace for batches of up to so many rows and sequences takes, bytes.
    pub fn workspace_bytes(&self, rows: usize, sequences: usize) -> usize {
        Workspace::bytes(&self.encoder.config().layer, rows) + Room::new(self, rows, sequences).bytes()
    }

    /// A workspace for batches of up to so many rows (tokens, with padding if there is any) and sequences, whose calls run on
    /// `stream`.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if one is 0 or above 2²⁰; [`Error::Mismatch`] if the stream is another device's;
    /// [`Error::OutOfMemory`], [`Error::Cuda`], [`Error::ContextLost`].
    pub fn workspace(&self, stream: &Stream, rows: usize, sequences: usize) -> Result<ModelWorkspace> {
        if !stream.device().same_as(self.encoder.device()) {
            let got = stream.device().info().ordinal;
            let expected = format!("the model's device object (ordinal {})", self.encoder.device().info().ordinal);
            return Err(Error::mismatch("Model::workspace", "device of the stream", got, expected));
        }
        ModelWorkspace::new(self, stream, rows, sequences)
    }

    /// Computes the hidden states after the last layer and the final norm, and leaves them in the workspace,
    /// `[rows, hidden_size]` in the encoder's element type, zeros where padding.
    ///
    /// `ids` has one token id a row of `shape`, `token_types` likewise (all 0 if `None`); what they hold in padding is not
    /// looked at. `plan` is as for [`Encoder::forward`].
    ///
    /// Copies the ids to the device, for which it may have to wait for what was launched on the workspace's stream before; enqueues
    /// the rest, and returns. Allocates nothing on the device.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if there are not as many ids or types as rows, one is outside its table, a sequence is longer than the
    /// table of positions, or the batch is larger than the workspace; what [`Encoder::forward`] finds. Where the batch is at
    /// fault, nothing has been launched.
    pub fn forward(
        &self,
        plan: impl Into<Plan>,
        shape: &BatchShape,
        ids: &[u32],
        token_types: Option<&[u32]>,
        workspace: &mut ModelWorkspace,
    ) -> Result<()> {
        let rows = self.sizes.rows(shape, ids, token_types)?;
        workspace.check("Model::forward", self, shape)?;
        let (kernels, stream) = (self.kernels()?, workspace.stream.clone());
        self.encoder.device().enter()?;
        workspace.filled = false;
        workspace.batch.set(&stream, shape)?;

        // In this order in fp32: a row that the first has none for is padding.
        let tables = [
            (Some(&self.weights.word), rows.iter().map(|row| row.map(|row| row.word)).collect::<Vec<_>>()),
            (self.weights.token_type.as_ref(), rows.iter().map(|row| row.and_then(|row| row.token_type)).collect()),
            (self.weights.position.as_ref(), rows.iter().map(|row| row.and_then(|row| row.position)).collect()),
        ];
        let mut lowered = [None; 3];
        for (i, (table, rows)) in tables.iter().enumerate() {
            let Some(table) = table else { continue };
            let (pointer, offset) = workspace.table_indices(i);
            let rows: Vec<i32> = rows.iter().map(|&row| as_index(row)).collect();
            workspace.indices.write_on(&stream, offset, &rows)?;
            lowered[i] = Some((table.matrix(), pointer));
        }
        let (x, hidden) = (first(&workspace.x, shape.rows()), first(&workspace.hidden, shape.rows()));
        let eps = self.eps();
        let norm = self.weights.embedding_norm.as_ref();
        let norm = norm.map(|norm| (norm.gamma.matrix().pointer, norm.beta.matrix().pointer, eps));
        // SAFETY: the workspace, mutably borrowed, and the weights are live on the stream's device, and wait for it before they are
        // freed; the tables' rows were checked; `x` and `hidden` are the workspace's, of the batch's rows, which fit.
        unsafe {
            embed::launch(kernels, &stream, &Embed { tables: lowered, norm, out: x })?;
            let ModelWorkspace { batch, encoder, .. } = &mut *workspace;
            self.encoder.forward_matrices(&stream, &plan.into(), batch, (x, hidden), encoder)?;
            if let Some(norm) = &self.weights.final_norm {
                let sequences = workspace.batch.sequences();
                self.normalize(kernels, &stream, norm, hidden, sequences.padding(), sequences.seq_len)?;
            }
        }
        workspace.filled = true;
        Ok(())
    }

    /// Logits of some rows of the hidden states in the workspace, `[rows.len(), vocab_size]`, rounded to the encoder's element
    /// type. Waits for them.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the model has no head, or there is not that much host memory; [`Error::Mismatch`] if a row is not
    /// one of the batch's, or the workspace holds no hidden states; [`Error::Cuda`], [`Error::ContextLost`].
    pub fn logits(&self, rows: &[usize], workspace: &mut ModelWorkspace) -> Result<Vec<f32>> {
        const OPERATION: &str = "Model::logits";
        let Some(DeviceHead { transform, decoder, bias, scale }) = &self.weights.head else {
            return Err(no_head());
        };
        let shape = self.check_filled(OPERATION, workspace)?;
        if let Some(row) = rows.iter().find(|&&row| row >= shape.rows()) {
            return Err(Error::mismatch(
                OPERATION,
                "row",
                row,
                format!("less than {}, the batch's rows", shape.rows()),
            ));
        }
        let (kernels, stream) = (self.kernels()?, workspace.stream.clone());
        let device = self.encoder.device();
        let decoder = decoder.as_ref().unwrap_or(&self.weights.word).matrix();
        let bias = bias.as_ref().map_or(0, |bias| bias.matrix().pointer);
        let vocab_size = self.vocab_size();
        let mut logits = zeros(rows.len(), vocab_size)?;
        for (logits, rows) in logits.chunks_mut(LOGITS_ROWS * vocab_size).zip(rows.chunks(LOGITS_ROWS)) {
            device.enter()?;
            let gathered = self.gather(kernels, &stream, workspace, rows.iter().copied().map(Some))?;
            let (out, transformed) = match &workspace.logits {
                Some(out) => (out, first(&workspace.transformed, rows.len())),
                // The workspace has been checked to be this model's, which has a head.
                None => return Err(no_head()),
            };
            let c = first(out, rows.len());
            // SAFETY: as in `forward`.
            unsafe {
                let mut x = gathered;
                if let Some((dense, act, norm)) = transform {
                    self.dense(kernels, &stream, dense, Then::Activation(*act, 0), x, transformed)?;
                    self.normalize(kernels, &stream, norm, transformed, 0, rows.len())?;
                    x = transformed;
                }
                gemm::launch(kernels, &stream, &Gemm::new(x, decoder, bias, Then::Bias, c))?;
            }
            let padded = out.first_rows(rows.len())?;
            for (logits, padded) in logits.chunks_exact_mut(vocab_size).zip(padded.chunks_exact(c.cols)) {
                logits.iter_mut().zip(padded).for_each(|(logit, product)| *logit = product * scale);
            }
        }
        Ok(logits)
    }

    /// One vector a sequence, `[batch, hidden_size]`, of the hidden states in the workspace, summed in fp32; zeros for an empty
    /// sequence. Waits for them.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if the workspace holds no hidden states; [`Error::Cuda`], [`Error::ContextLost`].
    pub fn pool(&self, pooling: Pooling, workspace: &mut ModelWorkspace) -> Result<Vec<f32>> {
        let shape = self.check_filled("Model::pool", workspace)?;
        let (kernels, hidden) = (self.kernels()?, first(&workspace.hidden, shape.rows()));
        let (sequences, most) = (workspace.batch.sequences(), pooling.most_rows());
        let pool = Pool { hidden, sequences, most, out: workspace.pooled.pointer() };
        self.encoder.device().enter()?;
        // SAFETY: as in `forward`; there is room for as many vectors as the batch has sequences.
        unsafe { embed::launch_pool(kernels, &workspace.stream, &pool)? };
        workspace.pooled.first(shape.batch() * self.hidden_size())
    }

    /// BERT's pooler, `tanh(dense(x))` of the first token of each sequence, `[batch, hidden_size]`; of zeros for an empty
    /// sequence. Waits for it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the model has no pooler; [`Error::Mismatch`] if the workspace holds no hidden states;
    /// [`Error::Cuda`], [`Error::ContextLost`].
    pub fn pooler(&self, workspace: &mut ModelWorkspace) -> Result<Vec<f32>> {
        let Some(dense) = &self.weights.pooler else {
            return Err(no_pooler());
        };
        let shape = self.check_filled("Model::pooler", workspace)?;
        let (kernels, stream) = (self.kernels()?, workspace.stream.clone());
        self.encoder.device().enter()?;
        let firsts = (0..shape.batch()).map(|i| (shape.length(i) > 0).then(|| shape.first_row(i)));
        let x = self.gather(kernels, &stream, workspace, firsts)?;
        let y = first(&workspace.transformed, shape.batch());
        // SAFETY: as in `forward`; there is room for as many vectors as the batch has sequences.
        unsafe {
            self.dense(kernels, &stream, dense, Then::Bias, x, y)?;
            embed::launch_tanh(kernels, &stream, &y, workspace.pooled.pointer())?;
        }
        workspace.pooled.first(shape.batch() * self.hidden_size())
    }

    fn kernels(&self) -> Result<&Kernels> {
        self.encoder.device().kernels(self.encoder.dtype())
    }

    fn eps(&self) -> f32 {
        self.encoder.config().layer.layer_norm_eps
    }

    /// The shape of the batch whose hidden states are there.
    fn check_filled(&self, operation: &'static str, workspace: &ModelWorkspace) -> Result<BatchShape> {
        workspace.check_filled(operation)?;
        let shape = workspace.batch.shape().clone();
        workspace.check(operation, self, &shape)?;
        Ok(shape)
    }

    /// Enqueues a copy of rows of the hidden states, all of which there are and for which there is room, zeros where `None`.
    fn gather(
        &self,
        kernels: &Kernels,
        stream: &Stream,
        workspace: &ModelWorkspace,
        rows: impl Iterator<Item = Option<usize>>,
    ) -> Result<Matrix> {
        let rows: Vec<i32> = rows.map(as_index).collect();
        let (pointer, offset) = workspace.gather_indices();
        workspace.indices.write_on(stream, offset, &rows)?;
        let out = first(&workspace.gathered, rows.len());
        let hidden = first(&workspace.hidden, workspace.batch.shape().rows());
        // SAFETY: as in `forward`; the callers have checked the rows.
        unsafe {
            embed::launch(kernels, stream, &Embed { tables: [Some((hidden, pointer)), None, None], norm: None, out })?
        };
        Ok(out)
    }

    /// Enqueues `y = then(x · weightᵀ + bias)`.
    ///
    /// # Safety
    /// As for [`gemm::launch`].
    unsafe fn dense(
        &self,
        kernels: &Kernels,
        stream: &Stream,
        DeviceDense { weight, bias }: &DeviceDense,
        then: Then,
        x: Matrix,
        y: Matrix,
    ) -> Result<()> {
        let gemm = Gemm::new(x, weight.matrix(), bias.matrix().pointer, then, y);
        // SAFETY: the caller's promise, passed on.
        unsafe { gemm::launch(kernels, stream, &gemm) }
    }

    /// Enqueues the norm of each row of `x`, in place; rows past the lengths, if there is a pointer to them, become zeros.
    ///
    /// # Safety
    /// As for [`gemm::launch`].
    unsafe fn normalize(
        &self,
        kernels: &Kernels,
        stream: &Stream,
        DeviceNorm { gamma, beta }: &DeviceNorm,
        x: Matrix,
        lengths: u64,
        seq_len: usize,
    ) -> Result<()> {
        let output = NormOutput { out: x, gamma: gamma.matrix().pointer, beta: beta.matrix().pointer };
        let join = Join {
            addends: [Some(x), None, None],
            norms: [Some(output), None],
            lengths,
            seq_len,
            eps: self.eps(),
            ..Join::default()
        };
        // SAFETY: the caller's promise, passed on.
        unsafe { norm::launch(kernels, stream, &join) }
    }
}
