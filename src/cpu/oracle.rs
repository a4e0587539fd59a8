//! The reference: every operation of a layer in f64, in plain loops, written to be read and believed.
//!
//! The same code with [`Rounding::To`] is the *naive implementation in a 16-bit type* whose error bounds a kernel's
//! error (see [`crate::verify`]): what a framework that runs one operation at a time would get, because it stores each
//! intermediate tensor in that type.
//!
//! All tensors are row-major, with [`BatchShape::rows`] rows; a token's row may hold anything, NaN included, where it is
//! padding. Activations are f64, weights f32; both must already hold numbers of the type that the checked
//! implementation computes in ([`LayerWeights::rounded`]), since inputs are never rounded here.

mod attention;
mod model;

use rayon::prelude::*;

pub use attention::{attention, log_sum_exp, rotate};
pub use model::{embed, hidden_states, logits, pool, pooler};

use super::{check_len, zero_padding};
use crate::config::{BatchShape, Design, EncoderConfig, HiddenAct, LayerConfig};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::weights::{LayerWeights, NormWeights};

/// What happens to each tensor that an implementation working one operation at a time would store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rounding {
    /// It stays f64: the oracle.
    Exact,
    /// It is rounded to a 16-bit type, once an element: the naive implementation in that type. Sums inside one
    /// operation stay f64, so that this is the *best* naive implementation, and bounds made from it are strict.
    To(Dtype),
}

impl Rounding {
    /// `value` as it would be stored. By way of f32, in which a framework's kernels hold it before they store it.
    pub fn apply(self, value: f64) -> f64 {
        match self {
            Self::Exact => value,
            Self::To(dtype) => f64::from(dtype.round(value as f32)),
        }
    }
}

/// `y = x·Wᵀ + b`: `x` is `[rows, k]`, `weight` `[n, k]`, `bias` `[n]`, the result `[rows, n]`.
///
/// Rounded once, after the bias is added.
///
/// # Errors
/// [`Error::Mismatch`] if a slice is not as long as these shapes say.
pub fn linear(
    x: &[f64],
    rows: usize,
    weight: &[f32],
    bias: Option<&[f32]>,
    n: usize,
    k: usize,
    rounding: Rounding,
) -> Result<Vec<f64>> {
    // So many rows share one conversion of a weight row to f64.
    const ROWS: usize = 16;
    check_len("linear", "x", x.len(), [rows, k])?;
    check_len("linear", "weight", weight.len(), [n, k])?;
    if let Some(bias) = bias {
        check_len("linear", "bias", bias.len(), [1, n])?;
    }
    let mut y = vec![0.0; rows * n];
    y.par_chunks_mut(ROWS * n).zip(x.par_chunks(ROWS * k)).for_each(|(y, x)| {
        let mut w = vec![0.0; k];
        for j in 0..n {
            w.iter_mut().zip(&weight[j * k..]).for_each(|(w, &weight)| *w = f64::from(weight));
            let b = bias.map_or(0.0, |bias| f64::from(bias[j]));
            for (y, x) in y.chunks_exact_mut(n).zip(x.chunks_exact(k)) {
                y[j] = rounding.apply(dot(x, &w) + b);
            }
        }
    });
    Ok(y)
}

/// Applies `act` to each element.
pub fn activate(act: HiddenAct, values: &mut [f64], rounding: Rounding) {
    use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI};
    let f = |x: f64| match act {
        HiddenAct::Gelu => 0.5 * x * (1.0 + libm::erf(x * FRAC_1_SQRT_2)),
        HiddenAct::GeluNew => 0.5 * x * (1.0 + (FRAC_2_PI.sqrt() * (x + 0.044715 * x.powi(3))).tanh()),
        // Not `f64::max`, which would turn NaN into 0.
        HiddenAct::Relu => {
            if x < 0.0 {
                0.0
            } else {
                x
            }
        }
        HiddenAct::Silu => x / (1.0 + (-x).exp()),
    };
    values.par_iter_mut().for_each(|value| *value = rounding.apply(f(*value)));
}

/// The sum of `addends`, then a layer norm if there is one: `γ·(s − mean)/√(variance + eps) + β` over each row
/// (arXiv 1607.06450). Each addend and the result are `[rows, hidden_size]`.
///
/// Rounded: each partial sum, and the norm's result.
///
/// # Errors
/// [`Error::Mismatch`] if there is no addend, or a slice is not as long as these shapes say.
pub fn norm_join(
    addends: &[&[f64]],
    hidden_size: usize,
    norm: Option<&NormWeights>,
    eps: f32,
    rounding: Rounding,
) -> Result<Vec<f64>> {
    let Some((first, rest)) = addends.split_first() else {
        return Err(Error::mismatch("norm_join", "number of addends", 0, "at least 1"));
    };
    let rows = first.len().checked_div(hidden_size).unwrap_or(0);
    for addend in addends {
        check_len("norm_join", "addend", addend.len(), [rows, hidden_size])?;
    }
    let mut sum = first.to_vec();
    for addend in rest {
        sum.iter_mut().zip(*addend).for_each(|(sum, addend)| *sum = rounding.apply(*sum + addend));
    }
    if let Some(NormWeights { gamma, beta }) = norm {
        check_len("norm_join", "gamma", gamma.len(), [1, hidden_size])?;
        check_len("norm_join", "beta", beta.len(), [1, hidden_size])?;
        let size = hidden_size as f64;
        sum.chunks_exact_mut(hidden_size).for_each(|row| {
            let mean = row.iter().sum::<f64>() / size;
            let variance = row.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / size;
            let deviation = (variance + f64::from(eps)).sqrt();
            for ((s, &gamma), &beta) in row.iter_mut().zip(gamma).zip(beta) {
                *s = rounding.apply(f64::from(gamma) * ((*s - mean) / deviation) + f64::from(beta));
            }
        });
    }
    Ok(sum)
}

/// One layer: `x` and the result are `[rows, hidden_size]`. Rows of padding are zeros in the result, whatever they
/// hold in `x`.
///
/// # Errors
/// What [`LayerConfig::validate`] and [`LayerWeights::check`] find; [`Error::Mismatch`] if `x` has another
/// length.
pub fn layer(
    config: &LayerConfig,
    weights: &LayerWeights,
    x: &[f64],
    shape: &BatchShape,
    rounding: Rounding,
) -> Result<Vec<f64>> {
    config.validate()?;
    weights.check(config)?;
    let (rows, hidden_size) = (shape.rows(), config.hidden_size);
    check_len("layer", "x", x.len(), [rows, hidden_size])?;

    let product = |x: &[f64], weight: &[f32], bias: &[f32], n, k| linear(x, rows, weight, Some(bias), n, k, rounding);
    let attn = |x: &[f64]| {
        let mut qkv = product(x, &weights.w_qkv, &weights.b_qkv, config.qkv_size(), hidden_size)?;
        rotate(&mut qkv, config, shape, rounding)?;
        let context = attention(&qkv, config, shape, rounding)?;
        product(&context, &weights.w_o, &weights.b_o, hidden_size, config.query_size())
    };
    let ffn = |x: &[f64]| {
        let mut inner = product(x, &weights.w_1, &weights.b_1, config.intermediate_size, hidden_size)?;
        if config.gated {
            let mut gate = product(x, &weights.w_gate, &weights.b_gate, config.intermediate_size, hidden_size)?;
            activate(config.hidden_act, &mut gate, rounding);
            inner.iter_mut().zip(&gate).for_each(|(x, gate)| *x = rounding.apply(*x * gate));
        } else {
            activate(config.hidden_act, &mut inner, rounding);
        }
        product(&inner, &weights.w_2, &weights.b_2, hidden_size, config.intermediate_size)
    };
    let sum = |addends: &[&[f64]]| norm_join(addends, hidden_size, None, config.layer_norm_eps, rounding);
    let norm = |norm: &NormWeights, addends: &[&[f64]]| {
        norm_join(addends, hidden_size, Some(norm), config.layer_norm_eps, rounding)
    };
    let (ln_1, ln_2) = (&weights.ln_1, &weights.ln_2);

    let mut y = match config.design {
        Design::SafPostNorm => {
            let a = norm(ln_1, &[x, &attn(x)?])?;
            norm(ln_2, &[&a, &ffn(&a)?])?
        }
        Design::PafPostNorm => norm(ln_2, &[x, &attn(x)?, &ffn(x)?])?,
        Design::SafPreNorm => {
            let a = sum(&[x, &attn(&norm(ln_1, &[x])?)?])?;
            sum(&[&a, &ffn(&norm(ln_2, &[&a])?)?])?
        }
        Design::PafPreNorm => {
            let n = norm(ln_1, &[x])?;
            sum(&[x, &attn(&n)?, &ffn(&n)?])?
        }
        Design::PafPreNormTwo => sum(&[x, &attn(&norm(ln_1, &[x])?)?, &ffn(&norm(ln_2, &[x])?)?])?,
    };
    zero_padding(&mut y, shape, hidden_size);
    Ok(y)
}

/// A stack of layers, the output of each the input of the next: `x` and the result are `[rows, hidden_size]`.
///
/// # Errors
/// What [`EncoderConfig::validate`] and [`layer`] find; [`Error::Mismatch`] if there are not `num_hidden_layers`
/// layers.
pub fn encoder(
    config: &EncoderConfig,
    layers: &[LayerWeights],
    x: &[f64],
    shape: &BatchShape,
    rounding: Rounding,
) -> Result<Vec<f64>> {
    config.validate()?;
    if layers.len() != config.num_hidden_layers {
        return Err(Error::mismatch("encoder", "number of layers", layers.len(), config.num_hidden_layers));
    }
    layers.iter().try_fold(x.to_vec(), |x, weights| layer(&config.layer, weights, &x, shape, rounding))
}

/// `Σ a·b`, in eight partial sums that do not wait for each other: several times the speed of one sum.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0.0; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::random_activations;

    fn widen(values: &[f32]) -> Vec<f64> {
        values.iter().map(|&value| f64::from(value)).collect()
    }

    fn case(design: Design) -> (LayerConfig, LayerWeights, BatchShape, Vec<f64>) {
        let config = LayerConfig { design, ..LayerConfig::new(12, 3, 20).unwrap() };
        let weights = LayerWeights::random(&config, 5);
        let shape = BatchShape::new(3, 4).unwrap().with_lengths(vec![4, 0, 3]).unwrap();
        let x = widen(&random_activations(shape.rows(), 12, 6));
        (config, weights, shape, x)
    }

    #[test]
    fn linear_by_hand_and_across_row_blocks() {
        let y =
            linear(&[1.0, 2.0, 3.0, -4.0], 2, &[1.0, 10.0, 2.0, 0.5, 0.0, 1.0], None, 3, 2, Rounding::Exact).unwrap();
        assert_eq!(y, [21.0, 3.0, 2.0, -37.0, 4.0, -4.0]);
        // More rows than one block, and a depth that is no multiple of the lanes of `dot`.
        let (rows, n, k) = (37, 5, 19);
        let (x, w, b) =
            (widen(&random_activations(rows, k, 1)), random_activations(n, k, 2), random_activations(1, n, 3));
        let y = linear(&x, rows, &w, Some(&b), n, k, Rounding::Exact).unwrap();
        for (i, j) in (0..rows).flat_map(|i| (0..n).map(move |j| (i, j))) {
            let expected = (0..k).map(|l| x[i * k + l] * f64::from(w[j * k + l])).sum::<f64>() + f64::from(b[j]);
            assert!((y[i * n + j] - expected).abs() < 1e-14, "({i}, {j})");
        }
    }

    #[test]
    fn activations_at_known_points() {
        let at = |act, x: f64| {
            let mut values = [x];
            activate(act, &mut values, Rounding::Exact);
            values[0]
        };
        // Φ(1) = 0.841344746068542948…
        assert!((at(HiddenAct::Gelu, 1.0) - 0.841_344_746_068_542_9).abs() < 1e-15);
        assert!((at(HiddenAct::Gelu, -1.0) + 0.158_655_253_931_457_05).abs() < 1e-15);
        // √(2/π)·1.044715 = 0.833556…; the approximation is within 5e-4 of GELU, and not equal to it.
        let difference = (at(HiddenAct::GeluNew, 1.0) - at(HiddenAct::Gelu, 1.0)).abs();
        assert!(difference < 5e-4 && difference > 1e-5, "{difference}");
        assert_eq!((at(HiddenAct::Relu, -3.0), at(HiddenAct::Relu, 3.0)), (0.0, 3.0));
        // σ(1) = 0.731058578630004879…, σ(−1) = 1 − σ(1); no overflow on either side.
        assert!((at(HiddenAct::Silu, 1.0) - 0.731_058_578_630_004_9).abs() < 1e-15);
        assert!((at(HiddenAct::Silu, -1.0) + 0.268_941_421_369_995_1).abs() < 1e-15);
        assert_eq!((at(HiddenAct::Silu, -1e4), at(HiddenAct::Silu, 1e4)), (0.0, 1e4));
        assert!(HiddenAct::ALL.into_iter().all(|act| at(act, f64::NAN).is_nan()));
    }

    #[test]
    fn norm_join_by_hand() {
        let norm = NormWeights { gamma: vec![1.0, 2.0], beta: vec![0.0, 5.0] };
        let addends: [&[f64]; 2] = [&[1.0, 2.0], &[0.0, 1.0]];
        assert_eq!(norm_join(&addends, 2, None, 1.0, Rounding::Exact).unwrap(), [1.0, 3.0]);
        // Mean 2, variance 1, so √(variance + 3) = 2.
        assert_eq!(norm_join(&addends, 2, Some(&norm), 3.0, Rounding::Exact).unwrap(), [-0.5, 6.0]);
    }

    #[test]
    fn designs_agree_where_they_must_and_differ_elsewhere() {
        let run = |design, edit: fn(&mut LayerWeights)| {
            let (config, mut weights, shape, x) = case(design);
            edit(&mut weights);
            layer(&config, &weights, &x, &shape, Rounding::Exact).unwrap()
        };
        let no_attention = |w: &mut LayerWeights| {
            w.w_o.fill(0.0);
            w.b_o.fill(0.0);
        };
        // Without attention the FFN's input is the same in both designs with two norms before.
        assert_eq!(run(Design::SafPreNorm, no_attention), run(Design::PafPreNormTwo, no_attention));
        let equal_norms = |w: &mut LayerWeights| w.ln_2 = w.ln_1.clone();
        assert_eq!(run(Design::PafPreNorm, equal_norms), run(Design::PafPreNormTwo, equal_norms));
        let outputs = Design::ALL.map(|design| run(design, |_| ()));
        for (i, output) in outputs.iter().enumerate() {
            assert!(output.iter().any(|&y| y != 0.0));
            assert!(outputs[..i].iter().all(|other| other != output), "{} equals another design", Design::ALL[i]);
        }
    }

    #[test]
    fn padding_is_never_read_and_comes_out_zero() {
        for design in Design::ALL {
            let (config, weights, shape, x) = case(design);
            let stack = EncoderConfig { layer: config, num_hidden_layers: 2 };
            let layers = [weights.clone(), weights];
            let expected = encoder(&stack, &layers, &x, &shape, Rounding::Exact).unwrap();
            let mut poisoned = x.clone();
            poisoned[4 * 12..8 * 12].fill(f64::NAN);
            poisoned[11 * 12..].fill(f64::NAN);
            assert_eq!(encoder(&stack, &layers, &poisoned, &shape, Rounding::Exact).unwrap(), expected);
            assert!(expected[4 * 12..8 * 12].iter().chain(&expected[11 * 12..]).all(|&y| y == 0.0));
            assert!(encoder(&stack, &layers[..1], &x, &shape, Rounding::Exact).is_err());
            assert!(encoder(&stack, &layers, &x[1..], &shape, Rounding::Exact).is_err());
        }
    }

    #[test]
    fn naive_results_are_numbers_of_the_type_and_nearer_the_finer_it_is() {
        let (config, weights, shape, x) = case(Design::PafPostNorm);
        let exact = layer(&config, &weights, &x, &shape, Rounding::Exact).unwrap();
        let error = |dtype: Dtype| {
            let y = layer(&config, &weights, &x, &shape, Rounding::To(dtype)).unwrap();
            assert!(y.iter().all(|&y| y == f64::from(dtype.round(y as f32))));
            y.iter().zip(&exact).map(|(y, exact)| (y - exact).abs()).fold(0.0, f64::max)
        };
        let (bf16, f16) = (error(Dtype::Bf16), error(Dtype::F16));
        assert!(f16 > 0.0 && f16 < bf16 && bf16 < 0.2, "{f16} {bf16}");
    }
}
