//! What is checked against the oracle ([`crate::cpu::oracle`]), and by how much it may differ: one list of cases for
//! `paf verify` and for the test suites, under a bound that follows from the element type, not from what a kernel happens to
//! reach.

mod bound;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod gpu;
pub(crate) mod plant;

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

/// Sequences of a case; written as its name tells them.
#[derive(Debug, Clone)]
enum Layout {
    /// So many of so many tokens.
    Full(usize, usize),
    /// Padded to so many tokens.
    Padded(usize, Vec<usize>),
    /// One after the other.
    Packed(Vec<usize>),
}

impl Layout {
    fn shape(&self) -> Result<BatchShape> {
        match self {
            &Self::Full(batch, seq_len) => BatchShape::new(batch, seq_len),
            Self::Padded(seq_len, lengths) => BatchShape::new(lengths.len(), *seq_len)?.with_lengths(lengths.clone()),
            Self::Packed(lengths) => BatchShape::packed(lengths.clone()),
        }
    }
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Full(batch, seq_len) => write!(f, "{batch}x{seq_len}"),
            Self::Padded(seq_len, lengths) => write!(f, "{}x{seq_len} padded", lengths.len()),
            Self::Packed(lengths) => write!(f, "{} packed of {}", lengths.len(), lengths.iter().sum::<usize>()),
        }
    }
}

/// A slice as f64, for the oracle.
fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

/// Padded rows become NaN: nothing may depend on them.
fn poison_padding(x: &mut [f32], shape: &BatchShape, cols: usize) {
    for padding in (0..shape.batch()).map(|i| shape.padding_of(i)) {
        x[padding.start * cols..padding.end * cols].fill(f32::NAN);
    }
}
