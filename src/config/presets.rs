//! Dimensions of models that people run, from their published `config.json`.

use super::{Design, EncoderConfig, HiddenAct, LayerConfig, Rotary};
use crate::error::{Error, Result};

/// A model by name.
#[derive(Debug, Clone, PartialEq)]
pub struct Preset {
    /// Name as on the Hugging Face hub, without the organisation; `command-r` is c4ai-command-r-v01.
    pub name: &'static str,
    /// Stack of layers.
    pub config: EncoderConfig,
}

/// The names that [`preset`] knows.
pub const MODELS: [&str; 13] = [
    "roberta-large",
    "bert-large-uncased",
    "roberta-base",
    "bert-base-uncased",
    "minilm-l6",
    "pythia-410m",
    "pythia-1.4b",
    "pythia-6.9b",
    "gpt-neox-20b",
    "gpt-j-6b",
    "phi-2",
    "falcon-7b",
    "command-r",
];

/// The preset of that name, in the design that the model was trained in.
///
/// # Errors
/// [`Error::UnknownModel`] listing the names there are.
pub fn preset(name: &str) -> Result<Preset> {
    let &name = MODELS
        .iter()
        .find(|&&known| known == name)
        .ok_or_else(|| Error::UnknownModel { name: name.to_owned(), known: MODELS.join(", ") })?;
    let (num_hidden_layers, layer) = match name {
        "roberta-large" => encoder(24, 1024, 16, 4096, 1e-5),
        "bert-large-uncased" => encoder(24, 1024, 16, 4096, 1e-12),
        "roberta-base" => encoder(12, 768, 12, 3072, 1e-5),
        "bert-base-uncased" => encoder(12, 768, 12, 3072, 1e-12),
        "minilm-l6" => encoder(6, 384, 12, 1536, 1e-12),
        "pythia-410m" => neox(24, 1024, 16, HiddenAct::Gelu),
        "pythia-1.4b" => neox(24, 2048, 16, HiddenAct::Gelu),
        "pythia-6.9b" => neox(32, 4096, 32, HiddenAct::Gelu),
        // Published as "gelu_fast", which is the same tanh formula.
        "gpt-neox-20b" => neox(44, 6144, 64, HiddenAct::GeluNew),
        "gpt-j-6b" => decoder(28, 4096, 16, 16, HiddenAct::GeluNew, Some((64, true))),
        "phi-2" => decoder(32, 2560, 32, 32, HiddenAct::GeluNew, Some((32, false))),
        "falcon-7b" => decoder(32, 4544, 71, 1, HiddenAct::Gelu, Some((64, false))),
        "command-r" => command_r(40, 8192, 64, 22528, 8e6),
        _ => unreachable!("every name in MODELS has an arm"),
    };
    Ok(Preset { name, config: EncoderConfig { layer, num_hidden_layers } })
}

fn base(hidden_size: usize, heads: usize, intermediate_size: usize) -> LayerConfig {
    LayerConfig::new(hidden_size, heads, intermediate_size).expect("presets have valid dimensions")
}

fn encoder(layers: usize, hidden_size: usize, heads: usize, ffn: usize, eps: f32) -> (usize, LayerConfig) {
    let layer = LayerConfig { layer_norm_eps: eps, design: Design::SafPostNorm, ..base(hidden_size, heads, ffn) };
    (layers, layer)
}

/// GPT-NeoX and Pythia: two norms, a quarter of each head rotated.
fn neox(layers: usize, hidden_size: usize, heads: usize, hidden_act: HiddenAct) -> (usize, LayerConfig) {
    let layer = base(hidden_size, heads, 4 * hidden_size);
    let rotary = Some(Rotary { dim: layer.head_dim / 4, base: 10_000.0, interleaved: false });
    (layers, LayerConfig { hidden_act, design: Design::PafPreNormTwo, causal: true, rotary, ..layer })
}

/// Parallel decoders with one norm; `rotary` is (dimensions, interleaved).
fn decoder(
    layers: usize,
    hidden_size: usize,
    heads: usize,
    num_key_value_heads: usize,
    hidden_act: HiddenAct,
    rotary: Option<(usize, bool)>,
) -> (usize, LayerConfig) {
    let layer = LayerConfig {
        num_key_value_heads,
        hidden_act,
        design: Design::PafPreNorm,
        causal: true,
        rotary: rotary.map(|(dim, interleaved)| Rotary { dim, base: 10_000.0, interleaved }),
        ..base(hidden_size, heads, 4 * hidden_size)
    };
    (layers, layer)
}

/// Command-R: one norm, a SwiGLU FFN, whole heads rotated by neighbours.
fn command_r(layers: usize, hidden_size: usize, heads: usize, ffn: usize, rotary_base: f32) -> (usize, LayerConfig) {
    let layer = base(hidden_size, heads, ffn);
    let layer = LayerConfig {
        hidden_act: HiddenAct::Silu,
        gated: true,
        design: Design::PafPreNorm,
        causal: true,
        rotary: Some(Rotary { dim: layer.head_dim, base: rotary_base, interleaved: true }),
        ..layer
    };
    (layers, layer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_valid() {
        for name in MODELS {
            let preset = preset(name).unwrap();
            assert_eq!(preset.name, name);
            preset.config.validate().unwrap();
        }
    }

    #[test]
    fn parameter_counts_match_the_published_ones() {
        // Layers only, in millions: the published totals less their embeddings.
        for (name, millions) in [
            ("roberta-large", 302.3),
            ("bert-base-uncased", 85.1),
            ("pythia-1.4b", 1208.6),
            ("gpt-neox-20b", 19936.0),
            // 34,980,831,232, of which 256,000 words and the final norm take 2,097,160,192.
            ("command-r", 32883.7),
        ] {
            let config = preset(name).unwrap().config;
            let count = (config.num_hidden_layers * config.layer.parameters()) as f64 / 1e6;
            assert!((count - millions).abs() < 0.01 * millions, "{name}: {count} M");
        }
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = preset("gpt-5").unwrap_err().to_string();
        assert!(error.contains("\"gpt-5\"") && MODELS.iter().all(|name| error.contains(name)), "{error}");
    }
}
