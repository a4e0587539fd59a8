//! What is compared, and how: verified, then timed in turn.

use std::time::Duration;

use super::{Choice, Engine, Mode, Variant, Weights};
use crate::config::{BatchShape, EncoderConfig, Schedule};
use crate::error::{Error, Result};
#[cfg(feature = "cuda")]
use crate::measure::backend::Gpu;
use crate::measure::backend::{Backend, CPU_ELEMENT, Cpu, ORACLE_LAYERS, Turns};
use crate::measure::baseline::Identity;
use crate::measure::baseline::timings::batch;
use crate::measure::machine;
use crate::measure::report::{self, Report, Run, Verified};
use crate::measure::roofline::{self, Work};
use crate::measure::statistics::{Median, paired_ratio};
use crate::measure::timing::{Candidate, Effort, Sampled};

/// What to compare.
#[derive(Debug, Clone)]
pub struct Experiment {
    /// Preset that the dimensions come from, for the report.
    pub model: Option<String>,
    /// Dimensions, and the parallel design; the serial one that it is compared with has its norms in the same place.
    pub config: EncoderConfig,
    /// Whether the model has rotary embeddings that `config` leaves out, for the report.
    pub rotary_left_out: bool,
    /// Schedules of the parallel design; none: all that the engine has. With `auto` the serial design gets its own choice, too.
    pub schedules: Vec<Choice>,
    /// Modes; those that the engine does not have are left out.
    pub modes: Vec<Mode>,
    /// Batch shapes.
    pub shapes: Vec<BatchShape>,
    /// Where the weights come from.
    pub weights: Weights,
    /// Seed of activations, and of random weights.
    pub seed: u64,
    /// How long to sample each shape.
    pub effort: Effort,
}

/// What the comparison is doing, for a progress display.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Layer `n` of `of` is made and packed.
    Weights {
        /// This layer.
        n: usize,
        /// All layers.
        of: usize,
    },
    /// The planner measures a shape.
    Plan,
    /// A shape is checked against the oracle.
    Verify,
    /// A round of a shape has been sampled.
    Round(usize),
}

/// What takes turns with the variants.
pub(in crate::measure) trait Beside {
    /// Is ready on that shape, and verified. Each gives its sample after a call that is not timed; so do the variants then.
    fn candidates(&mut self, shape: &BatchShape) -> Result<Vec<Candidate<'_>>>;
}

/// Tokens of the sequence that the oracle is asked about, at most: its f64 loops need seconds beyond.
pub(in crate::measure) const ORACLE_TOKENS: usize = 512;

/// What the oracle is asked about. Sequences do not see each other, so one of them is enough.
pub(in crate::measure) struct Asked {
    /// What a device runs for it: the batch that is timed, but for the length of its last sequence, so that its kernels are those that are
    /// timed.
    pub(in crate::measure) whole: BatchShape,
    /// Where in it the oracle's rows begin.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "the CPU runs nothing else"))]
    pub(in crate::measure) first_row: usize,
    /// What the oracle computes.
    pub(in crate::measure) some: BatchShape,
}

impl Asked {
    /// Of a padded batch the last sequence, at most so long; of packed ones those at the beginning, alone, since the others' places must
    /// not matter either.
    pub(in crate::measure) fn of(shape: &BatchShape) -> Result<Self> {
        if !shape.is_packed() {
            let (batch, seq_len) = (shape.batch(), shape.seq_len());
            let last = batch - 1;
            let tokens = shape.length(last).clamp(1, ORACLE_TOKENS);
            let whole = match shape.length(last) == tokens {
                true => shape.clone(),
                false => {
                    let lengths = (0..last).map(|i| shape.length(i)).chain([tokens]);
                    BatchShape::new(batch, seq_len)?.with_lengths(lengths.collect())?
                }
            };
            return Ok(Self { whole, first_row: last * seq_len, some: BatchShape::new(1, tokens)? });
        }
        let mut left = ORACLE_TOKENS;
        let mut lengths = Vec::new();
        for i in 0..shape.batch() {
            lengths.push(shape.length(i).min(left));
            left -= lengths[i];
            if left == 0 {
                break;
            }
        }
        let some = BatchShape::packed(lengths)?;
        Ok(Self { whole: some.clone(), first_row: 0, some })
    }
}

impl std::fmt::Display for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (tokens, batch, seq_len) = (self.some.rows(), self.whole.batch(), self.whole.seq_len());
        match (self.some.is_packed(), batch == 1 && tokens == seq_len) {
            (true, _) => write!(f, "{tokens} tokens of packed sequences"),
            (false, true) => write!(f, "1 × {tokens}"),
            (false, false) => write!(f, "{tokens} tokens, the last sequence of {batch} × {seq_len}"),
        }
    }
}

/// Samples that the others of that mode are compared with. SAF gets what PAF gets: its planner's choice, where that is faster than
/// the estimate. `None` if a time is not a number.
fn baseline<'a>(variants: &[(Variant, EncoderConfig)], samples: &'a [Vec<f64>], mode: Mode) -> Option<&'a [f64]> {
    let of_saf =
        variants.iter().zip(samples).filter(|((variant, _), _)| !variant.design.is_parallel() && variant.mode == mode);
    let medians: Option<Vec<_>> =
        of_saf.map(|(_, samples)| Some((samples.as_slice(), Median::of(samples)?.value))).collect();
    medians?.into_iter().min_by(|a, b| a.1.total_cmp(&b.1)).map(|(samples, _)| samples)
}

/// Time to plan a design on a shape, however long the comparison then samples: less leaves SAF or PAF less tuned than it can be.
pub(in crate::measure) const PLAN_BUDGET: Duration = Duration::from_secs(2);

impl Experiment {
    /// SAF, then PAF, in every mode and schedule; what the planner chooses for each design on this shape among them.
    fn variants(
        &self,
        backend: &dyn Backend,
        choices: &[Choice],
        shape: &BatchShape,
    ) -> Result<Vec<(Variant, EncoderConfig)>> {
        let parallel = self.config.layer.design;
        let is_auto = |&&choice: &&Choice| choice == Choice::Auto;
        let of_serial = [Choice::Fixed(Schedule::Serial)].into_iter().chain(choices.iter().find(is_auto).copied());
        let ways = of_serial.map(|choice| (parallel.serial(), choice));
        let ways = ways.chain(choices.iter().map(|&choice| (parallel, choice)));
        let mut planned = Vec::new();
        for (design, choice) in ways {
            let config = self.config.with_design(design);
            let plan = match choice {
                Choice::Fixed(schedule) => schedule.into(),
                Choice::Auto => backend.plan(&config, shape, PLAN_BUDGET)?,
            };
            planned.push((design, choice, plan, config));
        }
        let modes = self.modes.iter().filter(|mode| backend.modes().contains(mode));
        let of_mode = |&mode| {
            let variant = move |(design, choice, plan, config): &(_, _, _, EncoderConfig)| {
                (Variant { design: *design, plan: *plan, choice: *choice, mode, block: None }, config.clone())
            };
            planned.iter().map(variant).collect::<Vec<_>>()
        };
        Ok(modes.flat_map(of_mode).collect())
    }

    /// What a result on `engine` will be one of.
    pub fn identity(&self, engine: &Engine) -> Identity {
        let (device, dtype) = match engine {
            Engine::Cpu => (machine::host().identity(), CPU_ELEMENT),
            #[cfg(feature = "cuda")]
            Engine::Gpu(device, dtype) => (device.info().name.clone(), dtype.name()),
        };
        let checkpoint = self.weights.checkpoint().map(|checkpoint| checkpoint.name);
        let config = report::Config::of(&self.config, self.rotary_left_out);
        let name = |shape: &BatchShape| batch(shape.batch(), shape.seq_len(), shape.is_packed(), shape.lengths());
        let shapes = self.shapes.iter().map(name).collect();
        Identity::of_layers(device, dtype, &config, checkpoint.as_deref(), shapes)
    }

    /// Makes the weights, verifies, measures. `on_step` hears what goes on, with the shape's index.
    ///
    /// # Errors
    /// [`Error::Verification`] before anything is timed, if a result is wrong; whatever the engine gives.
    pub fn run(&self, engine: &Engine, on_step: impl FnMut(usize, Step)) -> Result<Report> {
        self.run_beside(engine, None, on_step).map(|(report, _)| report)
    }

    /// The same in turns with something else, whose samples, µs, it gives for each shape, in the order of its candidates.
    pub(in crate::measure) fn run_beside(
        &self,
        engine: &Engine,
        mut beside: Option<&mut dyn Beside>,
        mut on_step: impl FnMut(usize, Step),
    ) -> Result<(Report, Vec<Vec<Vec<f64>>>)> {
        self.config.validate()?;
        if !self.config.layer.design.is_parallel() {
            return Err(Error::InvalidConfig {
                field: "design",
                got: self.config.layer.design.to_string(),
                expected: "a parallel design: the serial one to compare with follows from it".into(),
            });
        }
        let of = self.config.num_hidden_layers;
        let layers = self.weights.layers(&self.config, self.seed).enumerate().map(|(i, layer)| {
            on_step(0, Step::Weights { n: i + 1, of });
            layer
        });
        let backend: Box<dyn Backend> = match engine {
            Engine::Cpu => Box::new(Cpu::new(&self.config, layers, self.seed)?),
            #[cfg(feature = "cuda")]
            Engine::Gpu(device, dtype) => Box::new(Gpu::new(device, &self.config, *dtype, layers, self.seed)?),
        };
        let choices = if self.schedules.is_empty() { backend.choices() } else { self.schedules.clone() };
        if !self.modes.iter().any(|mode| backend.modes().contains(mode)) {
            return Err(Error::Unsupported {
                what: format!("mode {} on the {} engine", self.modes[0].name(), backend.name()),
                remedy: "use mode eager".into(),
            });
        }
        let ceilings = backend.ceilings()?;
        let run = Run::begin(report::SCHEMA, backend.machine());
        let (mut cases, mut others) = (Vec::new(), Vec::new());
        for (i, shape) in self.shapes.iter().enumerate() {
            on_step(i, Step::Plan);
            let variants = self.variants(&*backend, &choices, shape)?;
            on_step(i, Step::Verify);
            let (case, of_others) = self.case(&*backend, &variants, &ceilings, shape, &mut beside, &mut |round| {
                on_step(i, Step::Round(round))
            })?;
            cases.push(case);
            others.push(of_others);
        }
        let report = Report {
            run,
            backend: backend.name().into(),
            model: self.model.clone(),
            checkpoint: self.weights.checkpoint(),
            dtype: backend.element_type().into(),
            config: report::Config::of(&self.config, self.rotary_left_out),
            seed: self.seed,
            method: self.method(backend.name(), choices.contains(&Choice::Auto)),
            noise_target: self.effort.noise,
            ceilings: report::Ceilings {
                flops_per_s: ceilings.flops_per_s,
                bytes_per_s: ceilings.bytes_per_s,
                source: ceilings.source,
            },
            cases,
        };
        Ok((report, others))
    }

    fn case(
        &self,
        backend: &dyn Backend,
        variants: &[(Variant, EncoderConfig)],
        ceilings: &roofline::Ceilings,
        shape: &BatchShape,
        beside: &mut Option<&mut dyn Beside>,
        on_round: &mut dyn FnMut(usize),
    ) -> Result<(report::Case, Vec<Vec<f64>>)> {
        let asked = Asked::of(shape)?;
        let mut verified = Vec::new();
        for (i, (variant, config)) in variants.iter().enumerate() {
            if variants[..i].iter().any(|(other, _)| other.agrees_bitwise(variant)) {
                continue;
            }
            let found = backend.check_against_oracle(config, variant.plan, &asked)?;
            verified.push(Verified::new(
                format!("{} {}, {asked}, first {ORACLE_LAYERS} layers at most", variant.design, variant.plan),
                found,
            ));
        }
        let untimed_first = beside.is_some();
        let others = beside.as_mut().map_or(Ok(Vec::new()), |beside| beside.candidates(shape))?;
        let turns = Turns { effort: self.effort, untimed_first, others, on_round };
        let Sampled { samples_us: mut samples, state_before, state_after } = backend.measure(variants, shape, turns)?;
        let others = samples.split_off(variants.len());

        let work = Work::of(&self.config, shape, backend.element_bytes());
        let floor_us = work.floor_us(ceilings);
        let no_samples = || Error::Verification("a time is not a number".into());
        let mut rows = Vec::new();
        for ((variant, _), own) in variants.iter().zip(&samples) {
            let baseline = baseline(variants, &samples, variant.mode).ok_or_else(no_samples)?;
            let ratio = paired_ratio(baseline, own).ok_or_else(no_samples)?;
            let median = Median::of(own).ok_or_else(no_samples)?;
            rows.push(report::Variant {
                design: variant.design.name().into(),
                schedule: variant.choice.name().into(),
                plan: (variant.choice == Choice::Auto).then(|| variant.plan.to_string()),
                mode: variant.mode.name().into(),
                samples_us: own.clone(),
                median_us: median.into(),
                tflops: work.flops / median.value / 1e6,
                roofline_share: floor_us.map(|floor| floor / median.value),
                speedup_over_saf: ratio.into(),
            });
        }
        let case = report::Case {
            batch: shape.batch(),
            seq_len: shape.seq_len(),
            lengths: shape.lengths().map(<[usize]>::to_vec),
            packed: shape.is_packed(),
            flops: work.flops,
            bytes: work.bytes,
            floor_us,
            verified,
            state_before,
            state_after,
            variants: rows,
        };
        Ok((case, others))
    }

    fn method(&self, backend: &str, plans: bool) -> String {
        let (sample, asked) = match backend {
            "cuda" => (
                "device time between events on the caller's stream around one forward call or graph launch",
                "the last sequence, cut to that length, of the batch that is timed, or the first of packed ones, alone",
            ),
            _ => ("wall time of one forward call", "of one sequence, or of packed ones"),
        };
        let weights = match self.weights {
            Weights::Random => "Random weights, distinct in every layer.",
            #[cfg(feature = "checkpoint")]
            Weights::Checkpoint(_) => "The weights of a checkpoint, in both designs; random activations.",
        };
        let plan_s = PLAN_BUDGET.as_secs_f64();
        let [planned, baseline] = match plans {
            false => [String::new(), String::new()],
            true => [
                format!(
                    " What the planner chooses (auto) for a design on a shape it measures beforehand, for {plan_s:.1} s, kernels \
                     and schedules."
                ),
                " SAF's time is its serial schedule's, or its auto row's where that has the lower median.".to_owned(),
            ],
        };
        format!(
            "{weights}{planned} Before timing: the first {ORACLE_LAYERS} layers against an f64 \
             oracle on at most {ORACLE_TOKENS} tokens: {asked}; at full shape, variants with the same kernels agree \
             bitwise and all outputs are finite. A sample is the {sample}; variants alternate, in a random order in each round; {}. Intervals: order statistics \
             of the median. Ratios: median of the rounds' ratios.{baseline}",
            self.effort.rounds()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Design, preset};

    #[test]
    fn the_oracle_is_asked_about_the_end_of_the_batch_that_is_timed() {
        let asked = |shape: BatchShape| {
            let asked = Asked::of(&shape).unwrap();
            let last = asked.whole.length(asked.whole.batch() - 1);
            assert!(asked.some.rows() == last || shape.is_packed(), "{shape:?}");
            assert_eq!((asked.whole.batch(), asked.whole.seq_len()), (shape.batch(), shape.seq_len()), "{shape:?}");
            (asked.first_row, asked.some.rows(), asked.whole == shape, asked.to_string())
        };
        let shape = |batch, seq_len| BatchShape::new(batch, seq_len).unwrap();
        assert_eq!(asked(shape(1, 128)), (0, 128, true, "1 × 128".into()));
        assert_eq!(asked(shape(32, 512)), (31 * 512, 512, true, "512 tokens, the last sequence of 32 × 512".into()));
        assert_eq!(asked(shape(4, 8192)), (3 * 8192, 512, false, "512 tokens, the last sequence of 4 × 8192".into()));
        let ragged = shape(3, 600).with_lengths(vec![1, 600, 7]).unwrap();
        assert_eq!(asked(ragged), (1200, 7, true, "7 tokens, the last sequence of 3 × 600".into()));
        let packed = BatchShape::packed(vec![3, 5]).unwrap();
        assert_eq!(asked(packed), (0, 8, true, "8 tokens of packed sequences".into()));
    }

    #[test]
    fn the_faster_saf_of_a_mode_is_what_others_are_compared_with() {
        let config = preset("minilm-l6").unwrap().config;
        let variant = |design, choice, mode| {
            (Variant { design, plan: Schedule::Serial.into(), choice, mode, block: None }, config.with_design(design))
        };
        let (fixed, saf, paf) = (Choice::Fixed(Schedule::Serial), Design::SafPostNorm, Design::PafPostNorm);
        let variants = [
            variant(saf, fixed, Mode::Eager),
            variant(saf, fixed, Mode::Graph),
            variant(saf, Choice::Auto, Mode::Eager),
            variant(saf, Choice::Auto, Mode::Graph),
            variant(paf, fixed, Mode::Graph),
        ];
        let samples: Vec<Vec<f64>> = [9.0, 5.0, 8.0, 6.0, 1.0].map(|us| vec![us; 3]).to_vec();
        assert_eq!(baseline(&variants, &samples, Mode::Eager), Some(&[8.0; 3][..]));
        assert_eq!(baseline(&variants, &samples, Mode::Graph), Some(&[5.0; 3][..]));
        assert_eq!(baseline(&variants[4..], &samples[4..], Mode::Graph), None);
        assert_eq!(baseline(&variants, &vec![vec![f64::NAN]; 5], Mode::Graph), None);
    }
}
