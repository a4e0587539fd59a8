//! What is measured beside this crate in a process of its own: a Python script that answers requests, a JSON object a line.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// How long it may take before it counts as hung.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Until it says what it is: a first import of PyTorch takes its time.
    greeting: Duration,
    /// Until it has something ready: compiling is slow.
    preparation: Duration,
    /// Until it has run something once.
    sample: Duration,
}

const LIMITS: Limits = Limits {
    greeting: Duration::from_secs(120),
    preparation: Duration::from_secs(20 * 60),
    sample: Duration::from_secs(60),
};

/// The process. It ends with this value.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    requests: ChildStdin,
    /// Its lines.
    answers: Receiver<std::io::Result<String>>,
    limits: Limits,
    /// Why nothing more is asked of it: its answers would no longer be those to the requests.
    hung: Option<Error>,
    /// The last line that it complained with, and word of there being no more.
    complaint: Arc<Mutex<String>>,
    no_more: Receiver<()>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Answer<T> {
    /// It could not.
    Error {
        error: String,
    },
    /// A result is not what it should be.
    Wrong {
        wrong: String,
    },
    Good(T),
}

fn failed(text: impl std::fmt::Display) -> Error {
    Error::Peer { peer: "PyTorch", text: text.to_string() }
}

impl Process {
    /// Starts `script` with that Python, on the device of that number, and has what it first says of itself.
    ///
    /// # Errors
    /// [`Error::Peer`] if there is no such program, or it ends, with the last line that it then left, or says nothing.
    pub(super) fn start<T: DeserializeOwned>(python: &str, script: &str, ordinal: usize) -> Result<(Self, T)> {
        Self::start_within(LIMITS, python, script, ordinal)
    }

    fn start_within<T: DeserializeOwned>(
        limits: Limits,
        python: &str,
        script: &str,
        ordinal: usize,
    ) -> Result<(Self, T)> {
        let mut child = Command::new(python)
            .args(["-c", script, &ordinal.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| failed(format!("{python}: {error}")))?;
        let requests = child.stdin.take().expect("it is piped");
        let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let complaints = BufReader::new(child.stderr.take().expect("it is piped"));
        // A thread that waits for lines, since reading a pipe knows no time limit. It ends with the pipe.
        let (answered, answers) = channel();
        std::thread::spawn(move || {
            for line in lines {
                let is_last = line.is_err();
                if answered.send(line).is_err() || is_last {
                    break;
                }
            }
        });
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
        let mut process = Self { child, requests, answers, limits, hung: None, complaint, no_more };
        let version = process.read(limits.greeting)?;
        Ok((process, version))
    }

    /// The answer to a request that makes something ready.
    ///
    /// # Errors
    /// [`Error::Verification`] with what the process says of a wrong result; [`Error::Peer`] with what it says of another error, or if
    /// it fails, or does not answer.
    pub(super) fn ask<T: DeserializeOwned>(&mut self, request: &Value) -> Result<T> {
        self.ask_within(self.limits.preparation, request)
    }

    /// The time that it took `what`, which is ready, to run once, µs.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub(super) fn sample(&mut self, what: impl Serialize) -> Result<f64> {
        #[derive(Deserialize)]
        struct Sample {
            us: f64,
        }
        self.ask_within(self.limits.sample, &json!({ "sample": what })).map(|Sample { us }| us)
    }

    fn ask_within<T: DeserializeOwned>(&mut self, limit: Duration, request: &Value) -> Result<T> {
        if let Some(error) = &self.hung {
            return Err(error.clone());
        }
        if let Err(error) = writeln!(self.requests, "{request}").and_then(|()| self.requests.flush()) {
            return Err(self.ended().unwrap_or_else(|| failed(error)));
        }
        match self.read(limit)? {
            Answer::Good(answer) => Ok(answer),
            Answer::Error { error } => Err(failed(error)),
            Answer::Wrong { wrong } => Err(Error::Verification(wrong)),
        }
    }

    fn read<T: DeserializeOwned>(&mut self, limit: Duration) -> Result<T> {
        let line = match self.answers.recv_timeout(limit) {
            Ok(line) => line.map_err(failed)?,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(self.ended().unwrap_or_else(|| failed("it ended without a word")));
            }
            Err(RecvTimeoutError::Timeout) => {
                let error = failed(format!("no answer in {} s", limit.as_secs_f64()));
                self.hung = Some(error.clone());
                self.stop();
                return Err(error);
            }
        };
        serde_json::from_str(&line).map_err(|error| failed(format!("{error} in its answer {line:?}")))
    }

    /// Ends it. One that the system cannot end at once, as it may be in the driver, is not waited for any longer than a moment.
    pub(super) fn stop(&mut self) {
        // Fails only if it is gone already.
        let _ = self.child.kill();
        let until = Instant::now() + Duration::from_secs(5);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Why it has ended: the last line that it left.
    fn ended(&mut self) -> Option<Error> {
        self.stop();
        // Processes that it started may keep the pipe open.
        let _ = self.no_more.recv_timeout(Duration::from_secs(1));
        let last = self.complaint.lock().unwrap_or_else(PoisonError::into_inner);
        (!last.is_empty()).then(|| failed(&*last))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    /// A shell in Python's place.
    fn start(script: &str) -> Result<(Process, Value)> {
        Process::start("sh", script, 0)
    }

    #[test]
    fn answers_are_read_and_failures_carry_their_reason() {
        let script = r#"
            echo '{"name": "a card"}'
            read request; echo "{\"heard\": $request}"
            read request; echo '{"error": "KeyError: hot"}'
            read request; echo '{"wrong": "it is off"}'
            read request; echo "$request" | grep -q '"sample":\["a","hot"\]' && echo '{"us": 1.5}'
            read request; echo '{"us": "fast"}'
            read request; echo 'Segmentation fault' >&2"#;
        let (mut process, version) = start(script).unwrap();
        assert_eq!(version["name"], "a card");
        let request = serde_json::json!({ "sample": [1, "x"] });
        assert_eq!(process.ask::<Value>(&request).unwrap()["heard"], request);
        let refused = process.ask::<Value>(&request).unwrap_err().to_string();
        assert!(refused.contains("KeyError: hot"), "{refused}");
        let wrong = process.ask::<Value>(&request).unwrap_err();
        assert!(matches!(&wrong, Error::Verification(text) if text == "it is off"), "{wrong}");
        assert_eq!(process.sample(["a", "hot"]).unwrap(), 1.5);
        let mut failure = || process.sample(0).unwrap_err().to_string();
        let (garbled, gone, later) = (failure(), failure(), failure());
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

    #[test]
    fn one_that_never_answers_is_ended() {
        let short = Duration::from_millis(200);
        let long = Duration::from_secs(60);
        let limits = |greeting, preparation, sample| Limits { greeting, preparation, sample };
        let begun = Instant::now();
        let start = |limits, script| Process::start_within::<Value>(limits, "sh", script, 0);
        let silent = start(limits(short, long, long), "exec sleep 600").unwrap_err().to_string();
        assert!(silent.contains("no answer in 0.2 s"), "{silent}");
        // Once it has not answered, nothing more is asked: an answer might be that to the request before.
        let slow = "echo 1; read request; echo 2; read request; exec sleep 600";
        let (mut process, _) = start(limits(long, long, short), slow).unwrap();
        assert_eq!(process.ask::<Value>(&json!({})).unwrap(), 2);
        for _ in 0..2 {
            let hung = process.sample(0).unwrap_err().to_string();
            assert!(hung.contains("no answer in 0.2 s"), "{hung}");
        }
        assert!(process.child.try_wait().unwrap().is_some(), "it still runs");
        let (mut process, _) = start(limits(long, short, long), "echo 1; exec sleep 600").unwrap();
        let hung = process.ask::<Value>(&json!({})).unwrap_err().to_string();
        assert!(hung.contains("no answer in 0.2 s"), "{hung}");
        assert!(begun.elapsed() < long);
    }
}
