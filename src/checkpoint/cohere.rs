//! Command-R and Aya (`model_type` `cohere`). Command-R7B and Command-A are `cohere2`, another architecture.
//!
//! | tensor, for layer `i` under `model.layers.i.` | shape | becomes |
//! |---|---|---|
//! | `input_layernorm.weight` | `[h]` | γ of `ln_1`, and of `ln_2`, which the design does not use |
//! | `self_attn.q_proj` | `[q, h]` | `w_qkv` |
//! | `self_attn.{k,v}_proj` | `[kv, h]` | below the queries in `w_qkv` |
//! | `self_attn.o_proj` | `[h, q]` | `w_o` |
//! | `mlp.gate_proj.weight` | `[f, h]` | `w_gate` |
//! | `mlp.up_proj.weight` | `[f, h]` | `w_1` |
//! | `mlp.down_proj.weight` | `[h, f]` | `w_2` |
//!
//! Besides: `model.embed_tokens.weight`, `model.norm.weight`, and `lm_head.weight` if it is there.
//!
//! Names lack `model.` in a base model, saved without its head.
//!
//! Quirks:
//! - Norms have no bias: β is zeros.
//! - Nor have products, but for attention's four if `attention_bias` is set.
//! - Whole heads are rotated, pairs being neighbours. `rope_theta` must be there: versions of Transformers differ in what they take
//!   a missing one for.
//! - Logits are multiplied by `logit_scale` (0.0625 unless given).
//! - The head is tied to the word embeddings unless `tie_word_embeddings` is false; a copy in the file is not read.
//! - `use_qk_norm`, norms of each query and key head (Command-R+), is refused.

use serde_json::json;

use super::Mapped;
use super::fields::Fields;
use super::sources::{HeadSources, LayerSources, ModelSources, NormSource, Source, Tensors};
use crate::config::{Design, EncoderConfig, HiddenAct, LayerConfig, Rotary};
use crate::error::Result;

pub(super) fn map(fields: &Fields, tensors: &mut Tensors<'_>) -> Result<Mapped> {
    fields.only("use_qk_norm", &json!(false))?;
    let h = fields.dimension("hidden_size", None)?;
    let heads = fields.dimension("num_attention_heads", None)?;
    let kv_heads = fields.dimension("num_key_value_heads", Some(heads))?;
    let head_dim = match fields.get("head_dim") {
        Some(_) => fields.dimension("head_dim", None)?,
        None => fields.head_dim(h, "num_attention_heads", heads)?,
    };
    let f = fields.dimension("intermediate_size", None)?;
    let layer = LayerConfig {
        hidden_size: h,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim,
        intermediate_size: f,
        layer_norm_eps: fields.positive("layer_norm_eps", Some(1e-5))? as f32,
        hidden_act: fields.act("hidden_act", HiddenAct::Silu)?,
        gated: true,
        design: Design::PafPreNorm,
        causal: true,
        rotary: Some(Rotary { dim: head_dim, base: fields.rotary_base("rope_theta")?, interleaved: true }),
    };
    let num_hidden_layers = fields.dimension("num_hidden_layers", None)?;
    let config = fields.check(EncoderConfig { layer, num_hidden_layers })?;
    let vocab = fields.dimension("vocab_size", None)?;
    let (q, kv) = (config.layer.query_size(), config.layer.key_value_size());
    let bias = fields.bool("attention_bias", false)?;

    let base = tensors.base("model.", "embed_tokens.weight");
    let word = tensors.take(&format!("{base}embed_tokens.weight"), &[vocab, h])?;
    let mut layers = Vec::new();
    for i in 0..num_hidden_layers {
        let name = |part: &str| format!("{base}layers.{i}.{part}");
        let heads = [("q", q), ("k", kv), ("v", kv)];
        let weights = heads.map(|(head, n)| tensors.take(&name(&format!("self_attn.{head}_proj.weight")), &[n, h]));
        let biases =
            heads.map(|(head, n)| tensors.take_or_zeros(bias, &name(&format!("self_attn.{head}_proj.bias")), n));
        let ln_1 = norm(tensors, &name("input_layernorm"), h)?;
        layers.push(LayerSources {
            w_qkv: Source::concat(weights.into_iter().collect::<Result<Vec<_>>>()?),
            b_qkv: Source::concat(biases.into_iter().collect::<Result<Vec<_>>>()?),
            w_o: tensors.take(&name("self_attn.o_proj.weight"), &[h, q])?,
            b_o: tensors.take_or_zeros(bias, &name("self_attn.o_proj.bias"), h)?,
            w_1: tensors.take(&name("mlp.up_proj.weight"), &[f, h])?,
            b_1: Source::zeros(f),
            w_gate: tensors.take(&name("mlp.gate_proj.weight"), &[f, h])?,
            b_gate: Source::zeros(f),
            w_2: tensors.take(&name("mlp.down_proj.weight"), &[h, f])?,
            b_2: Source::zeros(h),
            ln_2: ln_1.clone(),
            ln_1,
        });
    }
    let final_norm = norm(tensors, &format!("{base}norm"), h)?;
    let tied = fields.bool("tie_word_embeddings", true)?;
    let decoder = tensors.take_if_present("lm_head.weight", &[vocab, h])?;
    let scale = fields.positive("logit_scale", Some(0.0625))? as f32;
    let head = HeadSources::without_bias(tied, !base.is_empty(), decoder).map(|head| HeadSources { scale, ..head });
    let rotary_positions = fields.positions("max_position_embeddings")?;
    let model = ModelSources { final_norm: Some(final_norm), head, rotary_positions, ..ModelSources::words(word) };
    Ok(Mapped { config, layers, model })
}

/// `name.weight` alone.
fn norm(tensors: &mut Tensors<'_>, name: &str, size: usize) -> Result<NormSource> {
    Ok(NormSource { gamma: tensors.take(&format!("{name}.weight"), &[size])?, beta: Source::zeros(size) })
}

/// A constant that older versions of Transformers saved.
pub(super) fn ignored(name: &str) -> bool {
    name.ends_with(".rotary_emb.inv_freq")
}
