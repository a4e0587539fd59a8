//! Attention in f64, one row at a time.

use rayon::prelude::*;

use super::{Rounding, check_len, dot};
use crate::config::{BatchShape, LayerConfig, Rotary};
use crate::error::Result;

/// `softmax(Q·Kᵀ/√head_dim)·V` for each sequence and head (arXiv 1706.03762, section 3.2).
///
/// `qkv` is `[rows, qkv_size]`, query heads, key heads, value heads side by side along its columns; the result is
/// `[rows, query_size]`. As many neighbouring query heads share a key and a value head as there are more of them (arXiv
/// 2305.13245). A row attends to the valid keys of its own sequence, up to itself if the layer is causal; the others are
/// not even read. Rows of padding are zeros. Rotary embeddings are [`rotate`]'s business. Rounded: scaled scores, probabilities, result.
///
/// # Errors
/// What [`LayerConfig::validate`] finds; [`Error::Mismatch`](crate::Error::Mismatch) if `qkv` has another length.
pub fn attention(qkv: &[f64], config: &LayerConfig, shape: &BatchShape, rounding: Rounding) -> Result<Vec<f64>> {
    config.validate()?;
    let (width, query_size, head_dim) = (config.qkv_size(), config.query_size(), config.head_dim);
    check_len("attention", "qkv", qkv.len(), [shape.rows(), width])?;
    let mut context = vec![0.0; shape.rows() * query_size];
    context.par_chunks_exact_mut(query_size).enumerate().for_each(|(row, context)| {
        let Some(keys) = visible(config, shape, row) else { return };
        for (head, context) in context.chunks_exact_mut(head_dim).enumerate() {
            let mut p = scores(qkv, config, row, keys.clone(), head, rounding);
            softmax(&mut p, rounding);
            let at = query_size + config.key_value_size() + key_value_head(config, head) * head_dim;
            for (&p, row) in p.iter().zip(keys.clone()) {
                let value = &qkv[row * width + at..][..head_dim];
                context.iter_mut().zip(value).for_each(|(context, value)| *context += p * value);
            }
            context.iter_mut().for_each(|context| *context = rounding.apply(*context));
        }
    });
    Ok(context)
}

/// `ln Σ exp(q·k/√head_dim)` over the keys that each row and query head sees, `[num_attention_heads, rows]`: what the
/// probabilities of [`attention`] are divided by, in a form in which partial results can be put together. −∞ in rows of
/// padding. `qkv` is as in [`attention`]; nothing is rounded.
///
/// # Errors
/// As [`attention`].
pub fn log_sum_exp(qkv: &[f64], config: &LayerConfig, shape: &BatchShape) -> Result<Vec<f64>> {
    config.validate()?;
    check_len("log_sum_exp", "qkv", qkv.len(), [shape.rows(), config.qkv_size()])?;
    let mut sums = vec![f64::NEG_INFINITY; config.num_attention_heads * shape.rows()];
    sums.par_iter_mut().enumerate().for_each(|(i, sum)| {
        let (head, row) = (i / shape.rows(), i % shape.rows());
        if let Some(keys) = visible(config, shape, row) {
            let scores = scores(qkv, config, row, keys, head, Rounding::Exact);
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            *sum = max + scores.iter().map(|s| (s - max).exp()).sum::<f64>().ln();
        }
    });
    Ok(sums)
}

/// Rotary position embedding (arXiv 2104.09864, section 3.2) of the query and key heads in `qkv`, which is as in
/// [`attention`]; nothing where the layer has none. Each pair of dimensions, taken for a complex number, is multiplied by
/// `exp(i·angle)`. Rounded: what is rotated.
///
/// # Errors
/// As [`attention`].
pub fn rotate(qkv: &mut [f64], config: &LayerConfig, shape: &BatchShape, rounding: Rounding) -> Result<()> {
    config.validate()?;
    check_len("rotate", "qkv", qkv.len(), [shape.rows(), config.qkv_size()])?;
    let Some(Rotary { dim, base, interleaved }) = config.rotary else { return Ok(()) };
    let rotated = config.query_size() + config.key_value_size();
    qkv.par_chunks_exact_mut(config.qkv_size()).enumerate().for_each(|(row, qkv)| {
        let position = (row - shape.first_row(shape.sequence_of(row))) as f64;
        for head in qkv[..rotated].chunks_exact_mut(config.head_dim) {
            for i in 0..dim / 2 {
                let angle = position * f64::from(base).powf(-2.0 * i as f64 / dim as f64);
                let (re, im) = if interleaved { (2 * i, 2 * i + 1) } else { (i, i + dim / 2) };
                let (x, y) = (head[re], head[im]);
                head[re] = rounding.apply(x * angle.cos() - y * angle.sin());
                head[im] = rounding.apply(x * angle.sin() + y * angle.cos());
            }
        }
    });
    Ok(())
}

/// Rows of the keys that a row attends to; `None` for a row of padding.
fn visible(config: &LayerConfig, shape: &BatchShape, row: usize) -> Option<std::ops::Range<usize>> {
    let sequence = shape.sequence_of(row);
    let first = shape.first_row(sequence);
    let end = first + shape.length(sequence);
    (row < end).then(|| first..if config.causal { row + 1 } else { end })
}

/// Scaled scores of one row and query head with the given keys.
fn scores(
    qkv: &[f64],
    config: &LayerConfig,
    row: usize,
    keys: std::ops::Range<usize>,
    head: usize,
    rounding: Rounding,
) -> Vec<f64> {
    let (width, head_dim) = (config.qkv_size(), config.head_dim);
    let scale = 1.0 / (head_dim as f64).sqrt();
    let query = &qkv[row * width + head * head_dim..][..head_dim];
    let at = config.query_size() + key_value_head(config, head) * head_dim;
    keys.map(|row| rounding.apply(scale * dot(query, &qkv[row * width + at..][..head_dim]))).collect()
}

/// The key and value head that a query head reads.
fn key_value_head(config: &LayerConfig, head: usize) -> usize {
    head / (config.num_attention_heads / config.num_key_value_heads)
}

/// Turns the scores of one row into probabilities. The maximum is subtracted first, so that no score overflows.
fn softmax(scores: &mut [f64], rounding: Rounding) {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    scores.iter_mut().for_each(|s| *s = (*s - max).exp());
    let sum: f64 = scores.iter().sum();
    scores.iter_mut().for_each(|s| *s = rounding.apply(*s / sum));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attention_with_equal_keys_averages_the_keys_it_may_see() {
        for causal in [false, true] {
            let config = LayerConfig { causal, ..LayerConfig::new(2, 2, 1).unwrap() };
            let shape = BatchShape::new(1, 4).unwrap().with_lengths(vec![3]).unwrap();
            // Columns: 2 queries, 2 keys (all zero), 2 values; the last token is padding.
            let mut qkv: Vec<f64> =
                (0..3).flat_map(|t| [1.0, 2.0, 0.0, 0.0, f64::from(t), f64::from(10 * t * t)]).collect();
            qkv.extend([f64::NAN; 6]);
            let context = attention(&qkv, &config, &shape, Rounding::Exact).unwrap();
            let expected = if causal {
                [0.0, 0.0, 0.5, 5.0, 1.0, 50.0 / 3.0]
            } else {
                [1.0, 50.0 / 3.0].repeat(3).try_into().unwrap()
            };
            for (got, expected) in context.iter().zip(expected.iter().chain(&[0.0; 2])) {
                assert!((got - expected).abs() < 1e-14, "causal {causal}: {context:?}");
            }
        }
    }

    #[test]
    fn query_heads_read_the_value_head_of_their_group() {
        let config = LayerConfig { num_key_value_heads: 2, ..LayerConfig::new(6, 6, 1).unwrap() };
        let shape = BatchShape::new(1, 1).unwrap();
        // Six queries, two keys, two values, of one element each; one key, so the value itself comes out.
        let qkv = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0];
        let context = attention(&qkv, &config, &shape, Rounding::Exact).unwrap();
        assert_eq!(context, [9.0, 9.0, 9.0, 10.0, 10.0, 10.0]);
    }

    #[test]
    fn log_sum_exp_by_hand() {
        let config = LayerConfig { causal: true, ..LayerConfig::new(2, 2, 1).unwrap() };
        let shape = BatchShape::new(1, 3).unwrap().with_lengths(vec![2]).unwrap();
        // Columns: 2 queries, 2 keys, 2 values.
        let qkv = [1.0, 2.0, 3.0, -4.0, 0.0, 0.0, 2.0, 0.0, 1000.0, 7.0, 0.0, 0.0].map(f64::from);
        let qkv = [qkv.as_slice(), &[f64::NAN; 6]].concat();
        let sums = log_sum_exp(&qkv, &config, &shape).unwrap();
        let expected = [3.0, 2000.0, f64::NEG_INFINITY, -8.0, 2f64.ln(), f64::NEG_INFINITY];
        assert!(sums.iter().zip(expected).all(|(got, expected)| *got == expected), "{sums:?}");
    }

    #[test]
    fn rotation_by_hand() {
        let rotary = |interleaved| Some(Rotary { dim: 4, base: 100.0, interleaved });
        let config = |interleaved| LayerConfig { rotary: rotary(interleaved), ..LayerConfig::new(5, 1, 1).unwrap() };
        let shape = BatchShape::packed(vec![1, 2]).unwrap();
        // Rows of one head of five each: query, key, value. Pair 0 turns by 1 a position, pair 1 by 1/10.
        let before: Vec<f64> = (0..45).map(f64::from).collect();
        for interleaved in [false, true] {
            let mut qkv = before.clone();
            rotate(&mut qkv, &config(interleaved), &shape, Rounding::Exact).unwrap();
            // The first token of each sequence stays, so do the fifth column and the value.
            assert_eq!(qkv[..30], before[..30]);
            assert_eq!((qkv[34], &qkv[39..]), (34.0, &before[39..]));
            let pairs = if interleaved { [(30, 31, 1.0), (32, 33, 0.1)] } else { [(30, 32, 1.0), (31, 33, 0.1f64)] };
            for (re, im, angle) in pairs {
                let (x, y) = (before[re], before[im]);
                assert!((qkv[re] - (x * angle.cos() - y * angle.sin())).abs() < 1e-13);
                assert!((qkv[im] - (x * angle.sin() + y * angle.cos())).abs() < 1e-13);
            }
        }
    }
}
