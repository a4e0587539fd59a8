//! The tracing itself.

use std::time::Duration;

use super::assign::{By, assign};
use super::summary::Summary;
use super::timeline::{About, Arguments, SCHEMA, Slice, Trace};
use crate::config::{BatchShape, EncoderConfig};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::gpu::cupti::{Cupti, Place, Record};
use crate::gpu::observe::{self, Launch, Span};
use crate::gpu::{Batch, Device, Encoder, Event, Plan, Stream, Tensor};
use crate::measure::backend::{Backend, Gpu};
use crate::measure::report::{Config, Run, Spread};
use crate::measure::speedup::{Asked, Choice, Mode, PLAN_BUDGET, Step};
use crate::measure::statistics::Median;
use crate::measure::timing::{Candidate, Effort, interleave};
use crate::weights::{random_activations, random_layers};

/// Where times come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// CUPTI if it is there, at that place if one is named; else, in mode eager, events.
    Auto(Option<Place>),
    /// CUPTI, at that place if one is named.
    Cupti(Option<Place>),
    /// CUDA events around each kernel, which keep kernels of one stream apart; in mode eager alone.
    Events,
}

/// What to trace.
#[derive(Debug, Clone)]
pub struct Experiment {
    /// Preset that the dimensions come from, for the report.
    pub model: Option<String>,
    /// Dimensions, and the design.
    pub config: EncoderConfig,
    /// Whether the model has rotary embeddings that `config` leaves out, for the report.
    pub rotary_left_out: bool,
    /// What to run; `None` for the planner's choice.
    pub plan: Option<Plan>,
    /// How the launches reach the device.
    pub mode: Mode,
    /// The batch.
    pub shape: BatchShape,
    /// Seed of weights and activations.
    pub seed: u64,
    /// Where times come from.
    pub source: Source,
    /// How long the device is kept waiting before each call, which the host has for launching it meanwhile: with as long as that takes,
    /// the timeline is what the device makes of the call by itself. Zero for what a caller sees, where in mode eager gaps are the host's.
    pub head_start: Duration,
}

/// Calls before the one that is traced, under the same observation.
const WARM_UP: usize = 3;
/// For a call that nobody traces.
const EFFORT: Effort =
    Effort { warm_up_rounds: 2, min_rounds: 11, max_rounds: 101, budget: Duration::from_millis(500), noise: None };

/// What a forward call needs.
struct Operands<'a> {
    encoder: &'a Encoder,
    plan: Plan,
    stream: Stream,
    batch: Batch,
    x: Tensor,
}

/// What a traced call was made of.
struct Traced {
    launches: Vec<(Launch, Span)>,
    source: String,
    assigned_by: &'static str,
}

impl Source {
    /// The library; or, where events are to do, why that is.
    fn load(&self, mode: Mode) -> Result<Result<Cupti, String>> {
        match self {
            Self::Cupti(named) => Cupti::load(named.as_ref()).map(Ok),
            Self::Auto(named) => match Cupti::load(named.as_ref()) {
                Err(error) if mode == Mode::Eager => Ok(Err(error.to_string())),
                loaded => loaded.map(Ok),
            },
            Self::Events if mode == Mode::Eager => Ok(Err("as asked for".into())),
            Self::Events => Err(Error::Unsupported {
                what: "times from events in mode graph".into(),
                remedy: "use mode eager, or CUPTI".into(),
            }),
        }
    }
}

impl Experiment {
    /// An error if there is no such stack, or no such times: with a source that is not on this machine.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`]; [`Error::Unsupported`] if there is no CUPTI where it is needed, and for events in mode graph.
    pub fn validate(&self) -> Result<()> {
        self.config.validate()?;
        self.source.load(self.mode).map(drop)
    }

    /// Makes weights, verifies, takes the time of untraced calls, traces one. `on_step` hears what goes on.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if there is no CUPTI where it is needed; [`Error::Verification`] before anything is traced, if the result is
    /// wrong, or afterwards if what was recorded is not what was launched; whatever the device gives.
    pub fn run(&self, device: &Device, dtype: Dtype, mut on_step: impl FnMut(Step)) -> Result<Trace> {
        self.config.validate()?;
        let cupti = self.source.load(self.mode)?;
        let of = self.config.num_hidden_layers;
        let layers = random_layers(&self.config, self.seed).enumerate().map(|(i, layer)| {
            on_step(Step::Weights { n: i + 1, of });
            layer
        });
        let backend = Gpu::new(device, &self.config, dtype, layers, self.seed)?;
        let run = Run::begin(SCHEMA, backend.machine());
        on_step(Step::Plan);
        let plan = self.plan.map_or_else(|| backend.plan(&self.config, &self.shape, PLAN_BUDGET), Ok)?;
        on_step(Step::Verify);
        backend.check_against_oracle(&self.config, plan, &Asked::of(&self.shape)?)?;

        let encoder = backend.stack(&self.config, None)?;
        let (rows, h) = (self.shape.rows(), self.config.layer.hidden_size);
        let x = random_activations(rows, h, self.seed);
        let operands = Operands {
            encoder: &encoder,
            plan,
            stream: Stream::new(device)?,
            batch: Batch::new(device, &self.shape)?,
            x: Tensor::from_host(device, dtype, rows, h, &x)?,
        };
        let forward_us = self.untraced(&operands, &mut on_step)?;
        let Traced { launches, source, assigned_by } = self.traced(&operands, &cupti)?;
        let slices = self.slices(&plan, launches);
        let about = About {
            model: self.model.clone(),
            config: Config::of(&self.config, self.rotary_left_out),
            design: self.config.layer.design.name().into(),
            schedule: self.plan.map_or(Choice::Auto, |plan| Choice::Fixed(plan.schedule())).name().into(),
            plan: plan.to_string(),
            mode: self.mode.name().into(),
            dtype: dtype.to_string(),
            batch: self.shape.batch(),
            seq_len: self.shape.seq_len(),
            packed: self.shape.is_packed(),
            tokens: rows,
            source,
            assigned_by: assigned_by.into(),
            forward_us,
            summary: Summary::of(&slices),
        };
        Ok(Trace::new(run, about, &slices))
    }

    /// Device time of a call, µs, with nobody looking.
    fn untraced(&self, operands: &Operands<'_>, on_step: &mut impl FnMut(Step)) -> Result<Spread> {
        let Operands { encoder, plan, stream, batch, x } = operands;
        let device = encoder.device();
        let (mut y, mut workspace) = (operands.output()?, encoder.workspace(batch)?);
        let (start, end) = (Event::new_timing(device)?, Event::new_timing(device)?);
        let mut call: Box<dyn FnMut() -> Result<()> + '_> = match self.mode {
            Mode::Eager => Box::new(|| encoder.forward(stream, *plan, batch, x, &mut y, &mut workspace)),
            Mode::Graph => {
                let graph = encoder.capture(stream, *plan, batch, x, &mut y, &mut workspace)?;
                Box::new(move || graph.launch(stream))
            }
        };
        let sample: Candidate<'_> = Box::new(|| {
            self.give_head_start(stream)?;
            start.record(stream)?;
            call()?;
            end.record(stream)?;
            end.synchronize()?;
            end.elapsed_us_since(&start)
        });
        let samples = interleave(&mut [sample], EFFORT, |round| on_step(Step::Round(round)))?;
        let median = Median::of(&samples[0]).ok_or_else(|| Error::Verification("a time is not a number".into()))?;
        Ok(median.into())
    }

    fn give_head_start(&self, stream: &Stream) -> Result<()> {
        if self.head_start.is_zero() { Ok(()) } else { stream.hold_back(self.head_start) }
    }

    fn traced(&self, operands: &Operands<'_>, cupti: &Result<Cupti, String>) -> Result<Traced> {
        let Operands { encoder, plan, stream, batch, x } = operands;
        let device = encoder.device();
        let (mut y, mut workspace) = (operands.output()?, encoder.workspace(batch)?);
        let cupti = match cupti {
            Ok(cupti) => cupti,
            Err(why) => {
                let mut call = || {
                    self.give_head_start(stream)?;
                    observe::timed(stream, || encoder.forward(stream, *plan, batch, x, &mut y, &mut workspace))
                };
                for _ in 0..WARM_UP {
                    call()?;
                }
                let source = format!(
                    "CUDA events around each kernel, which keep kernels of one stream apart that else overlap (programmatic dependent \
                     launch); CUPTI: {why}{}",
                    self.head_start_text()
                );
                return Ok(Traced { launches: call()?, source, assigned_by: "the launches themselves" });
            }
        };
        // Before the capture, so that the graph's nodes are known by the time they run.
        let session = cupti.begin()?;
        let (launches, records) = match self.mode {
            Mode::Eager => {
                let mut call = || encoder.forward(stream, *plan, batch, x, &mut y, &mut workspace);
                for _ in 0..WARM_UP {
                    call()?;
                }
                session.take(device)?;
                self.give_head_start(stream)?;
                let ((), launches) = observe::launches(call)?;
                (launches, session.take(device)?)
            }
            Mode::Graph => {
                let (graph, launches) =
                    observe::launches(|| encoder.capture(stream, *plan, batch, x, &mut y, &mut workspace))?;
                for _ in 0..WARM_UP {
                    graph.launch(stream)?;
                }
                session.take(device)?;
                self.give_head_start(stream)?;
                graph.launch(stream)?;
                (launches, session.take(device)?)
            }
        };
        let of_call: Vec<Record> = records.into_iter().filter(|record| record.name != observe::DELAY).collect();
        let (records, by): (Vec<Record>, By) = assign(&launches, &of_call, self.mode == Mode::Graph)?;
        let first = records.iter().map(|record| record.start_ns).min().unwrap_or_default();
        let us = |ns: u64| (ns - first) as f64 / 1e3;
        let spans = records.iter().map(|record| Span { start_us: us(record.start_ns), end_us: us(record.end_ns) });
        let source = format!(
            "CUPTI {}: the device's clock when a kernel's first block begins and when its last one has ended; in sums one that waits for \
             the kernel before it on its stream counts from that one's end on{}",
            cupti.version(),
            self.head_start_text()
        );
        Ok(Traced { launches: launches.into_iter().zip(spans).collect(), source, assigned_by: by.text() })
    }

    /// What there is to say of it after the source of the times.
    fn head_start_text(&self) -> String {
        match self.head_start {
            Duration::ZERO => String::new(),
            time => format!(
                "; the device was kept waiting for {} µs before each call, while the host launched it",
                time.as_micros()
            ),
        }
    }

    /// The kernels, in the order of their launches, their times counted from the first one's start on.
    fn slices(&self, plan: &Plan, launches: Vec<(Launch, Span)>) -> Vec<Slice> {
        let first = launches.iter().map(|(_, span)| span.start_us).fold(f64::INFINITY, f64::min);
        let slice = |(launch, span): (Launch, Span)| {
            let Launch { kernel, layer, part, shape, stream } = launch;
            let arguments = Arguments {
                kernel: kernel.name.clone(),
                layer,
                part: part.name().into(),
                shape,
                design: self.config.layer.design.name().into(),
                schedule: plan.schedule().name().into(),
                tokens: self.shape.rows(),
                grid: kernel.grid,
                cluster: kernel.cluster,
                block: kernel.threads,
                shared_bytes: kernel.shared_bytes,
                registers: kernel.registers,
                overlap: kernel.overlap,
            };
            Slice {
                stream: stream.into(),
                start_us: span.start_us - first,
                end_us: span.end_us - first,
                layer,
                part: arguments.part.clone(),
                kernel: kernel.name,
                arguments,
            }
        };
        launches.into_iter().map(slice).collect()
    }
}

impl Operands<'_> {
    fn output(&self) -> Result<Tensor> {
        let (rows, h) = self.x.shape();
        Tensor::poisoned(self.encoder.device(), self.encoder.dtype(), rows, h)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_cupti_is_not_events_do_for_eager_calls_alone() {
        // SAFETY: there is no such file.
        let missing = Some(unsafe { Place::new("/no/such/libcupti.so") });
        let why = Source::Auto(missing.clone()).load(Mode::Eager).unwrap().unwrap_err();
        assert!(why.contains("/no/such/libcupti.so"), "{why}");
        for (source, mode) in [
            (Source::Auto(missing.clone()), Mode::Graph),
            (Source::Cupti(missing.clone()), Mode::Graph),
            (Source::Cupti(missing), Mode::Eager),
        ] {
            let error = source.load(mode).unwrap_err().to_string();
            assert!(error.contains("/no/such/libcupti.so") && error.contains("events"), "{error}");
        }
        assert!(Source::Events.load(Mode::Eager).unwrap().is_err());
        let error = Source::Events.load(Mode::Graph).unwrap_err().to_string();
        assert!(error.contains("mode graph") && error.contains("eager"), "{error}");
    }
}
