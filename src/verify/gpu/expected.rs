//! What the oracle says of stacks of layers, and a memory of it.

use std::cell::RefCell;
use std::rc::Rc;

use super::block::{alone, parallel};
use super::layer::{activations, against};
use crate::config::{BatchShape, EncoderConfig};
use crate::cpu::oracle::{self, Rounding};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::gpu::{Branch, Encoder, Plan};
use crate::verify::{Comparison, widen};
use crate::weights::LayerWeights;

/// Results of a stack on the activations that it is checked with: exact ones, and those of the naive implementation in its type.
pub(super) struct Expected {
    pub(super) exact: Vec<f64>,
    pub(super) naive: Vec<f64>,
}

impl Expected {
    /// Of the stack of `config`, whose weights are `layers`.
    pub(super) fn of(
        layers: &[LayerWeights],
        config: &EncoderConfig,
        dtype: Dtype,
        shape: &BatchShape,
    ) -> Result<Self> {
        let x = widen(&activations(dtype, shape, config.layer.hidden_size));
        let rounded = |rounding| oracle::encoder(config, layers, &x, shape, rounding);
        Ok(Self { exact: rounded(Rounding::Exact)?, naive: rounded(Rounding::To(dtype))? })
    }

    /// Of that block alone of each layer of `config`, whose design is serial.
    pub(super) fn of_block(
        layers: &[LayerWeights],
        config: &EncoderConfig,
        block: Branch,
        dtype: Dtype,
        shape: &BatchShape,
    ) -> Result<Self> {
        let alone: Vec<_> = layers.iter().map(|layer| alone(layer, config.layer.design, block)).collect();
        Self::of(&alone, &parallel(config), dtype, shape)
    }
}

/// The oracle for stacks of the same weights: asked once about each, on one batch shape after the other, however many plans are held
/// against its answer. Its plain loops take seconds, of wide layers a minute.
pub struct Oracle {
    layers: Vec<LayerWeights>,
    dtype: Dtype,
    /// All of one batch shape.
    answers: RefCell<Vec<Answer>>,
}

struct Answer {
    config: EncoderConfig,
    block: Option<Branch>,
    shape: BatchShape,
    expected: Rc<Expected>,
}

impl Oracle {
    /// `layers` are the weights as the device holds them: rounded to `dtype`.
    pub fn new(layers: Vec<LayerWeights>, dtype: Dtype) -> Self {
        Self { layers, dtype, answers: RefCell::default() }
    }

    /// How many layers it knows.
    pub fn depth(&self) -> usize {
        self.layers.len()
    }

    /// `encoder`, which is of these weights, run by `plan` on random activations, against the stack of `config`, or of one block of
    /// each layer of it.
    ///
    /// # Errors
    /// [`Error::Verification`](crate::Error::Verification) if the result is out of bounds; whatever running it gives.
    pub fn check(
        &self,
        encoder: &Encoder,
        config: &EncoderConfig,
        block: Option<Branch>,
        plan: Plan,
        shape: &BatchShape,
    ) -> Result<Comparison> {
        against(encoder, &*self.expected(config, block, shape)?, plan, false, shape)
    }

    fn expected(&self, config: &EncoderConfig, block: Option<Branch>, shape: &BatchShape) -> Result<Rc<Expected>> {
        let mut answers = self.answers.borrow_mut();
        answers.retain(|answer| answer.shape == *shape);
        if let Some(known) = answers.iter().find(|answer| answer.config == *config && answer.block == block) {
            return Ok(known.expected.clone());
        }
        let expected = Rc::new(match block {
            None => Expected::of(&self.layers, config, self.dtype, shape)?,
            Some(block) => Expected::of_block(&self.layers, config, block, self.dtype, shape)?,
        });
        let (config, shape) = (config.clone(), shape.clone());
        answers.push(Answer { config, block, shape, expected: expected.clone() });
        Ok(expected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Design, LayerConfig};
    use crate::weights::random_layers;

    #[test]
    fn answers_are_those_asked_for_and_given_once() {
        let layer = LayerConfig { design: Design::SafPreNorm, ..LayerConfig::new(32, 2, 72).unwrap() };
        let saf = EncoderConfig { layer, num_hidden_layers: 2 };
        let paf = saf.with_design(Design::PafPreNorm);
        let layers: Vec<_> = random_layers(&saf, 3).map(|layer| layer.rounded(Dtype::Bf16)).collect();
        let oracle = Oracle::new(layers.clone(), Dtype::Bf16);
        let shapes = [BatchShape::new(1, 5).unwrap(), BatchShape::new(5, 1).unwrap()];
        let stacks = [(&saf, None), (&paf, None), (&saf, Some(Branch::Attention)), (&saf, Some(Branch::Ffn))];
        // The second time round each shape is new again: what is kept is of one.
        for shape in shapes.iter().chain(&shapes) {
            let first = stacks.map(|(config, block)| oracle.expected(config, block, shape).unwrap());
            let again = stacks.map(|(config, block)| oracle.expected(config, block, shape).unwrap());
            for ((i, (config, block)), (first, again)) in stacks.into_iter().enumerate().zip(first.iter().zip(&again)) {
                assert!(Rc::ptr_eq(first, again), "{i}, {shape:?}");
                let made = match block {
                    None => Expected::of(&layers, config, Dtype::Bf16, shape),
                    Some(block) => Expected::of_block(&layers, config, block, Dtype::Bf16, shape),
                };
                let made = made.unwrap();
                assert!(first.exact == made.exact && first.naive == made.naive, "{i}, {shape:?}");
            }
            for (i, one) in first.iter().enumerate() {
                assert!(one.exact != one.naive, "{i}, {shape:?}");
                assert!(first[..i].iter().all(|other| other.exact != one.exact), "{i}, {shape:?}");
            }
            assert_eq!(oracle.answers.borrow().len(), stacks.len());
        }
    }
}
