//! PyTorch as a peer: `benches/peers/attention.py` in a process of its own.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::report::{PeerVersion, Shape};
use crate::dtype::Dtype;
use crate::error::{Error, Result};

const SCRIPT: &str = include_str!("../../../benches/peers/attention.py");

/// The process. It ends with this value.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
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

#[derive(Deserialize)]
#[serde(untagged)]
enum Answer<T> {
    Error { error: String },
    Good(T),
}

#[derive(Deserialize)]
struct Sample {
    us: f64,
}

fn failed(text: impl std::fmt::Display) -> Error {
    Error::Peer { peer: "PyTorch", text: text.to_string() }
}

impl Peer {
    /// Starts it with that Python, on the device of that number.
    ///
    /// # Errors
    /// [`Error::Peer`] if there is no such program, or no PyTorch that finds the device.
    pub fn start(python: &str, ordinal: usize) -> Result<Self> {
        let mut child = Command::new(python)
            .args(["-c", SCRIPT, &ordinal.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| failed(format!("{python}: {error}")))?;
        let requests = child.stdin.take().expect("it is piped");
        let mut answers = BufReader::new(child.stdout.take().expect("it is piped"));
        match read(&mut answers) {
            Ok(version) => Ok(Self { child, requests, answers, version }),
            Err(_) => {
                // It has ended, or says what it should not: the last line that it left says why.
                let _ = child.kill();
                let output = child.wait_with_output().map_err(failed)?;
                let text = String::from_utf8_lossy(&output.stderr);
                Err(failed(text.lines().last().unwrap_or("it ended without a word")))
            }
        }
    }

    /// What it said of itself.
    pub fn version(&self) -> &PeerVersion {
        &self.version
    }

    /// Lets it make operands, verify each back end, and record graphs.
    ///
    /// # Errors
    /// [`Error::Peer`] if a back end's result is wrong, or the process fails.
    pub fn prepare(&mut self, shape: Shape, dtype: Dtype, rotations: &[Rotation]) -> Result<Prepared> {
        let by_name = |number: fn(&Rotation) -> usize| -> BTreeMap<_, _> {
            rotations.iter().map(|rotation| (rotation.name, number(rotation))).collect()
        };
        self.ask(&json!({
            "case": shape,
            "dtype": dtype.to_string(),
            "sets": by_name(|rotation| rotation.sets),
            "launches": by_name(|rotation| rotation.launches),
        }))
    }

    /// Device time of one launch, µs, over one replay of the graph of that back end and rotation.
    ///
    /// # Errors
    /// [`Error::Peer`] if there is no such graph, or the process fails.
    pub fn sample(&mut self, backend: &str, rotation: &str) -> Result<f64> {
        self.ask(&json!({ "sample": [backend, rotation] })).map(|Sample { us }| us)
    }

    fn ask<T: DeserializeOwned>(&mut self, request: &serde_json::Value) -> Result<T> {
        writeln!(self.requests, "{request}").and_then(|()| self.requests.flush()).map_err(failed)?;
        match read(&mut self.answers)? {
            Answer::Good(answer) => Ok(answer),
            Answer::Error { error } => Err(failed(error)),
        }
    }
}

fn read<T: DeserializeOwned>(answers: &mut impl BufRead) -> Result<T> {
    let mut line = String::new();
    answers.read_line(&mut line).map_err(failed)?;
    serde_json::from_str(&line).map_err(|error| failed(format!("{error} in its answer {line:?}")))
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A program that takes Python's place and runs `script`.
    fn python(folder: &tempfile::TempDir, script: &str) -> String {
        let path = folder.path().join("python");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    #[test]
    fn answers_are_read_and_failures_carry_their_reason() {
        let folder = tempfile::tempdir().unwrap();
        let script = r#"
            echo '{"torch": "2.11", "cudnn": 91900, "device": "a card"}'
            read request; echo "$request" | grep -q '"seq_len":512' && echo '{"backends": ["cuDNN"], "absent": {"other": "why"}}'
            read request; echo '{"us": 1.5}'
            read request; echo '{"error": "KeyError: hot"}'
            read request; echo '{"neither": 1}'"#;
        let mut peer = Peer::start(&python(&folder, script), 0).unwrap();
        assert_eq!((peer.version().torch.as_str(), peer.version().cudnn), ("2.11", Some(91900)));
        let rotation = Rotation { name: "hot", sets: 1, launches: 8 };
        let prepared = peer.prepare("8x16x512x64".parse().unwrap(), Dtype::Bf16, &[rotation]).unwrap();
        assert_eq!((prepared.backends[0].as_str(), prepared.absent["other"].as_str()), ("cuDNN", "why"));
        assert_eq!(peer.sample("cuDNN", "hot").unwrap(), 1.5);
        let mut failure = || peer.sample("cuDNN", "hot").unwrap_err().to_string();
        let (refused, garbled, gone) = (failure(), failure(), failure());
        assert!(refused.contains("KeyError: hot"), "{refused}");
        assert!(garbled.contains("neither"), "{garbled}");
        assert!(gone.contains("PyTorch"), "{gone}");
    }

    #[test]
    fn what_does_not_start_says_why() {
        let message = Peer::start("/no/such/python", 0).unwrap_err().to_string();
        assert!(message.contains("/no/such/python"), "{message}");
        let folder = tempfile::tempdir().unwrap();
        let broken = python(&folder, "echo 'Traceback' >&2; echo \"ModuleNotFoundError: No module named 'torch'\" >&2");
        let message = Peer::start(&broken, 0).unwrap_err().to_string();
        assert!(message.contains("No module named 'torch'"), "{message}");
    }
}
