//! The planner's choices over batch shapes, and from how many tokens on which schedule is the fastest.

#[cfg(feature = "cuda")]
mod experiment;
mod report;

#[cfg(feature = "cuda")]
pub use experiment::{Experiment, Step};
pub use report::{Candidate, Case, Report, SCHEMA};
