//! The comparison itself: SAF, PAF serial, PAF two-stream, on the same weights, verified, then timed in turn.

use super::backend::{Backend, Cpu, ORACLE_LAYERS};
use super::report::{self, Report, Run, Verified};
use super::roofline::Work;
use super::statistics::{Median, paired_ratio};
use super::timing::Effort;
use crate::config::{BatchShape, Design, EncoderConfig, Schedule};
#[cfg(feature = "cuda")]
use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// How the launches reach the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Launched one by one by the host, every time.
    Eager,
    /// Captured once, replayed as a CUDA graph.
    Graph,
}

impl Mode {
    /// `eager` or `graph`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Eager => "eager",
            Self::Graph => "graph",
        }
    }
}

/// One way to run the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variant {
    /// How attention and FFN are composed.
    pub design: Design,
    /// In what order, on which streams.
    pub schedule: Schedule,
    /// Eager or graph.
    pub mode: Mode,
}

impl Variant {
    /// Whether the result is the same to the last bit.
    pub(super) fn agrees_bitwise(&self, other: &Self) -> bool {
        self.design == other.design && self.schedule.agrees_bitwise(other.schedule)
    }
}

impl std::fmt::Display for Variant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.design, self.schedule, self.mode.name())
    }
}

/// Where to run.
#[derive(Debug, Clone)]
pub enum Engine {
    /// The f32 engine on the host.
    Cpu,
    /// A device, in this element type.
    #[cfg(feature = "cuda")]
    Gpu(crate::gpu::Device, Dtype),
}

/// What to compare.
#[derive(Debug, Clone)]
pub struct Experiment {
    /// Preset that the dimensions come from, for the report.
    pub model: Option<String>,
    /// Dimensions, and the parallel design; the serial one that it is compared with has its norms in the same place.
    pub config: EncoderConfig,
    /// Whether the model has rotary embeddings that `config` leaves out, for the report.
    pub rotary_left_out: bool,
    /// Schedules of the parallel design; none: all that the engine has.
    pub schedules: Vec<Schedule>,
    /// Modes; those that the engine does not have are left out.
    pub modes: Vec<Mode>,
    /// Batch shapes.
    pub shapes: Vec<BatchShape>,
    /// Seed of weights and activations.
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
    /// A shape is checked against the oracle.
    Verify,
    /// A round of a shape has been sampled.
    Round(usize),
}

/// Tokens of the sequence that the oracle is asked about, at most: its f64 loops need seconds beyond.
const ORACLE_TOKENS: usize = 512;

/// What the oracle is asked about, and its name. Sequences do not see each other, so one of them, alone, is enough; of
/// packed ones those at the beginning, since the others' places must not matter either.
fn few_tokens(shape: &BatchShape) -> Result<(BatchShape, String)> {
    if !shape.is_packed() {
        let tokens = shape.length(0).clamp(1, ORACLE_TOKENS);
        return Ok((BatchShape::new(1, tokens)?, format!("1 × {tokens}")));
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
    let name = format!("{} tokens of packed sequences", ORACLE_TOKENS - left);
    Ok((BatchShape::packed(lengths)?, name))
}

impl Experiment {
    fn variants(&self, modes: &[Mode], schedules: &[Schedule]) -> Vec<(Variant, EncoderConfig)> {
        let parallel = self.config.layer.design;
        let mut variants = Vec::new();
        for &mode in self.modes.iter().filter(|mode| modes.contains(mode)) {
            let serial = (parallel.serial(), Schedule::Serial);
            for (design, schedule) in
                std::iter::once(serial).chain(schedules.iter().map(|&schedule| (parallel, schedule)))
            {
                variants.push((Variant { design, schedule, mode }, self.config.with_design(design)));
            }
        }
        variants
    }

    /// Makes the weights, verifies, measures. `on_step` hears what goes on, with the shape's index.
    ///
    /// # Errors
    /// [`Error::Verification`] before anything is timed, if a result is wrong; whatever the engine gives.
    pub fn run(&self, engine: &Engine, mut on_step: impl FnMut(usize, Step)) -> Result<Report> {
        self.config.validate()?;
        if !self.config.layer.design.is_parallel() {
            return Err(Error::InvalidConfig {
                field: "design",
                got: self.config.layer.design.to_string(),
                expected: "a parallel design: the serial one to compare with follows from it".into(),
            });
        }
        let of = self.config.num_hidden_layers;
        let mut on_layer = |n| on_step(0, Step::Weights { n, of });
        let backend: Box<dyn Backend> = match engine {
            Engine::Cpu => Box::new(Cpu::new(&self.config, self.seed, &mut on_layer)?),
            #[cfg(feature = "cuda")]
            Engine::Gpu(device, dtype) => {
                Box::new(super::backend::Gpu::new(device, &self.config, *dtype, self.seed, &mut on_layer)?)
            }
        };
        let schedules = if self.schedules.is_empty() { backend.schedules() } else { &self.schedules };
        let variants = self.variants(backend.modes(), schedules);
        if variants.is_empty() {
            return Err(Error::Unsupported {
                what: format!("mode {} on the {} engine", self.modes[0].name(), backend.name()),
                remedy: "use mode eager".into(),
            });
        }
        let ceilings = backend.ceilings()?;
        let run = Run::begin(report::SCHEMA, backend.machine());
        let mut cases = Vec::new();
        for (i, shape) in self.shapes.iter().enumerate() {
            on_step(i, Step::Verify);
            cases.push(self.case(&*backend, &variants, &ceilings, shape, &mut |round| on_step(i, Step::Round(round)))?);
        }
        Ok(Report {
            run,
            backend: backend.name().into(),
            model: self.model.clone(),
            dtype: backend.element_type().into(),
            config: report::Config::of(&self.config, self.rotary_left_out),
            seed: self.seed,
            method: self.method(backend.name()),
            ceilings: report::Ceilings {
                flops_per_s: ceilings.flops_per_s,
                bytes_per_s: ceilings.bytes_per_s,
                source: ceilings.source,
            },
            cases,
        })
    }

    fn case(
        &self,
        backend: &dyn Backend,
        variants: &[(Variant, EncoderConfig)],
        ceilings: &super::roofline::Ceilings,
        shape: &BatchShape,
        on_round: &mut dyn FnMut(usize),
    ) -> Result<report::Case> {
        let (some, name) = few_tokens(shape)?;
        let mut verified = Vec::new();
        for (i, (variant, config)) in variants.iter().enumerate() {
            if variants[..i].iter().any(|(other, _)| other.agrees_bitwise(variant)) {
                continue;
            }
            let found = backend.check_against_oracle(config, variant.schedule, &some)?;
            verified.push(Verified {
                what: format!("{} {}, {name}, first {ORACLE_LAYERS} layers at most", variant.design, variant.schedule),
                max_error: found.max_error,
                bound: found.bound,
                relative_l2: found.relative_l2,
                relative_l2_bound: found.relative_l2_bound,
            });
        }
        let state_before = backend.state();
        let samples = backend.measure(variants, shape, self.effort, on_round)?;
        let state_after = backend.state();

        let work = Work::of(&self.config, shape, backend.element_bytes());
        let floor_us = work.floor_us(ceilings);
        let no_samples = || Error::Verification("a time is not a number".into());
        let mut rows = Vec::new();
        for ((variant, _), own) in variants.iter().zip(&samples) {
            let is_baseline =
                |(other, _): &(Variant, EncoderConfig)| !other.design.is_parallel() && other.mode == variant.mode;
            let baseline = variants.iter().position(is_baseline).expect("every mode has its serial design");
            let median = Median::of(own).ok_or_else(no_samples)?;
            let ratio = paired_ratio(&samples[baseline], own).ok_or_else(no_samples)?;
            rows.push(report::Variant {
                design: variant.design.name().into(),
                schedule: variant.schedule.name().into(),
                mode: variant.mode.name().into(),
                samples_us: own.clone(),
                median_us: median.into(),
                tflops: work.flops / median.value / 1e6,
                roofline_share: floor_us.map(|floor| floor / median.value),
                speedup_over_saf: ratio.into(),
            });
        }
        Ok(report::Case {
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
        })
    }

    fn method(&self, backend: &str) -> String {
        let sample = match backend {
            "cuda" => "device time between events on the caller's stream around one forward call or graph launch",
            _ => "wall time of one forward call",
        };
        format!(
            "Random weights, distinct in every layer. Before timing: the first {ORACLE_LAYERS} layers against an f64 \
             oracle on at most {ORACLE_TOKENS} tokens, of one sequence or of packed ones; at full shape, variants with the same kernels agree \
             bitwise and all outputs are finite. A sample is the {sample}; variants alternate within each round, beginning \
             with another one each round; {} warm-up rounds, then {} to {} rounds or {:.0} s. Intervals: order statistics \
             of the median. Ratios: median of the rounds' ratios.",
            self.effort.warm_up_rounds,
            self.effort.min_rounds,
            self.effort.max_rounds,
            self.effort.budget.as_secs_f64()
        )
    }
}
