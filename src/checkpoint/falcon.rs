//! Falcon with rotary embeddings and parallel attention (`model_type` `falcon`): Falcon-7B, and the new decoder architecture
//! of Falcon-40B, Falcon-180B and Falcon2-11B.
//!
//! | tensor, for layer `i` under `transformer.h.i.` | shape | becomes |
//! |---|---|---|
//! | `input_layernorm` | `[h]` | one norm: `ln_1`, and `ln_2`, which the design does not use |
//! | `ln_attn`, `ln_mlp` | `[h]` | two norms: `ln_1`, `ln_2` |
//! | `self_attention.query_key_value` | `[h + 2kv, h]` | `w_qkv` |
//! | `self_attention.dense` | `[h, h]` | `w_o` |
//! | `mlp.dense_h_to_4h` | `[f, h]` | `w_1` |
//! | `mlp.dense_4h_to_h` | `[h, f]` | `w_2` |
//!
//! Besides: `transformer.word_embeddings.weight`, `transformer.ln_f`, and `lm_head.weight` if it is there.
//!
//! Names lack `transformer.` in a base model, saved without its head.
//!
//! Quirks:
//! - The rows of `query_key_value` are groups: in the new architecture one for each key head, with the query heads that share
//!   it, then the key, then the value. With `multi_query` all heads are one such group, without it each head is one.
//! - The new architecture ignores `multi_query`, and has two norms unless `num_ln_in_parallel_attn` is 1.
//! - Products have biases only if `bias` is set; else they are zeros.
//! - The head is tied to the word embeddings unless `tie_word_embeddings` is false; a copy in the file is not read.
//! - `alibi` and `parallel_attn = false` (Falcon-RW) are refused.

use serde_json::json;

use super::Mapped;
use super::fields::Fields;
use super::sources::{HeadSources, LayerSources, ModelSources, Source, Tensors};
use crate::config::{Design, EncoderConfig, HiddenAct, LayerConfig};
use crate::error::Result;

pub(super) fn map(fields: &Fields, tensors: &mut Tensors<'_>) -> Result<Mapped> {
    fields.only("alibi", &json!(false))?;
    fields.only("parallel_attn", &json!(true))?;
    let new = fields.bool("new_decoder_architecture", false)?;
    let two_norms = match fields.index("num_ln_in_parallel_attn", Some(if new { 2 } else { 1 }))? {
        1 => false,
        2 if new => true,
        _ => return Err(fields.error("num_ln_in_parallel_attn", "1, or 2 with new_decoder_architecture")),
    };
    let h = fields.dimension("hidden_size", None)?;
    let heads = fields.dimension("num_attention_heads", None)?;
    let head_dim = fields.head_dim(h, "num_attention_heads", heads)?;
    let multi_query = fields.bool("multi_query", true)?;
    let kv_heads = match (new, multi_query) {
        (true, _) => fields.dimension("num_kv_heads", Some(heads))?,
        (false, true) => 1,
        (false, false) => heads,
    };
    let f = fields.dimension("ffn_hidden_size", Some(4 * h))?;
    let layer = LayerConfig {
        hidden_size: h,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim,
        intermediate_size: f,
        layer_norm_eps: fields.positive("layer_norm_epsilon", Some(1e-5))? as f32,
        hidden_act: fields.act("activation", HiddenAct::Gelu)?,
        gated: false,
        design: if two_norms { Design::PafPreNormTwo } else { Design::PafPreNorm },
        causal: true,
        rotary: Some(fields.rotary(head_dim, ("rope_theta", 1e4), ("partial_rotary_factor", 1.0))?),
    };
    let num_hidden_layers = fields.dimension("num_hidden_layers", None)?;
    let config = fields.check(EncoderConfig { layer, num_hidden_layers })?;
    let vocab = fields.dimension("vocab_size", None)?;
    let bias = fields.bool("bias", false)?;
    let qkv = config.layer.qkv_size();

    let base = tensors.base("transformer.", "word_embeddings.weight");
    let word = tensors.take(&format!("{base}word_embeddings.weight"), &[vocab, h])?;
    let mut layers = Vec::new();
    for i in 0..num_hidden_layers {
        let name = |part: &str| format!("{base}h.{i}.{part}");
        let w_qkv = tensors.rows(&name("self_attention.query_key_value.weight"), &[qkv, h])?;
        let b_qkv = if bias {
            let rows = tensors.rows(&name("self_attention.query_key_value.bias"), &[qkv])?;
            rows.grouped_qkv(kv_heads, heads / kv_heads, head_dim)
        } else {
            Source::zeros(qkv)
        };
        let (ln_1, ln_2) = if two_norms {
            (tensors.norm(&name("ln_attn"), h)?, tensors.norm(&name("ln_mlp"), h)?)
        } else {
            let norm = tensors.norm(&name("input_layernorm"), h)?;
            (norm.clone(), norm)
        };
        layers.push(LayerSources {
            w_qkv: w_qkv.grouped_qkv(kv_heads, heads / kv_heads, head_dim),
            b_qkv,
            w_o: tensors.take(&name("self_attention.dense.weight"), &[h, h])?,
            b_o: tensors.take_or_zeros(bias, &name("self_attention.dense.bias"), h)?,
            w_1: tensors.take(&name("mlp.dense_h_to_4h.weight"), &[f, h])?,
            b_1: tensors.take_or_zeros(bias, &name("mlp.dense_h_to_4h.bias"), f)?,
            w_gate: Source::none(),
            b_gate: Source::none(),
            w_2: tensors.take(&name("mlp.dense_4h_to_h.weight"), &[h, f])?,
            b_2: tensors.take_or_zeros(bias, &name("mlp.dense_4h_to_h.bias"), h)?,
            ln_1,
            ln_2,
        });
    }
    let final_norm = tensors.norm(&format!("{base}ln_f"), h)?;
    let tied = fields.bool("tie_word_embeddings", true)?;
    let decoder = tensors.take_if_present("lm_head.weight", &[vocab, h])?;
    let head = HeadSources::without_bias(tied, !base.is_empty(), decoder);
    let rotary_positions = fields.positions("max_position_embeddings")?;
    let model = ModelSources { final_norm: Some(final_norm), head, rotary_positions, ..ModelSources::words(word) };
    Ok(Mapped { config, layers, model })
}

/// A constant that older versions of Transformers saved.
pub(super) fn ignored(name: &str) -> bool {
    name.ends_with(".rotary_emb.inv_freq")
}
