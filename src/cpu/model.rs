//! A whole language model in f32: token ids → embeddings → [`Encoder`] → final norm → logits or pooled vectors.

#[cfg(feature = "checkpoint")]
use std::path::Path;

use gemm::Parallelism;
use rayon::prelude::*;

use super::engine::{Encoder, activate, normalize};
use super::product::{Onto, View, ViewMut, linear, multiply};
use super::{check_len, zero_padding};
#[cfg(feature = "checkpoint")]
use crate::checkpoint::Checkpoint;
use crate::config::{BatchShape, Schedule};
use crate::error::{Error, Result};
use crate::weights::{Dense, Head, ModelWeights, Transform};

/// How the hidden states of a sequence become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pooling {
    /// Their mean over the sequence's tokens, as most sentence encoders do.
    Mean,
    /// That of the first token, `[CLS]` or `<s>`.
    Cls,
}

impl Pooling {
    /// Rows of a sequence that count; no more than it has do.
    pub(crate) fn most_rows(self) -> usize {
        match self {
            Self::Mean => usize::MAX,
            Self::Cls => 1,
        }
    }
}

/// A model, ready to run on the CPU in f32.
#[derive(Debug, Clone)]
pub struct Model {
    encoder: Encoder,
    weights: ModelWeights,
}

impl Model {
    /// The model of these layers and these embeddings, norms and heads.
    ///
    /// # Errors
    /// What [`ModelWeights::check`] finds.
    pub fn new(encoder: Encoder, weights: ModelWeights) -> Result<Self> {
        weights.check(&encoder.config().layer)?;
        Ok(Self { encoder, weights })
    }

    /// The model of the checkpoint in `folder`, in Hugging Face's format: its layers, and what is around them.
    ///
    /// ```no_run
    /// use paf_cuda::{BatchShape, Schedule, cpu};
    ///
    /// let model = cpu::Model::from_pretrained("pythia-70m")?;
    /// let ids = [12092, 13, 1533]; // one text, of three tokens
    /// let hidden = model.forward(Schedule::Serial, &BatchShape::packed(vec![3])?, &ids, None)?; // [3, hidden_size]
    /// let last = &hidden[2 * model.hidden_size()..]; // [1, hidden_size]
    /// let logits = model.logits(last)?; // [1, vocab_size], of the token that comes next
    /// # Ok::<(), paf_cuda::Error>(())
    /// ```
    ///
    /// # Errors
    /// What [`Checkpoint::open`] finds; [`Error::Unsupported`] if the weights are more than the host's memory.
    #[cfg(feature = "checkpoint")]
    pub fn from_pretrained(folder: impl AsRef<Path>) -> Result<Self> {
        Self::from_checkpoint(&Checkpoint::open(folder)?)
    }

    /// The same of a checkpoint that is open, and in its design.
    ///
    /// # Errors
    /// What [`new`](Self::new) finds; [`Error::Unsupported`] if the weights are more than the host's memory.
    #[cfg(feature = "checkpoint")]
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self> {
        Self::new(Encoder::from_checkpoint(checkpoint)?, checkpoint.model_weights())
    }

    /// The layers.
    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    /// Everything but the layers.
    pub fn weights(&self) -> &ModelWeights {
        &self.weights
    }

    /// Width of the hidden states.
    pub fn hidden_size(&self) -> usize {
        self.encoder.config().layer.hidden_size
    }

    /// Number of token ids, and width of the logits.
    pub fn vocab_size(&self) -> usize {
        self.weights.embeddings.word.len() / self.hidden_size()
    }

    /// Input of the first layer, `[rows, hidden_size]`, zeros where padding.
    ///
    /// `ids` has one token id a row of `shape`, `token_types` likewise (all 0 if `None`); what they hold in padding is not
    /// looked at.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if there are not as many ids or types as rows, one is outside its table, or a sequence is
    /// longer than the table of positions. [`Error::Unsupported`] if there is not that much memory.
    pub fn embed(&self, shape: &BatchShape, ids: &[u32], token_types: Option<&[u32]>) -> Result<Vec<f32>> {
        let hidden_size = self.hidden_size();
        let embeddings = &self.weights.embeddings;
        let rows = embeddings.rows(hidden_size, shape, ids, token_types)?;
        let mut x = zeros(shape.rows(), hidden_size)?;
        x.par_chunks_exact_mut(hidden_size).zip(&rows).for_each(|(x, row)| {
            let Some(row) = row else { return };
            let mut add = |table: &[f32], row: usize| {
                x.iter_mut().zip(&table[row * hidden_size..]).for_each(|(x, value)| *x += value);
            };
            add(&embeddings.word, row.word);
            if let (Some(table), Some(row)) = (&embeddings.token_type, row.token_type) {
                add(table, row);
            }
            if let (Some(position), Some(row)) = (&embeddings.position, row.position) {
                add(&position.table, row);
            }
            if let Some(norm) = &embeddings.norm {
                normalize(x, norm, self.encoder.config().layer.layer_norm_eps);
            }
        });
        Ok(x)
    }

    /// Hidden states after the last layer and the final norm, `[rows, hidden_size]`, zeros where padding. Ids and types
    /// as for [`embed`](Self::embed). Allocates its result and a workspace.
    ///
    /// # Errors
    /// What [`embed`](Self::embed), [`Encoder::workspace`] and [`Encoder::forward`] find.
    pub fn forward(
        &self,
        schedule: Schedule,
        shape: &BatchShape,
        ids: &[u32],
        token_types: Option<&[u32]>,
    ) -> Result<Vec<f32>> {
        let x = self.embed(shape, ids, token_types)?;
        let mut y = zeros(shape.rows(), self.hidden_size())?;
        self.encoder.forward(schedule, shape, &x, &mut y, &mut self.encoder.workspace(shape)?)?;
        if let Some(norm) = &self.weights.final_norm {
            let eps = self.encoder.config().layer.layer_norm_eps;
            y.par_chunks_exact_mut(self.hidden_size()).for_each(|row| normalize(row, norm, eps));
            zero_padding(&mut y, shape, self.hidden_size());
        }
        Ok(y)
    }

    /// Logits of hidden states, `[rows, vocab_size]`: of all that [`forward`](Self::forward) returned, or of those rows
    /// alone that are wanted, which is much less memory.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the model has no head, or there is not that much memory; [`Error::Mismatch`] if `hidden`
    /// is not whole rows of `hidden_size`.
    pub fn logits(&self, hidden: &[f32]) -> Result<Vec<f32>> {
        let (hidden_size, vocab_size) = (self.hidden_size(), self.vocab_size());
        let rows = hidden.len() / hidden_size;
        check_len("logits", "hidden", hidden.len(), [rows, hidden_size])?;
        let Some(Head { transform, decoder, bias, scale }) = &self.weights.head else {
            return Err(no_head());
        };
        let transformed = match transform {
            None => None,
            Some(Transform { dense, act, norm }) => {
                let mut x = zeros(rows, hidden_size)?;
                linear(&mut x, hidden, rows, &dense.weight, &dense.bias);
                x.par_chunks_exact_mut(hidden_size).for_each(|row| {
                    activate(*act, row);
                    normalize(row, norm, self.encoder.config().layer.layer_norm_eps);
                });
                Some(x)
            }
        };
        let x = transformed.as_deref().unwrap_or(hidden);
        let decoder = decoder.as_ref().unwrap_or(&self.weights.embeddings.word);
        let mut logits = zeros(rows, vocab_size)?;
        if let Some(bias) = bias {
            logits.par_chunks_exact_mut(vocab_size).for_each(|row| row.copy_from_slice(bias));
        }
        multiply(
            ViewMut::new(&mut logits, rows, vocab_size, vocab_size),
            Onto::Add,
            1.0,
            View::new(x, rows, hidden_size, hidden_size),
            View::new(decoder, vocab_size, hidden_size, hidden_size).transposed(),
            Parallelism::Rayon(0),
        );
        logits.par_iter_mut().for_each(|logit| *logit *= scale);
        Ok(logits)
    }

    /// One vector a sequence, `[batch, hidden_size]`, of the hidden states `[rows, hidden_size]`; zeros for an empty
    /// sequence.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if `hidden` has another length; [`Error::Unsupported`] if there is not that much memory.
    pub fn pool(&self, pooling: Pooling, shape: &BatchShape, hidden: &[f32]) -> Result<Vec<f32>> {
        let hidden_size = self.hidden_size();
        check_len("pool", "hidden", hidden.len(), [shape.rows(), hidden_size])?;
        let mut pooled = zeros(shape.batch(), hidden_size)?;
        pooled.par_chunks_exact_mut(hidden_size).enumerate().for_each(|(i, pooled)| {
            let length = shape.length(i).min(pooling.most_rows());
            let first = shape.first_row(i) * hidden_size;
            for row in hidden[first..first + length * hidden_size].chunks_exact(hidden_size) {
                pooled.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            }
            pooled.iter_mut().for_each(|sum| *sum /= length.max(1) as f32);
        });
        Ok(pooled)
    }

    /// BERT's pooler, `tanh(dense(x))`, over vectors `[batch, hidden_size]` that [`Pooling::Cls`] made; the result has
    /// the same shape.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the model has no pooler, or there is not that much memory; [`Error::Mismatch`] if
    /// `pooled` is not whole rows of `hidden_size`.
    pub fn pooler(&self, pooled: &[f32]) -> Result<Vec<f32>> {
        let rows = pooled.len() / self.hidden_size();
        check_len("pooler", "pooled", pooled.len(), [rows, self.hidden_size()])?;
        let Some(Dense { weight, bias }) = &self.weights.pooler else {
            return Err(no_pooler());
        };
        let mut y = zeros(rows, self.hidden_size())?;
        linear(&mut y, pooled, rows, weight, bias);
        y.par_iter_mut().for_each(|y| *y = y.tanh());
        Ok(y)
    }
}

/// What [`Model::logits`] says, on every engine.
pub(crate) fn no_head() -> Error {
    Error::Unsupported {
        what: "logits of a model without a language-model head".into(),
        remedy: "use its hidden states, or weights that include the head".into(),
    }
}

/// What [`Model::pooler`] says, on every engine.
pub(crate) fn no_pooler() -> Error {
    Error::Unsupported {
        what: "the pooler of a model without one".into(),
        remedy: "use the pooled hidden states as they are".into(),
    }
}

/// `[rows, width]` zeros, or an error instead of an abort where memory does not suffice.
pub(crate) fn zeros(rows: usize, width: usize) -> Result<Vec<f32>> {
    let mut values = Vec::new();
    let reserved = rows.checked_mul(width).filter(|&len| values.try_reserve_exact(len).is_ok());
    let len = reserved.ok_or_else(|| Error::Unsupported {
        what: format!("a buffer of [{rows}, {width}] f32 on this machine"),
        remedy: "host memory is exhausted; use fewer tokens".into(),
    })?;
    values.resize(len, 0.0);
    Ok(values)
}

/// Fails where memory for so many weights in f32 cannot be had at once, before a part of them is converted: a machine without it
/// would end the process midway. Where the system promises any amount, nothing is known before.
#[cfg(feature = "checkpoint")]
pub(super) fn check_memory(elements: usize) -> Result<()> {
    Vec::<f32>::new().try_reserve_exact(elements).map_err(|_| Error::Unsupported {
        what: format!("{elements} weights in f32 on this machine"),
        remedy: "they are more than the host's memory; run the checkpoint on a GPU, which takes them a few megabytes at a time"
            .into(),
    })
}

#[cfg(all(test, feature = "checkpoint"))]
mod tests {
    use super::*;

    #[test]
    fn memory_that_cannot_be_had_is_an_error() {
        check_memory(1 << 20).unwrap();
        // More than an address space has, and more than a length can be.
        for elements in [1 << 46, usize::MAX] {
            let error = check_memory(elements).unwrap_err().to_string();
            assert!(error.contains(&format!("{elements} weights")), "{error}");
        }
    }
}
