//! Planning itself.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{BatchShape, EncoderConfig};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::gpu::{Batch, Device, Encoder, EncoderWeights, Planner};
use crate::measure::machine::{self, Monitor};
use crate::measure::report::{Config, DeviceState, Run, percent};
use crate::weights::random_layers;

use super::report::{Candidate, Case, Report, SCHEMA};

/// What to plan.
#[derive(Debug, Clone)]
pub struct Experiment {
    /// Preset that the dimensions come from, for the report.
    pub model: Option<String>,
    /// Dimensions and design.
    pub config: EncoderConfig,
    /// Whether the model has rotary embeddings that `config` leaves out, for the report.
    pub rotary_left_out: bool,
    /// Element type.
    pub dtype: Dtype,
    /// Batch shapes.
    pub shapes: Vec<BatchShape>,
    /// Seed of the weights.
    pub seed: u64,
    /// How long to measure each shape.
    pub budget: Duration,
    /// Where plans are kept, if they are.
    pub cache: Option<PathBuf>,
}

/// What is going on, for a progress display.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Layer `n` of `of` is made and packed.
    Weights {
        /// This layer.
        n: usize,
        /// All layers.
        of: usize,
    },
    /// The shape of that index is planned.
    Shape(usize),
}

impl Experiment {
    /// Plans every shape, on random weights; `on_step` hears what goes on.
    ///
    /// # Errors
    /// As [`Planner::plan`]; what the configuration or the weights give.
    pub fn run(&self, device: &Device, mut on_step: impl FnMut(Step)) -> Result<Report> {
        let monitor = Monitor::new(device);
        let run = Run::begin(SCHEMA, machine::with_device(device, &monitor));
        let of = self.config.num_hidden_layers;
        let layers = random_layers(&self.config, self.seed).enumerate().map(|(i, layer)| {
            on_step(Step::Weights { n: i + 1, of });
            layer
        });
        let weights = Arc::new(EncoderWeights::upload(device, &self.config, self.dtype, layers)?);
        let encoder = Encoder::new(&self.config, weights)?;
        let mut planner = Planner::new().budget(self.budget);
        if let Some(path) = &self.cache {
            planner = planner.cache(path);
        }
        let mut cases = Vec::new();
        for (i, shape) in self.shapes.iter().enumerate() {
            on_step(Step::Shape(i));
            let batch = Batch::new(device, shape)?;
            let state_before = monitor.state();
            let planned = planner.plan(&encoder, &batch)?;
            let state_after = monitor.state();
            let measured = |state: Option<DeviceState>| state.filter(|_| !planned.from_cache);
            let candidates = planned.candidates.iter();
            cases.push(Case {
                batch: shape.batch(),
                seq_len: shape.seq_len(),
                lengths: shape.lengths().map(<[usize]>::to_vec),
                packed: shape.is_packed(),
                tokens: shape.tokens(),
                schedule: planned.plan.schedule().name().into(),
                plan: planned.plan.to_string(),
                candidates: candidates
                    .map(|timed| Candidate {
                        schedule: timed.plan.schedule().name().into(),
                        plan: timed.plan.to_string(),
                        median_us: timed.median_us,
                    })
                    .collect(),
                state_before: measured(state_before),
                state_after: measured(state_after),
                from_cache: planned.from_cache,
                warnings: planned.warnings,
            });
        }
        Ok(Report {
            run,
            model: self.model.clone(),
            design: self.config.layer.design.name().into(),
            dtype: self.dtype.name().into(),
            config: Config::of(&self.config, self.rotary_left_out),
            seed: self.seed,
            budget_s: self.budget.as_secs_f64(),
            method: format!(
                "Random weights, distinct in every layer, and activations. Each plan: over the first two layers, two runs bitwise equal, and \
                 at most 2e-2 (relative L2) from the serial schedule; then replayed as a CUDA graph, device time between events around it, \
                 medians of interleaved rounds. First all schedules with estimated kernels, then, for those within {} % of the best, other \
                 ways to compute attention and each product in turn, kept where they gain more than {} %; then the finalists.",
                percent(Planner::CLOSE - 1.0),
                percent(Planner::GAIN)
            ),
            cases,
        })
    }
}
