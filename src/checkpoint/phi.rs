//! Phi-1, Phi-1.5 and Phi-2 (`model_type` `phi`).
//!
//! | tensor, for layer `i` under `model.layers.i.` | shape | becomes |
//! |---|---|---|
//! | `input_layernorm` | `[h]` | `ln_1`, and `ln_2`, which the design does not use |
//! | `self_attn.q_proj` | `[h, h]`, `[h]` | `w_qkv`, `b_qkv` |
//! | `self_attn.{k,v}_proj` | `[kv, h]`, `[kv]` | below the queries in `w_qkv`, `b_qkv` |
//! | `self_attn.dense` | `[h, h]`, `[h]` | `w_o`, `b_o` |
//! | `mlp.fc1` | `[f, h]`, `[f]` | `w_1`, `b_1` |
//! | `mlp.fc2` | `[h, f]`, `[h]` | `w_2`, `b_2` |
//!
//! Besides: `model.embed_tokens.weight`, `model.final_layernorm`, and `lm_head.{weight,bias}` if they are there.
//!
//! Names lack `model.` in a base model, saved without its head.
//!
//! Quirks:
//! - Only the first `partial_rotary_factor` (0.5 unless given) of a head's dimensions are rotated, in halves.
//! - The head has a bias.
//! - `qk_layernorm`, which no published model has, is refused.

use serde_json::json;

use super::Mapped;
use super::fields::Fields;
use super::sources::{HeadSources, LayerSources, ModelSources, Source, Tensors};
use crate::config::{Design, EncoderConfig, HiddenAct, LayerConfig};
use crate::error::Result;

pub(super) fn map(fields: &Fields, tensors: &mut Tensors<'_>) -> Result<Mapped> {
    fields.only("qk_layernorm", &json!(false))?;
    let h = fields.dimension("hidden_size", None)?;
    let heads = fields.dimension("num_attention_heads", None)?;
    let kv_heads = fields.dimension("num_key_value_heads", Some(heads))?;
    let head_dim = fields.head_dim(h, "num_attention_heads", heads)?;
    let f = fields.dimension("intermediate_size", None)?;
    let layer = LayerConfig {
        hidden_size: h,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim,
        intermediate_size: f,
        layer_norm_eps: fields.positive("layer_norm_eps", Some(1e-5))? as f32,
        hidden_act: fields.act("hidden_act", HiddenAct::GeluNew)?,
        gated: false,
        design: Design::PafPreNorm,
        causal: true,
        rotary: Some(fields.rotary(head_dim, ("rope_theta", 1e4), ("partial_rotary_factor", 0.5))?),
    };
    let num_hidden_layers = fields.dimension("num_hidden_layers", None)?;
    let config = fields.check(EncoderConfig { layer, num_hidden_layers })?;
    let vocab = fields.dimension("vocab_size", None)?;
    let kv = config.layer.key_value_size();

    let base = tensors.base("model.", "embed_tokens.weight");
    let word = tensors.take(&format!("{base}embed_tokens.weight"), &[vocab, h])?;
    let mut layers = Vec::new();
    for i in 0..num_hidden_layers {
        let name = |part: &str| format!("{base}layers.{i}.{part}");
        let heads = [("q", h), ("k", kv), ("v", kv)];
        let weights = heads.map(|(head, n)| tensors.take(&name(&format!("self_attn.{head}_proj.weight")), &[n, h]));
        let biases = heads.map(|(head, n)| tensors.take(&name(&format!("self_attn.{head}_proj.bias")), &[n]));
        let ln_1 = tensors.norm(&name("input_layernorm"), h)?;
        layers.push(LayerSources {
            w_qkv: Source::concat(weights.into_iter().collect::<Result<Vec<_>>>()?),
            b_qkv: Source::concat(biases.into_iter().collect::<Result<Vec<_>>>()?),
            w_o: tensors.take(&name("self_attn.dense.weight"), &[h, h])?,
            b_o: tensors.take(&name("self_attn.dense.bias"), &[h])?,
            w_1: tensors.take(&name("mlp.fc1.weight"), &[f, h])?,
            b_1: tensors.take(&name("mlp.fc1.bias"), &[f])?,
            w_gate: Source::none(),
            b_gate: Source::none(),
            w_2: tensors.take(&name("mlp.fc2.weight"), &[h, f])?,
            b_2: tensors.take(&name("mlp.fc2.bias"), &[h])?,
            ln_2: ln_1.clone(),
            ln_1,
        });
    }
    let final_norm = tensors.norm(&format!("{base}final_layernorm"), h)?;
    let head = HeadSources::with_bias(fields, tensors, [vocab, h])?;
    let rotary_positions = fields.positions("max_position_embeddings")?;
    let model = ModelSources { final_norm: Some(final_norm), head, rotary_positions, ..ModelSources::words(word) };
    Ok(Mapped { config, layers, model })
}

/// A constant that older versions of Transformers saved.
pub(super) fn ignored(name: &str) -> bool {
    name.ends_with(".rotary_emb.inv_freq")
}
