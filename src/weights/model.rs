//! Weights of a model outside its layers: embeddings before them, and what follows them.

use rayon::prelude::*;

use crate::config::{BatchShape, HiddenAct, LayerConfig};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::weights::NormWeights;

/// What a language model has besides its layers. All in f32, matrices row-major `[out_features, in_features]`.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelWeights {
    /// From token ids to the first layer's input.
    pub embeddings: Embeddings,
    /// Norm after the last layer (pre-norm designs).
    pub final_norm: Option<NormWeights>,
    /// `tanh(dense(x))` of a sequence's first token (BERT).
    pub pooler: Option<Dense>,
    /// From hidden states to logits.
    pub head: Option<Head>,
}

/// Embedding tables; a token's embedding is the sum of its rows, normed if there is a norm.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    /// Of token ids, `[vocab_size, hidden_size]`.
    pub word: Vec<f32>,
    /// Of positions, unless the model is told them in another way.
    pub position: Option<PositionEmbeddings>,
    /// `max_position_embeddings` of a model with rotary embeddings: the longest sequence that it was made for, which no table tells.
    /// `None`: any.
    pub rotary_positions: Option<usize>,
    /// Of token types (segments), `[type_vocab_size, hidden_size]`.
    pub token_type: Option<Vec<f32>>,
    /// Norm of the sum.
    pub norm: Option<NormWeights>,
}

/// A learned table of positions.
#[derive(Debug, Clone, PartialEq)]
pub struct PositionEmbeddings {
    /// `[max_position_embeddings, hidden_size]`.
    pub table: Vec<f32>,
    /// RoBERTa's way of counting: tokens that are not this id take the rows `padding_idx + 1`, `padding_idx + 2`, …; tokens
    /// that are take row `padding_idx` and are not counted. `None`: the position in the sequence, from 0.
    pub padding_idx: Option<u32>,
}

/// A linear map from `hidden_size` to `hidden_size`.
#[derive(Debug, Clone, PartialEq)]
pub struct Dense {
    /// `[hidden_size, hidden_size]`.
    pub weight: Vec<f32>,
    /// `[hidden_size]`.
    pub bias: Vec<f32>,
}

/// From hidden states to logits: `scale · (decoder · transform(x) + bias)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// What masked language models do first: `norm(act(dense(x)))`.
    pub transform: Option<Transform>,
    /// `[vocab_size, hidden_size]`; `None` where it is tied to [`Embeddings::word`].
    pub decoder: Option<Vec<f32>>,
    /// `[vocab_size]`.
    pub bias: Option<Vec<f32>>,
    /// Command-R's `logit_scale`; 1 elsewhere.
    pub scale: f32,
}

/// First part of a masked language model's head.
#[derive(Debug, Clone, PartialEq)]
pub struct Transform {
    /// First the product,
    pub dense: Dense,
    /// then the activation,
    pub act: HiddenAct,
    /// then the norm, with the layers' ε.
    pub norm: NormWeights,
}

/// Rows of the embedding tables: what ids, types and lengths must be inside of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmbeddingSizes {
    /// Of the table of words, and so the number of token ids.
    pub vocab_size: usize,
    /// Of the table of positions, if there is one.
    pub max_position_embeddings: Option<usize>,
    /// Of that table, see [`PositionEmbeddings::padding_idx`].
    pub padding_idx: Option<u32>,
    /// Of the table of token types, if there is one.
    pub type_vocab_size: Option<usize>,
    /// No table's: see [`Embeddings::rotary_positions`].
    pub rotary_positions: Option<usize>,
}

/// Rows of the embedding tables whose sum is one token's embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TokenRows {
    pub(crate) word: usize,
    pub(crate) position: Option<usize>,
    pub(crate) token_type: Option<usize>,
}

impl ModelWeights {
    /// The same weights with every element rounded to `dtype`: what a device holds.
    pub fn rounded(&self, dtype: Dtype) -> Self {
        let round = |values: &Vec<f32>| -> Vec<f32> { values.par_iter().map(|&value| dtype.round(value)).collect() };
        let dense = |Dense { weight, bias }: &Dense| Dense { weight: round(weight), bias: round(bias) };
        let norm = |NormWeights { gamma, beta }: &NormWeights| NormWeights { gamma: round(gamma), beta: round(beta) };
        let Self { embeddings, final_norm, pooler, head } = self;
        let position = embeddings.position.as_ref();
        let transform = |Transform { dense: first, act, norm: last }: &Transform| Transform {
            dense: dense(first),
            act: *act,
            norm: norm(last),
        };
        Self {
            embeddings: Embeddings {
                word: round(&embeddings.word),
                position: position.map(|PositionEmbeddings { table, padding_idx }| PositionEmbeddings {
                    table: round(table),
                    padding_idx: *padding_idx,
                }),
                rotary_positions: embeddings.rotary_positions,
                token_type: embeddings.token_type.as_ref().map(round),
                norm: embeddings.norm.as_ref().map(norm),
            },
            final_norm: final_norm.as_ref().map(norm),
            pooler: pooler.as_ref().map(dense),
            head: head.as_ref().map(|Head { transform: first, decoder, bias, scale }| Head {
                transform: first.as_ref().map(transform),
                decoder: decoder.as_ref().map(round),
                bias: bias.as_ref().map(round),
                scale: *scale,
            }),
        }
    }

    /// Checks every field's length against the width of the layers.
    ///
    /// # Errors
    /// [`Error::Mismatch`] naming the first field at fault, its length, and the length it should have.
    pub fn check(&self, config: &LayerConfig) -> Result<()> {
        let h = config.hidden_size;
        let Self { embeddings, final_norm, pooler, head } = self;
        let position = embeddings.position.as_ref().map(|position| &position.table);
        for (name, table) in [
            ("word embeddings", Some(&embeddings.word)),
            ("position embeddings", position),
            ("token type embeddings", embeddings.token_type.as_ref()),
        ] {
            if let Some(table) = table.filter(|table| table.is_empty() || !table.len().is_multiple_of(h)) {
                let got = format!("{} elements", table.len());
                return Err(Error::mismatch("model weights", name, got, format!("rows of hidden_size = {h}")));
            }
        }
        let exact = |name, values: &Vec<f32>, expected: usize| {
            if values.len() == expected {
                return Ok(());
            }
            Err(Error::mismatch("model weights", name, format!("{} elements", values.len()), expected))
        };
        let norm = |name, norm: &NormWeights| exact(name, &norm.gamma, h).and_then(|()| exact(name, &norm.beta, h));
        let dense = |name, dense: &Dense| exact(name, &dense.weight, h * h).and_then(|()| exact(name, &dense.bias, h));
        embeddings.norm.iter().try_for_each(|weights| norm("embedding norm", weights))?;
        final_norm.iter().try_for_each(|weights| norm("final norm", weights))?;
        pooler.iter().try_for_each(|weights| dense("pooler", weights))?;
        if let Some(Head { transform, decoder, bias, scale }) = head {
            if let Some(transform) = transform {
                dense("head transform", &transform.dense)?;
                norm("head transform norm", &transform.norm)?;
            }
            if !scale.is_finite() {
                return Err(Error::mismatch("model weights", "scale of the logits", scale, "a finite number"));
            }
            let words = embeddings.word.len();
            decoder.iter().try_for_each(|values| exact("head decoder", values, words))?;
            bias.iter().try_for_each(|values| exact("head bias", values, words / h))?;
        }
        Ok(())
    }
}

impl Embeddings {
    /// How many rows the tables have, of `hidden_size` each.
    pub fn sizes(&self, hidden_size: usize) -> EmbeddingSizes {
        let rows = |table: &Vec<f32>| table.len() / hidden_size;
        EmbeddingSizes {
            vocab_size: rows(&self.word),
            max_position_embeddings: self.position.as_ref().map(|position| rows(&position.table)),
            padding_idx: self.position.as_ref().and_then(|position| position.padding_idx),
            type_vocab_size: self.token_type.as_ref().map(rows),
            rotary_positions: self.rotary_positions,
        }
    }

    /// As [`EmbeddingSizes::max_sequence_len`].
    pub fn max_sequence_len(&self, hidden_size: usize) -> Option<usize> {
        self.sizes(hidden_size).max_sequence_len()
    }

    /// As [`EmbeddingSizes::rows`].
    pub(crate) fn rows(
        &self,
        hidden_size: usize,
        shape: &BatchShape,
        ids: &[u32],
        token_types: Option<&[u32]>,
    ) -> Result<Vec<Option<TokenRows>>> {
        self.sizes(hidden_size).rows(shape, ids, token_types)
    }
}

impl EmbeddingSizes {
    /// The longest sequence that the table of positions, or else the rotary embedding, is for; `None` if neither tells.
    pub fn max_sequence_len(&self) -> Option<usize> {
        let reserved = self.padding_idx.map_or(0, |padding| padding as usize + 1);
        let of_table = self.max_position_embeddings.map(|rows| rows.saturating_sub(reserved));
        of_table.into_iter().chain(self.rotary_positions).min()
    }

    /// Which rows each row of the batch sums; `None` where it is padding, whose ids are not looked at.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if there are not as many ids or types as rows, one is outside its table, or a sequence is
    /// longer than the positions that there are.
    pub(crate) fn rows(
        &self,
        shape: &BatchShape,
        ids: &[u32],
        token_types: Option<&[u32]>,
    ) -> Result<Vec<Option<TokenRows>>> {
        let rows = shape.rows();
        for (what, ids) in [("token ids", Some(ids)), ("token types", token_types)] {
            if let Some(ids) = ids.filter(|ids| ids.len() != rows) {
                return Err(Error::mismatch(
                    "embed",
                    what,
                    format!("{} elements", ids.len()),
                    format!("{rows}, one a row"),
                ));
            }
        }
        let inside = |what, id: u32, sequence: usize, table: usize| {
            if (id as usize) < table {
                return Ok(id as usize);
            }
            let got = format!("{id} (sequence {sequence})");
            Err(Error::mismatch("embed", what, got, format!("less than {table}, the rows of its table")))
        };
        let mut found = vec![None; rows];
        for sequence in 0..shape.batch() {
            let (first, length) = (shape.first_row(sequence), shape.length(sequence));
            if let Some(most) = self.rotary_positions.filter(|&most| length > most) {
                let expected = format!("at most {most}, the model's max_position_embeddings");
                return Err(Error::mismatch("embed", "length", format!("{length} (sequence {sequence})"), expected));
            }
            let mut counted = 0;
            for row in first..first + length {
                let word = inside("token id", ids[row], sequence, self.vocab_size)?;
                let position = match self.max_position_embeddings {
                    None => None,
                    Some(positions) => {
                        let position = match self.padding_idx {
                            None => row - first,
                            Some(padding) if ids[row] == padding => padding as usize,
                            Some(padding) => {
                                counted += 1;
                                padding as usize + counted
                            }
                        };
                        if position >= positions {
                            let got = format!("{length} (sequence {sequence})");
                            let most = self.max_sequence_len().unwrap_or(0);
                            let expected = format!("at most {most}, which the table of positions is for");
                            return Err(Error::mismatch("embed", "length", got, expected));
                        }
                        Some(position)
                    }
                };
                let token_type = match (self.type_vocab_size, token_types) {
                    (Some(table), types) => {
                        let id = types.map_or(0, |types| types[row]);
                        Some(inside("token type", id, sequence, table)?)
                    }
                    (None, None) => None,
                    (None, Some(_)) => {
                        return Err(Error::mismatch(
                            "embed",
                            "token types",
                            "given",
                            "none: this model has no table of them",
                        ));
                    }
                };
                found[row] = Some(TokenRows { word, position, token_type });
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn embeddings(padding_idx: Option<u32>) -> Embeddings {
        Embeddings {
            word: vec![0.0; 10 * 2],
            position: Some(PositionEmbeddings { table: vec![0.0; 5 * 2], padding_idx }),
            rotary_positions: None,
            token_type: Some(vec![0.0; 2 * 2]),
            norm: None,
        }
    }

    #[test]
    fn positions_are_counted_as_the_model_counts_them() {
        let shape = BatchShape::packed(vec![3, 2]).unwrap();
        let positions = |padding_idx| -> Vec<_> {
            let rows = embeddings(padding_idx).rows(2, &shape, &[7, 1, 7, 7, 7], None).unwrap();
            rows.into_iter().map(|row| row.unwrap().position.unwrap()).collect()
        };
        assert_eq!(positions(None), [0, 1, 2, 0, 1]);
        assert_eq!(positions(Some(1)), [2, 1, 3, 2, 3]);
    }

    #[test]
    fn what_no_table_has_is_refused_and_padding_is_not_looked_at() {
        let fails = |embeddings: Embeddings, shape: &BatchShape, ids: &[u32], types: Option<&[u32]>| {
            embeddings.rows(2, shape, ids, types).unwrap_err().to_string()
        };
        let shape = BatchShape::new(2, 2).unwrap().with_lengths(vec![2, 1]).unwrap();
        let rows = embeddings(None).rows(2, &shape, &[1, 2, 3, 999], Some(&[0, 1, 1, 999])).unwrap();
        assert_eq!(rows[1], Some(TokenRows { word: 2, position: Some(1), token_type: Some(1) }));
        assert_eq!(rows[3], None);
        assert!(fails(embeddings(None), &shape, &[1, 2, 10, 0], None).contains("token id is 10 (sequence 1)"));
        assert!(fails(embeddings(None), &shape, &[1, 2, 3, 0], Some(&[0, 2, 0, 0])).contains("token type is 2"));
        assert!(fails(embeddings(None), &shape, &[1, 2, 3], None).contains("3 elements"));
        let none = Embeddings { token_type: None, ..embeddings(None) };
        assert!(fails(none, &shape, &[1; 4], Some(&[0; 4])).contains("no table"));
        let six = BatchShape::new(1, 6).unwrap();
        assert!(fails(embeddings(None), &six, &[2; 6], None).contains("length is 6 (sequence 0), expected at most 5"));
        assert!(fails(embeddings(Some(1)), &six, &[2; 6], None).contains("expected at most 3"));
        let most = |padding_idx| embeddings(padding_idx).max_sequence_len(2);
        assert_eq!([None, Some(1), Some(9)].map(most), [Some(5), Some(3), Some(0)]);
        let rotary = |positions| Embeddings { position: None, rotary_positions: positions, ..embeddings(None) };
        assert_eq!(rotary(None).max_sequence_len(2), None);
        assert_eq!(rotary(Some(4)).max_sequence_len(2), Some(4));
        let error = fails(rotary(Some(4)), &six, &[2; 6], None);
        assert!(error.contains("length is 6 (sequence 0), expected at most 4, the model's max_position"), "{error}");
        rotary(Some(6)).rows(2, &six, &[2; 6], None).unwrap();
    }

    #[test]
    fn rounding_rounds_every_field() {
        let config = LayerConfig::new(4, 1, 3).unwrap();
        let mut seed = 0;
        let mut values = |len| {
            seed += 1;
            crate::weights::random_activations(1, len, seed)
        };
        let mut norm = || NormWeights { gamma: values(4), beta: values(4) };
        let (embedding, last, transform) = (norm(), norm(), norm());
        let mut dense = || Dense { weight: values(16), bias: values(4) };
        let (pooler, first) = (dense(), dense());
        let weights = ModelWeights {
            embeddings: Embeddings {
                word: values(5 * 4),
                position: Some(PositionEmbeddings { table: values(3 * 4), padding_idx: Some(1) }),
                rotary_positions: None,
                token_type: Some(values(2 * 4)),
                norm: Some(embedding),
            },
            final_norm: Some(last),
            pooler: Some(pooler),
            head: Some(Head {
                transform: Some(Transform { dense: first, act: HiddenAct::GeluNew, norm: transform }),
                decoder: Some(values(5 * 4)),
                bias: Some(values(5)),
                scale: 0.3,
            }),
        };
        weights.check(&config).unwrap();
        let rounded = weights.rounded(Dtype::Bf16);
        assert_eq!(rounded.rounded(Dtype::Bf16), rounded);
        assert_eq!(rounded.embeddings.sizes(4), weights.embeddings.sizes(4));
        // Every number of every tensor has changed: none of them is a bf16. One is no tensor's: the scale of the logits.
        let numbers = |weights: &ModelWeights| -> Vec<String> {
            let text = format!("{weights:?}");
            let is_number = |part: &&str| part.contains('.') && part.parse::<f32>().is_ok();
            text.split([' ', ',', '[', ']', '}']).filter(is_number).map(str::to_owned).collect()
        };
        let (before, after) = (numbers(&weights), numbers(&rounded));
        assert_eq!((before.len(), after.len()), (20 + 12 + 8 + 3 * 8 + 2 * 20 + 20 + 5 + 1, before.len()));
        assert_eq!(before.iter().zip(&after).filter(|(before, after)| before == after).count(), 1);
    }

    #[test]
    fn lengths_are_checked() {
        let config = LayerConfig::new(2, 1, 3).unwrap();
        let mut weights = ModelWeights { embeddings: embeddings(None), final_norm: None, pooler: None, head: None };
        weights.check(&config).unwrap();
        weights.head = Some(Head { transform: None, decoder: None, bias: Some(vec![0.0; 9]), scale: 1.0 });
        assert!(weights.check(&config).unwrap_err().to_string().contains("head bias is 9 elements, expected 10"));
        weights.embeddings.word.pop();
        assert!(weights.check(&config).unwrap_err().to_string().contains("word embeddings is 19"));
    }
}
