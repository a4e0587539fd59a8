//! What the oracle says of stacks of layers, and a memory of it.

use std::cell::RefCell;
use std::rc::Rc;

use super::block::{alone, parallel};
use super::random;
use crate::config::{BatchShape, EncoderConfig};
use crate::cpu::oracle::{self, Rounding};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::gpu::{Batch, Branch, Encoder, Plan, Stream, Tensor};
use crate::verify::{Comparison, compare, poison_padding, widen};
use crate::weights::LayerWeights;

/// The oracle for stacks of the same weights: asked once about each, on one batch shape after the other, however many plans are held
/// against its answer. Its plain loops take seconds where layers are wide.
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

/// Results of a stack on the activations that it is checked with: exact ones, and those of the naive implementation in its type.
struct Expected {
    exact: Vec<f64>,
    naive: Vec<f64>,
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

    /// The stack of `encoder`, of these weights and as deep, or of one block of each layer if it is that, run by `plan` on random
    /// activations, against the oracle.
    ///
    /// # Errors
    /// [`Error::Verification`](crate::Error::Verification) if the result is out of bounds; whatever running it gives.
    pub fn check(
        &self,
        encoder: &Encoder,
        plan: impl Into<Plan>,
        graph: bool,
        shape: &BatchShape,
    ) -> Result<Comparison> {
        self.check_within(encoder, plan, graph, shape, 0, shape)
    }

    /// The same of a batch, `whole`, in which the rows from `first_row` on are sequences of the shape `asked`, the only ones that the oracle
    /// is asked about: their rows are those of all others, too, over and over.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn check_within(
        &self,
        encoder: &Encoder,
        plan: impl Into<Plan>,
        graph: bool,
        whole: &BatchShape,
        first_row: usize,
        asked: &BatchShape,
    ) -> Result<Comparison> {
        let (device, dtype, h) = (encoder.device(), encoder.dtype(), encoder.config().layer.hidden_size);
        let (rows, asked_rows) = (whole.rows(), asked.rows());
        // Over and over from the first row on, it begins anew at `first_row`.
        let mut x = activations(dtype, asked, h);
        x.rotate_right(first_row % asked_rows * h);
        let x = Tensor::from_host(device, dtype, asked_rows, h, &x)?;
        let x = if rows == asked_rows { x } else { x.repeated(rows, h)? };
        let mut y = Tensor::poisoned(device, dtype, rows, h)?;
        let (stream, batch) = (Stream::new(device)?, Batch::new(device, whole)?);
        let mut workspace = encoder.workspace(&batch)?;
        workspace.poison()?;
        if graph {
            encoder.capture(&stream, plan, &batch, &x, &mut y, &mut workspace)?.launch(&stream)?;
        } else {
            encoder.forward(&stream, plan, &batch, &x, &mut y, &mut workspace)?;
        }
        let got = y.to_host()?;
        let expected = self.expected(encoder.config(), encoder.block(), asked)?;
        compare(&got[first_row * h..][..asked_rows * h], &expected.exact, &expected.naive, dtype.epsilon(), h)
    }

    fn expected(&self, config: &EncoderConfig, block: Option<Branch>, shape: &BatchShape) -> Result<Rc<Expected>> {
        let mut answers = self.answers.borrow_mut();
        answers.retain(|answer| answer.shape == *shape);
        if let Some(known) = answers.iter().find(|answer| answer.config == *config && answer.block == block) {
            return Ok(known.expected.clone());
        }
        let expected = Rc::new(Expected::of(&self.layers, config, block, self.dtype, shape)?);
        let (config, shape) = (config.clone(), shape.clone());
        answers.push(Answer { config, block, shape, expected: expected.clone() });
        Ok(expected)
    }
}

impl Expected {
    fn of(
        layers: &[LayerWeights],
        config: &EncoderConfig,
        block: Option<Branch>,
        dtype: Dtype,
        shape: &BatchShape,
    ) -> Result<Self> {
        if let Some(block) = block {
            let alone: Vec<_> = layers.iter().map(|layer| alone(layer, config.layer.design, block)).collect();
            return Self::of(&alone, &parallel(config), None, dtype, shape);
        }
        let x = widen(&activations(dtype, shape, config.layer.hidden_size));
        let rounded = |rounding| oracle::encoder(config, layers, &x, shape, rounding);
        Ok(Self { exact: rounded(Rounding::Exact)?, naive: rounded(Rounding::To(dtype))? })
    }
}

/// What stacks are checked with.
fn activations(dtype: Dtype, shape: &BatchShape, hidden_size: usize) -> Vec<f32> {
    let mut x = random(dtype, shape.rows(), hidden_size, 8);
    poison_padding(&mut x, shape, hidden_size);
    x
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
                let made = Expected::of(&layers, config, block, Dtype::Bf16, shape).unwrap();
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
