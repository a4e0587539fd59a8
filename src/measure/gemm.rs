//! The GEMM beside cuBLASLt, over the shapes of transformer layers.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::machine::{self, Monitor};
use super::report::{DeviceState, Machine, Spread};
use super::roofline;
use super::statistics::{Median, paired_ratio};
use super::timing::{Candidate, Effort, interleave};
use crate::config::HiddenAct;
use crate::cpu::oracle::{self, Rounding};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::gpu::kernel::{self, Epilogue, GemmVariant, Product};
use crate::gpu::peer::{CublasLt, PeerEpilogue};
use crate::gpu::{Device, Event, Graph, Stream, Tensor};
use crate::weights::random_activations;

/// Version of the JSON's layout.
pub const SCHEMA: &str = "paf-cuda/gemm/1";

/// M, N, K.
pub type Shape = (usize, usize, usize);

/// The products of transformer layers: those of RoBERTa-large at six numbers of tokens; its side-by-side products; and QKV,
/// output and FFN products of hidden sizes 2048 and 4096, for one token to 8192.
pub fn layer_shapes() -> Vec<Shape> {
    let mut shapes = Vec::new();
    for m in [64, 128, 512, 2048, 4096, 16384] {
        shapes.extend([(3072, 1024), (1024, 1024), (4096, 1024), (1024, 4096)].map(|(n, k)| (m, n, k)));
    }
    let mut wide = vec![(7168, 1024), (1024, 5120)];
    for hidden in [2048, 4096] {
        wide.extend([(3 * hidden, hidden), (hidden, hidden), (4 * hidden, hidden), (hidden, 4 * hidden)]);
    }
    for m in [1, 16, 128, 512, 2048, 8192] {
        shapes.extend(wide.iter().map(|&(n, k)| (m, n, k)));
    }
    shapes
}

/// What to measure.
#[derive(Debug, Clone)]
pub struct Experiment {
    /// Shapes.
    pub shapes: Vec<Shape>,
    /// Element type.
    pub dtype: Dtype,
    /// Variants beside the planned one; all that are worth considering if `every_variant`.
    pub variants: Vec<GemmVariant>,
    /// Measure every variant of [`kernel::gemm_variants`] too.
    pub every_variant: bool,
    /// How long.
    pub effort: Effort,
}

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: String,
    /// Version of this crate.
    pub version: String,
    /// Commit that it was built from; `+changes` if there were uncommitted ones.
    pub git_revision: Option<String>,
    /// When it began, seconds since 1970.
    pub unix_time_s: u64,
    /// What it ran on.
    pub machine: Machine,
    /// Version of cuBLASLt, if it was there.
    pub cublaslt_version: Option<usize>,
    /// Element type.
    pub dtype: String,
    /// How it was measured, in words.
    pub method: String,
    /// Tensor cores' rate at the highest clock, FLOP/s.
    pub peak_flops_per_s: Option<f64>,
    /// One shape each.
    pub cases: Vec<Case>,
}

/// Everything that was measured on one shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it, with units")]
pub struct Case {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// Distinct pairs of operands in rotation.
    pub pairs: usize,
    pub flops: f64,
    pub state_after: Option<DeviceState>,
    pub rows: Vec<Row>,
}

/// One way to compute the product.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// `paf-cuda` or `cuBLASLt`.
    pub by: String,
    /// `product`, or `bias+gelu_new`.
    pub what: String,
    /// Kernel and tile, where it is ours.
    pub variant: Option<String>,
    /// Whether it was what the planner chose.
    pub planned: bool,
    /// Whether consecutive products overlapped (programmatic dependent launch).
    pub overlap: bool,
    /// Every sample, µs a product, in the order of the rounds.
    pub samples_us: Vec<f64>,
    /// Their median, µs.
    pub median_us: Spread,
    /// FLOP/s over the median, in 10¹².
    pub tflops: f64,
    /// That over the peak.
    pub peak_share: Option<f64>,
    /// Median of the paired ratios: time of cuBLASLt for the same over this one's.
    pub peer_over_this: Option<Spread>,
}

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

const PRODUCT: &str = "product";
const GELU: &str = "bias+gelu_new";
const OURS: &str = "paf-cuda";
const PEER: &str = "cuBLASLt";

impl Experiment {
    /// Verifies and measures every shape; `on_case` hears which is next.
    ///
    /// # Errors
    /// [`Error::Verification`] before timing, if a result is wrong; whatever the device gives.
    pub fn run(&self, device: &Device, mut on_case: impl FnMut(usize, Shape)) -> Result<Report> {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let peer = CublasLt::new(device)?;
        let monitor = Monitor::new(device);
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
            schema: SCHEMA.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            git_revision: option_env!("PAF_GIT_REVISION").map(Into::into),
            unix_time_s: started,
            machine: machine::with_device(device, &monitor),
            cublaslt_version: peer.as_ref().map(CublasLt::version),
            dtype: self.dtype.to_string(),
            method: format!(
                "Before timing, 64 elements of each candidate against an f64 product. A sample is the device time of one \
                 graph that computes the product once for each of several distinct pairs of operands, together at least \
                 three times the L2 cache, divided by their number; candidates alternate within each round, beginning with \
                 another one each round; {} to {} rounds or {:.2} s. cuBLASLt: first algorithm of its heuristic, {} MiB of \
                 workspace. Ratios: median of the rounds' ratios.",
                self.effort.min_rounds,
                self.effort.max_rounds,
                self.effort.budget.as_secs_f64(),
                32
            ),
            peak_flops_per_s: peak,
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
        let mut others = self.variants.clone();
        if self.every_variant {
            others.extend(kernel::gemm_variants(device, m, k));
        }
        others.retain(|&variant| variant != planned);
        let mut plan = Vec::new();
        for what in [PRODUCT, GELU] {
            plan.push(Planned { what, variant: Some(planned), overlap: false });
            plan.extend(peer.map(|_| Planned { what, variant: None, overlap: false }));
        }
        plan.push(Planned { what: PRODUCT, variant: Some(planned), overlap: true });
        let other = |variant| Planned { what: PRODUCT, variant: Some(variant), overlap: false };
        plan.extend(others.into_iter().map(other));

        let stream = Stream::new(device)?;
        // Each graph keeps an output borrowed; once they have run and are gone, the outputs can be looked at.
        let mut outputs =
            plan.iter().map(|_| Tensor::poisoned(device, self.dtype, m, n)).collect::<Result<Vec<_>>>()?;
        for (row, c) in plan.iter().zip(&mut outputs) {
            operands.record(&stream, peer, row, c)?.launch(&stream)?;
        }
        for (&Planned { what, variant, .. }, c) in plan.iter().zip(&outputs) {
            let name = variant.map_or_else(|| PEER.to_owned(), |variant| variant.to_string());
            operands.verify(&format!("{name} {what} {m}x{n}x{k}"), what == GELU, c)?;
        }
        let graphs = plan
            .iter()
            .zip(&mut outputs)
            .map(|(row, c)| operands.record(&stream, peer, row, c))
            .collect::<Result<Vec<_>>>()?;
        let (start, end) = (Event::new_timing(device)?, Event::new_timing(device)?);
        let launches = operands.a.len() as f64;
        let mut candidates: Vec<Candidate<'_>> = graphs
            .iter()
            .map(|graph: &Graph<'_>| -> Candidate<'_> {
                let (stream, start, end) = (&stream, &start, &end);
                Box::new(move || {
                    start.record(stream)?;
                    graph.launch(stream)?;
                    end.record(stream)?;
                    end.synchronize()?;
                    Ok(end.elapsed_us_since(start)? / launches)
                })
            })
            .collect();
        let samples = interleave(&mut candidates, self.effort, |_| ())?;
        let state_after = monitor.state();

        let flops = 2.0 * m as f64 * n as f64 * k as f64;
        let no_samples = || Error::Verification("a time is not a number".into());
        let mut rows = Vec::new();
        for (&Planned { what, variant, overlap }, own) in plan.iter().zip(&samples) {
            let median = Median::of(own).ok_or_else(no_samples)?;
            let baseline = plan.iter().position(|other| other.what == what && other.variant.is_none());
            let ratio = baseline.map(|i| paired_ratio(&samples[i], own).ok_or_else(no_samples)).transpose()?;
            let tflops = flops / median.value / 1e6;
            rows.push(Row {
                by: if variant.is_some() { OURS } else { PEER }.into(),
                what: what.into(),
                variant: variant.map(|variant| variant.to_string()),
                planned: variant == Some(planned),
                overlap,
                samples_us: own.clone(),
                median_us: median.into(),
                tflops,
                peak_share: peak.map(|peak| tflops * 1e12 / peak),
                peer_over_this: ratio.map(Spread::from),
            });
        }
        Ok(Case { m, n, k, pairs: operands.a.len(), flops, state_after, rows })
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

    fn pairs(&self) -> Vec<(&Tensor, &Tensor)> {
        self.a.iter().zip(&self.w).collect()
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
            return peer.record(stream, &self.pairs(), &self.bias, epilogue, c);
        }
        let product = |(a, w): (&'a Tensor, &'a Tensor)| -> Product<'a> {
            let plain = Product { variant: row.variant, overlap: row.overlap, ..Product::new(a, w) };
            if row.what == GELU {
                Product { bias: Some(&self.bias), epilogue: Epilogue::Activation(HiddenAct::GeluNew), ..plain }
            } else {
                plain
            }
        };
        let products: Vec<_> = self.a.iter().zip(&self.w).map(product).collect();
        kernel::record_gemms(stream, &products, c)
    }

    /// 64 elements, on a diagonal through the whole matrix, against products in f64.
    fn verify(&self, name: &str, gelu: bool, c: &Tensor) -> Result<()> {
        let (a, w) = (self.a.last().expect("there are operands"), self.w.last().expect("there are operands"));
        let ((m, n), k) = (c.shape(), a.shape().1);
        let epsilon = c.dtype().epsilon();
        let bias = self.bias.row(0)?;
        for i in 0..64 {
            let (row, column) = (i * (m - 1) / 63, i * (n - 1) / 63);
            let products = a.row(row)?.into_iter().zip(w.row(column)?).map(|(a, w)| f64::from(a) * f64::from(w));
            let (mut sum, mut size) = (0.0, 0.0);
            products.for_each(|x| (sum, size) = (sum + x, size + x.abs()));
            let mut exact = [sum];
            if gelu {
                exact[0] += f64::from(bias[column]);
                oracle::activate(HiddenAct::GeluNew, &mut exact, Rounding::Exact);
            }
            let got = f64::from(c.row(row)?[column]);
            // Rounding to the element type, sums in f32 in any order, and an activation of its own accuracy.
            let bound = epsilon * exact[0].abs() + 1e-6 * size + if gelu { 2e-3 } else { 1e-6 };
            if got.is_nan() || (got - exact[0]).abs() > bound {
                return Err(Error::Verification(format!(
                    "{name}: element ({row}, {column}) is {got}, not {} ± {bound:.2e} (K = {k})",
                    exact[0]
                )));
            }
        }
        Ok(())
    }
}

/// Ratios over a set of shapes.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Which shapes and what.
    pub what: String,
    /// How many.
    pub shapes: usize,
    /// Geometric mean of peer time / ours.
    pub geometric_mean: f64,
    /// The least ratio, and its shape.
    pub least: (f64, Shape),
}

impl Report {
    /// Geometric means of the planned variants' ratios, and the worst shapes.
    pub fn summaries(&self) -> Vec<Summary> {
        let mut summaries = Vec::new();
        for (what, overlap) in [(PRODUCT, false), (GELU, false), (PRODUCT, true)] {
            for (name, few_only) in [("all M", false), ("M ≤ 512", true)] {
                let ratios: Vec<(f64, Shape)> = self
                    .cases
                    .iter()
                    .filter(|case| !few_only || case.m <= 512)
                    .filter_map(|case| {
                        let is_it = |row: &&Row| row.planned && row.what == what && row.overlap == overlap;
                        let ratio = case.rows.iter().find(is_it)?.peer_over_this?.median;
                        Some((ratio, (case.m, case.n, case.k)))
                    })
                    .collect();
                let Some(&least) = ratios.iter().min_by(|a, b| a.0.total_cmp(&b.0)) else { continue };
                let logs: f64 = ratios.iter().map(|(ratio, _)| ratio.ln()).sum();
                summaries.push(Summary {
                    what: format!("{what}{}, {name}", if overlap { ", overlapped" } else { "" }),
                    shapes: ratios.len(),
                    geometric_mean: (logs / ratios.len() as f64).exp(),
                    least,
                });
            }
        }
        summaries
    }

    /// The table for a terminal: a line a shape, or a line a variant where others than the planned one were measured.
    pub fn table(&self) -> String {
        let mut table = comfy_table::Table::new();
        let header = ["M × N × K", "what", "by", "µs", "TFLOP/s", "of peak", "cuBLASLt / this"];
        table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED).set_header(header);
        for case in &self.cases {
            for row in &case.rows {
                let by = row.variant.as_deref().unwrap_or(&row.by);
                table.add_row([
                    format!("{} × {} × {}", case.m, case.n, case.k),
                    row.what.clone(),
                    format!(
                        "{}{by}{}",
                        if row.planned { "* " } else { "" },
                        if row.overlap { " overlapped" } else { "" }
                    ),
                    format!("{:.2} ± {:.2}", row.median_us.median, row.median_us.high - row.median_us.low),
                    format!("{:.0}", row.tflops),
                    row.peak_share.map_or_else(|| "–".to_owned(), |share| format!("{:.0} %", share * 100.0)),
                    row.peer_over_this.map_or_else(|| "–".to_owned(), |ratio| format!("{:.3}", ratio.median)),
                ]);
            }
        }
        let mut text = table.to_string() + "\n* planned\n";
        for Summary { what, shapes, geometric_mean, least: (ratio, (m, n, k)) } in self.summaries() {
            text += &format!(
                "{what}: cuBLASLt / ours over {shapes} shapes: geometric mean {geometric_mean:.3}, least {ratio:.3} at \
                 {m} × {n} × {k}\n"
            );
        }
        text
    }

    /// Pretty JSON, with a newline at the end.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("the report holds only numbers and strings") + "\n"
    }
}
