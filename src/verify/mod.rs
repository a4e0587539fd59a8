//! What is checked against the oracle ([`crate::cpu::oracle`]), and by how much it may differ: one list of cases for
//! `paf verify` and for the test suites, under a bound that follows from the element type, not from what a kernel happens to
//! reach.

mod bound;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod gpu;

pub use bound::{Comparison, compare};

use crate::config::BatchShape;
use crate::error::Result;

/// One thing to check: a kernel or a stack of layers at one shape.
pub struct Case {
    /// What it is, for a table or a test's name.
    pub name: String,
    run: Box<dyn Fn() -> Result<Comparison> + Send + Sync>,
}

impl Case {
    fn new(name: String, run: impl Fn() -> Result<Comparison> + Send + Sync + 'static) -> Self {
        Self { name, run: Box::new(run) }
    }

    /// Runs it and compares the result with the oracle's.
    ///
    /// # Errors
    /// [`Error::Verification`](crate::Error::Verification) if it is out of bounds, or what running it gives.
    pub fn run(&self) -> Result<Comparison> {
        (self.run)()
    }
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Case").field(&self.name).finish()
    }
}

/// A slice as f64, for the oracle.
fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

/// Padded rows become NaN: nothing may depend on them.
fn poison_padding(x: &mut [f32], shape: &BatchShape, cols: usize) {
    for (row, x) in x.chunks_mut(cols).enumerate() {
        if row % shape.seq_len() >= shape.length(row / shape.seq_len()) {
            x.fill(f32::NAN);
        }
    }
}
