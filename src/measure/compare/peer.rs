//! PyTorch as a peer: `benches/peers/layers.py` in a process of its own.

use std::str::FromStr;

use serde::Deserialize;
use serde_json::json;

use super::report::{Absent, Versions};
use crate::config::{BatchShape, EncoderConfig};
use crate::error::{Error, Result};
use crate::measure::peer::Process;
use crate::measure::report::Verified;

const SCRIPT: &str = include_str!("../../../benches/peers/layers.py");

/// How PyTorch runs a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// One operation after the other: as a CUDA graph, and launched one by one.
    Eager,
    /// The FFN of a parallel layer on a second stream.
    TwoStream,
    /// A parallel layer's products side by side: `[QKV|W1]` and `[Wo|W2]`.
    Fused,
    /// `torch.compile` of a layer.
    Compile,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Eager, Self::TwoStream, Self::Fused, Self::Compile];

    /// `eager`, `two-stream`, `fused` or `compile`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Eager => "eager",
            Self::TwoStream => "two-stream",
            Self::Fused => "fused",
            Self::Compile => "compile",
        }
    }
}

impl FromStr for Way {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|way| way.name() == text).ok_or_else(|| Error::InvalidConfig {
            field: "peers",
            got: format!("{text:?}"),
            expected: Self::ALL.map(Self::name).join(", "),
        })
    }
}

/// The process. It ends with this value.
#[derive(Debug)]
pub struct Peer {
    process: Process,
    versions: Versions,
}

/// A stack that is ready to be sampled.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct Ready {
    /// `saf` or `paf`.
    pub(super) design: String,
    pub(super) way: String,
    /// `graph` or `launches`.
    pub(super) mode: String,
    pub(super) verified: Vec<Verified>,
}

/// What there is on one shape, and what there is not.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub(super) struct Prepared {
    pub(super) ready: Vec<Ready>,
    pub(super) absent: Vec<Absent>,
}

impl Peer {
    /// Starts it with that Python, on the device of that number.
    ///
    /// # Errors
    /// [`Error::Peer`] if there is no such program, or no PyTorch that finds the device.
    pub fn start(python: &str, ordinal: usize) -> Result<Self> {
        Self::start_script(python, SCRIPT, ordinal)
    }

    pub(super) fn start_script(program: &str, script: &str, ordinal: usize) -> Result<Self> {
        let (process, versions) = Process::start(program, script, ordinal)?;
        Ok(Self { process, versions })
    }

    /// Ends it: what it holds of the device is free again.
    pub(super) fn stop(&mut self) {
        self.process.stop();
    }

    /// What it said of itself.
    pub fn versions(&self) -> &Versions {
        &self.versions
    }

    /// Lets it make random weights.
    pub(super) fn model(&mut self, config: &EncoderConfig, dtype: &str, seed: u64, ways: &[Way]) -> Result<()> {
        #[derive(Deserialize)]
        struct Made {
            layers: usize,
        }
        let (layer, of) = (&config.layer, config.num_hidden_layers);
        let rotary = layer.rotary.map(|by| json!({ "dim": by.dim, "base": by.base, "interleaved": by.interleaved }));
        let Made { layers } = self.process.ask(&json!({
            "model": {
                "hidden_size": layer.hidden_size,
                "num_attention_heads": layer.num_attention_heads,
                "num_key_value_heads": layer.num_key_value_heads,
                "head_dim": layer.head_dim,
                "intermediate_size": layer.intermediate_size,
                "layer_norm_eps": layer.layer_norm_eps,
                "hidden_act": layer.hidden_act.name(),
                "gated": layer.gated,
                "causal": layer.causal,
                "rotary": rotary,
                "num_hidden_layers": of,
                "design": layer.design.name(),
            },
            "dtype": dtype,
            "seed": seed,
            "ways": ways.iter().map(|way| way.name()).collect::<Vec<_>>(),
        }))?;
        if layers != of {
            return Err(Error::Peer { peer: "PyTorch", text: format!("it has {layers} layers, not {of}") });
        }
        Ok(())
    }

    /// Lets it make activations, verify every stack and record graphs.
    ///
    /// # Errors
    /// [`Error::Verification`] if a result is wrong, or one is ready that was not verified; [`Error::Peer`] if the process fails.
    pub(super) fn shape(&mut self, shape: &BatchShape) -> Result<Prepared> {
        let request = json!({ "shape": { "batch": shape.batch(), "seq_len": shape.seq_len() } });
        let prepared: Prepared = self.process.ask(&request)?;
        for Ready { design, way, mode, verified } in &prepared.ready {
            // Written so that NaN fails.
            let holds = |by: &Verified| by.max_error <= by.bound && by.relative_l2 <= by.relative_l2_bound;
            if verified.is_empty() || !verified.iter().all(holds) {
                let text = format!("PyTorch's {design} {way} {mode} is not right, or nobody has looked: {verified:?}");
                return Err(Error::Verification(text));
            }
            if !matches!(design.as_str(), "saf" | "paf") {
                let text = format!("design {design:?} is ready, expected saf or paf");
                return Err(Error::Peer { peer: "PyTorch", text });
            }
        }
        Ok(prepared)
    }

    /// Device time of one call, µs, of what is ready at that index.
    pub(super) fn sample(&mut self, index: usize) -> Result<f64> {
        let us = self.process.sample(index)?;
        if !(us.is_finite() && us > 0.0) {
            return Err(Error::Peer { peer: "PyTorch", text: format!("a call took {us} µs") });
        }
        Ok(us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_are_read_back() {
        for way in Way::ALL {
            assert_eq!(way.name().parse::<Way>().unwrap(), way);
        }
        let error = "jit".parse::<Way>().unwrap_err().to_string();
        assert!(error.contains("\"jit\"") && error.contains("two-stream, fused, compile"), "{error}");
    }
}
