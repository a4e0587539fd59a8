//! What a model has besides its layers, on a device: rounded to the element type, matrices row-major without gaps.

use crate::config::{HiddenAct, LayerConfig};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::gpu::device::Device;
use crate::gpu::gemm;
use crate::gpu::memory::Tensor;
use crate::gpu::staging::Staging;
use crate::weights::{Elements, EmbeddingSizes, HeadElements, ModelElements, TransformElements};

/// The decoder's rows are padded to a multiple of this: what products need of their columns.
const MULTIPLE: usize = 8;

#[derive(Debug)]
pub(super) struct DeviceWeights {
    /// `[vocab_size, hidden_size]`, and zeros up to a multiple of 8 rows: also the decoder, where the head is tied to it.
    pub(super) word: Tensor,
    pub(super) position: Option<Tensor>,
    pub(super) token_type: Option<Tensor>,
    pub(super) embedding_norm: Option<DeviceNorm>,
    pub(super) final_norm: Option<DeviceNorm>,
    pub(super) pooler: Option<DeviceDense>,
    pub(super) head: Option<DeviceHead>,
}

/// γ and β, `[1, hidden_size]` each.
#[derive(Debug)]
pub(super) struct DeviceNorm {
    pub(super) gamma: Tensor,
    pub(super) beta: Tensor,
}

/// `[hidden_size, hidden_size]` and `[1, hidden_size]`.
#[derive(Debug)]
pub(super) struct DeviceDense {
    pub(super) weight: Tensor,
    pub(super) bias: Tensor,
}

#[derive(Debug)]
pub(super) struct DeviceHead {
    pub(super) transform: Option<(DeviceDense, HiddenAct, DeviceNorm)>,
    /// Padded as `word`; `None` where it is tied to that.
    pub(super) decoder: Option<Tensor>,
    /// `[vocab_size, 1]`, padded likewise.
    pub(super) bias: Option<Tensor>,
    pub(super) scale: f32,
}

impl DeviceWeights {
    /// Copies everything to the device, a few megabytes at a time. Lengths are checked.
    pub(super) fn upload(
        device: &Device,
        config: &LayerConfig,
        dtype: Dtype,
        sizes: &EmbeddingSizes,
        elements: &ModelElements<'_>,
    ) -> Result<Self> {
        let &EmbeddingSizes { vocab_size, max_position_embeddings, type_vocab_size, .. } = sizes;
        let staging = Staging::new(device, vocab_size * config.hidden_size)?;
        let mut upload = Upload { staging, device, dtype, hidden_size: config.hidden_size };
        let ModelElements { word, position, token_type, embedding_norm, final_norm, pooler, head } = elements;
        let uploaded = Self {
            word: upload.padded("word embeddings", word, vocab_size, config.hidden_size)?,
            position: upload.table("position embeddings", position, max_position_embeddings)?,
            token_type: upload.table("token type embeddings", token_type, type_vocab_size)?,
            embedding_norm: upload.norm("embedding norm", embedding_norm)?,
            final_norm: upload.norm("final norm", final_norm)?,
            pooler: pooler.as_ref().map(|pooler| upload.dense("pooler", pooler)).transpose()?,
            head: head.as_ref().map(|head| upload.head(head, vocab_size)).transpose()?,
        };
        upload.staging.finish()?;
        Ok(uploaded)
    }
}

type Elementary<'a> = Box<dyn Elements + 'a>;

struct Upload<'a> {
    staging: Staging,
    device: &'a Device,
    dtype: Dtype,
    hidden_size: usize,
}

impl Upload<'_> {
    fn matrix(
        &mut self,
        what: &'static str,
        elements: &Elementary<'_>,
        [rows, cols]: [usize; 2],
        multiple: usize,
    ) -> Result<Tensor> {
        if elements.len() != rows * cols {
            let got = format!("{} elements", elements.len());
            return Err(Error::mismatch("model weights", what, got, format!("[{rows}, {cols}]")));
        }
        Tensor::from_elements(&mut self.staging, self.device, self.dtype, what, &**elements, cols, multiple)
    }

    fn padded(&mut self, what: &'static str, elements: &Elementary<'_>, rows: usize, cols: usize) -> Result<Tensor> {
        self.matrix(what, elements, [rows, cols], MULTIPLE)
    }

    fn table(
        &mut self,
        what: &'static str,
        elements: &Option<Elementary<'_>>,
        rows: Option<usize>,
    ) -> Result<Option<Tensor>> {
        let (table, cols) = (elements.as_ref().zip(rows), self.hidden_size);
        table.map(|(elements, rows)| self.matrix(what, elements, [rows, cols], 1)).transpose()
    }

    fn norm(&mut self, what: &'static str, norm: &Option<[Elementary<'_>; 2]>) -> Result<Option<DeviceNorm>> {
        norm.as_ref().map(|norm| self.one_norm(what, norm)).transpose()
    }

    fn one_norm(&mut self, what: &'static str, [gamma, beta]: &[Elementary<'_>; 2]) -> Result<DeviceNorm> {
        let shape = [1, self.hidden_size];
        let mut vector = |elements| self.matrix(what, elements, shape, 1);
        Ok(DeviceNorm { gamma: vector(gamma)?, beta: vector(beta)? })
    }

    fn dense(&mut self, what: &'static str, [weight, bias]: &[Elementary<'_>; 2]) -> Result<DeviceDense> {
        let cols = self.hidden_size;
        let mut matrix = |elements, rows| self.matrix(what, elements, [rows, cols], 1);
        Ok(DeviceDense { weight: matrix(weight, cols)?, bias: matrix(bias, 1)? })
    }

    fn head(&mut self, head: &HeadElements<'_>, vocab_size: usize) -> Result<DeviceHead> {
        let HeadElements { transform, decoder, bias, scale } = head;
        let transform = transform.as_ref().map(|TransformElements { dense, act, norm }| {
            gemm::check_activation(*act)?;
            Ok((self.dense("head transform", dense)?, *act, self.one_norm("head transform norm", norm)?))
        });
        let (transform, cols) = (transform.transpose()?, self.hidden_size);
        let decoder =
            decoder.as_ref().map(|decoder| self.padded("head decoder", decoder, vocab_size, cols)).transpose()?;
        let bias = bias.as_ref().map(|bias| self.padded("head bias", bias, vocab_size, 1)).transpose()?;
        Ok(DeviceHead { transform, decoder, bias, scale: *scale })
    }
}
