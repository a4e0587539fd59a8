//! What is before and after the layers of a language model, in f64.

use super::{Rounding, activate, encoder, linear, norm_join};
use crate::config::{BatchShape, EncoderConfig};
use crate::cpu::{check_len, zero_padding};
use crate::error::{Error, Result};
use crate::weights::{LayerWeights, ModelWeights};

/// Input of the first layer, `[rows, hidden_size]`, zeros where padding: the sum of each token's rows of the embedding
/// tables, normed if there is a norm. Ids and types as for [`Model::embed`](crate::cpu::Model::embed).
///
/// # Errors
/// What [`ModelWeights::check`] finds; [`Error::Mismatch`] as [`Model::embed`](crate::cpu::Model::embed) has it.
pub fn embed(
    config: &EncoderConfig,
    weights: &ModelWeights,
    shape: &BatchShape,
    ids: &[u32],
    token_types: Option<&[u32]>,
) -> Result<Vec<f64>> {
    weights.check(&config.layer)?;
    let hidden_size = config.layer.hidden_size;
    let embeddings = &weights.embeddings;
    let rows = embeddings.rows(hidden_size, shape, ids, token_types)?;
    let mut x = Vec::with_capacity(shape.rows() * hidden_size);
    for row in rows {
        for column in 0..hidden_size {
            let at = |table: &[f32], row: usize| f64::from(table[row * hidden_size + column]);
            x.push(row.map_or(0.0, |row| {
                let position = embeddings.position.as_ref().zip(row.position);
                let token_type = embeddings.token_type.as_ref().zip(row.token_type);
                at(&embeddings.word, row.word)
                    + position.map_or(0.0, |(position, row)| at(&position.table, row))
                    + token_type.map_or(0.0, |(table, row)| at(table, row))
            }));
        }
    }
    if embeddings.norm.is_some() {
        let eps = config.layer.layer_norm_eps;
        x = norm_join(&[&x], hidden_size, embeddings.norm.as_ref(), eps, Rounding::Exact)?;
        zero_padding(&mut x, shape, hidden_size);
    }
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
) -> Result<Vec<f64>> {
    let hidden_size = config.layer.hidden_size;
    let x = embed(config, weights, shape, ids, token_types)?;
    let mut y = encoder(config, layers, &x, shape, Rounding::Exact)?;
    if weights.final_norm.is_some() {
        let eps = config.layer.layer_norm_eps;
        y = norm_join(&[&y], hidden_size, weights.final_norm.as_ref(), eps, Rounding::Exact)?;
        zero_padding(&mut y, shape, hidden_size);
    }
    Ok(y)
}

/// Logits `[rows, vocab_size]` of hidden states `[rows, hidden_size]`.
///
/// # Errors
/// What [`ModelWeights::check`] finds; [`Error::Unsupported`] if there is no head; [`Error::Mismatch`] if `hidden` is not
/// whole rows.
pub fn logits(config: &EncoderConfig, weights: &ModelWeights, hidden: &[f64]) -> Result<Vec<f64>> {
    weights.check(&config.layer)?;
    let hidden_size = config.layer.hidden_size;
    let rows = hidden.len() / hidden_size;
    check_len("logits", "hidden", hidden.len(), [rows, hidden_size])?;
    let Some(head) = &weights.head else {
        return Err(Error::Unsupported {
            what: "logits of a model without a language-model head".into(),
            remedy: "use its hidden states, or weights that include the head".into(),
        });
    };
    let mut x = hidden.to_vec();
    if let Some(transform) = &head.transform {
        let (dense, eps) = (&transform.dense, config.layer.layer_norm_eps);
        let bias = Some(dense.bias.as_slice());
        x = linear(&x, rows, &dense.weight, bias, hidden_size, hidden_size, Rounding::Exact)?;
        activate(transform.act, &mut x, Rounding::Exact);
        x = norm_join(&[&x], hidden_size, Some(&transform.norm), eps, Rounding::Exact)?;
    }
    let decoder = head.decoder.as_ref().unwrap_or(&weights.embeddings.word);
    let vocab_size = decoder.len() / hidden_size;
    linear(&x, rows, decoder, head.bias.as_deref(), vocab_size, hidden_size, Rounding::Exact)
}
