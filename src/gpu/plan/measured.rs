//! The choice by measurement, for one stack of layers and one batch shape on one device.

use std::cell::RefCell;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::cache::{self, Entry, Key};
use super::candidates::Setting;
use super::choice::Plan;
use super::search::{ALTERNATIVES, Bench, Coordinate, search};
use crate::config::Schedule;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::gpu::batch::Batch;
use crate::gpu::device::{Event, Stream};
use crate::gpu::encoder::Encoder;
use crate::gpu::graph::Graph;
use crate::gpu::memory::Tensor;
use crate::gpu::workspace::Workspace;
use crate::verify::plant;
use crate::weights::random_activations;

/// Finds the fastest [`Plan`] by measuring.
///
/// All schedules that the design can have are replayed as CUDA graphs of the encoder's own layers, in turns, their kernels chosen
/// by estimate. For the best of them, and those within a tenth of it, other ways to compute attention are tried, then, one product
/// after another, the 24 next best ways by estimate; what gains more than 0.5 % is kept. The finalists meet once more. Times are
/// medians of interleaved rounds, on random activations.
///
/// Each plan is checked before it is timed, over the stack's first two layers: two runs give the same bits, and these agree with
/// the serial schedule's. One that does not is an error, not a choice that is passed over.
///
/// Measuring is no forward call: it allocates (activations in and out, a workspace), waits for the device, and takes what time it
/// needs. It should have the device for itself.
#[derive(Debug, Clone)]
pub struct Planner {
    budget: Duration,
    cache: Option<PathBuf>,
}

/// What a planner has found.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// The choice.
    pub plan: Plan,
    /// All plans that were measured, in that order. Times of one schedule's variants, and of the finalists, were taken in turns
    /// with each other; others can have drifted.
    pub candidates: Vec<Timed>,
    /// Whether this is what an earlier call has measured.
    pub from_cache: bool,
    /// What is wrong with the cache, which is then not used or not written.
    pub warnings: Vec<String>,
}

/// A plan with the median time of a forward call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timed {
    /// The plan.
    pub plan: Plan,
    /// Median of its last contest's rounds, µs.
    pub median_us: f64,
}

impl Default for Planner {
    fn default() -> Self {
        Self { budget: Duration::from_secs(2), cache: None }
    }
}

impl Planner {
    /// A schedule as slow as that beside the best, its kernels being estimated, may win once they are tuned.
    pub(crate) const CLOSE: f64 = 1.1;
    /// What a variant has to gain to be kept, a share: less could be noise.
    pub(crate) const GAIN: f64 = 0.005;

    /// A planner that measures for about two seconds and keeps nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Measures for about that long, checks included. Where it is too short, fewer variants are tried, or none; each schedule is
    /// run once to warm up and once for its time whatever the budget.
    pub fn budget(self, budget: Duration) -> Self {
        Self { budget, ..self }
    }

    /// Keeps what was measured in that file, and measures only what is not there yet: this build's kernels on this device, with
    /// these layers and this batch shape, for at least as long as the budget now is. Entries that are damaged, or made by another
    /// build or device, are not used. The file is replaced as a whole; processes may share it. Nothing
    /// is kept for a batch in someone else's memory with lengths, which the device alone knows.
    pub fn cache(self, path: impl Into<PathBuf>) -> Self {
        Self { cache: Some(path.into()), ..self }
    }

    /// The fastest plan for forward calls of `encoder` on batches of this shape.
    ///
    /// # Errors
    /// [`Error::Verification`] if a plan's result is wrong; [`Error::Mismatch`] for another device's batch;
    /// [`Error::OutOfMemory`], [`Error::Cuda`], [`Error::ContextLost`]. A cache that cannot be used is none: see
    /// [`Planned::warnings`].
    pub fn plan(&self, encoder: &Encoder, batch: &Batch) -> Result<Planned> {
        let device = encoder.device();
        batch.check_device("Planner::plan", device)?;
        let kernels = device.kernels(encoder.dtype())?;
        let setting = Setting { kernels, device, config: &encoder.config().layer, batch };
        let key = Key::of(encoder, batch.shape());
        let mut warnings = Vec::new();
        let cache = self.cache.as_ref().filter(|_| !batch.hides_lengths());
        if self.cache.is_some() && cache.is_none() {
            warnings.push("the plan is neither kept nor looked for: the device alone knows the batch's lengths".into());
        }
        if let Some(path) = cache {
            let found = cache::find(path, &key, self.budget, |plan| setting.allows(plan), &mut warnings)?;
            if let Some((plan, candidates)) = found {
                return Ok(Planned { plan, candidates, from_cache: true, warnings });
            }
        }
        let bench = OnDevice::new(encoder, setting)?;
        let (plan, candidates) = search(&&bench, self.budget)?;
        if let Some(path) = cache
            && let Err(error) = cache::store(path, Entry::new(key, self.budget, &plan, &candidates))
        {
            warnings.push(format!("the plan is not kept: cannot write {}: {error}", path.display()));
        }
        Ok(Planned { plan, candidates, from_cache: false, warnings })
    }
}

/// Layers over which a plan's result is checked: two show that the first hands over to the second, and 16-bit roundings have not
/// grown yet.
const CHECKED_LAYERS: usize = 2;
/// How far a plan's result may be from the serial schedule's, relative L2: two layers in bf16 are within a quarter of it.
const MOST_DIFFERENCE: f64 = 2e-2;
/// Rows of activations that are made; they repeat.
const RANDOM_ROWS: usize = 256;

/// The device as the search sees it.
struct OnDevice<'a> {
    encoder: &'a Encoder,
    head: Encoder,
    setting: Setting<'a>,
    stream: Stream,
    events: [Event; 2],
    x: Tensor,
    /// Shared by all graphs, which run one after the other.
    operands: RefCell<(Tensor, Workspace)>,
    /// The serial schedule's result, over the head.
    expected: Vec<u16>,
    began: Instant,
}

impl<'a> OnDevice<'a> {
    fn new(encoder: &'a Encoder, setting: Setting<'a>) -> Result<Self> {
        let began = Instant::now();
        let (device, dtype) = (encoder.device(), encoder.dtype());
        let (rows, h) = (setting.batch.shape().rows(), encoder.config().layer.hidden_size);
        let some = rows.min(RANDOM_ROWS);
        let x = Tensor::from_host(device, dtype, some, h, &random_activations(some, h, 1))?;
        let mut bench = Self {
            encoder,
            head: encoder.first_layers(CHECKED_LAYERS),
            stream: Stream::new(device)?,
            events: [Event::new_timing(device)?, Event::new_timing(device)?],
            x: if some < rows { x.repeated(rows, h)? } else { x },
            operands: RefCell::new((Tensor::poisoned(device, dtype, rows, h)?, encoder.workspace(setting.batch)?)),
            expected: Vec::new(),
            setting,
            began,
        };
        bench.expected = bench.repeatable(&Schedule::Serial.into())?;
        Ok(bench)
    }

    /// The plan's result over the head, if two runs agree on it and it is finite.
    fn repeatable(&self, plan: &Plan) -> Result<Vec<u16>> {
        let run = || {
            let (y, workspace) = &mut *self.operands.borrow_mut();
            y.poison()?;
            workspace.poison()?;
            self.head.forward(&self.stream, *plan, self.setting.batch, &self.x, y, workspace)?;
            y.to_bits()
        };
        let (once, again) = (run()?, plant::seen_bits(run()?, self.encoder.dtype()));
        if let Some(at) = once.par_iter().zip(&again).position_first(|(once, again)| once != again) {
            return Err(self.wrong(plan, at, &once, &format!("in another run {}", self.value(again[at]))));
        }
        Ok(once)
    }

    fn check(&self, plan: &Plan) -> Result<()> {
        let got = self.repeatable(plan)?;
        if let Some(at) = self.not_finite(&got) {
            return Err(self.wrong(plan, at, &got, &format!("serially {}", self.value(self.expected[at]))));
        }
        let difference = relative_l2(self.encoder.dtype(), &got, &self.expected);
        if difference.is_nan() || difference > MOST_DIFFERENCE {
            return Err(Error::Verification(format!(
                "plan {plan}: relative L2 difference from the serial schedule is {difference:.2e}, expected at most \
                 {MOST_DIFFERENCE:.0e}"
            )));
        }
        Ok(())
    }

    fn value(&self, bits: u16) -> f32 {
        self.encoder.dtype().from_bits(bits)
    }

    fn not_finite(&self, values: &[u16]) -> Option<usize> {
        let dtype = self.encoder.dtype();
        values.par_iter().position_first(|&bits| !dtype.from_bits(bits).is_finite())
    }

    fn wrong(&self, plan: &Plan, at: usize, got: &[u16], other: &str) -> Error {
        let cols = self.x.shape().1;
        let (row, column, got) = (at / cols, at % cols, self.value(got[at]));
        Error::Verification(format!("plan {plan}: element ({row}, {column}) is {got}, {other}"))
    }
}

/// `‖got − expected‖ / ‖expected‖`; 0 where both are the same.
fn relative_l2(dtype: Dtype, got: &[u16], expected: &[u16]) -> f64 {
    let value = |&bits: &u16| f64::from(dtype.from_bits(bits));
    let squares = got.par_iter().map(value).zip(expected.par_iter().map(value));
    let squares = squares.map(|(got, expected)| ((got - expected).powi(2), expected.powi(2)));
    let (difference, norm) = squares.reduce(|| (0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
    if difference == 0.0 { 0.0 } else { (difference / norm).sqrt() }
}

impl<'a> Bench for &'a OnDevice<'_> {
    /// It borrows what it runs on.
    type Ready = Graph<'a>;

    fn schedules(&self) -> Vec<Schedule> {
        self.setting.schedules().collect()
    }

    fn coordinates(&self, schedule: Schedule) -> Result<Vec<Coordinate>> {
        let products = self.setting.products(&schedule.into())?;
        let products = products.iter().map(|launched| Coordinate::Product(launched.product));
        // Attention first: what products may take depends on it.
        Ok(std::iter::once(Coordinate::Attention).chain(products).collect())
    }

    fn others(&self, plan: &Plan, coordinate: Coordinate) -> Result<Vec<Plan>> {
        match coordinate {
            Coordinate::Attention => self.setting.other_attentions(plan),
            Coordinate::Product(product) => {
                let launched = self.setting.products(plan)?;
                let launched = launched.iter().find(|launched| launched.product == product);
                launched.map_or(Ok(Vec::new()), |launched| self.setting.other_products(plan, launched, ALTERNATIVES))
            }
        }
    }

    fn prepare(&self, plan: &Plan) -> Result<Graph<'a>> {
        self.check(plan)?;
        let (y, workspace) = &mut *self.operands.borrow_mut();
        y.poison()?;
        // The plan has run: what it needs is loaded. The graph outlives these borrows but not the operands, which belong to
        // `self`; nothing else touches them while it runs, since all graphs run on one stream and results are waited for.
        let stream = &self.stream;
        let graph =
            Graph::record(stream, || self.encoder.forward(stream, *plan, self.setting.batch, &self.x, y, workspace))?;
        graph.launch(stream)?;
        let got = y.to_bits()?;
        match self.not_finite(&got) {
            Some(at) => Err(self.wrong(plan, at, &got, "expected a finite number after all layers")),
            None => Ok(graph),
        }
    }

    fn sample_us(&self, graph: &Graph<'a>) -> Result<f64> {
        let [start, end] = &self.events;
        start.record(&self.stream)?;
        graph.launch(&self.stream)?;
        end.record(&self.stream)?;
        end.synchronize()?;
        end.elapsed_us_since(start)
    }

    fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_relative_and_nan_is_none() {
        let bits = |values: &[f32]| values.iter().map(|&value| Dtype::Bf16.to_bits(value)).collect::<Vec<_>>();
        let expected = bits(&[3.0, 4.0]);
        assert_eq!(relative_l2(Dtype::Bf16, &expected, &expected), 0.0);
        assert_eq!(relative_l2(Dtype::Bf16, &bits(&[3.0, 4.5]), &expected), 0.1);
        assert_eq!(relative_l2(Dtype::Bf16, &bits(&[0.0; 2]), &bits(&[0.0; 2])), 0.0);
        assert!(relative_l2(Dtype::Bf16, &bits(&[f32::NAN, 4.0]), &expected).is_nan());
        assert!(relative_l2(Dtype::Bf16, &bits(&[1.0, 0.0]), &bits(&[0.0; 2])).is_infinite());
    }
}
