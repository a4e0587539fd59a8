//! Elements of a result that are spread over all of it, against f64, before anything is timed: what `paf kernels` and the criterion
//! benchmarks have in common. `paf verify` and the test suites look at whole results.

use super::{attention, norm};
use crate::config::HiddenAct;
use crate::cpu::oracle::{self, Rounding};
use crate::error::{Error, Result};
use crate::gpu::Tensor;
use crate::verify::plant;
use crate::weights::NormWeights;

/// Where the i-th of `count` places lies, from the first element to the last.
fn place(i: usize, count: usize, len: usize) -> usize {
    i * (len - 1) / (count - 1)
}

/// One element, as the device has it, against the exact one.
fn check(got: f32, exact: f64, bound: f64, whose: impl FnOnce() -> String) -> Result<()> {
    let got = f64::from(plant::seen(&[got])[0]);
    if got.is_nan() || (got - exact).abs() > bound {
        return Err(Error::Verification(format!("{} is {got}, not {exact} ± {bound:.2e}", whose())));
    }
    Ok(())
}

/// 64 elements of `c = a · wᵀ`, on a diagonal through the whole matrix, or of `act(a · wᵀ + bias)`.
///
/// # Errors
/// [`Error::Verification`] if one is wrong, which names it; what reading the tensors gives.
pub fn product(name: &str, a: &Tensor, w: &Tensor, then: Option<(&Tensor, HiddenAct)>, c: &Tensor) -> Result<()> {
    let ((m, n), k) = (c.shape(), a.shape().1);
    let epsilon = c.dtype().epsilon();
    let bias = then.map(|(bias, _)| bias.row(0)).transpose()?;
    for i in 0..64 {
        let (row, column) = (place(i, 64, m), place(i, 64, n));
        let products = a.row(row)?.into_iter().zip(w.row(column)?).map(|(a, w)| f64::from(a) * f64::from(w));
        let (mut sum, mut size) = (0.0, 0.0);
        products.for_each(|x| (sum, size) = (sum + x, size + x.abs()));
        let mut exact = [sum];
        if let (Some(bias), Some((_, act))) = (&bias, then) {
            exact[0] += f64::from(bias[column]);
            oracle::activate(act, &mut exact, Rounding::Exact);
        }
        // Rounding to the element type, sums in f32 in any order, and an activation of its own accuracy.
        let bound = epsilon * exact[0].abs() + 1e-6 * size + if then.is_some() { 2e-3 } else { 1e-6 };
        check(c.row(row)?[column], exact[0], bound, || format!("{name}: element ({row}, {column}) (K = {k})"))?;
    }
    Ok(())
}

/// Sixteen rows of one head each, spread over the whole output, of attention whose packed operand repeats `block`.
///
/// # Errors
/// As [`product`].
pub fn attention(name: &str, shape: attention::Shape, block: &[f64], out: &Tensor) -> Result<()> {
    let attention::Shape { batch, heads, key_value_heads, seq_len, head_dim, causal } = shape;
    let width = shape.qkv().1;
    let part = |row: usize, head: usize| {
        let start = row * width + head * head_dim;
        (start..start + head_dim).map(|i| block[i % block.len()])
    };
    for i in 0..16 {
        let (sequence, head, position) = (place(i, 16, batch), place(i, 16, heads), place(i, 16, seq_len));
        let first = sequence * seq_len;
        let key_head = heads + head / (heads / key_value_heads);
        let keys = if causal { position + 1 } else { seq_len };
        let query: Vec<f64> = part(first + position, head).collect();
        let scores: Vec<f64> = (first..first + keys)
            .map(|key| query.iter().zip(part(key, key_head)).map(|(q, k)| q * k).sum::<f64>())
            .map(|score| score / (head_dim as f64).sqrt())
            .collect();
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|score| (score - most).exp()).sum();
        let mut exact = vec![(0.0, 0.0); head_dim];
        for (key, score) in scores.iter().enumerate() {
            let weight = (score - most).exp() / sum;
            for (exact, v) in exact.iter_mut().zip(part(first + key, key_head + key_value_heads)) {
                *exact = (exact.0 + weight * v, exact.1 + weight * v.abs());
            }
        }
        let got = out.row(first + position)?;
        // Rounding of the result and of each weight to the element type, and f32's own.
        let epsilon = out.dtype().epsilon();
        for (column, (&got, (exact, size))) in got[head * head_dim..].iter().zip(exact).enumerate() {
            check(got, exact, epsilon * (exact.abs() + size) + 1e-5, || {
                format!("{name} {shape}: sequence {sequence}, head {head}, position {position}, column {column}")
            })?;
        }
    }
    Ok(())
}

/// The first row of a join, the last, and one amid them: its sum, if that is stored, and its norms, whose γ and β the device has
/// rounded to the element type.
///
/// # Errors
/// As [`product`].
pub fn join(
    shape: norm::Shape,
    addends: &[Tensor],
    sum: Option<&Tensor>,
    norms: &[(&Tensor, &NormWeights)],
    eps: f32,
) -> Result<()> {
    for row in [0, shape.rows / 2, shape.rows - 1] {
        let addends = addends.iter().map(|addend| addend.row(row)).collect::<Result<Vec<_>>>()?;
        let addends: Vec<Vec<f64>> =
            addends.iter().map(|addend| addend.iter().map(|&x| f64::from(x)).collect()).collect();
        let addends: Vec<&[f64]> = addends.iter().map(Vec::as_slice).collect();
        let outputs = norms.iter().map(|&(out, weights)| (out, Some(weights))).chain(sum.map(|sum| (sum, None)));
        for (out, weights) in outputs {
            let dtype = out.dtype();
            let rounded = |values: &[f32]| values.iter().map(|&x| dtype.round(x)).collect::<Vec<_>>();
            let weights = weights.map(|of| NormWeights { gamma: rounded(&of.gamma), beta: rounded(&of.beta) });
            let exact = oracle::norm_join(&addends, shape.hidden_size, weights.as_ref(), eps, Rounding::Exact)?;
            for (column, (&got, exact)) in out.row(row)?.iter().zip(exact).enumerate() {
                check(got, exact, dtype.epsilon() * exact.abs() + 1e-4, || {
                    format!("join {shape}: element ({row}, {column})")
                })?;
            }
        }
    }
    Ok(())
}
