//! Models in Hugging Face's format: a folder with `config.json` and `model.safetensors`, or several such files and
//! `model.safetensors.index.json`.
//!
//! The files are memory-mapped, and checked as a whole when they are opened: each tensor that the model needs is there, in
//! f32, f16 or bf16 and in the shape that the configuration calls for, and there is none besides (but for constants that
//! older versions of Transformers saved). Weights are then converted layer by layer, so that a large model need not fit into
//! host memory twice.
//!
//! | `model_type` | models | design |
//! |---|---|---|
//! | `bert`, `roberta` | BERT, RoBERTa, sentence encoders such as all-MiniLM-L6-v2; PAF-BERT and PAF-RoBERTa by [`Checkpoint::with_design`] | SAF post-norm, or PAF post-norm |
//! | `gpt_neox` | GPT-NeoX, Pythia | PAF, two norms; SAF pre-norm if `use_parallel_residual` is false |
//! | `gptj` | GPT-J | PAF, one norm |
//! | `phi` | Phi-1, Phi-1.5, Phi-2 | PAF, one norm |
//! | `falcon` | Falcon-7B; the new decoder architecture (40B, 180B, Falcon2-11B) | PAF, one norm or two |
//! | `cohere` | Command-R (not R+) | PAF, one norm; gated FFN |
//!
//! ```no_run
//! use paf_cuda::{BatchShape, Schedule, cpu};
//!
//! let model = cpu::Model::from_pretrained("all-MiniLM-L6-v2")?; // or `gpu::Model::from_pretrained`
//!
//! // Two texts, of four tokens and three: from a tokenizer; with the feature `tokenizers`, from `checkpoint::Tokenizer`.
//! let ids = [101, 7592, 2088, 102, 101, 7592, 102];
//! let shape = BatchShape::packed(vec![4, 3])?;
//! let hidden = model.forward(Schedule::Serial, &shape, &ids, None)?; // [7, hidden_size]
//! let vectors = model.pool(cpu::Pooling::Mean, &shape, &hidden)?; // [2, hidden_size]
//! # Ok::<(), paf_cuda::Error>(())
//! ```

mod bert;
mod cohere;
mod error;
mod falcon;
mod fields;
mod files;
mod gpt_neox;
mod gptj;
mod phi;
mod sources;
#[cfg(feature = "cuda")]
mod stored;
#[cfg(feature = "tokenizers")]
mod tokenizer;

use std::path::Path;

pub use error::CheckpointError;
use error::shown;
use fields::Fields;
use files::Files;
use sources::{HeadSources, LayerSources, ModelSources, NormSource, Source, Tensors, TransformSources};
#[cfg(feature = "tokenizers")]
pub use tokenizer::{Tokenizer, Tokens};

use crate::config::{Design, EncoderConfig};
use crate::error::{Error, Result};
use crate::weights::{
    Dense, EmbeddingSizes, Embeddings, Head, LayerWeights, ModelWeights, NormWeights, PositionEmbeddings, Transform,
};

/// A family: how its tensors map, and which ones no model needs.
struct Family {
    model_type: &'static str,
    map: fn(&Fields, &mut Tensors<'_>) -> Result<Mapped>,
    ignored: fn(&str) -> bool,
}

const FAMILIES: [Family; 7] = [
    Family { model_type: "bert", map: bert::bert, ignored: bert::ignored },
    Family { model_type: "roberta", map: bert::roberta, ignored: bert::ignored },
    Family { model_type: "gpt_neox", map: gpt_neox::map, ignored: gpt_neox::ignored },
    Family { model_type: "gptj", map: gptj::map, ignored: gptj::ignored },
    Family { model_type: "phi", map: phi::map, ignored: phi::ignored },
    Family { model_type: "falcon", map: falcon::map, ignored: falcon::ignored },
    Family { model_type: "cohere", map: cohere::map, ignored: cohere::ignored },
];

/// A checkpoint whose files are mapped and checked; its weights are converted when they are asked for.
#[derive(Debug)]
pub struct Checkpoint {
    model_type: &'static str,
    config: EncoderConfig,
    files: Files,
    layers: Vec<LayerSources>,
    model: ModelSources,
}

/// What a family makes of a configuration and its tensors.
struct Mapped {
    config: EncoderConfig,
    layers: Vec<LayerSources>,
    model: ModelSources,
}

impl Checkpoint {
    /// Opens the checkpoint in `folder`.
    ///
    /// The files stay mapped as long as the checkpoint lives. Files that another program shortens meanwhile end this process
    /// with a signal, as is so with every program that maps files.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] with the [`CheckpointError`] that names file, and field or tensor.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let fields = Fields::read(folder.join("config.json"))?;
        let got = fields.get("model_type").and_then(|value| value.as_str());
        let Some(Family { model_type, map, ignored }) =
            FAMILIES.into_iter().find(|family| got == Some(family.model_type))
        else {
            let got = fields.get("model_type").map_or("missing".into(), shown);
            let known = FAMILIES.map(|family| family.model_type).join(", ");
            return Err(CheckpointError::UnknownModelType { file: fields.file().to_owned(), got, known }.wrap());
        };
        let files = Files::open(folder)?;
        let mut tensors = Tensors::new(&files);
        let Mapped { config, layers, model } = map(&fields, &mut tensors)?;
        tensors.finish(ignored)?;
        Ok(Self { model_type, config, files, layers, model })
    }

    /// The same weights in another design: how PAF-BERT and PAF-RoBERTa (arXiv 2305.13297) are opened, whose files are those
    /// of the serial models by every name and field.
    ///
    /// # Errors
    /// [`Error::Unsupported`] unless both designs are post-norm or the design is what it was: weights of the other families
    /// are for one design.
    pub fn with_design(mut self, design: Design) -> Result<Self> {
        let own = self.config.layer.design;
        if design != own && !(design.is_post_norm() && own.is_post_norm()) {
            return Err(Error::Unsupported {
                what: format!("a checkpoint of {} in design {design}", self.model_type),
                remedy: format!("its weights are for {own}"),
            });
        }
        self.config.layer.design = design;
        Ok(self)
    }

    /// `model_type` as in `config.json`.
    pub fn model_type(&self) -> &'static str {
        self.model_type
    }

    /// Dimensions and design of the layers.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// The weight files, in the folder that was opened, and how many bytes each has.
    pub fn weight_files(&self) -> impl Iterator<Item = (&Path, usize)> {
        self.files.sizes()
    }

    /// How many rows the embedding tables have.
    pub fn embedding_sizes(&self) -> EmbeddingSizes {
        let rows = |table: &Source| table.len() / self.config.layer.hidden_size;
        let position = self.model.position.as_ref();
        EmbeddingSizes {
            vocab_size: rows(&self.model.word),
            max_position_embeddings: position.map(|(table, _)| rows(table)),
            padding_idx: position.and_then(|(_, padding_idx)| *padding_idx),
            type_vocab_size: self.model.token_type.as_ref().map(rows),
            rotary_positions: self.model.rotary_positions,
        }
    }

    /// How many numbers the files have, of which the model needs nearly all.
    pub(crate) fn elements(&self) -> usize {
        self.files.elements()
    }

    /// Whether there are weights from hidden states to logits.
    pub fn has_head(&self) -> bool {
        self.model.head.is_some()
    }

    /// The layers, from the first to the last, each converted when the iterator comes to it: what
    /// `gpu::EncoderWeights::upload` takes, or collected what [`cpu::Encoder::new`](crate::cpu::Encoder::new) takes.
    pub fn layers(&self) -> impl ExactSizeIterator<Item = LayerWeights> + '_ {
        self.layers.iter().map(|layer| self.layer(layer))
    }

    /// Embeddings, final norm, pooler and head, converted.
    pub fn model_weights(&self) -> ModelWeights {
        let ModelSources { word, position, rotary_positions, token_type, embedding_norm, final_norm, pooler, head } =
            &self.model;
        let read = |source: &Source| self.files.read(source);
        let norm = |source: &NormSource| self.norm(source);
        let position = position
            .as_ref()
            .map(|(table, padding_idx)| PositionEmbeddings { table: read(table), padding_idx: *padding_idx });
        ModelWeights {
            embeddings: Embeddings {
                word: read(word),
                position,
                rotary_positions: *rotary_positions,
                token_type: token_type.as_ref().map(read),
                norm: embedding_norm.as_ref().map(norm),
            },
            final_norm: final_norm.as_ref().map(norm),
            pooler: pooler.as_ref().map(|(weight, bias)| Dense { weight: read(weight), bias: read(bias) }),
            head: head.as_ref().map(|HeadSources { transform, decoder, bias, scale }| Head {
                transform: transform.as_ref().map(|TransformSources { weight, bias, act, norm: source }| Transform {
                    dense: Dense { weight: read(weight), bias: read(bias) },
                    act: *act,
                    norm: norm(source),
                }),
                decoder: decoder.as_ref().map(read),
                bias: bias.as_ref().map(read),
                scale: *scale,
            }),
        }
    }

    fn layer(&self, layer: &LayerSources) -> LayerWeights {
        let LayerSources { w_qkv, b_qkv, w_o, b_o, w_1, b_1, w_gate, b_gate, w_2, b_2, ln_1, ln_2 } = layer;
        let read = |source: &Source| self.files.read(source);
        LayerWeights {
            w_qkv: read(w_qkv),
            b_qkv: read(b_qkv),
            w_o: read(w_o),
            b_o: read(b_o),
            w_1: read(w_1),
            b_1: read(b_1),
            w_gate: read(w_gate),
            b_gate: read(b_gate),
            w_2: read(w_2),
            b_2: read(b_2),
            ln_1: self.norm(ln_1),
            ln_2: self.norm(ln_2),
        }
    }

    fn norm(&self, NormSource { gamma, beta }: &NormSource) -> NormWeights {
        NormWeights { gamma: self.files.read(gamma), beta: self.files.read(beta) }
    }
}
