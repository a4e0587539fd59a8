//! `softmax(Q·Kᵀ/√head_dim)·V` in blocks of queries and keys, so that no matrix of all scores is ever held.
//!
//! The softmax is computed online (arXiv 1805.02867), as FlashAttention does (arXiv 2205.14135): each query keeps the
//! largest score so far and the sum of exponentials relative to it. When a block of keys brings a larger score, what
//! was summed until then is scaled down by `exp(old maximum − new maximum)`.

use gemm::Parallelism;
use rayon::prelude::*;

use super::product::{Onto, View, ViewMut, multiply};
use crate::config::{BatchShape, LayerConfig, Rotary};

/// Queries of a block: few, so that a short sequence still gives every core some.
const QUERIES: usize = 32;
/// Keys of a block. 64 is the size to which `gemm` plans its blocking without looking caches up.
const KEYS: usize = 64;

/// Rotates pairs of columns of the query and key heads by their tokens' positions; `qkv` is as in [`attention`]. Rows of
/// padding are rotated too, which does no harm.
pub(super) fn rotate(qkv: &mut [f32], rotary: &Rotary, config: &LayerConfig, shape: &BatchShape) {
    let &Rotary { dim, base, interleaved } = rotary;
    let rotated = config.query_size() + config.key_value_size();
    // From one pair to the next, and from the first of a pair to the second.
    let (step, apart) = if interleaved { (2, 1) } else { (1, dim / 2) };
    qkv.par_chunks_exact_mut(config.qkv_size()).enumerate().for_each(|(row, qkv)| {
        let position = row - shape.first_row(shape.sequence_of(row));
        for pair in 0..dim / 2 {
            // In f64: an f32 angle of a late position would be off by more than its cosine may be.
            let frequency = (-(f64::from(base).ln()) * (2 * pair) as f64 / dim as f64).exp();
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            let (sin, cos) = (sin as f32, cos as f32);
            for head in qkv[..rotated].chunks_exact_mut(config.head_dim) {
                let (a, b) = (head[pair * step], head[pair * step + apart]);
                head[pair * step] = a * cos - b * sin;
                head[pair * step + apart] = a * sin + b * cos;
            }
        }
    });
}

/// Attention of every sequence and head: `qkv` is `[rows, qkv_size]`, query heads, key heads, value heads side by side
/// along its columns; `context` is `[rows, query_size]`. Rows of padding become zeros.
///
/// Keys past a query's causal limit get probability 0 but are multiplied with all the same: they must be finite.
pub(super) fn attention(context: &mut [f32], qkv: &[f32], config: &LayerConfig, shape: &BatchShape) {
    let (width, query_size) = (config.qkv_size(), config.query_size());
    context.fill(0.0);
    let mut rest = context;
    let mut sequences = Vec::with_capacity(shape.batch());
    for rows in (0..shape.batch()).map(|i| shape.rows_of(i)) {
        let (sequence, others) = rest.split_at_mut(rows.len() * query_size);
        rest = others;
        sequences.push((sequence, &qkv[rows.start * width..rows.end * width]));
    }
    sequences.into_par_iter().enumerate().for_each(|(i, (context, qkv))| {
        let length = shape.length(i);
        let blocks = context[..length * query_size].par_chunks_mut(QUERIES * query_size);
        blocks.enumerate().for_each(|(block, context)| {
            for head in 0..config.num_attention_heads {
                head_block(context, qkv, config, length, block * QUERIES, head);
            }
        });
    });
}

/// One block of queries, beginning at position `first_query`, of one head. `context` holds that block's rows, `qkv` the
/// whole sequence, of which `length` tokens are valid.
fn head_block(context: &mut [f32], qkv: &[f32], config: &LayerConfig, length: usize, first_query: usize, head: usize) {
    let (head_dim, width, query_size) = (config.head_dim, config.qkv_size(), config.query_size());
    let queries = context.len() / query_size;
    let columns = head * head_dim;
    let context = &mut context[columns..];
    // The first columns of this head's query, of its key, and of its value, which it shares with the heads of its group.
    let shared = head / (config.num_attention_heads / config.num_key_value_heads) * head_dim;
    let (query, key, value) = (columns, query_size + shared, query_size + config.key_value_size() + shared);
    // `rows` tokens from `position` on, one head wide.
    let tokens = |column: usize, position: usize, rows: usize| {
        View::new(&qkv[position * width + column..], rows, head_dim, width)
    };
    let scale = (head_dim as f32).powf(-0.5);
    let mut scores = [0.0; QUERIES * KEYS];
    let mut max = [f32::NEG_INFINITY; QUERIES];
    let mut sum = [0.0; QUERIES];

    let visible_to_block = if config.causal { first_query + queries } else { length };
    for first_key in (0..visible_to_block).step_by(KEYS) {
        let keys = KEYS.min(visible_to_block - first_key);
        multiply(
            ViewMut::new(&mut scores, queries, keys, KEYS),
            Onto::Replace,
            scale,
            tokens(query, first_query, queries),
            tokens(key, first_key, keys).transposed(),
            Parallelism::None,
        );
        for (i, scores) in scores.chunks_exact_mut(KEYS).take(queries).enumerate() {
            let visible = if config.causal { (first_query + i + 1).saturating_sub(first_key).min(keys) } else { keys };
            let (scores, hidden) = scores.split_at_mut(visible);
            hidden.fill(0.0);
            let new_max = scores.iter().copied().fold(max[i], f32::max);
            scores.iter_mut().for_each(|score| *score = (*score - new_max).exp());
            let shrink = (max[i] - new_max).exp();
            max[i] = new_max;
            sum[i] = sum[i] * shrink + scores.iter().sum::<f32>();
            context[i * query_size..][..head_dim].iter_mut().for_each(|value| *value *= shrink);
        }
        multiply(
            ViewMut::new(context, queries, head_dim, query_size),
            Onto::Add,
            1.0,
            View::new(&scores, queries, keys, KEYS),
            tokens(value, first_key, keys),
            Parallelism::None,
        );
    }
    for (i, sum) in sum.iter().take(queries).enumerate() {
        context[i * query_size..][..head_dim].iter_mut().for_each(|value| *value /= sum);
    }
}
