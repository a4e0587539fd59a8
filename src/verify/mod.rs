//! Whether results are right: comparison with the oracle ([`crate::cpu::oracle`]) under a bound that follows from the
//! element type, not from what a kernel happens to reach.

mod bound;

pub use bound::{Comparison, compare};
