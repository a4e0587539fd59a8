//! Measuring the speedup of the parallel design over the serial one, so that a sceptic can check it.
//!
//! Everything is verified before it is timed ([`speedup`]); samples of the things compared are interleaved, and ratios are
//! paired ([`timing`]); intervals assume nothing about the distribution ([`statistics`]); each time stands beside the
//! time that the machine's ceilings allow ([`roofline`]), and beside PyTorch's ([`compare`]); every raw sample is kept ([`report`]),
//! and drawn ([`plot`]).

pub mod attention;
mod backend;
pub mod compare;
pub mod gemm;
pub mod kernels;
mod machine;
pub mod norm;
mod peer;
pub mod plan;
pub mod plot;
pub mod report;
pub mod roofline;
pub mod speedup;
pub mod statistics;
pub mod timing;
pub mod trace;
