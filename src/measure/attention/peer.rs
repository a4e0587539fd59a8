//! PyTorch as a peer: `benches/peers/attention.py` in a process of its own.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;

use super::report::{PeerVersion, Shape};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::measure::peer::Process;

const SCRIPT: &str = include_str!("../../../benches/peers/attention.py");

/// The process. It ends with this value.
#[derive(Debug)]
pub struct Peer {
    process: Process,
    version: PeerVersion,
}

/// Graphs to prepare: launches that go in turn through so many sets of operands.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "said above")]
pub struct Rotation {
    pub name: &'static str,
    pub sets: usize,
    pub launches: usize,
}

/// What is ready to be sampled.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Prepared {
    /// Names of the back ends.
    pub backends: Vec<String>,
    /// Those that cannot do the shape, and why.
    pub absent: BTreeMap<String, String>,
}

impl Peer {
    /// Starts it with that Python, on the device of that number.
    ///
    /// # Errors
    /// [`Error::Peer`](crate::Error::Peer) if there is no such program, or no PyTorch that finds the device.
    pub fn start(python: &str, ordinal: usize) -> Result<Self> {
        Self::start_script(python, SCRIPT, ordinal)
    }

    fn start_script(program: &str, script: &str, ordinal: usize) -> Result<Self> {
        let (process, version) = Process::start(program, script, ordinal)?;
        Ok(Self { process, version })
    }

    /// What it said of itself.
    pub fn version(&self) -> &PeerVersion {
        &self.version
    }

    /// Lets it make operands, verify each back end, and record graphs.
    ///
    /// # Errors
    /// [`Error::Peer`](crate::Error::Peer) if a back end's result is wrong, or the process fails.
    pub fn prepare(&mut self, shape: Shape, dtype: Dtype, rotations: &[Rotation]) -> Result<Prepared> {
        let by_name = |number: fn(&Rotation) -> usize| -> BTreeMap<_, _> {
            rotations.iter().map(|rotation| (rotation.name, number(rotation))).collect()
        };
        self.process.ask(&json!({
            "case": shape,
            "dtype": dtype.to_string(),
            "sets": by_name(|rotation| rotation.sets),
            "launches": by_name(|rotation| rotation.launches),
        }))
    }

    /// Device time of one launch, µs, over one replay of the graph of that back end and rotation.
    ///
    /// # Errors
    /// [`Error::Peer`](crate::Error::Peer) if there is no such graph, or the process fails.
    pub fn sample(&mut self, backend: &str, rotation: &str) -> Result<f64> {
        self.process.sample([backend, rotation])
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_and_failures_carry_their_reason() {
        let script = r#"
            echo '{"torch": "2.11", "cudnn": 91900, "device": "a card"}'
            read request; echo "$request" | grep -q '"seq_len":512' && echo '{"backends": ["cuDNN"], "absent": {"other": "why"}}'
            read request; echo '{"us": 1.5}'
            read request; echo '{"error": "KeyError: hot"}'"#;
        let mut peer = Peer::start_script("sh", script, 0).unwrap();
        assert_eq!((peer.version().torch.as_str(), peer.version().cudnn), ("2.11", Some(91900)));
        let rotation = Rotation { name: "hot", sets: 1, launches: 8 };
        let prepared = peer.prepare("8x16x512x64".parse().unwrap(), Dtype::Bf16, &[rotation]).unwrap();
        assert_eq!((prepared.backends[0].as_str(), prepared.absent["other"].as_str()), ("cuDNN", "why"));
        assert_eq!(peer.sample("cuDNN", "hot").unwrap(), 1.5);
        let refused = peer.sample("cuDNN", "hot").unwrap_err().to_string();
        assert!(refused.contains("KeyError: hot"), "{refused}");
    }
}
