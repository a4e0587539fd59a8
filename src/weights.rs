//! Weights of a layer, and of what is around the layers, on the host, in f32, each matrix row-major `[out_features, in_features]` as PyTorch stores it.

#[cfg(feature = "cuda")]
mod elements;
mod model;

#[cfg(feature = "cuda")]
pub(crate) use elements::{Elements, HeadElements, LayerElements, ModelElements, TransformElements, pieces};
pub(crate) use model::TokenRows;
pub use model::{Dense, EmbeddingSizes, Embeddings, Head, ModelWeights, PositionEmbeddings, Transform};
use rand::SeedableRng;
use rand_distr::{Distribution, Normal};
use rand_pcg::Pcg64Mcg;
use rayon::prelude::*;

use crate::config::{EncoderConfig, LayerConfig};
use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// How many fields [`LayerWeights`] has, γ and β counted apart.
pub(crate) const LAYER_FIELDS: usize = 14;

/// Their names, in the order of declaration.
pub(crate) const LAYER_FIELD_NAMES: [&str; LAYER_FIELDS] = [
    "w_qkv",
    "b_qkv",
    "w_o",
    "b_o",
    "w_1",
    "b_1",
    "w_gate",
    "b_gate",
    "w_2",
    "b_2",
    "ln_1.gamma",
    "ln_1.beta",
    "ln_2.gamma",
    "ln_2.beta",
];

/// γ and β of one layer norm, `[hidden_size]` each.
#[derive(Debug, Clone, PartialEq)]
pub struct NormWeights {
    /// Scale.
    pub gamma: Vec<f32>,
    /// Shift.
    pub beta: Vec<f32>,
}

/// Weights of one layer. All designs have the same fields, so that one set of weights can be run in each of them.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerWeights {
    /// Query, key and value projections one above the other, `[qkv_size, hidden_size]`.
    pub w_qkv: Vec<f32>,
    /// `[qkv_size]`.
    pub b_qkv: Vec<f32>,
    /// Output projection of attention, `[hidden_size, query_size]`.
    pub w_o: Vec<f32>,
    /// `[hidden_size]`.
    pub b_o: Vec<f32>,
    /// First FFN product, `[intermediate_size, hidden_size]`.
    pub w_1: Vec<f32>,
    /// `[intermediate_size]`.
    pub b_1: Vec<f32>,
    /// The gate's projection, `[intermediate_size, hidden_size]`; empty where the FFN has no gate.
    pub w_gate: Vec<f32>,
    /// `[intermediate_size]`, or empty.
    pub b_gate: Vec<f32>,
    /// Second FFN product, `[hidden_size, intermediate_size]`.
    pub w_2: Vec<f32>,
    /// `[hidden_size]`.
    pub b_2: Vec<f32>,
    /// LN1. Present but unused in `PafPostNorm`, as in the paper's checkpoints.
    pub ln_1: NormWeights,
    /// LN2. Unused in `PafPreNorm`.
    pub ln_2: NormWeights,
}

impl LayerWeights {
    /// Random weights: matrices normal with deviation `1/√in_features` (so that activations keep their scale through any
    /// number of layers), biases and β normal with deviation 0.1, γ around 1. The same for a given seed on every machine.
    pub fn random(config: &LayerConfig, seed: u64) -> Self {
        let (h, f, q, qkv) = (config.hidden_size, config.intermediate_size, config.query_size(), config.qkv_size());
        let matrix =
            |salt: u64, rows: usize, cols: usize| normal(seed, salt, rows * cols, 0.0, (cols as f32).powf(-0.5));
        let vector = |salt: u64, len: usize, mean: f32| normal(seed, salt, len, mean, 0.1);
        let gates = if config.gated { f } else { 0 };
        Self {
            w_qkv: matrix(1, qkv, h),
            b_qkv: vector(2, qkv, 0.0),
            w_o: matrix(3, h, q),
            b_o: vector(4, h, 0.0),
            w_1: matrix(5, f, h),
            b_1: vector(6, f, 0.0),
            w_gate: matrix(13, gates, h),
            b_gate: vector(14, gates, 0.0),
            w_2: matrix(7, h, f),
            b_2: vector(8, h, 0.0),
            ln_1: NormWeights { gamma: vector(9, h, 1.0), beta: vector(10, h, 0.0) },
            ln_2: NormWeights { gamma: vector(11, h, 1.0), beta: vector(12, h, 0.0) },
        }
    }

    /// The same weights with every element rounded to `dtype`: what a device holds.
    pub fn rounded(&self, dtype: Dtype) -> Self {
        let round = |values: &Vec<f32>| values.par_iter().map(|&value| dtype.round(value)).collect();
        let norm = |norm: &NormWeights| NormWeights { gamma: round(&norm.gamma), beta: round(&norm.beta) };
        Self {
            w_qkv: round(&self.w_qkv),
            b_qkv: round(&self.b_qkv),
            w_o: round(&self.w_o),
            b_o: round(&self.b_o),
            w_1: round(&self.w_1),
            b_1: round(&self.b_1),
            w_gate: round(&self.w_gate),
            b_gate: round(&self.b_gate),
            w_2: round(&self.w_2),
            b_2: round(&self.b_2),
            ln_1: norm(&self.ln_1),
            ln_2: norm(&self.ln_2),
        }
    }

    /// Checks every field's length against the configuration.
    ///
    /// # Errors
    /// [`Error::Mismatch`] naming the first field at fault, its length, and the length it should have.
    pub fn check(&self, config: &LayerConfig) -> Result<()> {
        check_lengths(config, self.fields().map(|(name, values)| (name, values.len())))
    }

    /// Every field with its name, in the order of declaration.
    pub fn fields(&self) -> [(&'static str, &Vec<f32>); LAYER_FIELDS] {
        let Self { w_qkv, b_qkv, w_o, b_o, w_1, b_1, w_gate, b_gate, w_2, b_2, ln_1, ln_2 } = self;
        let of_products = [w_qkv, b_qkv, w_o, b_o, w_1, b_1, w_gate, b_gate, w_2, b_2];
        let of_norms = [&ln_1.gamma, &ln_1.beta, &ln_2.gamma, &ln_2.beta];
        let mut values = of_products.into_iter().chain(of_norms);
        LAYER_FIELD_NAMES.map(|name| (name, values.next().expect("as many fields as names")))
    }
}

/// How many elements each of a layer's fields has, in the order of declaration.
pub(crate) fn field_lengths(config: &LayerConfig) -> [usize; LAYER_FIELDS] {
    let (h, f, q, qkv) = (config.hidden_size, config.intermediate_size, config.query_size(), config.qkv_size());
    let gates = if config.gated { f } else { 0 };
    [qkv * h, qkv, h * q, h, f * h, f, gates * h, gates, h * f, h, h, h, h, h]
}

/// Checks the length of each of a layer's fields, which are in the order of declaration.
pub(crate) fn check_lengths(config: &LayerConfig, fields: [(&'static str, usize); LAYER_FIELDS]) -> Result<()> {
    for ((name, len), expected) in fields.into_iter().zip(field_lengths(config)) {
        if len != expected {
            return Err(Error::mismatch("weights", name, format!("{len} elements"), expected));
        }
    }
    Ok(())
}

/// Random weights of a whole stack, each layer's distinct; made one at a time, so that a large model need not fit in
/// host memory at once.
pub fn random_layers(config: &EncoderConfig, seed: u64) -> impl Iterator<Item = LayerWeights> + '_ {
    (0..config.num_hidden_layers as u64).map(move |i| LayerWeights::random(&config.layer, mix(seed, 1000 + i)))
}

/// Random activations, standard normal, `[rows · hidden_size]`. The same for a given seed on every machine.
pub fn random_activations(rows: usize, hidden_size: usize, seed: u64) -> Vec<f32> {
    normal(seed, 99, rows * hidden_size, 0.0, 1.0)
}

/// SplitMix64's mixing of two numbers into a seed, so that neighbouring seeds give unrelated streams.
fn mix(seed: u64, salt: u64) -> u64 {
    let mut z = seed ^ salt.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn normal(seed: u64, salt: u64, len: usize, mean: f32, deviation: f32) -> Vec<f32> {
    // One generator a chunk: the values do not depend on the number of threads.
    const CHUNK: usize = 1 << 16;
    let distribution = Normal::new(mean, deviation).expect("a finite deviation");
    let mut values = vec![0.0; len];
    values.par_chunks_mut(CHUNK).enumerate().for_each(|(i, chunk)| {
        let mut rng = Pcg64Mcg::seed_from_u64(mix(mix(seed, salt), i as u64));
        chunk.fill_with(|| distribution.sample(&mut rng));
    });
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_weights_are_distinct_repeatable_and_of_the_right_shape() {
        for gated in [false, true] {
            let config = LayerConfig { gated, ..LayerConfig::new(64, 2, 96).unwrap() };
            let stack = EncoderConfig { layer: config.clone(), num_hidden_layers: 2 };
            let layers: Vec<_> = random_layers(&stack, 7).collect();
            assert_eq!(layers, random_layers(&stack, 7).collect::<Vec<_>>());
            assert_ne!(layers[0], layers[1]);
            for layer in &layers {
                layer.check(&config).unwrap();
                let fields: Vec<_> = layer.fields().into_iter().filter(|(_, values)| !values.is_empty()).collect();
                assert_eq!(fields.len(), if gated { 14 } else { 12 });
                for (i, (name, values)) in fields.iter().enumerate() {
                    assert!(fields[..i].iter().all(|(_, other)| other[0] != values[0]), "{name} repeats another field");
                }
            }
            // A gate that is not there, or there where none should be, is a wrong length like any other.
            let error = layers[0].check(&LayerConfig { gated: !gated, ..config.clone() }).unwrap_err().to_string();
            assert!(error.contains("w_gate is"), "{error}");
            let mut short = layers[0].clone();
            short.b_1.pop();
            assert!(short.check(&config).unwrap_err().to_string().contains("b_1 is 95 elements, expected 96"));
        }
    }

    #[test]
    fn rounding_rounds_every_field() {
        let config = LayerConfig { gated: true, ..LayerConfig::new(64, 2, 96).unwrap() };
        let rounded = LayerWeights::random(&config, 3).rounded(Dtype::Bf16);
        for (name, values) in rounded.fields() {
            assert!(values.iter().all(|&v| v == Dtype::Bf16.round(v)), "{name}");
        }
    }
}
