//! The comparison itself.

use std::cell::RefCell;

use super::peer::{Peer, Prepared, Way};
use super::report::{CUSTOM, Case, Missing, PeerRow, Report, SCHEMA, Stack};
use crate::config::{BatchShape, EncoderConfig};
use crate::error::{Error, Result};
use crate::measure::report::{self, Run, shape_name};
use crate::measure::speedup::{self, Beside, Choice, Engine, Mode, Step, Weights};
use crate::measure::statistics::{Median, paired_ratio};
use crate::measure::timing::{Candidate, Effort};

/// A stack, on some batch shapes.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Preset that the dimensions come from, for the report.
    pub model: Option<String>,
    /// Dimensions, and the parallel design.
    pub config: EncoderConfig,
    /// Whether the model has rotary embeddings that `config` leaves out, for the report.
    pub rotary_left_out: bool,
    /// Batch shapes, without padding.
    pub shapes: Vec<BatchShape>,
}

/// What to compare.
#[derive(Debug, Clone)]
pub struct Experiment {
    /// One after the other.
    pub subjects: Vec<Subject>,
    /// Our schedules of the parallel design; none: all that the engine has.
    pub schedules: Vec<Choice>,
    /// How we launch; ways that the engine does not have are left out.
    pub modes: Vec<Mode>,
    /// PyTorch's ways.
    pub ways: Vec<Way>,
    /// Seed of weights and activations.
    pub seed: u64,
    /// How long to sample each shape.
    pub effort: Effort,
}

/// The peer, if there is one, in turns with ours, and what it had ready on each shape.
struct Turns<'a> {
    peer: Option<RefCell<&'a mut Peer>>,
    prepared: Vec<Prepared>,
    /// Index of the shape at which the peer failed, and how: nothing is asked of it any more.
    lost: RefCell<Option<(usize, Error)>>,
}

/// What the peer gives; `None` if it fails, which is kept, or has failed.
fn unless_lost<T>(
    lost: &RefCell<Option<(usize, Error)>>,
    shape: usize,
    ask: impl FnOnce() -> Result<T>,
) -> Result<Option<T>> {
    if lost.borrow().is_some() {
        return Ok(None);
    }
    match ask() {
        Err(error @ Error::Peer { .. }) => {
            *lost.borrow_mut() = Some((shape, error));
            Ok(None)
        }
        given => given.map(Some),
    }
}

impl<'a> Turns<'a> {
    fn new(peer: Option<&'a mut Peer>) -> Self {
        Self { peer: peer.map(RefCell::new), prepared: Vec::new(), lost: RefCell::default() }
    }

    /// Lets the peer make its weights.
    fn model(&self, make: impl FnOnce(&mut Peer) -> Result<()>) -> Result<()> {
        let Some(peer) = &self.peer else { return Ok(()) };
        unless_lost(&self.lost, 0, || make(&mut peer.borrow_mut())).map(|_| ())
    }
}

impl Beside for Turns<'_> {
    fn candidates(&mut self, shape: &BatchShape) -> Result<Vec<Candidate<'_>>> {
        let (at, lost) = (self.prepared.len(), &self.lost);
        let Some(peer) = &self.peer else {
            self.prepared.push(Prepared::default());
            return Ok(Vec::new());
        };
        let prepared = unless_lost(lost, at, || peer.borrow_mut().shape(shape))?.unwrap_or_default();
        let count = prepared.ready.len();
        self.prepared.push(prepared);
        // No time, once it is lost: ours are still sampled to the end.
        let sample = move |i| Ok(unless_lost(lost, at, || peer.borrow_mut().sample(i))?.unwrap_or(f64::NAN));
        Ok((0..count).map(|i| Box::new(move || sample(i)) as Candidate<'_>).collect())
    }
}

impl Experiment {
    /// An error if there is something among the batches that PyTorch's layers do not take.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for padded or packed batches.
    pub fn validate(&self) -> Result<()> {
        let mut shapes = self.subjects.iter().flat_map(|subject| &subject.shapes);
        match shapes.find(|shape| shape.is_packed() || shape.lengths().is_some()) {
            None => Ok(()),
            Some(shape) => Err(Error::Unsupported {
                what: format!("a batch of lengths {:?} beside PyTorch", shape.lengths().unwrap_or_default()),
                remedy: "name full sequences, by batch and seq".into(),
            }),
        }
    }

    /// Verifies and measures every subject beside the peer, or says why there is none; `on_step` hears what goes on, with the subject's
    /// and the shape's index. Where the peer fails, the rest is measured without it, and the report says from where on and why.
    ///
    /// # Errors
    /// What [`validate`](Self::validate) finds; [`Error::Verification`] before a shape is timed, if a result on it is wrong, ours or the
    /// peer's; whatever the engine gives.
    pub fn run(
        &self,
        engine: &Engine,
        mut peer: Result<&mut Peer>,
        mut on_step: impl FnMut(usize, usize, Step),
    ) -> Result<Report> {
        self.validate()?;
        let dtype = match engine {
            Engine::Cpu => "f32".to_owned(),
            #[cfg(feature = "cuda")]
            Engine::Gpu(_, dtype) => dtype.to_string(),
        };
        let mut stacks = Vec::new();
        let (mut first, mut lost) = (None, None);
        for (i, subject) in self.subjects.iter().enumerate() {
            let ours = self.ours(subject);
            let on_step = |shape, step| on_step(i, shape, step);
            let there = if lost.is_none() { peer.as_mut().ok().map(|peer| &mut **peer) } else { None };
            let mut turns = Turns::new(there);
            turns.model(|peer| peer.model(&subject.config, &dtype, self.seed, &self.ways))?;
            // Also without a peer: ours are sampled in the same way then.
            let (report, samples) = ours.run_beside(engine, Some(&mut turns), on_step)?;
            let Turns { mut prepared, lost: at, .. } = turns;
            if let (Some((at, error)), Ok(peer)) = (at.into_inner(), &mut peer) {
                // Its samples there are fewer than ours, and what it holds of the device is in ours' way.
                prepared.iter_mut().skip(at).for_each(|prepared| prepared.ready.clear());
                peer.stop();
                lost = Some((subject.name_on(at), error));
            }
            let mut cases = Vec::new();
            for ((ours, prepared), samples) in report.cases.iter().cloned().zip(prepared).zip(samples) {
                cases.push(case(subject, ours, prepared, samples)?);
            }
            let design = subject.config.layer.design.name().into();
            stacks.push(Stack { model: subject.model.clone(), design, config: report.config.clone(), cases });
            first.get_or_insert(report);
        }
        let first = first.ok_or_else(|| Error::InvalidConfig {
            field: "subjects",
            got: "none".into(),
            expected: "at least one model".into(),
        })?;
        Ok(Report {
            run: Run { schema: SCHEMA.into(), ..first.run },
            backend: first.backend,
            dtype: first.dtype,
            seed: self.seed,
            method: format!("{} {}", first.method, method(peer.is_ok())),
            noise_target: self.effort.noise,
            ceilings: first.ceilings,
            missing: self.missing(peer.as_ref().err(), lost.as_ref()),
            peer: peer.ok().map(|peer| peer.versions().clone()),
            stacks,
        })
    }

    /// Our side.
    fn ours(&self, subject: &Subject) -> speedup::Experiment {
        speedup::Experiment {
            model: subject.model.clone(),
            config: subject.config.clone(),
            rotary_left_out: subject.rotary_left_out,
            schedules: self.schedules.clone(),
            modes: self.modes.clone(),
            shapes: subject.shapes.clone(),
            weights: Weights::Random,
            seed: self.seed,
            effort: self.effort,
        }
    }

    /// What was not measured at all, or not to the end: the peer is not there, or was lost.
    fn missing(&self, why: Option<&Error>, lost: Option<&(String, Error)>) -> Vec<Missing> {
        let of = |way: Way| {
            let (from, why) = match (self.ways.contains(&way), why, lost) {
                (false, ..) => (None, "not asked for".to_owned()),
                (true, Some(why), _) => (None, why.to_string()),
                (true, None, Some((from, why))) => (Some(from.clone()), why.to_string()),
                (true, None, None) => return None,
            };
            Some(Missing { way: way.name().into(), why, from })
        };
        Way::ALL.into_iter().filter_map(of).collect()
    }
}

impl Subject {
    /// Model and shape.
    fn name_on(&self, shape: usize) -> String {
        let name = self.shapes.get(shape).map(|of| shape_name(of.batch(), of.seq_len(), of.is_packed()));
        format!("{} {}", self.model.as_deref().unwrap_or(CUSTOM), name.unwrap_or_default())
    }
}

/// How both sides are measured; of PyTorch only where it is.
fn method(beside_pytorch: bool) -> String {
    let ours = "A sample is taken after a call of the same that is not timed. What stands for ours: of SAF the row with the lower median; of \
                PAF the planner's choice, or the row with the lowest median where nobody planned.";
    if !beside_pytorch {
        return ours.to_owned();
    }
    format!(
        "{ours} PyTorch runs in a process of its own, which is idle while ours runs and the other way round; each round samples all of \
         both. PyTorch's layers are of the same dimensions, with random weights of their own, distinct in every layer, and \
         scaled_dot_product_attention as PyTorch chooses it; rotary embeddings are rotated there if they are here, and left out on both \
         sides or on none. Each of its stacks runs as a CUDA graph; launches is the eager one without. Before timing, the last sequence of \
         each against float64 on the same device, after two layers and after all: twice the error of an implementation that rounds every \
         tensor is allowed. Of PyTorch's rows of a design the one with the lowest median stands beside ours."
    )
}

/// One shape: what the peer had ready, with its samples.
fn case(subject: &Subject, ours: report::Case, prepared: Prepared, samples: Vec<Vec<f64>>) -> Result<Case> {
    let no_samples = || Error::Verification("a time is not a number".into());
    let design = subject.config.layer.design;
    let mut case = Case { ours, peers: Vec::new(), absent: prepared.absent };
    for (ready, samples_us) in prepared.ready.into_iter().zip(samples) {
        let design = if ready.design == "saf" { design.serial() } else { design };
        let over = case.ours_in(design.name()).ok_or_else(no_samples)?;
        case.peers.push(PeerRow {
            by: "PyTorch".into(),
            design: design.name().into(),
            way: ready.way,
            mode: ready.mode,
            verified: ready.verified,
            median_us: Median::of(&samples_us).ok_or_else(no_samples)?.into(),
            over_ours: paired_ratio(&samples_us, &over.samples_us).ok_or_else(no_samples)?.into(),
            samples_us,
        });
    }
    Ok(case)
}
