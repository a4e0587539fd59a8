//! The reference: every formula as it stands in the papers, in f64, one tensor after another.
//!
//! [`Rounding::Exact`] is the oracle. [`Rounding::To`] is the naive implementation that the tolerance is measured by: the
//! same code, in which each tensor that an op-by-op implementation stores is rounded to the element type. Matrices are
//! row-major.

use rayon::prelude::*;

use crate::config::{BatchShape, Design, EncoderConfig, HiddenAct, LayerConfig};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::weights::{LayerWeights, NormWeights};

/// What happens to a tensor when it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// Nothing: f64 throughout.
    Exact,
    /// It is rounded to the element type.
    To(Dtype),
}

impl Rounding {
    fn store(self, tensor: &mut [f64]) {
        if let Self::To(dtype) = self {
            tensor.iter_mut().for_each(|value| *value = f64::from(dtype.round(*value as f32)));
        }
    }
}

/// `x[rows, k] · weight[n, k]ᵀ + bias[n]`, rounded once.
pub fn linear(x: &[f64], weight: &[f32], bias: Option<&[f32]>, k: usize, rounding: Rounding) -> Vec<f64> {
    let n = weight.len() / k;
    let weight: Vec<f64> = weight.iter().map(|&w| f64::from(w)).collect();
    let mut y = vec![0.0; x.len() / k * n];
    y.par_chunks_mut(n).zip(x.par_chunks(k)).for_each(|(y, x)| {
        for (j, y) in y.iter_mut().enumerate() {
            *y = dot(x, &weight[j * k..(j + 1) * k]) + bias.map_or(0.0, |bias| f64::from(bias[j]));
        }
        rounding.store(y);
    });
    y
}

/// Eight partial sums, so that the compiler can use vector registers.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (a_chunks, b_chunks) = (a.chunks_exact(8), b.chunks_exact(8));
    let tail: f64 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(a, b)| a * b).sum();
    let mut sums = [0.0; 8];
    for (a, b) in a_chunks.zip(b_chunks) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f64>() + tail
}

/// Applies the activation to every element.
pub fn activate(act: HiddenAct, tensor: &mut [f64], rounding: Rounding) {
    tensor.par_chunks_mut(4096).for_each(|chunk| {
        for x in chunk.iter_mut() {
            *x = match act {
                HiddenAct::Gelu => 0.5 * *x * (1.0 + libm::erf(*x * std::f64::consts::FRAC_1_SQRT_2)),
                HiddenAct::GeluNew => {
                    let u = (2.0 / std::f64::consts::PI).sqrt() * (*x + 0.044715 * x.powi(3));
                    0.5 * *x * (1.0 + u.tanh())
                }
                // Not f64::max, which would turn NaN into 0.
                HiddenAct::Relu => {
                    if *x < 0.0 {
                        0.0
                    } else {
                        *x
                    }
                }
            };
        }
        rounding.store(chunk);
    });
}

/// `softmax(Q·Kᵀ/√head_dim)·V` per sequence and head. `qkv` is `[rows, qkv_size]`: query heads, key heads, value heads; the
/// result is `[rows, query_size]`. Padded keys are not looked at, padded rows are zeros.
pub fn attention(qkv: &[f64], config: &LayerConfig, shape: &BatchShape, rounding: Rounding) -> Vec<f64> {
    let (d, width, ld) = (config.head_dim, config.query_size(), config.qkv_size());
    let group = config.num_attention_heads / config.num_key_value_heads;
    let scale = 1.0 / (d as f64).sqrt();
    let mut out = vec![0.0; shape.rows() * width];
    out.par_chunks_mut(width).enumerate().for_each(|(row, out)| {
        let (sequence, position) = (row / shape.seq_len(), row % shape.seq_len());
        let length = shape.length(sequence);
        if position >= length {
            return;
        }
        let first = sequence * shape.seq_len();
        let end = if config.causal { position + 1 } else { length };
        for head in 0..config.num_attention_heads {
            let slice = |row: usize, column: usize| &qkv[row * ld + column..row * ld + column + d];
            let q = slice(row, head * d);
            let k_column = width + head / group * d;
            let v_column = k_column + config.key_value_size();
            let mut p: Vec<f64> = (first..first + end).map(|key| dot(q, slice(key, k_column)) * scale).collect();
            rounding.store(&mut p);
            let max = p.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            p.iter_mut().for_each(|p| *p = (*p - max).exp());
            let sum: f64 = p.iter().sum();
            p.iter_mut().for_each(|p| *p /= sum);
            rounding.store(&mut p);
            let out = &mut out[head * d..(head + 1) * d];
            for (key, p) in p.iter().enumerate() {
                for (out, v) in out.iter_mut().zip(slice(first + key, v_column)) {
                    *out += p * v;
                }
            }
            rounding.store(out);
        }
    });
    out
}

/// `s = Σ addends`, each sum rounded; the first result. `(s − mean)/√(var + eps)·γ + β` for each of `norms`; the rest.
pub fn join(
    addends: &[&[f64]],
    norms: &[&NormWeights],
    hidden_size: usize,
    eps: f32,
    rounding: Rounding,
) -> (Vec<f64>, Vec<Vec<f64>>) {
    let mut sum = addends[0].to_vec();
    for addend in &addends[1..] {
        sum.iter_mut().zip(*addend).for_each(|(sum, addend)| *sum += addend);
        rounding.store(&mut sum);
    }
    let normed = norms.iter().map(|norm| layer_norm(&sum, norm, hidden_size, eps, rounding)).collect();
    (sum, normed)
}

/// Layer normalisation (arXiv 1607.06450, equation 4, with ε inside the root).
pub fn layer_norm(x: &[f64], norm: &NormWeights, hidden_size: usize, eps: f32, rounding: Rounding) -> Vec<f64> {
    let mut y = x.to_vec();
    for row in y.chunks_mut(hidden_size) {
        let n = hidden_size as f64;
        let mean = row.iter().sum::<f64>() / n;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        let inverse = 1.0 / (variance + f64::from(eps)).sqrt();
        for ((x, gamma), beta) in row.iter_mut().zip(&norm.gamma).zip(&norm.beta) {
            *x = (*x - mean) * inverse * f64::from(*gamma) + f64::from(*beta);
        }
        rounding.store(row);
    }
    y
}

/// One layer: `x` and the result are `[rows, hidden_size]`; padded rows of the result are zeros.
///
/// # Errors
/// [`Error::Unsupported`] for a layer that cannot be run yet; [`Error::Mismatch`] for a wrong number of values.
pub fn layer(
    config: &LayerConfig,
    weights: &LayerWeights,
    x: &[f64],
    shape: &BatchShape,
    rounding: Rounding,
) -> Result<Vec<f64>> {
    config.check_runnable()?;
    weights.check(config)?;
    let (h, f, eps) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
    if x.len() != shape.rows() * h {
        return Err(Error::mismatch("oracle", "number of values of x", x.len(), shape.rows() * h));
    }
    let attn = |x: &[f64]| {
        let qkv = linear(x, &weights.w_qkv, Some(&weights.b_qkv), h, rounding);
        let context = attention(&qkv, config, shape, rounding);
        linear(&context, &weights.w_o, Some(&weights.b_o), config.query_size(), rounding)
    };
    let ffn = |x: &[f64]| {
        let mut inner = linear(x, &weights.w_1, Some(&weights.b_1), h, rounding);
        activate(config.hidden_act, &mut inner, rounding);
        linear(&inner, &weights.w_2, Some(&weights.b_2), f, rounding)
    };
    let norm = |x: &[f64], norm: &NormWeights| layer_norm(x, norm, h, eps, rounding);
    let sum = |addends: &[&[f64]]| join(addends, &[], h, eps, rounding).0;
    let (ln_1, ln_2) = (&weights.ln_1, &weights.ln_2);

    let mut y = match config.design {
        Design::SafPostNorm => {
            let a = norm(&sum(&[x, &attn(x)]), ln_1);
            norm(&sum(&[&a, &ffn(&a)]), ln_2)
        }
        Design::PafPostNorm => norm(&sum(&[x, &attn(x), &ffn(x)]), ln_2),
        Design::SafPreNorm => {
            let a = sum(&[x, &attn(&norm(x, ln_1))]);
            sum(&[&a, &ffn(&norm(&a, ln_2))])
        }
        Design::PafPreNorm => {
            let n = norm(x, ln_1);
            sum(&[x, &attn(&n), &ffn(&n)])
        }
        Design::PafPreNormTwo => sum(&[x, &attn(&norm(x, ln_1)), &ffn(&norm(x, ln_2))]),
    };
    for (row, y) in y.chunks_mut(h).enumerate() {
        if row % shape.seq_len() >= shape.length(row / shape.seq_len()) {
            y.fill(0.0);
        }
    }
    Ok(y)
}

/// A stack of layers, one after the other.
///
/// # Errors
/// As [`layer`]; [`Error::Mismatch`] if there are fewer layers than the configuration says.
pub fn encoder(
    config: &EncoderConfig,
    layers: &[LayerWeights],
    x: &[f64],
    shape: &BatchShape,
    rounding: Rounding,
) -> Result<Vec<f64>> {
    config.validate()?;
    let layers = layers
        .get(..config.num_hidden_layers)
        .ok_or_else(|| Error::mismatch("oracle", "number of layers", layers.len(), config.num_hidden_layers))?;
    layers.iter().try_fold(x.to_vec(), |x, weights| layer(&config.layer, weights, &x, shape, rounding))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_by_hand() {
        // [1 2; 3 4] · [5 6; 7 8]ᵀ + [1 2]
        let y = linear(&[1.0, 2.0, 3.0, 4.0], &[5.0, 6.0, 7.0, 8.0], Some(&[1.0, 2.0]), 2, Rounding::Exact);
        assert_eq!(y, [18.0, 25.0, 40.0, 55.0]);
        let a: Vec<f64> = (0..19).map(f64::from).collect();
        assert_eq!(dot(&a, &a), (0..19).map(|i| f64::from(i * i)).sum::<f64>());
    }

    #[test]
    fn activations_at_known_points() {
        let at = |act, x: f64| {
            let mut values = [x];
            activate(act, &mut values, Rounding::Exact);
            values[0]
        };
        // Φ(1) = 0.8413447460685429.
        assert!((at(HiddenAct::Gelu, 1.0) - 0.841_344_746_068_542_9).abs() < 1e-15);
        assert!((at(HiddenAct::GeluNew, 1.0) - 0.841_191_990_608_276_8).abs() < 1e-12);
        assert_eq!((at(HiddenAct::Relu, -2.0), at(HiddenAct::Relu, 2.0)), (0.0, 2.0));
        assert!(at(HiddenAct::Relu, f64::NAN).is_nan());
    }

    #[test]
    fn attention_of_equal_keys_is_the_mean_of_the_values() {
        let config = LayerConfig {
            head_dim: 1,
            num_attention_heads: 1,
            num_key_value_heads: 1,
            ..LayerConfig::new(8, 1, 8).unwrap()
        };
        let shape = BatchShape::new(1, 4).unwrap().with_lengths(vec![3]).unwrap();
        let nan = f64::NAN;
        let qkv = [1.0, 1.0, 3.0, 2.0, 1.0, 6.0, 5.0, 1.0, 9.0, nan, nan, nan];
        assert_eq!(attention(&qkv, &config, &shape, Rounding::Exact), [6.0, 6.0, 6.0, 0.0]);
        let causal = LayerConfig { causal: true, ..config };
        assert_eq!(attention(&qkv, &causal, &shape, Rounding::Exact), [3.0, 4.5, 6.0, 0.0]);
    }

    #[test]
    fn norm_by_hand() {
        let norm = NormWeights { gamma: vec![2.0, 2.0], beta: vec![1.0, 1.0] };
        let (sum, normed) = join(&[&[1.0, 2.0], &[0.0, 2.0]], &[&norm], 2, 1e-12, Rounding::Exact);
        assert_eq!(sum, [1.0, 4.0]);
        assert!((normed[0][0] + 1.0).abs() < 1e-9 && (normed[0][1] - 3.0).abs() < 1e-9);
    }

    #[test]
    fn rounding_reaches_every_design() {
        for design in Design::ALL {
            let config = LayerConfig::new(32, 2, 64).unwrap().with_design(design);
            let weights = LayerWeights::random(&config, 5).rounded(Dtype::Bf16);
            let shape = BatchShape::new(1, 3).unwrap();
            let x: Vec<f64> = crate::weights::random_activations(3, 32, 1).iter().map(|&x| f64::from(x)).collect();
            let exact = layer(&config, &weights, &x, &shape, Rounding::Exact).unwrap();
            let naive = layer(&config, &weights, &x, &shape, Rounding::To(Dtype::Bf16)).unwrap();
            assert_ne!(exact, naive);
            for (exact, naive) in exact.iter().zip(&naive) {
                assert!((exact - naive).abs() < 0.1, "{design}: {exact} and {naive}");
                assert_eq!(*naive, f64::from(Dtype::Bf16.round(*naive as f32)));
            }
        }
    }
}
