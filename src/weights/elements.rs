//! Weights as something to read pieces of, wherever they are: what takes them to a device needs no whole tensor in f32.

use super::{Dense, Head, LAYER_FIELDS, LayerWeights, ModelWeights, NormWeights, Transform};
use crate::config::HiddenAct;
use crate::error::Result;

/// The elements of a tensor.
pub(crate) trait Elements: Sync {
    /// How many there are.
    fn len(&self) -> usize;

    /// Copies those from `first` on, as many as `to` has room for. There are that many. Only a device's memory can fail to be read.
    fn read(&self, first: usize, to: &mut [f32]) -> Result<()>;
}

impl Elements for &Vec<f32> {
    fn len(&self) -> usize {
        Vec::len(self)
    }

    fn read(&self, first: usize, to: &mut [f32]) -> Result<()> {
        to.copy_from_slice(&self[first..first + to.len()]);
        Ok(())
    }
}

/// Calls `visit` with the first element's number and the elements of one piece after the other, of `most` elements or, the last, fewer.
/// One piece's memory is all that it takes.
pub(crate) fn in_pieces(
    elements: &dyn Elements,
    most: usize,
    mut visit: impl FnMut(usize, &[f32]) -> Result<()>,
) -> Result<()> {
    let len = elements.len();
    let mut values = vec![0.0; len.min(most)];
    (0..len).step_by(most).try_for_each(|first| {
        let piece = &mut values[..most.min(len - first)];
        elements.read(first, piece)?;
        visit(first, piece)
    })
}

type Tensor<'a> = Box<dyn Elements + 'a>;

/// [`LayerWeights`]: name and elements of every field, in the order of [`LayerWeights::fields`].
pub(crate) struct LayerElements<'a>(pub(crate) [(&'static str, Tensor<'a>); LAYER_FIELDS]);

impl<'a> From<&'a LayerWeights> for LayerElements<'a> {
    fn from(weights: &'a LayerWeights) -> Self {
        Self(weights.fields().map(|(name, values)| (name, Box::new(values) as Tensor<'a>)))
    }
}

/// [`ModelWeights`], field by field; of pairs the first is the weight or γ, the second the bias or β.
pub(crate) struct ModelElements<'a> {
    pub(crate) word: Tensor<'a>,
    pub(crate) position: Option<Tensor<'a>>,
    pub(crate) token_type: Option<Tensor<'a>>,
    pub(crate) embedding_norm: Option<[Tensor<'a>; 2]>,
    pub(crate) final_norm: Option<[Tensor<'a>; 2]>,
    pub(crate) pooler: Option<[Tensor<'a>; 2]>,
    pub(crate) head: Option<HeadElements<'a>>,
}

/// [`Head`], likewise.
pub(crate) struct HeadElements<'a> {
    pub(crate) transform: Option<TransformElements<'a>>,
    pub(crate) decoder: Option<Tensor<'a>>,
    pub(crate) bias: Option<Tensor<'a>>,
    pub(crate) scale: f32,
}

/// [`Transform`], likewise.
pub(crate) struct TransformElements<'a> {
    pub(crate) dense: [Tensor<'a>; 2],
    pub(crate) act: HiddenAct,
    pub(crate) norm: [Tensor<'a>; 2],
}

impl<'a> From<&'a ModelWeights> for ModelElements<'a> {
    fn from(weights: &'a ModelWeights) -> Self {
        fn tensor(values: &Vec<f32>) -> Tensor<'_> {
            Box::new(values)
        }
        fn norm(NormWeights { gamma, beta }: &NormWeights) -> [Tensor<'_>; 2] {
            [tensor(gamma), tensor(beta)]
        }
        fn dense(Dense { weight, bias }: &Dense) -> [Tensor<'_>; 2] {
            [tensor(weight), tensor(bias)]
        }
        let ModelWeights { embeddings, final_norm, pooler, head } = weights;
        Self {
            word: tensor(&embeddings.word),
            position: embeddings.position.as_ref().map(|position| tensor(&position.table)),
            token_type: embeddings.token_type.as_ref().map(tensor),
            embedding_norm: embeddings.norm.as_ref().map(norm),
            final_norm: final_norm.as_ref().map(norm),
            pooler: pooler.as_ref().map(dense),
            head: head.as_ref().map(|Head { transform, decoder, bias, scale }| HeadElements {
                transform: transform.as_ref().map(|Transform { dense: first, act, norm: last }| TransformElements {
                    dense: dense(first),
                    act: *act,
                    norm: norm(last),
                }),
                decoder: decoder.as_ref().map(tensor),
                bias: bias.as_ref().map(tensor),
                scale: *scale,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_follow_each_other_and_end_with_the_elements() {
        for len in [0usize, 1, 6, 7, 8, 21, 22] {
            let values: Vec<f32> = (0..len).map(|i| i as f32).collect();
            let (mut got, mut sizes) = (Vec::new(), Vec::new());
            in_pieces(&&values, 7, |first, piece| {
                assert_eq!(first, got.len());
                got.extend_from_slice(piece);
                sizes.push(piece.len());
                Ok(())
            })
            .unwrap();
            assert_eq!(got, values);
            assert!(sizes.len() == len.div_ceil(7) && sizes.iter().rev().skip(1).all(|&size| size == 7), "{sizes:?}");
        }
    }
}
