//! From batches of token ids to results.

use anyhow::Result;
use paf_cuda::BatchShape;
use paf_cuda::checkpoint::{Tokenizer, Tokens};
use paf_cuda::cpu::Pooling;
use serde::Serialize;

use super::engine::{Engine, Hidden};

/// A task with its options.
#[derive(Debug, Clone, Copy)]
pub enum Work {
    Embed { pooling: Pooling, normalize: bool },
    FillMask { mask: u32, top_k: usize },
    NextToken { top_k: usize },
}

/// What is found for a text.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Outcome {
    Vector { embedding: Vec<f32> },
    Masks { masks: Vec<Mask> },
    Next { predictions: Vec<Prediction> },
    Failed { error: String },
}

/// What a mask may stand for.
#[derive(Debug, Serialize)]
pub struct Mask {
    /// Place among the text's tokens, special ones included, from 0.
    position: usize,
    predictions: Vec<Prediction>,
}

/// A token and its probability.
#[derive(Debug, Serialize)]
pub struct Prediction {
    id: u32,
    /// As the vocabulary spells it.
    token: Option<String>,
    probability: f32,
}

/// So many rows of logits at a time: a vocabulary of 250,000 then takes 64 MB.
const LOGITS_ROWS: usize = 64;

/// Why a text has no result although it ran.
const NOT_FINITE: &str = "the model's result is not finite";

/// A model and what to do with it.
pub struct Predictor {
    pub engine: Engine,
    pub tokenizer: Tokenizer,
    pub work: Work,
}

impl Predictor {
    /// One batch, without padding: a result for each text.
    pub fn run(&mut self, texts: &[&Tokens]) -> Result<Vec<Outcome>> {
        let shape = BatchShape::packed(texts.iter().map(|tokens| tokens.ids.len()).collect())?;
        let ids = concat(texts, |tokens| &tokens.ids);
        let types = concat(texts, |tokens| &tokens.token_types);
        let types = self.engine.has_token_types().then_some(types.as_slice());
        let hidden_size = self.engine.hidden_size();
        let mut hidden = self.engine.forward(&shape, &ids, types)?;
        match self.work {
            Work::Embed { pooling, normalize } => {
                let vectors = hidden.pool(pooling)?;
                let vectors = vectors.chunks_exact(hidden_size);
                Ok(vectors.map(|vector| embedding(vector.to_vec(), normalize)).collect())
            }
            Work::NextToken { top_k } => {
                let rows: Vec<_> = (0..shape.batch()).map(|i| shape.rows_of(i).end - 1).collect();
                let next = predict(&mut hidden, &self.tokenizer, &rows, top_k)?.into_iter();
                Ok(next.map(|found| found.map_or_else(failed, |predictions| Outcome::Next { predictions })).collect())
            }
            Work::FillMask { mask, top_k } => {
                let rows: Vec<_> = (0..ids.len()).filter(|&row| ids[row] == mask).collect();
                let found = predict(&mut hidden, &self.tokenizer, &rows, top_k)?;
                let mut found = rows.iter().zip(found).peekable();
                let outcome = |i| {
                    let mut masks = Vec::new();
                    while let Some((&row, predictions)) = found.next_if(|(row, _)| shape.rows_of(i).contains(row)) {
                        let position = row - shape.first_row(i);
                        masks.push(predictions.map(|predictions| Mask { position, predictions }));
                    }
                    let masks: Option<_> = masks.into_iter().collect();
                    masks.map_or_else(failed, |masks| Outcome::Masks { masks })
                };
                Ok((0..shape.batch()).map(outcome).collect())
            }
        }
    }
}

/// The most probable tokens after each of these rows; `None` where the logits are not numbers.
fn predict(
    hidden: &mut Hidden<'_>,
    tokenizer: &Tokenizer,
    rows: &[usize],
    top_k: usize,
) -> Result<Vec<Option<Vec<Prediction>>>> {
    let mut found = Vec::new();
    for rows in rows.chunks(LOGITS_ROWS) {
        let logits = hidden.logits(rows)?;
        found.extend(logits.chunks_exact(logits.len() / rows.len()).map(|logits| {
            let prediction = |(id, probability)| Prediction { id, token: tokenizer.id_to_token(id), probability };
            Some(most_probable(logits, top_k)?.into_iter().map(prediction).collect())
        }));
    }
    Ok(found)
}

fn concat(texts: &[&Tokens], part: impl Fn(&Tokens) -> &Vec<u32>) -> Vec<u32> {
    texts.iter().flat_map(|tokens| part(tokens)).copied().collect()
}

fn failed() -> Outcome {
    Outcome::Failed { error: NOT_FINITE.into() }
}

fn embedding(mut embedding: Vec<f32>, normalize: bool) -> Outcome {
    if normalize {
        let norm = embedding.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        if norm > 0.0 {
            embedding.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
        }
    }
    if embedding.iter().all(|x| x.is_finite()) { Outcome::Vector { embedding } } else { failed() }
}

/// The `k` ids with the largest logits, the largest first and of equals the smaller id, with their share of the softmax
/// over all; `None` if a logit is not finite.
fn most_probable(logits: &[f32], k: usize) -> Option<Vec<(u32, f32)>> {
    if !logits.iter().all(|logit| logit.is_finite()) {
        return None;
    }
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |logit: f32| (f64::from(logit) - f64::from(largest)).exp();
    let sum: f64 = logits.iter().copied().map(weight).sum();
    let order = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
    let mut ids: Vec<_> = (0..logits.len()).collect();
    if k < ids.len() {
        ids.select_nth_unstable_by(k, order);
        ids.truncate(k);
    }
    ids.sort_unstable_by(order);
    Some(ids.into_iter().map(|id| (id as u32, (weight(logits[id]) / sum) as f32)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_probable_come_first_and_of_equals_the_smaller_id() {
        let logits = [0.0, 2.0, -1.0, 2.0, 1.0];
        let all = most_probable(&logits, 5).unwrap();
        assert_eq!(all.iter().map(|&(id, _)| id).collect::<Vec<_>>(), [1, 3, 4, 0, 2]);
        assert!((all.iter().map(|&(_, p)| p).sum::<f32>() - 1.0).abs() < 1e-6);
        for k in 1..5 {
            assert_eq!(most_probable(&logits, k).unwrap(), all[..k]);
        }
        assert_eq!(most_probable(&[1e38, -1e38], 1).unwrap(), [(0, 1.0)]);
        assert_eq!(most_probable(&[0.0, f32::NAN], 1), None);
        assert_eq!(most_probable(&[0.0, f32::INFINITY], 1), None);
    }

    #[test]
    fn vectors_become_one_long_unless_they_are_zero() {
        let vector = |values: &[f32]| match embedding(values.to_vec(), true) {
            Outcome::Vector { embedding } => embedding,
            other => panic!("{other:?}"),
        };
        assert_eq!(vector(&[3.0, -4.0]), [0.6, -0.8]);
        // Their squares are more than f32 holds.
        assert_eq!(vector(&[3.0 * 2f32.powi(100), 2f32.powi(102)]), [0.6, 0.8]);
        assert_eq!(vector(&[0.0, 0.0]), [0.0, 0.0]);
        assert!(matches!(embedding(vec![f32::NAN], true), Outcome::Failed { .. }));
        assert!(matches!(embedding(vec![f32::INFINITY], false), Outcome::Failed { .. }));
    }
}
