//! What is checked against the oracle, and by how much it may differ: one list of cases for `paf verify`, for the test
//! suites, and for whoever brings a new kernel.

mod bound;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod gpu;

pub use bound::{Comparison, compare};

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
