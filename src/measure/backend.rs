//! The two engines as the comparison sees them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::report::Machine;
use super::roofline::{self, Ceilings};
use super::speedup::{Asked, Choice, Mode, Variant};
use super::timing::{Candidate, Effort, Sampled, observe};
use super::{machine, plant};
use crate::config::{BatchShape, EncoderConfig, Schedule};
use crate::error::{Error, Result};
use crate::verify::{self, Comparison};
use crate::weights::{LayerWeights, random_activations};

/// Layers that the oracle is asked about: two show that the first hands over to the second; all would take minutes.
pub(super) const ORACLE_LAYERS: usize = 2;

#[cfg(feature = "cuda")]
pub(super) use crate::gpu::{Branch, Plan};

/// Without kernels no block runs alone: there is none to name.
#[cfg(not(feature = "cuda"))]
pub(super) type Branch = std::convert::Infallible;

/// Without kernels there is nothing to plan but the schedule.
#[cfg(not(feature = "cuda"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan(Schedule);

#[cfg(not(feature = "cuda"))]
impl Plan {
    pub(super) fn schedule(&self) -> Schedule {
        self.0
    }

    pub(super) fn agrees_bitwise(&self, other: &Self) -> bool {
        self.0.agrees_bitwise(other.0)
    }
}

#[cfg(not(feature = "cuda"))]
impl From<Schedule> for Plan {
    fn from(schedule: Schedule) -> Self {
        Self(schedule)
    }
}

#[cfg(not(feature = "cuda"))]
impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// An engine with a model's weights.
pub(super) trait Backend {
    fn name(&self) -> &'static str;
    fn element_type(&self) -> &'static str;
    fn element_bytes(&self) -> usize;
    fn modes(&self) -> &'static [Mode];
    fn choices(&self) -> Vec<Choice>;
    /// The planner's choice, measured for about `budget`.
    fn plan(&self, config: &EncoderConfig, shape: &BatchShape, budget: Duration) -> Result<Plan>;
    fn machine(&self) -> Machine;
    fn ceilings(&self) -> Result<Ceilings>;
    /// The first layers of `config` (at most [`ORACLE_LAYERS`]) against the oracle.
    fn check_against_oracle(&self, config: &EncoderConfig, plan: Plan, asked: &Asked) -> Result<Comparison>;
    /// Checks that variants which should agree bitwise do, then samples all of them, and the others after them, µs.
    fn measure(&self, variants: &[(Variant, EncoderConfig)], shape: &BatchShape, turns: Turns<'_>) -> Result<Sampled>;
}

/// How variants are sampled, and what else is, in the same rounds.
pub(super) struct Turns<'a> {
    pub(super) effort: Effort,
    /// Each variant runs once, untimed, right before its sample: the device comes from someone else, with what that left in the caches.
    pub(super) untimed_first: bool,
    pub(super) others: Vec<Candidate<'a>>,
    pub(super) on_round: &'a mut dyn FnMut(usize),
}

/// Compares each variant's bits with those of the first variant that it should agree with.
fn agree<T: PartialEq + Copy>(
    variants: &[(Variant, EncoderConfig)],
    outputs: &[Vec<T>],
    value: impl Fn(T) -> f32,
    cols: usize,
) -> Result<()> {
    for (i, (variant, _)) in variants.iter().enumerate() {
        if let Some(at) = outputs[i].iter().position(|&bits| !value(bits).is_finite()) {
            let (row, column) = (at / cols, at % cols);
            let got = value(outputs[i][at]);
            return Err(Error::Verification(format!("{variant}: element ({row}, {column}) is {got}")));
        }
        let first = variants.iter().position(|(other, _)| other.agrees_bitwise(variant)).unwrap_or(i);
        if let Some(at) = outputs[i].iter().zip(&outputs[first]).position(|(a, b)| a != b) {
            return Err(Error::Verification(format!(
                "{variant}: element ({}, {}) is {}, but {} in {}",
                at / cols,
                at % cols,
                value(outputs[i][at]),
                value(outputs[first][at]),
                variants[first].0
            )));
        }
    }
    Ok(())
}

/// What it computes in.
pub(super) const CPU_ELEMENT: &str = "f32";

/// The f32 engine; a sample is wall time.
pub(super) struct Cpu {
    encoder: crate::cpu::Encoder,
    /// For the oracle.
    first_layers: Arc<Vec<LayerWeights>>,
    seed: u64,
}

impl Cpu {
    /// `seed` is of the activations.
    pub(super) fn new(config: &EncoderConfig, layers: impl Iterator<Item = LayerWeights>, seed: u64) -> Result<Self> {
        let layers: Vec<_> = layers.collect();
        let first_layers = Arc::new(layers.iter().take(ORACLE_LAYERS).cloned().collect());
        Ok(Self { encoder: crate::cpu::Encoder::new(config.clone(), Arc::new(layers))?, first_layers, seed })
    }
}

impl Backend for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn element_type(&self) -> &'static str {
        CPU_ELEMENT
    }

    fn element_bytes(&self) -> usize {
        size_of::<f32>()
    }

    fn modes(&self) -> &'static [Mode] {
        &[Mode::Eager]
    }

    fn choices(&self) -> Vec<Choice> {
        crate::cpu::SCHEDULES.map(Choice::Fixed).to_vec()
    }

    fn plan(&self, _: &EncoderConfig, _: &BatchShape, _: Duration) -> Result<Plan> {
        Err(Error::Unsupported {
            what: "schedule auto on the cpu engine".into(),
            remedy: format!("name schedules, of {}", crate::cpu::SCHEDULES.map(Schedule::name).join(" and ")),
        })
    }

    fn machine(&self) -> Machine {
        machine::host()
    }

    fn ceilings(&self) -> Result<Ceilings> {
        Ok(roofline::of_cpu())
    }

    fn check_against_oracle(&self, config: &EncoderConfig, plan: Plan, asked: &Asked) -> Result<Comparison> {
        let config = EncoderConfig { num_hidden_layers: self.first_layers.len(), ..config.clone() };
        verify::cpu::stack(config, self.first_layers.clone(), plan.schedule(), &asked.some, self.seed)
    }

    fn measure(&self, variants: &[(Variant, EncoderConfig)], shape: &BatchShape, turns: Turns<'_>) -> Result<Sampled> {
        let h = self.encoder.config().layer.hidden_size;
        let x = random_activations(shape.rows(), h, self.seed);
        let mut outputs = vec![vec![f32::NAN; x.len()]; variants.len()];
        let mut workspace = self.encoder.workspace(shape)?;
        let mut encoders = Vec::new();
        for ((variant, config), y) in variants.iter().zip(&mut outputs) {
            let encoder = self.encoder.with_design(config.layer.design)?;
            encoder.forward(variant.plan.schedule(), shape, &x, y, &mut workspace)?;
            encoders.push(encoder);
        }
        agree(variants, &outputs, |value| value, h)?;

        let shared = std::cell::RefCell::new((vec![0.0f32; x.len()], workspace));
        let mut candidates: Vec<Candidate<'_>> = Vec::new();
        for ((variant, _), encoder) in variants.iter().zip(&encoders) {
            let (x, shared, untimed_first) = (&x, &shared, turns.untimed_first);
            let sample = move |extra: Option<Duration>| {
                let (y, workspace) = &mut *shared.borrow_mut();
                if untimed_first {
                    encoder.forward(variant.plan.schedule(), shape, x, y, workspace)?;
                }
                let started = Instant::now();
                encoder.forward(variant.plan.schedule(), shape, x, y, workspace)?;
                if let Some(until) = extra.map(|extra| started.elapsed() + extra) {
                    while started.elapsed() < until {
                        std::hint::spin_loop();
                    }
                }
                Ok(started.elapsed().as_secs_f64() * 1e6)
            };
            let extra = plant::extra(variant.design.name(), || sample(None))?;
            candidates.push(Box::new(move || sample(extra)));
        }
        candidates.extend(turns.others);
        observe(&mut candidates, turns.effort, || None, turns.on_round)
    }
}

#[cfg(feature = "cuda")]
pub(super) use self::gpu::Gpu;

#[cfg(feature = "cuda")]
mod gpu {
    use super::*;
    use crate::dtype::Dtype;
    use crate::gpu::{Batch, Device, Encoder, EncoderWeights, Event, Graph, Planner, Stream, Tensor};

    /// A device; a sample is the device time between two events around a call on one stream.
    pub(in super::super) struct Gpu {
        device: Device,
        weights: Arc<EncoderWeights>,
        /// Of the first layers.
        oracle: verify::gpu::Oracle,
        monitor: machine::Monitor,
        seed: u64,
    }

    impl Gpu {
        /// `seed` is of the activations.
        pub(in super::super) fn new(
            device: &Device,
            config: &EncoderConfig,
            dtype: Dtype,
            layers: impl Iterator<Item = LayerWeights>,
            seed: u64,
        ) -> Result<Self> {
            let mut first_layers = Vec::new();
            let layers = layers.enumerate().map(|(i, layer)| {
                if i < ORACLE_LAYERS {
                    first_layers.push(layer.rounded(dtype));
                }
                layer
            });
            let weights = Arc::new(EncoderWeights::upload(device, config, dtype, layers)?);
            let monitor = machine::Monitor::new(device);
            let oracle = verify::gpu::Oracle::new(first_layers, dtype);
            Ok(Self { device: device.clone(), weights, oracle, monitor, seed })
        }

        /// The layers of `config`, or of each one block alone.
        pub(in super::super) fn stack(&self, config: &EncoderConfig, block: Option<Branch>) -> Result<Encoder> {
            let encoder = Encoder::new(config, self.weights.clone())?;
            match block {
                None => Ok(encoder),
                Some(block) => encoder.only(block),
            }
        }

        /// The first layers of `config`, or of each one block alone, against the oracle.
        pub(in super::super) fn check_some_against_oracle(
            &self,
            config: &EncoderConfig,
            block: Option<Branch>,
            plan: Plan,
            Asked { whole, first_row, some }: &Asked,
        ) -> Result<Comparison> {
            let config = EncoderConfig { num_hidden_layers: self.oracle.depth(), ..config.clone() };
            self.oracle.check_within(&self.stack(&config, block)?, plan, false, whole, *first_row, some)
        }
    }

    impl Backend for Gpu {
        fn name(&self) -> &'static str {
            "cuda"
        }

        fn element_type(&self) -> &'static str {
            self.weights.dtype().name()
        }

        fn element_bytes(&self) -> usize {
            Dtype::BYTES
        }

        fn modes(&self) -> &'static [Mode] {
            &[Mode::Eager, Mode::Graph]
        }

        fn choices(&self) -> Vec<Choice> {
            Schedule::ALL.into_iter().map(Choice::Fixed).chain([Choice::Auto]).collect()
        }

        fn plan(&self, config: &EncoderConfig, shape: &BatchShape, budget: Duration) -> Result<Plan> {
            let encoder = Encoder::new(config, self.weights.clone())?;
            Ok(Planner::new().budget(budget).plan(&encoder, &Batch::new(&self.device, shape)?)?.plan)
        }

        fn machine(&self) -> Machine {
            machine::with_device(&self.device, &self.monitor)
        }

        fn ceilings(&self) -> Result<Ceilings> {
            roofline::of_device(&self.device)
        }

        fn check_against_oracle(&self, config: &EncoderConfig, plan: Plan, asked: &Asked) -> Result<Comparison> {
            self.check_some_against_oracle(config, None, plan, asked)
        }

        fn measure(
            &self,
            variants: &[(Variant, EncoderConfig)],
            shape: &BatchShape,
            turns: Turns<'_>,
        ) -> Result<Sampled> {
            let (device, dtype) = (&self.device, self.weights.dtype());
            let h = variants[0].1.layer.hidden_size;
            let (stream, batch) = (Stream::new(device)?, Batch::new(device, shape)?);
            let x = random_activations(shape.rows(), h, self.seed);
            let x = Tensor::from_host(device, dtype, shape.rows(), h, &x)?;
            let encoders = variants.iter().map(|(variant, config)| self.stack(config, variant.block));
            let encoders = encoders.collect::<Result<Vec<_>>>()?;
            // Each its own output and scratch: a graph keeps them, and none finds another's lines in the cache.
            let mut operands = Vec::new();
            for encoder in &encoders {
                let mut workspace = encoder.workspace(&batch)?;
                workspace.poison()?;
                operands.push((Tensor::poisoned(device, dtype, shape.rows(), h)?, workspace));
            }

            let mut outputs = Vec::new();
            for (((variant, _), encoder), (y, workspace)) in variants.iter().zip(&encoders).zip(&mut operands) {
                match variant.mode {
                    Mode::Eager => encoder.forward(&stream, variant.plan, &batch, &x, y, workspace)?,
                    Mode::Graph => {
                        encoder.capture(&stream, variant.plan, &batch, &x, y, workspace)?.launch(&stream)?;
                    }
                }
                outputs.push(y.to_bits()?);
            }
            agree(variants, &outputs, |bits| dtype.from_bits(bits), h)?;
            drop(outputs);

            let (start, end) = (Event::new_timing(device)?, Event::new_timing(device)?);
            let mut candidates: Vec<Candidate<'_>> = Vec::new();
            for (((variant, _), encoder), (y, workspace)) in variants.iter().zip(&encoders).zip(&mut operands) {
                let (stream, batch, x, start, end) = (&stream, &batch, &x, &start, &end);
                let plan = variant.plan;
                let mut call: Box<dyn FnMut() -> Result<()> + '_> = match variant.mode {
                    Mode::Eager => Box::new(move || encoder.forward(stream, plan, batch, x, y, workspace)),
                    Mode::Graph => {
                        let graph: Graph<'_> = encoder.capture(stream, plan, batch, x, y, workspace)?;
                        Box::new(move || graph.launch(stream))
                    }
                };
                let untimed_first = turns.untimed_first;
                let mut sample = move |extra: Option<Duration>| {
                    if untimed_first {
                        call()?;
                    }
                    start.record(stream)?;
                    call()?;
                    extra.map_or(Ok(()), |extra| stream.hold_back(extra))?;
                    end.record(stream)?;
                    end.synchronize()?;
                    end.elapsed_us_since(start)
                };
                let extra = plant::extra(variant.design.name(), || sample(None))?;
                candidates.push(Box::new(move || sample(extra)));
            }
            candidates.extend(turns.others);
            observe(&mut candidates, turns.effort, || self.monitor.state(), turns.on_round)
        }
    }
}
