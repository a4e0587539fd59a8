//! What is asked: a model, batch shapes, and a device, described or present.

use super::crossover_seq_len;
use super::predict::{of_layer, terms};
use super::report::{Case, Report, SCHEMA};
use super::work::{Block, Layer};
use crate::config::{BatchShape, EncoderConfig};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::measure::devices::Description;
use crate::measure::machine;
use crate::measure::report::{self, Run};
use crate::measure::speedup::Weights;

/// What to count, predict and measure.
#[derive(Debug, Clone)]
pub struct Experiment {
    /// Preset that the dimensions come from, for the report.
    pub model: Option<String>,
    /// Dimensions, and the parallel design; the serial one has its norms in the same place.
    pub config: EncoderConfig,
    /// Whether the model has rotary embeddings that `config` leaves out, for the report.
    pub rotary_left_out: bool,
    /// Where the weights of a measurement come from.
    pub weights: Weights,
    /// Element type.
    pub dtype: Dtype,
    /// Batch shapes.
    pub shapes: Vec<BatchShape>,
}

impl Experiment {
    /// Counts, and predicts for a device. Needs none.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for dimensions that cannot be, or a serial design.
    pub fn predict(&self, device: &Description) -> Result<Report> {
        self.config.validate()?;
        let layer = &self.config.layer;
        if !layer.design.is_parallel() {
            let expected = "a parallel design: the serial one to compare with follows from it".into();
            return Err(Error::InvalidConfig { field: "design", got: layer.design.to_string(), expected });
        }
        let case = |shape: &BatchShape| {
            let of = Layer::new(layer, shape, Dtype::BYTES);
            Case {
                batch: shape.batch(),
                seq_len: shape.seq_len(),
                lengths: shape.lengths().map(<[usize]>::to_vec),
                packed: shape.is_packed(),
                tokens: shape.tokens(),
                attention: Block::of(of.attention_block()),
                ffn: Block::of(of.ffn_block()),
                predicted: of_layer(&of, device),
                measured: None,
            }
        };
        Ok(Report {
            run: Run::begin(SCHEMA, machine::host()),
            model: self.model.clone(),
            checkpoint: self.weights.checkpoint(),
            design: layer.design.name().into(),
            dtype: self.dtype.to_string(),
            config: report::Config::of(&self.config, self.rotary_left_out),
            method: self.prediction_method(device),
            noise_target: None,
            device: device.clone(),
            crossover_seq_len: crossover_seq_len(layer),
            cases: self.shapes.iter().map(case).collect(),
        })
    }

    fn prediction_method(&self, device: &Description) -> String {
        let norms = if self.config.layer.design.is_post_norm() { "" } else { ", and stores the sum" };
        format!(
            "Counted, of one layer, tokens of padding left out: FLOPs of the products (a multiply-add is two), none of norms, softmax, \
             activations and rotary embeddings; bytes of {}: weights, biases, γ and β once, and the activations that each kernel reads \
             and writes, each kernel for itself: QKV product, attention (scores stay on the chip), output projection; first FFN product, \
             gate if there is one, second FFN product; a join, which adds the residual, makes the norm{norms}. A block is its kernels and \
             a join. Predicted: {}. Rates: {}. c: {}.",
            self.dtype,
            terms(device).join("; "),
            device.source,
            device.kernel_source
        )
    }
}

#[cfg(feature = "cuda")]
pub use on_device::Step;

#[cfg(feature = "cuda")]
mod on_device {
    use super::Experiment;
    use crate::config::{BatchShape, EncoderConfig, Schedule};
    use crate::error::Result;
    use crate::gpu::{Branch, Device};
    use crate::measure::backend::{Backend, Gpu, ORACLE_LAYERS, Turns};
    use crate::measure::complexity::report::{Measured, Report, SCHEMA, Subject, rows};
    use crate::measure::devices::Description;
    use crate::measure::report::{Run, Verified};
    use crate::measure::speedup::{Asked, Choice, Mode, ORACLE_TOKENS, PLAN_BUDGET, Variant};
    use crate::measure::timing::{Effort, Sampled};

    /// What the measurement is doing, for a progress display.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Step {
        /// Layer `n` of `of` is made and packed.
        Weights {
            /// This layer.
            n: usize,
            /// All layers.
            of: usize,
        },
        /// The shape with this index is planned, verified and measured.
        Shape(usize),
    }

    /// What a time is of, and how it is run.
    type Planned = (Subject, Variant, EncoderConfig);

    impl Experiment {
        /// Predicts for the device, and measures: each block alone, SAF, and PAF on two streams and as the planner
        /// chooses. `seed` is of activations, and of weights that are random.
        ///
        /// # Errors
        /// As [`predict`](Self::predict); [`Error::Verification`](crate::Error::Verification) before anything is timed, if a result is
        /// wrong; what the device gives.
        pub fn measure(
            &self,
            device: &Device,
            seed: u64,
            effort: Effort,
            mut on_step: impl FnMut(Step),
        ) -> Result<Report> {
            let mut report = self.predict(&Description::of_device(device)?)?;
            let of = self.config.num_hidden_layers;
            let layers = self.weights.layers(&self.config, seed).enumerate().map(|(i, layer)| {
                on_step(Step::Weights { n: i + 1, of });
                layer
            });
            let backend = Gpu::new(device, &self.config, self.dtype, layers, seed)?;
            report.run = Run::begin(SCHEMA, backend.machine());
            report.method += &method(effort);
            report.noise_target = effort.noise;
            for (i, (case, shape)) in report.cases.iter_mut().zip(&self.shapes).enumerate() {
                on_step(Step::Shape(i));
                case.measured = Some(self.case(&backend, shape, effort)?);
            }
            Ok(report)
        }

        fn case(&self, backend: &Gpu, shape: &BatchShape, effort: Effort) -> Result<Measured> {
            let planned = self.planned(backend, shape)?;
            let verified = verify(backend, &planned, shape)?;
            let variants: Vec<_> = planned.iter().map(|(_, variant, config)| (*variant, config.clone())).collect();
            let Sampled { samples_us: mut samples, state_before, state_after } = backend.measure(
                &variants,
                shape,
                Turns { effort, untimed_first: false, others: Vec::new(), on_round: &mut |_| () },
            )?;
            samples.iter_mut().flatten().for_each(|sample| *sample /= self.config.num_hidden_layers as f64);
            let subjects = planned.iter().map(|(subject, variant, _)| (*subject, variant.plan.to_string())).collect();
            Ok(Measured { verified, state_before, state_after, rows: rows(subjects, samples)? })
        }

        /// The blocks and SAF by the same plan, the fastest that the planner finds for SAF, so that SAF is its blocks in turn.
        fn planned(&self, backend: &Gpu, shape: &BatchShape) -> Result<[Planned; 5]> {
            let parallel = &self.config;
            let serial = parallel.with_design(parallel.layer.design.serial());
            let (of_saf, picked) =
                (backend.plan(&serial, shape, PLAN_BUDGET)?, backend.plan(parallel, shape, PLAN_BUDGET)?);
            let of = |subject, config: &EncoderConfig, choice, plan, block| {
                let variant = Variant { design: config.layer.design, plan, choice, mode: Mode::Graph, block };
                (subject, variant, config.clone())
            };
            let two_stream = Schedule::TwoStream;
            Ok([
                of(Subject::Attention, &serial, Choice::Auto, of_saf, Some(Branch::Attention)),
                of(Subject::Ffn, &serial, Choice::Auto, of_saf, Some(Branch::Ffn)),
                of(Subject::Saf, &serial, Choice::Auto, of_saf, None),
                of(Subject::TwoStream, parallel, Choice::Fixed(two_stream), two_stream.into(), None),
                of(Subject::Auto, parallel, Choice::Auto, picked, None),
            ])
        }
    }

    fn verify(backend: &Gpu, planned: &[Planned], shape: &BatchShape) -> Result<Vec<Verified>> {
        let asked = Asked::of(shape)?;
        planned
            .iter()
            .map(|(subject, Variant { design, plan, block, .. }, config)| {
                let found = backend.check_some_against_oracle(config, *block, *plan, &asked)?;
                Ok(Verified::new(
                    format!("{} of {design} {plan}, {asked}, first {ORACLE_LAYERS} layers at most", subject.name()),
                    found,
                ))
            })
            .collect()
    }

    fn method(effort: Effort) -> String {
        format!(
            " Measured: stacks of the blocks alone (each layer the block of SAF, residual sum and norm with it), of SAF, and of PAF, on the \
             same weights, distinct in every layer, each as one CUDA graph. Blocks and SAF run as the planner chose for SAF, in {:.1} s of \
             measuring beforehand, PAF auto as it chose for PAF, PAF two-stream with estimated kernels. Before timing: the first \
             {ORACLE_LAYERS} layers of each against an f64 oracle, the last sequence of the shape that is timed, cut to {ORACLE_TOKENS} tokens; at full shape all outputs are finite. A sample is the device time \
             between events around one graph launch, over the number of layers; subjects alternate, in a \
             random order in each round; {}. Intervals: order statistics of the median. \
             Overlap fraction: (attention + FFN − together) / min(attention, FFN), and ratios: medians of the rounds' values. Error: \
             predicted / measured ratio − 1. A stack whose weights fit in the L2 cache finds them there, which the prediction does not count.",
            PLAN_BUDGET.as_secs_f64(),
            effort.rounds()
        )
    }
}
