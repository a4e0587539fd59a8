//! The measurement itself.

use crate::config::HiddenAct;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::gpu::kernel::{self, Epilogue, GemmVariant, Product};
use crate::gpu::peer::{CublasLt, PeerEpilogue};
use crate::gpu::{Device, Graph, Stream, Tensor};
use crate::measure::baseline::Identity;
use crate::measure::kernels::{self as common, Label, OURS, Timer, Work};
use crate::measure::machine::{self, Monitor};
use crate::measure::peak::Peak;
use crate::measure::report::Run;
use crate::measure::roofline;
use crate::measure::spot;
use crate::measure::timing::{Candidate, Effort, Sampled, observe};
use crate::weights::random_activations;

use super::report::{Case, GELU, HOT, PRODUCT, Report, SCHEMA, Shape, name};

/// What to measure.
#[derive(Debug, Clone)]
pub struct Experiment {
    /// Shapes.
    pub shapes: Vec<Shape>,
    /// Element type.
    pub dtype: Dtype,
    /// Variants to measure beside the planned one, with and without bias and activation.
    pub variants: Vec<GemmVariant>,
    /// Measure every variant of [`kernel::gemm_variants`] too, without.
    pub every_variant: bool,
    /// What the device reaches, if that was measured, to hold times against.
    pub peak: Option<Peak>,
    /// How long.
    pub effort: Effort,
}

const PEER: &str = "cuBLASLt";

/// A row that is to be measured; without a variant it is the peer's.
struct Planned {
    what: &'static str,
    variant: Option<GemmVariant>,
    overlap: bool,
}

/// What the candidates share.
struct Operands {
    a: Vec<Tensor>,
    w: Vec<Tensor>,
    bias: Tensor,
}

impl Experiment {
    /// What a result on `device` will be one of.
    pub fn identity(&self, device: &Device) -> Identity {
        let shapes = self.shapes.iter().map(|&shape| name(shape)).collect();
        Identity::of_kernels(SCHEMA, &device.info().name, self.dtype.name(), shapes)
    }

    /// Verifies and measures every shape; `on_case` hears which is next.
    ///
    /// # Errors
    /// [`Error::Verification`](crate::Error::Verification) before timing, if a result is wrong; whatever the device gives.
    pub fn run(&self, device: &Device, mut on_case: impl FnMut(usize, Shape)) -> Result<Report> {
        let peer = CublasLt::new(device)?;
        let monitor = Monitor::new(device);
        let run = Run::begin(SCHEMA, machine::with_device(device, &monitor));
        let peak = roofline::of_device(device)?.flops_per_s;
        // Prime, so that the rows of one matrix do not repeat at once.
        let block = random_activations(1, 4_194_301, 1);
        let source = Tensor::from_host(device, self.dtype, 1, block.len(), &block)?;
        let weights: Vec<f32> = block.iter().rev().map(|x| x / 32.0).collect();
        let w_source = Tensor::from_host(device, self.dtype, 1, weights.len(), &weights)?;
        let mut cases = Vec::new();
        for (i, &shape) in self.shapes.iter().enumerate() {
            on_case(i, shape);
            let operands = Operands::new(device, &source, &w_source, shape)?;
            cases.push(self.case(device, peer.as_ref(), &monitor, peak, &operands, shape)?);
        }
        Ok(Report {
            run,
            cublaslt_version: peer.as_ref().map(CublasLt::version),
            dtype: self.dtype.to_string(),
            method: format!(
                "Before timing, 64 elements of each candidate against an f64 product. A sample is the device time of one \
                 graph that computes the product once for each of several distinct pairs of operands, together at least \
                 three times the L2 cache (hot: of one pair as often), divided by their number, after one replay that is \
                 not timed; candidates alternate, in a random order in each round; {}. cuBLASLt: first algorithm of its heuristic, {} MiB of \
                 workspace. Ratios: median of the rounds' ratios.",
                self.effort.rounds(),
                32
            ),
            noise_target: self.effort.noise,
            peak_flops_per_s: peak,
            measured_peak: self.peak.clone(),
            cases,
        })
    }

    fn case(
        &self,
        device: &Device,
        peer: Option<&CublasLt>,
        monitor: &Monitor,
        peak: Option<f64>,
        operands: &Operands,
        (m, n, k): Shape,
    ) -> Result<Case> {
        let planned = kernel::planned_gemm(device, self.dtype, m, n, k)?;
        let ours = |what, variant, overlap| Planned { what, variant: Some(variant), overlap };
        let mut plan = Vec::new();
        for what in [PRODUCT, GELU, HOT] {
            plan.push(ours(what, planned, false));
            plan.extend(peer.map(|_| Planned { what, variant: None, overlap: false }));
        }
        plan.push(ours(PRODUCT, planned, true));
        for &variant in self.variants.iter().filter(|&&variant| variant != planned) {
            plan.extend([PRODUCT, GELU].map(|what| ours(what, variant, false)));
        }
        if self.every_variant {
            let others = kernel::gemm_variants(device, m, k).into_iter();
            let others = others.filter(|variant| *variant != planned && !self.variants.contains(variant));
            plan.extend(others.map(|variant| ours(PRODUCT, variant, false)));
        }

        let stream = Stream::new(device)?;
        // Each graph keeps an output borrowed; once they have run and are gone, the outputs can be looked at.
        let mut outputs =
            plan.iter().map(|_| Tensor::poisoned(device, self.dtype, m, n)).collect::<Result<Vec<_>>>()?;
        for (row, c) in plan.iter().zip(&mut outputs) {
            operands.record(&stream, peer, row, c)?.launch(&stream)?;
        }
        for (&Planned { what, variant, .. }, c) in plan.iter().zip(&outputs) {
            let by = variant.map_or_else(|| PEER.to_owned(), |variant| variant.to_string());
            let (a, w) = *operands.pairs(what).last().expect("there are operands");
            let then = (what == GELU).then_some((&operands.bias, HiddenAct::GeluNew));
            spot::product(&format!("{by} {what} {m}x{n}x{k}"), a, w, then, c)?;
        }
        let graphs = plan
            .iter()
            .zip(&mut outputs)
            .map(|(row, c)| operands.record(&stream, peer, row, c))
            .collect::<Result<Vec<_>>>()?;
        let timer = Timer::new(&stream)?;
        let products = operands.a.len();
        let mut candidates: Vec<Candidate<'_>> = Vec::new();
        for (row, graph) in plan.iter().zip(&graphs) {
            candidates.push(timer.candidate(row.variant.map(|_| "gemm"), graph, products)?);
        }
        let sampled = observe(&mut candidates, self.effort, || monitor.state(), |_| ())?;

        let flops = 2.0 * m as f64 * n as f64 * k as f64;
        let bytes = ((m * k + n * k + m * n) * Dtype::BYTES) as f64;
        let labels = plan.iter().map(|&Planned { what, variant, overlap }| Label {
            by: if variant.is_some() { OURS } else { PEER },
            what,
            variant: variant.map(|variant| variant.to_string()),
            planned: variant == Some(planned),
            overlap,
            hot: what == HOT,
        });
        let rows = common::rows(
            labels.collect(),
            sampled.samples_us,
            &Work { flops, bytes, peak, measured: self.peak.as_ref() },
            PEER,
        )?;
        let Sampled { state_before, state_after, .. } = sampled;
        Ok(Case { m, n, k, pairs: operands.a.len(), flops, state_before, state_after, rows })
    }
}

impl Operands {
    fn new(device: &Device, source: &Tensor, w_source: &Tensor, (m, n, k): Shape) -> Result<Self> {
        let l2 = device.info().l2_bytes as usize;
        let pairs = (3 * l2).div_ceil((m + n) * k * Dtype::BYTES).clamp(3, 160);
        let repeat = |source: &Tensor, rows, cols| (0..pairs).map(move |_| source.repeated(rows, cols)).collect();
        let (a, w): (Result<_>, Result<_>) = (repeat(source, m, k), repeat(w_source, n, k));
        Ok(Self { a: a?, w: w?, bias: source.repeated(1, n)? })
    }

    /// In the order of the launches, as many whatever is computed.
    fn pairs(&self, what: &str) -> Vec<(&Tensor, &Tensor)> {
        let pairs = self.a.iter().zip(&self.w);
        if what == HOT { pairs.take(1).cycle().take(self.a.len()).collect() } else { pairs.collect() }
    }

    fn record<'a>(
        &'a self,
        stream: &Stream,
        peer: Option<&'a CublasLt>,
        row: &Planned,
        c: &'a mut Tensor,
    ) -> Result<Graph<'a>> {
        if let (None, Some(peer)) = (row.variant, peer) {
            let epilogue = if row.what == GELU { PeerEpilogue::GeluBias } else { PeerEpilogue::None };
            return peer.record(stream, &self.pairs(row.what), &self.bias, epilogue, c);
        }
        let product = |(a, w): (&'a Tensor, &'a Tensor)| -> Product<'a> {
            let plain = Product { variant: row.variant, overlap: row.overlap, ..Product::new(a, w) };
            if row.what == GELU {
                Product { bias: Some(&self.bias), epilogue: Epilogue::Activation(HiddenAct::GeluNew), ..plain }
            } else {
                plain
            }
        };
        let products: Vec<_> = self.pairs(row.what).into_iter().map(product).collect();
        kernel::record_gemms(stream, &products, c)
    }
}
