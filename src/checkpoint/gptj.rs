//! GPT-J (`model_type` `gptj`).
//!
//! | tensor, for layer `i` under `transformer.h.i.` | shape | becomes |
//! |---|---|---|
//! | `ln_1` | `[h]` | `ln_1`, and `ln_2`, which the design does not use |
//! | `attn.{q,k,v}_proj.weight` | `[h, h]` | `w_qkv` |
//! | `attn.out_proj.weight` | `[h, h]` | `w_o` |
//! | `mlp.fc_in` | `[f, h]`, `[f]` | `w_1`, `b_1` |
//! | `mlp.fc_out` | `[h, f]`, `[h]` | `w_2`, `b_2` |
//!
//! Besides: `transformer.wte.weight`, `transformer.ln_f`, and `lm_head.{weight,bias}` if they are there.
//!
//! Names lack `transformer.` in a base model, saved without its head.
//!
//! Quirks:
//! - Attention has no biases: `b_qkv` and `b_o` are zeros.
//! - The first `rotary_dim` dimensions of a head are rotated, pairs being neighbours; the base is always 10,000.
//! - Dimensions are named as GPT-2 names them: `n_embd`, `n_head`, `n_layer`, `n_inner` (`4·n_embd` unless given).
//! - The head has a bias.

use super::Mapped;
use super::fields::Fields;
use super::sources::{HeadSources, LayerSources, ModelSources, Source, Tensors};
use crate::config::{Design, EncoderConfig, HiddenAct, LayerConfig, Rotary};
use crate::error::Result;

pub(super) fn map(fields: &Fields, tensors: &mut Tensors<'_>) -> Result<Mapped> {
    let h = fields.dimension("n_embd", None)?;
    let heads = fields.dimension("n_head", None)?;
    let head_dim = fields.head_dim(h, "n_head", heads)?;
    let f = fields.dimension("n_inner", Some(4 * h))?;
    let layer = LayerConfig {
        hidden_size: h,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim,
        intermediate_size: f,
        layer_norm_eps: fields.positive("layer_norm_epsilon", Some(1e-5))? as f32,
        hidden_act: fields.act("activation_function", HiddenAct::GeluNew)?,
        gated: false,
        design: Design::PafPreNorm,
        causal: true,
        rotary: Some(Rotary { dim: fields.dimension("rotary_dim", None)?, base: 1e4, interleaved: true }),
    };
    let num_hidden_layers = fields.dimension("n_layer", None)?;
    let config = fields.check(EncoderConfig { layer, num_hidden_layers })?;
    let vocab = fields.dimension("vocab_size", None)?;

    let base = tensors.base("transformer.", "wte.weight");
    let word = tensors.take(&format!("{base}wte.weight"), &[vocab, h])?;
    let mut layers = Vec::new();
    for i in 0..num_hidden_layers {
        let name = |part: &str| format!("{base}h.{i}.{part}");
        let w_qkv = ["q", "k", "v"].map(|head| tensors.take(&name(&format!("attn.{head}_proj.weight")), &[h, h]));
        let ln_1 = tensors.norm(&name("ln_1"), h)?;
        layers.push(LayerSources {
            w_qkv: Source::concat(w_qkv.into_iter().collect::<Result<Vec<_>>>()?),
            b_qkv: Source::zeros(3 * h),
            w_o: tensors.take(&name("attn.out_proj.weight"), &[h, h])?,
            b_o: Source::zeros(h),
            w_1: tensors.take(&name("mlp.fc_in.weight"), &[f, h])?,
            b_1: tensors.take(&name("mlp.fc_in.bias"), &[f])?,
            w_gate: Source::none(),
            b_gate: Source::none(),
            w_2: tensors.take(&name("mlp.fc_out.weight"), &[h, f])?,
            b_2: tensors.take(&name("mlp.fc_out.bias"), &[h])?,
            ln_2: ln_1.clone(),
            ln_1,
        });
    }
    let final_norm = tensors.norm(&format!("{base}ln_f"), h)?;
    let head = HeadSources::with_bias(fields, tensors, [vocab, h])?;
    let rotary_positions = fields.positions("n_positions")?;
    let model = ModelSources { final_norm: Some(final_norm), head, rotary_positions, ..ModelSources::words(word) };
    Ok(Mapped { config, layers, model })
}

/// Constants that older versions of Transformers saved.
pub(super) fn ignored(name: &str) -> bool {
    [".attn.bias", ".attn.masked_bias", ".attn.embed_positions"].iter().any(|end| name.ends_with(end))
}
