//! Where the crate's weights come from: which rows of which tensors, one after the other.
//!
//! Every layout that the families have is a sequence of whole rows of `[out_features, in_features]` matrices, so that
//! mapping a model is naming rows; nothing is converted before it is asked for.

use std::collections::HashSet;
use std::ops::Range;

use safetensors::Dtype;

use super::error::{CheckpointError, shown};
use super::fields::Fields;
use super::files::{Files, Tensor};
use crate::config::HiddenAct;
use crate::error::Result;

/// A run of elements.
#[derive(Debug, Clone)]
pub(super) enum Piece {
    /// `len` elements from byte `start` of a shard on.
    Stored { shard: usize, dtype: Dtype, start: usize, len: usize },
    /// Zeros: a bias that the model does not have.
    Zeros(usize),
}

impl Piece {
    pub(super) fn len(&self) -> usize {
        match *self {
            Self::Stored { len, .. } | Self::Zeros(len) => len,
        }
    }
}

/// Elements of one of the crate's tensors.
#[derive(Debug, Clone)]
pub(super) struct Source(Vec<Piece>);

impl Source {
    pub(super) fn zeros(len: usize) -> Self {
        Self(vec![Piece::Zeros(len)])
    }

    /// No elements: of a part that the model does not have.
    pub(super) fn none() -> Self {
        Self(Vec::new())
    }

    /// One after the other.
    pub(super) fn concat(sources: impl IntoIterator<Item = Self>) -> Self {
        Self(sources.into_iter().flat_map(|source| source.0).collect())
    }

    pub(super) fn pieces(&self) -> &[Piece] {
        &self.0
    }

    pub(super) fn len(&self) -> usize {
        self.0.iter().map(Piece::len).sum()
    }
}

/// γ and β of a norm.
#[derive(Debug, Clone)]
pub(super) struct NormSource {
    pub(super) gamma: Source,
    pub(super) beta: Source,
}

/// [`LayerWeights`](crate::weights::LayerWeights), field by field.
#[derive(Debug)]
pub(super) struct LayerSources {
    pub(super) w_qkv: Source,
    pub(super) b_qkv: Source,
    pub(super) w_o: Source,
    pub(super) b_o: Source,
    pub(super) w_1: Source,
    pub(super) b_1: Source,
    /// Nothing where the FFN has no gate, nor in the next one.
    pub(super) w_gate: Source,
    pub(super) b_gate: Source,
    pub(super) w_2: Source,
    pub(super) b_2: Source,
    pub(super) ln_1: NormSource,
    pub(super) ln_2: NormSource,
}

/// [`ModelWeights`](crate::weights::ModelWeights), field by field.
#[derive(Debug)]
pub(super) struct ModelSources {
    pub(super) word: Source,
    /// The table, and RoBERTa's `padding_idx`.
    pub(super) position: Option<(Source, Option<u32>)>,
    /// The longest sequence that rotary embeddings are for.
    pub(super) rotary_positions: Option<usize>,
    pub(super) token_type: Option<Source>,
    pub(super) embedding_norm: Option<NormSource>,
    pub(super) final_norm: Option<NormSource>,
    /// Weight and bias.
    pub(super) pooler: Option<(Source, Source)>,
    pub(super) head: Option<HeadSources>,
}

impl ModelSources {
    /// Nothing but word embeddings.
    pub(super) fn words(word: Source) -> Self {
        Self {
            word,
            position: None,
            rotary_positions: None,
            token_type: None,
            embedding_norm: None,
            final_norm: None,
            pooler: None,
            head: None,
        }
    }
}

/// [`Head`](crate::weights::Head), field by field.
#[derive(Debug)]
pub(super) struct HeadSources {
    pub(super) transform: Option<TransformSources>,
    pub(super) decoder: Option<Source>,
    pub(super) bias: Option<Source>,
    pub(super) scale: f32,
}

impl HeadSources {
    /// `lm_head.weight` and `lm_head.bias`, `[vocab, h]` and `[vocab]`, which a base model does not have. A weight that is
    /// tied to the word embeddings need not be there; its bias must be, or there is no head.
    pub(super) fn with_bias(
        fields: &Fields,
        tensors: &mut Tensors<'_>,
        [vocab, h]: [usize; 2],
    ) -> Result<Option<Self>> {
        let tied = fields.bool("tie_word_embeddings", false)?;
        let decoder = tensors.take_if_present("lm_head.weight", &[vocab, h])?;
        if decoder.is_none() && !(tied && tensors.has("lm_head.bias")) {
            return Ok(None);
        }
        let bias = tensors.take("lm_head.bias", &[vocab])?;
        Ok(Some(Self { transform: None, decoder: decoder.filter(|_| !tied), bias: Some(bias), scale: 1.0 }))
    }

    /// The weights that were found, if any. Tied to the word embeddings, they need not be there in a `whole_model`; a base
    /// model, whose names have no prefix, has no head.
    pub(super) fn without_bias(tied: bool, whole_model: bool, decoder: Option<Source>) -> Option<Self> {
        let there = tied && whole_model || decoder.is_some();
        there.then(|| Self { transform: None, decoder: decoder.filter(|_| !tied), bias: None, scale: 1.0 })
    }
}

/// [`Transform`](crate::weights::Transform), field by field.
#[derive(Debug)]
pub(super) struct TransformSources {
    pub(super) weight: Source,
    pub(super) bias: Source,
    pub(super) act: HiddenAct,
    pub(super) norm: NormSource,
}

/// Hands out tensors by name, checks them, and remembers which were asked for.
pub(super) struct Tensors<'a> {
    files: &'a Files,
    taken: HashSet<String>,
}

impl<'a> Tensors<'a> {
    pub(super) fn new(files: &'a Files) -> Self {
        Self { files, taken: HashSet::new() }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.files.get(name).is_some()
    }

    /// What names of the model proper begin with: `prefix` where the file was saved from a model with a head, so that
    /// `prefix` and `name` is there, else nothing.
    pub(super) fn base(&self, prefix: &'static str, name: &str) -> &'static str {
        if self.has(&format!("{prefix}{name}")) { prefix } else { "" }
    }

    /// A whole tensor of this shape.
    pub(super) fn take(&mut self, name: &str, shape: &[usize]) -> Result<Source> {
        Ok(self.rows(name, shape)?.range(0..shape[0]))
    }

    /// The same, if it is there.
    pub(super) fn take_if_present(&mut self, name: &str, shape: &[usize]) -> Result<Option<Source>> {
        self.has(name).then(|| self.take(name, shape)).transpose()
    }

    /// A tensor if `present`, else zeros: a bias that the configuration turns off.
    pub(super) fn take_or_zeros(&mut self, present: bool, name: &str, len: usize) -> Result<Source> {
        if present { self.take(name, &[len]) } else { Ok(Source::zeros(len)) }
    }

    /// `name.weight` and `name.bias`, `[size]` each.
    pub(super) fn norm(&mut self, name: &str, size: usize) -> Result<NormSource> {
        let gamma = self.take(&format!("{name}.weight"), &[size])?;
        Ok(NormSource { gamma, beta: self.take(&format!("{name}.bias"), &[size])? })
    }

    /// A tensor of this shape, to take rows of.
    pub(super) fn rows(&mut self, name: &str, shape: &[usize]) -> Result<Rows<'a>> {
        let Some(tensor) = self.files.get(name) else {
            let file = self.files.listing().to_owned();
            return Err(CheckpointError::MissingTensor { file, tensor: name.into() }.wrap());
        };
        let error = |got: String, expected: String| {
            CheckpointError::Tensor {
                file: self.files.file_of(tensor).to_owned(),
                tensor: name.into(),
                got: shown(got),
                expected,
            }
            .wrap()
        };
        if tensor.shape != shape {
            return Err(error(format!("{:?}", tensor.shape), format!("{shape:?}")));
        }
        if !matches!(tensor.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(error(format!("{:?}", tensor.dtype), "F32, F16 or BF16".into()));
        }
        self.taken.insert(name.into());
        Ok(Rows { tensor })
    }

    /// Fails if a tensor was not asked for and `ignored` does not know it.
    pub(super) fn finish(self, ignored: impl Fn(&str) -> bool) -> Result<()> {
        let extra = self.files.names().filter(|(name, _)| !self.taken.contains(*name) && !ignored(name));
        // The same one each time, whatever order the names are stored in.
        extra.min().map_or(Ok(()), |(name, file)| {
            Err(CheckpointError::ExtraTensor { file: file.to_owned(), tensor: shown(name.escape_debug()) }.wrap())
        })
    }
}

/// A checked tensor whose rows can be taken in any order.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    tensor: &'a Tensor,
}

impl Rows<'_> {
    /// Some of its rows. A vector's elements are rows.
    pub(super) fn range(&self, rows: Range<usize>) -> Source {
        let Tensor { shard, dtype, ref shape, start } = *self.tensor;
        let width: usize = shape[1..].iter().product();
        let start = start + rows.start * width * dtype.bitsize() / 8;
        Source(vec![Piece::Stored { shard, dtype, start, len: rows.len() * width }])
    }

    /// Q|K|V out of a fused projection whose rows are groups: in each, `queries` query heads, then one key head, then one
    /// value head, all `head_dim` rows high.
    pub(super) fn grouped_qkv(&self, groups: usize, queries: usize, head_dim: usize) -> Source {
        let heads = |first: usize, count: usize| {
            (0..groups).map(move |group| {
                let row = (group * (queries + 2) + first) * head_dim;
                row..row + count * head_dim
            })
        };
        let rows = heads(0, queries).chain(heads(queries, 1)).chain(heads(queries + 1, 1));
        Source::concat(rows.map(|rows| self.range(rows)))
    }
}
