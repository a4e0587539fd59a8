//! Measuring the speedup of the parallel design over the serial one, so that a sceptic can check it.
//!
//! Everything is verified before it is timed ([`speedup`]); samples of the things compared are interleaved, and ratios are
//! paired ([`timing`]); intervals assume nothing about the distribution ([`statistics`]); each time stands beside the
//! time that the machine's ceilings allow ([`roofline`]), and beside PyTorch's ([`compare`]); every raw sample is kept ([`report`]),
//! and drawn ([`plot`], [`page`]). What casts doubt on a measurement is said beside it ([`warnings`]), and an earlier result can be
//! compared with it ([`baseline`]). The result files have schemas ([`schema`]).

pub mod attention;
mod backend;
pub mod baseline;
pub mod compare;
pub mod complexity;
pub mod devices;
pub mod gemm;
pub mod kernels;
mod machine;
pub mod norm;
pub mod page;
pub mod peak;
mod peer;
pub mod plan;
mod plant;
pub mod plot;
pub mod report;
pub mod results;
pub mod roofline;
pub mod schema;
pub mod speedup;
#[cfg(feature = "cuda")]
pub mod spot;
pub mod statistics;
pub mod timing;
pub mod trace;
pub mod warnings;
