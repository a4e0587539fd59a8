//! The comparison itself.

use std::cell::RefCell;

use super::peer::{Peer, Prepared, Way};
use super::report::{Case, Missing, PeerRow, Report, SCHEMA, Stack};
use crate::config::{BatchShape, EncoderConfig};
use crate::error::{Error, Result};
use crate::measure::report::{self, Run};
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

/// The peer in turns with ours, and what it had ready on each shape.
struct Turns<'a> {
    peer: RefCell<&'a mut Peer>,
    prepared: Vec<Prepared>,
}

impl Beside for Turns<'_> {
    fn candidates(&mut self, shape: &BatchShape) -> Result<Vec<Candidate<'_>>> {
        let prepared = self.peer.borrow_mut().shape(shape)?;
        let count = prepared.ready.len();
        self.prepared.push(prepared);
        let peer = &self.peer;
        Ok((0..count).map(|i| Box::new(move || peer.borrow_mut().sample(i)) as Candidate<'_>).collect())
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
    /// and the shape's index.
    ///
    /// # Errors
    /// What [`validate`](Self::validate) finds; [`Error::Verification`] or [`Error::Peer`] before anything is timed, if a
    /// result is wrong; whatever engine and peer give.
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
        let mut first = None;
        for (i, subject) in self.subjects.iter().enumerate() {
            let ours = self.ours(subject);
            let on_step = |shape, step| on_step(i, shape, step);
            let (report, prepared, samples) = match &mut peer {
                Ok(peer) => {
                    peer.model(&subject.config, &dtype, self.seed, &self.ways)?;
                    let mut turns = Turns { peer: RefCell::new(peer), prepared: Vec::new() };
                    let (report, samples) = ours.run_beside(engine, Some(&mut turns), on_step)?;
                    (report, turns.prepared, samples)
                }
                Err(_) => {
                    let report = ours.run(engine, on_step)?;
                    let none = Prepared { ready: Vec::new(), absent: Vec::new() };
                    let cases = report.cases.len();
                    (report, vec![none; cases], vec![Vec::new(); cases])
                }
            };
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
            method: format!("{} {}", first.method, self.method()),
            ceilings: first.ceilings,
            missing: self.missing(peer.as_ref().err()),
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

    /// What was not measured at all.
    fn missing(&self, why: Option<&Error>) -> Vec<Missing> {
        let not_asked_for = |way| if self.ways.contains(&way) { None } else { Some("not asked for".to_owned()) };
        let reason = |way| not_asked_for(way).or_else(|| why.map(Error::to_string));
        Way::ALL.into_iter().filter_map(|way| Some(Missing { way: way.name().into(), why: reason(way)? })).collect()
    }

    fn method(&self) -> String {
        "PyTorch runs in a process of its own, which is idle while ours runs and the other way round; each round samples all of both, and \
         a sample is a call's device time after a call of the same that is not timed. PyTorch's layers are of the same dimensions, with \
         random weights of their own, distinct in every layer, and scaled_dot_product_attention as PyTorch chooses it; rotary embeddings \
         are rotated there if they are here, and left out on both sides or on none. Each of its stacks runs as a CUDA graph; launches is \
         the eager one without. Before timing, the last sequence of each against float64 on the same device, after two layers and after \
         all: twice the error of an implementation that rounds every tensor is allowed. The best of either side, ours among SAF's or \
         PAF's rows and PyTorch's likewise, is the one with the lowest median."
            .to_owned()
    }
}

/// One shape: what the peer had ready, with its samples.
fn case(subject: &Subject, ours: report::Case, prepared: Prepared, samples: Vec<Vec<f64>>) -> Result<Case> {
    let no_samples = || Error::Verification("a time is not a number".into());
    let design = subject.config.layer.design;
    let mut case = Case { ours, peers: Vec::new(), absent: prepared.absent };
    for (ready, samples_us) in prepared.ready.into_iter().zip(samples) {
        let design = if ready.design == "saf" { design.serial() } else { design };
        let best = case.ours_best(design.name()).ok_or_else(no_samples)?;
        case.peers.push(PeerRow {
            by: "PyTorch".into(),
            design: design.name().into(),
            way: ready.way,
            mode: ready.mode,
            verified: ready.verified,
            median_us: Median::of(&samples_us).ok_or_else(no_samples)?.into(),
            over_ours: paired_ratio(&samples_us, &best.samples_us).ok_or_else(no_samples)?.into(),
            samples_us,
        });
    }
    Ok(case)
}
