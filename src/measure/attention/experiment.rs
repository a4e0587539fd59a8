//! The measurement itself.

use std::cell::RefCell;

use crate::config::BatchShape;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::gpu::kernel::{self, Attention, AttentionVariant};
use crate::gpu::{Batch, Device, Graph, Stream, Tensor};
use crate::measure::baseline::Identity;
use crate::measure::kernels::{self as common, Label, OURS, Timer, Work};
use crate::measure::machine::{self, Monitor};
use crate::measure::peak::Peak;
use crate::measure::report::Run;
use crate::measure::roofline;
use crate::measure::spot;
use crate::measure::timing::{Candidate, Effort, Sampled, observe};
use crate::weights::random_activations;

use super::peer::{Peer, Rotation};
use super::report::{COLD, CUDNN, Case, FLASH, HOT, Report, SCHEMA, Shape};

/// What to measure.
#[derive(Debug, Clone)]
pub struct Experiment {
    /// Shapes.
    pub shapes: Vec<Shape>,
    /// Element type.
    pub dtype: Dtype,
    /// Variants to measure beside the planned one, on hot operands.
    pub variants: Vec<AttentionVariant>,
    /// Measure every variant of [`kernel::attention_variants`] too, on hot operands.
    pub every_variant: bool,
    /// What the device reaches, if that was measured, to hold times against.
    pub peak: Option<Peak>,
    /// How long.
    pub effort: Effort,
}

/// A row that is to be measured.
struct Planned {
    by: By,
    what: &'static str,
    overlap: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum By {
    Ours(AttentionVariant),
    Peer(&'static str),
}

/// One random block that all operands repeat, as the device rounds it.
struct Source {
    device: Tensor,
    host: Vec<f64>,
}

/// What the candidates share.
struct Operands {
    batch: Batch,
    qkv: Vec<Tensor>,
    shape: Shape,
}

impl Experiment {
    /// What a result on `device` will be one of.
    pub fn identity(&self, device: &Device) -> Identity {
        let shapes = self.shapes.iter().map(ToString::to_string).collect();
        Identity::of_kernels(SCHEMA, &device.info().name, self.dtype.name(), shapes)
    }

    /// Verifies and measures every shape, beside `peer` if there is one; `on_case` hears which is next.
    ///
    /// # Errors
    /// [`Error::Verification`](crate::Error::Verification) before timing, if a result is wrong; whatever the device or the peer gives.
    pub fn run(
        &self,
        device: &Device,
        peer: Option<&mut Peer>,
        mut on_case: impl FnMut(usize, Shape),
    ) -> Result<Report> {
        let monitor = Monitor::new(device);
        let run = Run::begin(SCHEMA, machine::with_device(device, &monitor));
        let peak = roofline::of_device(device)?.flops_per_s;
        let version = peer.as_ref().map(|peer| peer.version().clone());
        let peer = peer.map(RefCell::new);
        let source = Source::new(device, self.dtype)?;
        let mut cases = Vec::new();
        for (i, &shape) in self.shapes.iter().enumerate() {
            on_case(i, shape);
            cases.push(self.case(device, peer.as_ref(), &monitor, peak, &source, shape)?);
        }
        Ok(Report {
            run,
            peer: version,
            dtype: self.dtype.to_string(),
            method: format!(
                "Before timing, rows of each candidate against attention in f64. A sample is the device time of one graph of \
                 several launches, divided by their number, after one replay that is not timed; candidates alternate, \
                 in a random order in each round; {}. Every candidate reads Q, K \
                 and V in place from one packed product. PyTorch runs in a process of its own, which is idle while ours \
                 runs and the other way round. Hot: all launches read the same operands; cold: they rotate through \
                 operands of three times the L2 cache. Ratios: median of the rounds' ratios.",
                self.effort.rounds(),
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
        peer: Option<&RefCell<&mut Peer>>,
        monitor: &Monitor,
        peak: Option<f64>,
        source: &Source,
        shape: Shape,
    ) -> Result<Case> {
        let (rows, width) = shape.qkv();
        let bytes = rows * (width + shape.heads * shape.head_dim) * Dtype::BYTES;
        let sets = (3 * device.info().l2_bytes as usize).div_ceil(bytes).clamp(2, 256);
        // So many that a graph's launch, a few µs, is small beside it.
        let floor_us = shape.flops() / peak.unwrap_or(1e15) * 1e6;
        let launches = (300.0 / floor_us).clamp(3.0, 30.0) as usize;
        let rotations = [
            Rotation { name: HOT, sets: 1, launches },
            Rotation { name: COLD, sets, launches: sets.max(launches.min(8)) },
        ];
        let operands = Operands::new(device, source, shape, sets)?;
        let backends = match peer {
            Some(peer) => peer.borrow_mut().prepare(shape, self.dtype, &rotations)?.backends,
            None => Vec::new(),
        };
        let plan = self.plan(device, &operands, &backends)?;

        let stream = Stream::new(device)?;
        let timer = Timer::new(&stream)?;
        let (rows, width) = (rows, shape.heads * shape.head_dim);
        let ours = plan.iter().filter(|row| matches!(row.by, By::Ours(_)));
        let mut outputs =
            ours.clone().map(|_| Tensor::poisoned(device, self.dtype, rows, width)).collect::<Result<Vec<_>>>()?;
        // Each graph keeps an output borrowed; once they have run and are gone, the outputs can be looked at.
        for (row, out) in ours.clone().zip(&mut outputs) {
            operands.record(&stream, row, &rotations, out)?.0.launch(&stream)?;
        }
        for (row, out) in ours.clone().zip(&outputs) {
            let By::Ours(variant) = row.by else { unreachable!("the peer verifies its own") };
            spot::attention(&variant.to_string(), shape, &source.host, out)?;
        }
        let graphs = ours
            .zip(&mut outputs)
            .map(|(row, out)| operands.record(&stream, row, &rotations, out))
            .collect::<Result<Vec<_>>>()?;
        let mut graphs = graphs.iter();
        let mut candidates: Vec<Candidate<'_>> = Vec::new();
        for row in &plan {
            candidates.push(match (row.by, peer) {
                (By::Peer(backend), Some(peer)) => Box::new(|| peer.borrow_mut().sample(backend, row.what)),
                _ => {
                    let (graph, launches) = graphs.next().expect("there is a graph for each of ours");
                    timer.candidate(Some("attention"), graph, *launches)?
                }
            });
        }
        let sampled = observe(&mut candidates, self.effort, || monitor.state(), |_| ())?;

        let (flops, planned) = (shape.flops(), operands.planned()?);
        let labels = plan.iter().map(|row| {
            let (by, variant) = match row.by {
                By::Ours(variant) => (OURS, Some(variant)),
                By::Peer(name) => (name, None),
            };
            let (what, overlap) = (row.what, row.overlap);
            Label {
                by,
                what,
                variant: variant.map(|v| v.to_string()),
                planned: variant == Some(planned),
                overlap,
                hot: what == HOT,
            }
        });
        let rows = common::rows(
            labels.collect(),
            sampled.samples_us,
            &Work { flops, bytes: bytes as f64, peak, measured: self.peak.as_ref() },
            CUDNN,
        )?;
        let Sampled { state_before, state_after, .. } = sampled;
        Ok(Case { shape, sets, flops, state_before, state_after, rows })
    }

    /// The planned variant on hot and on cold operands, beside the peer's back ends; overlapped; and other variants.
    fn plan(&self, device: &Device, operands: &Operands, backends: &[String]) -> Result<Vec<Planned>> {
        let planned = operands.planned()?;
        let mut plan = Vec::new();
        for what in [HOT, COLD] {
            plan.push(Planned { by: By::Ours(planned), what, overlap: false });
            let there = [CUDNN, FLASH].into_iter().filter(|&name| backends.iter().any(|backend| backend == name));
            plan.extend(there.map(|name| Planned { by: By::Peer(name), what, overlap: false }));
        }
        if matches!(planned, AttentionVariant::Sm90 { .. }) {
            plan.push(Planned { by: By::Ours(planned), what: HOT, overlap: true });
        }
        let mut others = self.variants.clone();
        if self.every_variant {
            let all = kernel::attention_variants(device, operands.shape.head_dim).into_iter();
            others.extend(all.filter(|variant| !self.variants.contains(variant)));
        }
        others.retain(|&variant| variant != planned);
        plan.extend(others.into_iter().map(|variant| Planned { by: By::Ours(variant), what: HOT, overlap: false }));
        Ok(plan)
    }
}

impl Source {
    fn new(device: &Device, dtype: Dtype) -> Result<Self> {
        // Prime, so that no two rows of an operand are the same.
        let block = random_activations(1, 4_194_301, 1);
        let host = block.iter().map(|&x| f64::from(dtype.from_bits(dtype.to_bits(x)))).collect();
        Ok(Self { device: Tensor::from_host(device, dtype, 1, block.len(), &block)?, host })
    }
}

impl Operands {
    fn new(device: &Device, source: &Source, shape: Shape, sets: usize) -> Result<Self> {
        let (rows, width) = shape.qkv();
        let batch = Batch::new(device, &BatchShape::new(shape.batch, shape.seq_len)?)?;
        let qkv = (0..sets).map(|_| source.device.repeated(rows, width)).collect::<Result<_>>()?;
        Ok(Self { batch, qkv, shape })
    }

    fn attention<'a>(&'a self, qkv: &'a Tensor) -> Attention<'a> {
        let Shape { heads, key_value_heads, head_dim, causal, .. } = self.shape;
        Attention { key_value_heads, causal, ..Attention::new(&self.batch, qkv, heads, head_dim) }
    }

    fn planned(&self) -> Result<AttentionVariant> {
        kernel::planned_attention(&self.attention(&self.qkv[0]))
    }

    /// A graph of one of ours, with the number of its launches.
    fn record<'a>(
        &'a self,
        stream: &Stream,
        row: &Planned,
        rotations: &[Rotation],
        out: &'a mut Tensor,
    ) -> Result<(Graph<'a>, usize)> {
        let By::Ours(variant) = row.by else { unreachable!("the peer records its own") };
        let rotation = rotations.iter().find(|rotation| rotation.name == row.what).expect("every row has a rotation");
        let sets = self.qkv[..rotation.sets].iter().cycle().take(rotation.launches);
        let launches: Vec<_> =
            sets.map(|qkv| Attention { variant: Some(variant), overlap: row.overlap, ..self.attention(qkv) }).collect();
        Ok((kernel::record_attentions(stream, &launches, out)?, rotation.launches))
    }
}
