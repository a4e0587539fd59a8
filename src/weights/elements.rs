//! Weights as something to read pieces of, wherever they are: what takes them to a device needs no whole tensor in f32.

use std::ops::Range;

use rayon::prelude::*;

use super::{Dense, Head, LAYER_FIELDS, LayerWeights, ModelWeights, NormWeights, Transform};
use crate::config::HiddenAct;
use crate::dtype::Dtype;
use crate::error::Result;

/// The elements of a tensor.
pub(crate) trait Elements: Sync {
    /// How many there are.
    fn len(&self) -> usize;

    /// Copies those from `first` on, as many as `to` has room for. There are that many. Only a device's memory can fail to be read.
    fn read(&self, first: usize, to: &mut [f32]) -> Result<()>;

    /// The same as bits of the nearest numbers of `dtype`.
    fn read_bits(&self, first: usize, dtype: Dtype, to: &mut [u16]) -> Result<()> {
        let mut values = vec![0.0; to.len()];
        self.read(first, &mut values)?;
        round(&values, dtype, to);
        Ok(())
    }
}

impl Elements for &Vec<f32> {
    fn len(&self) -> usize {
        Vec::len(self)
    }

    fn read(&self, first: usize, to: &mut [f32]) -> Result<()> {
        to.copy_from_slice(&self[first..first + to.len()]);
        Ok(())
    }

    fn read_bits(&self, first: usize, dtype: Dtype, to: &mut [u16]) -> Result<()> {
        round(&self[first..first + to.len()], dtype, to);
        Ok(())
    }
}

/// Writes the bits of the nearest numbers of `dtype`, on all cores.
fn round(values: &[f32], dtype: Dtype, to: &mut [u16]) {
    const CHUNK: usize = 1 << 16;
    to.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK)).for_each(|(to, values)| {
        to.iter_mut().zip(values).for_each(|(bits, &value)| *bits = dtype.to_bits(value));
    });
}

/// Pieces of `most` elements that follow each other, the last of which may have fewer.
pub(crate) fn pieces(len: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(most).map(move |first| first..len.min(first + most))
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
            let got: Vec<_> = pieces(len, 7).collect();
            assert_eq!(got.iter().flat_map(Range::clone).collect::<Vec<_>>(), (0..len).collect::<Vec<_>>());
            assert!(got.len() == len.div_ceil(7) && got.iter().rev().skip(1).all(|piece| piece.len() == 7), "{got:?}");
        }
    }

    #[test]
    fn bits_are_of_the_elements_rounded() {
        let values = crate::weights::random_activations(1, 100_003, 5);
        for dtype in [Dtype::Bf16, Dtype::F16] {
            let mut bits = vec![0; 99_000];
            (&values).read_bits(1003, dtype, &mut bits).unwrap();
            assert!(bits.iter().zip(&values[1003..]).all(|(&bits, &value)| bits == dtype.to_bits(value)), "{dtype}");
        }
    }
}
