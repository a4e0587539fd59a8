//! The comparison itself: SAF and PAF in every schedule, on the same weights, verified, then timed in turn.

mod experiment;

pub(super) use experiment::{Asked, Beside};
pub use experiment::{Experiment, Step};
#[cfg(feature = "cuda")]
pub(super) use experiment::{ORACLE_TOKENS, PLAN_BUDGET};

use super::backend::{Branch, Plan};
use super::report;
use crate::config::{Design, EncoderConfig, Schedule};
#[cfg(feature = "cuda")]
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::weights::{LayerWeights, random_layers};

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

/// A schedule, or the planner's choice for the shape at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// This one, the variants of its kernels being estimated.
    Fixed(Schedule),
    /// The fastest, with the fastest variants, as a measurement before the comparison finds them.
    Auto,
}

impl Choice {
    /// The schedule's name, or `auto`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fixed(schedule) => schedule.name(),
            Self::Auto => "auto",
        }
    }
}

impl std::str::FromStr for Choice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == Self::Auto.name() {
            return Ok(Self::Auto);
        }
        text.parse().map(Self::Fixed).map_err(|_| Error::InvalidConfig {
            field: "schedule",
            got: format!("{text:?}"),
            expected: format!("{} or auto", Schedule::ALL.map(Schedule::name).join(" or ")),
        })
    }
}

/// One way to run the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Variant {
    /// How attention and FFN are composed.
    pub(super) design: Design,
    /// In what order, on which streams, by which variants of kernels.
    pub(super) plan: Plan,
    /// Who has chosen that.
    pub(super) choice: Choice,
    /// Eager or graph.
    pub(super) mode: Mode,
    /// Of each layer of a serial design this block alone.
    pub(super) block: Option<Branch>,
}

impl Variant {
    /// Whether the result is the same to the last bit.
    pub(super) fn agrees_bitwise(&self, other: &Self) -> bool {
        self.design == other.design && self.block == other.block && self.plan.agrees_bitwise(&other.plan)
    }
}

impl std::fmt::Display for Variant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.design, self.plan, self.mode.name())
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

/// Where the weights come from.
#[derive(Debug, Clone)]
pub enum Weights {
    /// Random, from the experiment's seed.
    Random,
    /// The layers of a checkpoint, from the first on, whose dimensions the experiment has.
    #[cfg(feature = "checkpoint")]
    Checkpoint(std::sync::Arc<crate::checkpoint::Checkpoint>),
}

impl Weights {
    /// As many layers as `config` has.
    pub(super) fn layers<'a>(
        &'a self,
        config: &'a EncoderConfig,
        seed: u64,
    ) -> Box<dyn Iterator<Item = LayerWeights> + 'a> {
        match self {
            Self::Random => Box::new(random_layers(config, seed)),
            #[cfg(feature = "checkpoint")]
            Self::Checkpoint(checkpoint) => Box::new(checkpoint.layers().take(config.num_hidden_layers)),
        }
    }

    /// For the report.
    pub(super) fn checkpoint(&self) -> Option<report::Checkpoint> {
        match self {
            Self::Random => None,
            #[cfg(feature = "checkpoint")]
            Self::Checkpoint(checkpoint) => Some(report::Checkpoint::of(checkpoint)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_back() {
        for choice in Schedule::ALL.map(Choice::Fixed).into_iter().chain([Choice::Auto]) {
            assert_eq!(choice.name().parse::<Choice>().unwrap(), choice);
        }
        let error = "fastest".parse::<Choice>().unwrap_err().to_string();
        assert!(error.contains("\"fastest\"") && error.contains("hybrid or auto"), "{error}");
    }
}
