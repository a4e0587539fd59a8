//! What is measured beside this crate in a process of its own: a Python script that answers requests, a JSON object a line.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Error, Result};

/// The process. It ends with this value.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// The last line that it complained with, and word of there being no more.
    complaint: Arc<Mutex<String>>,
    no_more: Receiver<()>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Answer<T> {
    Error { error: String },
    Good(T),
}

/// The answer to a request for a sample.
#[derive(Deserialize)]
pub(super) struct Sample {
    pub(super) us: f64,
}

fn failed(text: impl std::fmt::Display) -> Error {
    Error::Peer { peer: "PyTorch", text: text.to_string() }
}

impl Process {
    /// Starts `script` with that Python, on the device of that number, and has what it first says of itself.
    ///
    /// # Errors
    /// [`Error::Peer`] if there is no such program, or it ends, with the last line that it then left.
    pub(super) fn start<T: DeserializeOwned>(python: &str, script: &str, ordinal: usize) -> Result<(Self, T)> {
        let mut child = Command::new(python)
            .args(["-c", script, &ordinal.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| failed(format!("{python}: {error}")))?;
        let requests = child.stdin.take().expect("it is piped");
        let answers = BufReader::new(child.stdout.take().expect("it is piped"));
        let complaints = BufReader::new(child.stderr.take().expect("it is piped"));
        let (complaint, (said, no_more)) = (Arc::new(Mutex::default()), channel());
        let last = Arc::clone(&complaint);
        // Read all the while: one that fills the pipe would wait for ever.
        std::thread::spawn(move || {
            for line in complaints.split(b'\n').map_while(std::result::Result::ok) {
                let line = String::from_utf8_lossy(&line).trim().to_owned();
                if !line.is_empty() {
                    *last.lock().unwrap_or_else(PoisonError::into_inner) = line;
                }
            }
            let _ = said.send(());
        });
        let mut process = Self { child, requests, answers, complaint, no_more };
        let version = process.read()?;
        Ok((process, version))
    }

    /// The answer to a request.
    ///
    /// # Errors
    /// [`Error::Peer`] with what the process says of an error, or if it fails.
    pub(super) fn ask<T: DeserializeOwned>(&mut self, request: &Value) -> Result<T> {
        if let Err(error) = writeln!(self.requests, "{request}").and_then(|()| self.requests.flush()) {
            return Err(self.ended().unwrap_or_else(|| failed(error)));
        }
        match self.read()? {
            Answer::Good(answer) => Ok(answer),
            Answer::Error { error } => Err(failed(error)),
        }
    }

    fn read<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        self.answers.read_line(&mut line).map_err(failed)?;
        if line.is_empty() {
            return Err(self.ended().unwrap_or_else(|| failed("it ended without a word")));
        }
        serde_json::from_str(&line).map_err(|error| failed(format!("{error} in its answer {line:?}")))
    }

    /// Why it has ended: the last line that it left.
    fn ended(&mut self) -> Option<Error> {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Processes that it started may keep the pipe open.
        let _ = self.no_more.recv_timeout(Duration::from_secs(1));
        let last = self.complaint.lock().unwrap_or_else(PoisonError::into_inner);
        (!last.is_empty()).then(|| failed(&*last))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program that takes Python's place and runs `script`, a shell's.
#[cfg(all(test, unix))]
pub(super) fn stand_in(folder: &tempfile::TempDir, script: &str) -> String {
    use std::os::unix::fs::PermissionsExt;

    let path = folder.path().join("python");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("a temporary folder is writable");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("the file was just written");
    path.to_str().expect("a temporary folder's name is text").to_owned()
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn start(script: &str) -> Result<(Process, Value)> {
        let folder = tempfile::tempdir().unwrap();
        Process::start(&stand_in(&folder, script), "", 0)
    }

    #[test]
    fn answers_are_read_and_failures_carry_their_reason() {
        let script = r#"
            echo '{"name": "a card"}'
            read request; echo "{\"heard\": $request}"
            read request; echo '{"error": "KeyError: hot"}'
            read request; echo '{"us": "fast"}'
            read request; echo 'Segmentation fault' >&2"#;
        let (mut process, version) = start(script).unwrap();
        assert_eq!(version["name"], "a card");
        let request = serde_json::json!({ "sample": [1, "x"] });
        assert_eq!(process.ask::<Value>(&request).unwrap()["heard"], request);
        let mut failure = || process.ask::<Sample>(&request).map(|sample| sample.us).unwrap_err().to_string();
        let (refused, garbled, gone, later) = (failure(), failure(), failure(), failure());
        assert!(refused.contains("KeyError: hot"), "{refused}");
        assert!(garbled.contains("fast"), "{garbled}");
        assert!(gone.contains("Segmentation fault"), "{gone}");
        assert!(later.contains("PyTorch"), "{later}");
    }

    #[test]
    fn what_does_not_start_says_why() {
        let message = Process::start::<Value>("/no/such/python", "", 0).unwrap_err().to_string();
        assert!(message.contains("/no/such/python"), "{message}");
        let message = |script| start(script).unwrap_err().to_string();
        let broken = message("echo 'Traceback' >&2; echo \"ModuleNotFoundError: No module named 'torch'\" >&2");
        assert!(broken.contains("No module named 'torch'"), "{broken}");
        let silent = message("exit 3");
        assert!(silent.contains("without a word"), "{silent}");
    }

    #[test]
    fn a_talkative_one_does_not_stop() {
        // More than a pipe holds, before it answers.
        let script = "yes warning | head -c 300000 >&2; echo '{\"name\": 1}'";
        assert_eq!(start(script).unwrap().1["name"], 1);
    }
}
