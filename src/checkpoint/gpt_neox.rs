//! GPT-NeoX and Pythia (`model_type` `gpt_neox`).
//!
//! | tensor, for layer `i` under `gpt_neox.layers.i.` | shape | becomes |
//! |---|---|---|
//! | `input_layernorm` | `[h]` | `ln_1` |
//! | `post_attention_layernorm` | `[h]` | `ln_2` |
//! | `attention.query_key_value` | `[3h, h]`, `[3h]` | `w_qkv`, `b_qkv` |
//! | `attention.dense` | `[h, h]`, `[h]` | `w_o`, `b_o` |
//! | `mlp.dense_h_to_4h` | `[f, h]`, `[f]` | `w_1`, `b_1` |
//! | `mlp.dense_4h_to_h` | `[h, f]`, `[h]` | `w_2`, `b_2` |
//!
//! Besides: `gpt_neox.embed_in.weight`, `gpt_neox.final_layer_norm`, and `embed_out.weight` (or `lm_head.weight`) if it is there.
//!
//! Names lack `gpt_neox.` in a base model, saved without its head.
//!
//! Quirks:
//! - The rows of `query_key_value` are interleaved per head: a head's query, its key, its value, then the next head's.
//! - `use_parallel_residual` (true unless given) is the design: parallel with two norms, or serial.
//! - `post_attention_layernorm` norms the FFN's input; in the parallel design that is not after attention.
//! - Only the first `rotary_pct` of a head's dimensions are rotated, in halves.
//! - `attention_bias = false` leaves out the biases of attention.

use super::Mapped;
use super::fields::Fields;
use super::sources::{HeadSources, LayerSources, ModelSources, Source, Tensors};
use crate::config::{Design, EncoderConfig, HiddenAct, LayerConfig};
use crate::error::Result;

pub(super) fn map(fields: &Fields, tensors: &mut Tensors<'_>) -> Result<Mapped> {
    let h = fields.dimension("hidden_size", None)?;
    let heads = fields.dimension("num_attention_heads", None)?;
    let head_dim = fields.head_dim(h, "num_attention_heads", heads)?;
    let f = fields.dimension("intermediate_size", None)?;
    let parallel = fields.bool("use_parallel_residual", true)?;
    let layer = LayerConfig {
        hidden_size: h,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim,
        intermediate_size: f,
        layer_norm_eps: fields.positive("layer_norm_eps", Some(1e-5))? as f32,
        hidden_act: fields.act("hidden_act", HiddenAct::Gelu)?,
        gated: false,
        design: if parallel { Design::PafPreNormTwo } else { Design::SafPreNorm },
        causal: true,
        rotary: Some(fields.rotary(head_dim, ("rotary_emb_base", 1e4), ("rotary_pct", 0.25))?),
    };
    let num_hidden_layers = fields.dimension("num_hidden_layers", None)?;
    let config = fields.check(EncoderConfig { layer, num_hidden_layers })?;
    let vocab = fields.dimension("vocab_size", None)?;
    let bias = fields.bool("attention_bias", true)?;

    let base = tensors.base("gpt_neox.", "embed_in.weight");
    let word = tensors.take(&format!("{base}embed_in.weight"), &[vocab, h])?;
    let mut layers = Vec::new();
    for i in 0..num_hidden_layers {
        let name = |part: &str| format!("{base}layers.{i}.{part}");
        let qkv = tensors.rows(&name("attention.query_key_value.weight"), &[3 * h, h])?;
        let b_qkv = if bias {
            tensors.rows(&name("attention.query_key_value.bias"), &[3 * h])?.grouped_qkv(heads, 1, head_dim)
        } else {
            Source::zeros(3 * h)
        };
        layers.push(LayerSources {
            w_qkv: qkv.grouped_qkv(heads, 1, head_dim),
            b_qkv,
            w_o: tensors.take(&name("attention.dense.weight"), &[h, h])?,
            b_o: tensors.take_or_zeros(bias, &name("attention.dense.bias"), h)?,
            w_1: tensors.take(&name("mlp.dense_h_to_4h.weight"), &[f, h])?,
            b_1: tensors.take(&name("mlp.dense_h_to_4h.bias"), &[f])?,
            w_gate: Source::none(),
            b_gate: Source::none(),
            w_2: tensors.take(&name("mlp.dense_4h_to_h.weight"), &[h, f])?,
            b_2: tensors.take(&name("mlp.dense_4h_to_h.bias"), &[h])?,
            ln_1: tensors.norm(&name("input_layernorm"), h)?,
            ln_2: tensors.norm(&name("post_attention_layernorm"), h)?,
        });
    }
    let final_norm = tensors.norm(&format!("{base}final_layer_norm"), h)?;
    let decoder = if tensors.has("lm_head.weight") { "lm_head.weight" } else { "embed_out.weight" };
    let tied = fields.bool("tie_word_embeddings", false)?;
    let decoder = tensors.take_if_present(decoder, &[vocab, h])?;
    let head = HeadSources::without_bias(tied, !base.is_empty(), decoder);
    let rotary_positions = fields.positions("max_position_embeddings")?;
    let model = ModelSources { final_norm: Some(final_norm), head, rotary_positions, ..ModelSources::words(word) };
    Ok(Mapped { config, layers, model })
}

/// Constants that older versions of Transformers saved.
pub(super) fn ignored(name: &str) -> bool {
    [".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"].iter().any(|end| name.ends_with(end))
}
