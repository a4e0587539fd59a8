//! BERT and RoBERTa (`model_type` `bert`, `roberta`), as language models or as sentence encoders.
//!
//! | tensor, for layer `i` under `encoder.layer.i.` | shape | becomes |
//! |---|---|---|
//! | `attention.self.{query,key,value}.{weight,bias}` | `[h, h]`, `[h]` | `w_qkv`, `b_qkv` |
//! | `attention.output.dense` | `[h, h]`, `[h]` | `w_o`, `b_o` |
//! | `attention.output.LayerNorm` | `[h]` | `ln_1` |
//! | `intermediate.dense` | `[f, h]`, `[f]` | `w_1`, `b_1` |
//! | `output.dense` | `[h, f]`, `[h]` | `w_2`, `b_2` |
//! | `output.LayerNorm` | `[h]` | `ln_2` |
//!
//! Besides: `embeddings.{word,position,token_type}_embeddings.weight`, `embeddings.LayerNorm`, `pooler.dense` if it is there;
//! BERT's head `cls.predictions.*`, RoBERTa's `lm_head.*`, if they are there.
//!
//! Quirks:
//! - Names begin with `bert.` or `roberta.` where the file was saved from a model with a head, and do not in sentence encoders.
//! - Old files of BERT call a norm's weight and bias `gamma` and `beta`.
//! - RoBERTa counts positions from `pad_token_id + 1`, and leaves out tokens that are padding.
//! - The head's decoder is tied to the word embeddings; a copy in the file is checked and not read. Its bias is in the file
//!   under one name or two.
//! - RoBERTa's head has the exact GELU, whatever `hidden_act` is.
//! - BERT's head for the next sentence (`cls.seq_relationship`) is not read.
//! - PAF-BERT and PAF-RoBERTa (arXiv 2305.13297) have these very names and the same `config.json`: nothing in the folder
//!   tells them from the serial models. [`Checkpoint::with_design`](super::Checkpoint::with_design) does;
//!   `attention.output.LayerNorm` is then there and not used.

use serde_json::json;

use super::Mapped;
use super::fields::Fields;
use super::sources::{HeadSources, LayerSources, ModelSources, NormSource, Source, Tensors, TransformSources};
use crate::config::{Design, EncoderConfig, HiddenAct, LayerConfig};
use crate::error::Result;

pub(super) fn bert(fields: &Fields, tensors: &mut Tensors<'_>) -> Result<Mapped> {
    map(fields, tensors, "bert.", None)
}

pub(super) fn roberta(fields: &Fields, tensors: &mut Tensors<'_>) -> Result<Mapped> {
    let padding = fields.index("pad_token_id", Some(1))?;
    map(fields, tensors, "roberta.", Some(padding as u32))
}

/// Tensors that no model needs.
pub(super) fn ignored(name: &str) -> bool {
    name.ends_with("embeddings.position_ids")
        || name.ends_with("embeddings.token_type_ids")
        || name.starts_with("cls.seq_relationship.")
}

fn config(fields: &Fields) -> Result<EncoderConfig> {
    fields.only("position_embedding_type", &json!("absolute"))?;
    fields.only("is_decoder", &json!(false))?;
    fields.only("add_cross_attention", &json!(false))?;
    let hidden_size = fields.dimension("hidden_size", None)?;
    let heads = fields.dimension("num_attention_heads", None)?;
    let layer = LayerConfig {
        hidden_size,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim: fields.head_dim(hidden_size, "num_attention_heads", heads)?,
        intermediate_size: fields.dimension("intermediate_size", None)?,
        layer_norm_eps: fields.positive("layer_norm_eps", Some(1e-12))? as f32,
        hidden_act: fields.act("hidden_act", HiddenAct::Gelu)?,
        gated: false,
        design: Design::SafPostNorm,
        causal: false,
        rotary: None,
    };
    fields.check(EncoderConfig { layer, num_hidden_layers: fields.dimension("num_hidden_layers", None)? })
}

fn map(fields: &Fields, tensors: &mut Tensors<'_>, prefix: &'static str, padding_idx: Option<u32>) -> Result<Mapped> {
    let config = config(fields)?;
    let (h, f) = (config.layer.hidden_size, config.layer.intermediate_size);
    let vocab = fields.dimension("vocab_size", None)?;
    let positions = fields.dimension("max_position_embeddings", None)?;
    let types = fields.dimension("type_vocab_size", Some(2))?;

    let base = tensors.base(prefix, "embeddings.word_embeddings.weight");
    let table = |name: &str| format!("{base}embeddings.{name}_embeddings.weight");
    let word = tensors.take(&table("word"), &[vocab, h])?;
    let position = tensors.take(&table("position"), &[positions, h])?;
    let token_type = tensors.take(&table("token_type"), &[types, h])?;
    let embedding_norm = norm(tensors, &format!("{base}embeddings.LayerNorm"), h)?;

    let mut layers = Vec::new();
    for i in 0..config.num_hidden_layers {
        let name = |part: &str| format!("{base}encoder.layer.{i}.{part}");
        let mut qkv = |part: &str, shape: &[usize]| -> Result<Source> {
            let take = |head| tensors.take(&name(&format!("attention.self.{head}.{part}")), shape);
            Ok(Source::concat(["query", "key", "value"].map(take).into_iter().collect::<Result<Vec<_>>>()?))
        };
        layers.push(LayerSources {
            w_qkv: qkv("weight", &[h, h])?,
            b_qkv: qkv("bias", &[h])?,
            w_o: tensors.take(&name("attention.output.dense.weight"), &[h, h])?,
            b_o: tensors.take(&name("attention.output.dense.bias"), &[h])?,
            w_1: tensors.take(&name("intermediate.dense.weight"), &[f, h])?,
            b_1: tensors.take(&name("intermediate.dense.bias"), &[f])?,
            w_gate: Source::none(),
            b_gate: Source::none(),
            w_2: tensors.take(&name("output.dense.weight"), &[h, f])?,
            b_2: tensors.take(&name("output.dense.bias"), &[h])?,
            ln_1: norm(tensors, &name("attention.output.LayerNorm"), h)?,
            ln_2: norm(tensors, &name("output.LayerNorm"), h)?,
        });
    }

    let pooler = match tensors.take_if_present(&format!("{base}pooler.dense.weight"), &[h, h])? {
        None => None,
        Some(weight) => Some((weight, tensors.take(&format!("{base}pooler.dense.bias"), &[h])?)),
    };
    let head = if padding_idx.is_some() {
        head(fields, tensors, ["lm_head", "lm_head", "layer_norm"], HiddenAct::Gelu, [vocab, h])?
    } else {
        let names = ["cls.predictions", "cls.predictions.transform", "LayerNorm"];
        head(fields, tensors, names, config.layer.hidden_act, [vocab, h])?
    };
    let model = ModelSources {
        word,
        position: Some((position, padding_idx)),
        rotary_positions: None,
        token_type: Some(token_type),
        embedding_norm: Some(embedding_norm),
        final_norm: None,
        pooler,
        head,
    };
    Ok(Mapped { config, layers, model })
}

fn head(
    fields: &Fields,
    tensors: &mut Tensors<'_>,
    [head, transform, norm_name]: [&str; 3],
    act: HiddenAct,
    [vocab, h]: [usize; 2],
) -> Result<Option<HeadSources>> {
    if !tensors.has(&format!("{transform}.dense.weight")) {
        return Ok(None);
    }
    let transform = TransformSources {
        weight: tensors.take(&format!("{transform}.dense.weight"), &[h, h])?,
        bias: tensors.take(&format!("{transform}.dense.bias"), &[h])?,
        act,
        norm: norm(tensors, &format!("{transform}.{norm_name}"), h)?,
    };
    let decoder = format!("{head}.decoder.weight");
    let decoder = if fields.bool("tie_word_embeddings", true)? {
        tensors.take_if_present(&decoder, &[vocab, h])?;
        None
    } else {
        Some(tensors.take(&decoder, &[vocab, h])?)
    };
    let copy = tensors.take_if_present(&format!("{head}.decoder.bias"), &[vocab])?;
    let bias = match (copy, tensors.has(&format!("{head}.bias"))) {
        (Some(copy), false) => copy,
        _ => tensors.take(&format!("{head}.bias"), &[vocab])?,
    };
    Ok(Some(HeadSources { transform: Some(transform), decoder, bias: Some(bias), scale: 1.0 }))
}

fn norm(tensors: &mut Tensors<'_>, name: &str, size: usize) -> Result<NormSource> {
    if tensors.has(&format!("{name}.gamma")) {
        let gamma = tensors.take(&format!("{name}.gamma"), &[size])?;
        return Ok(NormSource { gamma, beta: tensors.take(&format!("{name}.beta"), &[size])? });
    }
    tensors.norm(name, size)
}
