//! What a run took, for those who compare it with another program's.

use std::time::Instant;

use serde::Serialize;

/// Seconds, and what they were spent on.
#[derive(Debug, Default, Serialize)]
pub struct Timing {
    texts: usize,
    tokens: usize,
    /// Checkpoint, tokenizer, device, weights.
    pub loading_s: f64,
    /// The file of texts.
    pub reading_s: f64,
    pub tokenizing_s: f64,
    /// From token ids to results in the host's memory; JSON lines are written meanwhile.
    pub computing_s: f64,
    /// A matrix to its file.
    pub writing_s: f64,
    /// Of tokenizing and computing.
    texts_per_s: f64,
    tokens_per_s: f64,
}

impl Timing {
    /// With the rates of what was run.
    pub fn of(mut self, lengths: impl Iterator<Item = usize>) -> Self {
        for length in lengths.filter(|&length| length > 0) {
            (self.texts, self.tokens) = (self.texts + 1, self.tokens + length);
        }
        let seconds = self.tokenizing_s + self.computing_s;
        (self.texts_per_s, self.tokens_per_s) = (self.texts as f64 / seconds, self.tokens as f64 / seconds);
        self
    }
}

/// Tells the time since it was last asked.
pub struct Clock(Instant);

impl Clock {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    pub fn lap_s(&mut self) -> f64 {
        let now = Instant::now();
        (now - std::mem::replace(&mut self.0, now)).as_secs_f64()
    }
}
