//! A timeline of one forward call: when each kernel ran, on which stream, as a file that Chrome's `about:tracing` and Perfetto open.
//!
//! Kernels run *together* while one of attention's branch (`qkv`, `rotation`, `attention`, `wo`) and one of the FFN's (`w1`, `gate`, `w2`)
//! run; wide products (`wide-first`, `wide-second`) count as the FFN's, since what runs beside them is attention. The overlap fraction is
//! the time together over that of the branch whose kernels run for the shorter time: 0 where one waits for the other, 1 where the
//! shorter one is hidden. A kernel that began early and waits (programmatic dependent launch) counts as running from its first block's
//! start on. The idle share is that of the time from the first kernel's start to the last one's end in which none runs.

#[cfg(feature = "cuda")]
mod assign;
#[cfg(feature = "cuda")]
mod experiment;
mod summary;
mod timeline;

#[cfg(feature = "cuda")]
pub use experiment::{Experiment, Source};
pub use summary::{Summary, Total};
pub use timeline::{About, Arguments, Event, SCHEMA, Slice, Trace};
