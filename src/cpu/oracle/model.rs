//! What is before and after the layers of a language model, in f64.

use super::{Rounding, activate, encoder, linear, norm_join};
use crate::config::{BatchShape, EncoderConfig};
use crate::cpu::model::{Pooling, no_head, no_pooler};
use crate::cpu::{check_len, zero_padding};
use crate::error::Result;
use crate::weights::{LayerWeights, ModelWeights, TokenRows};

/// Input of the first layer, `[rows, hidden_size]`, zeros where padding: the sum of each token's rows of the embedding
/// tables, normed if there is a norm. Ids and types as for [`Model::embed`](crate::cpu::Model::embed).
///
/// Rounded: each partial sum, and the norm's result.
///
/// # Errors
/// What [`ModelWeights::check`] finds; [`Error::Mismatch`](crate::Error::Mismatch) as
/// [`Model::embed`](crate::cpu::Model::embed) has it.
pub fn embed(
    config: &EncoderConfig,
    weights: &ModelWeights,
    shape: &BatchShape,
    ids: &[u32],
    token_types: Option<&[u32]>,
    rounding: Rounding,
) -> Result<Vec<f64>> {
    weights.check(&config.layer)?;
    let hidden_size = config.layer.hidden_size;
    let embeddings = &weights.embeddings;
    let rows = embeddings.rows(hidden_size, shape, ids, token_types)?;
    let gather = |table: &[f32], row_of: fn(TokenRows) -> Option<usize>| -> Vec<f64> {
        let row = |row: &Option<TokenRows>| row.and_then(row_of);
        let values = |row: usize| &table[row * hidden_size..][..hidden_size];
        let zeros = vec![0.0; hidden_size];
        rows.iter().flat_map(|at| row(at).map_or(zeros.as_slice(), values)).map(|&x| f64::from(x)).collect()
    };
    let mut addends = vec![gather(&embeddings.word, |rows| Some(rows.word))];
    if let Some(table) = &embeddings.token_type {
        addends.push(gather(table, |rows| rows.token_type));
    }
    if let Some(position) = &embeddings.position {
        addends.push(gather(&position.table, |rows| rows.position));
    }
    let addends: Vec<_> = addends.iter().map(Vec::as_slice).collect();
    let mut x = norm_join(&addends, hidden_size, embeddings.norm.as_ref(), config.layer.layer_norm_eps, rounding)?;
    zero_padding(&mut x, shape, hidden_size);
    Ok(x)
}

/// Hidden states after the last layer and the final norm, `[rows, hidden_size]`, zeros where padding.
///
/// # Errors
/// What [`embed`] and [`encoder`] find.
pub fn hidden_states(
    config: &EncoderConfig,
    layers: &[LayerWeights],
    weights: &ModelWeights,
    shape: &BatchShape,
    ids: &[u32],
    token_types: Option<&[u32]>,
    rounding: Rounding,
) -> Result<Vec<f64>> {
    let hidden_size = config.layer.hidden_size;
    let x = embed(config, weights, shape, ids, token_types, rounding)?;
    let mut y = encoder(config, layers, &x, shape, rounding)?;
    if weights.final_norm.is_some() {
        let eps = config.layer.layer_norm_eps;
        y = norm_join(&[&y], hidden_size, weights.final_norm.as_ref(), eps, rounding)?;
        zero_padding(&mut y, shape, hidden_size);
    }
    Ok(y)
}

/// Logits `[rows, vocab_size]` of hidden states `[rows, hidden_size]`.
///
/// # Errors
/// What [`ModelWeights::check`] finds; [`Error::Unsupported`](crate::Error::Unsupported) if there is no head;
/// [`Error::Mismatch`](crate::Error::Mismatch) if `hidden` is not whole rows.
pub fn logits(config: &EncoderConfig, weights: &ModelWeights, hidden: &[f64], rounding: Rounding) -> Result<Vec<f64>> {
    weights.check(&config.layer)?;
    let hidden_size = config.layer.hidden_size;
    let rows = hidden.len() / hidden_size;
    check_len("logits", "hidden", hidden.len(), [rows, hidden_size])?;
    let Some(head) = &weights.head else {
        return Err(no_head());
    };
    let mut x = hidden.to_vec();
    if let Some(transform) = &head.transform {
        let (dense, eps) = (&transform.dense, config.layer.layer_norm_eps);
        let bias = Some(dense.bias.as_slice());
        x = linear(&x, rows, &dense.weight, bias, hidden_size, hidden_size, rounding)?;
        activate(transform.act, &mut x, rounding);
        x = norm_join(&[&x], hidden_size, Some(&transform.norm), eps, rounding)?;
    }
    let decoder = head.decoder.as_ref().unwrap_or(&weights.embeddings.word);
    let vocab_size = decoder.len() / hidden_size;
    let mut logits = linear(&x, rows, decoder, head.bias.as_deref(), vocab_size, hidden_size, rounding)?;
    logits.iter_mut().for_each(|logit| *logit = rounding.apply(*logit * f64::from(head.scale)));
    Ok(logits)
}

/// One vector a sequence, `[batch, hidden_size]`, of the hidden states `[rows, hidden_size]`; zeros for an empty sequence.
///
/// # Errors
/// [`Error::Mismatch`](crate::Error::Mismatch) if `hidden` has another length.
pub fn pool(
    pooling: Pooling,
    shape: &BatchShape,
    hidden: &[f64],
    hidden_size: usize,
    rounding: Rounding,
) -> Result<Vec<f64>> {
    check_len("pool", "hidden", hidden.len(), [shape.rows(), hidden_size])?;
    let mut pooled = vec![0.0; shape.batch() * hidden_size];
    for (i, pooled) in pooled.chunks_exact_mut(hidden_size).enumerate() {
        let length = match pooling {
            Pooling::Mean => shape.length(i),
            Pooling::Cls => shape.length(i).min(1),
        };
        for (column, mean) in pooled.iter_mut().enumerate().filter(|_| length > 0) {
            let column = (0..length).map(|row| hidden[(shape.first_row(i) + row) * hidden_size + column]);
            *mean = rounding.apply(column.sum::<f64>() / length as f64);
        }
    }
    Ok(pooled)
}

/// `tanh(dense(x))` of vectors `[batch, hidden_size]` that [`Pooling::Cls`] made.
///
/// Rounded: the product, and the result.
///
/// # Errors
/// What [`ModelWeights::check`] finds; [`Error::Unsupported`](crate::Error::Unsupported) if there is no pooler;
/// [`Error::Mismatch`](crate::Error::Mismatch) if `pooled` is not whole rows.
pub fn pooler(config: &EncoderConfig, weights: &ModelWeights, pooled: &[f64], rounding: Rounding) -> Result<Vec<f64>> {
    weights.check(&config.layer)?;
    let hidden_size = config.layer.hidden_size;
    let rows = pooled.len() / hidden_size;
    let Some(dense) = &weights.pooler else {
        return Err(no_pooler());
    };
    let mut y = linear(pooled, rows, &dense.weight, Some(&dense.bias), hidden_size, hidden_size, rounding)?;
    y.iter_mut().for_each(|y| *y = rounding.apply(y.tanh()));
    Ok(y)
}
