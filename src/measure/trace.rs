//! A timeline of one forward call: when each kernel ran, on which stream, as a file that Chrome's `about:tracing` and Perfetto open.
//!
//! Kernels run *together* while one of attention's branch (`qkv`, `rotation`, `attention`, `wo`) and one of the FFN's (`w1`, `gate`, `w2`)
//! run; wide products (`wide-first`, `wide-second`) count as the FFN's, since what runs beside them is attention. The time together is
//! given as a share of the time of the branch whose kernels run for the shorter time: 0 where one waits for the other, 1 where the
//! shorter one is hidden. The idle share is that of the time from the first kernel's start to the last one's end in which none runs.
//!
//! A kernel that may begin early (programmatic dependent launch) is drawn from its first block's start on. It waits until the kernel
//! before it on its stream has ended, and counts as running from then on. Two do not wait for that: attention after a wide product,
//! which waits for Q, K and V alone, and the wide product after attention, whose first part of K is there. They count from their
//! start on, and so does what they wait: with them the time together is an upper bound.

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

#[cfg(test)]
pub(super) use timeline::tests::example;
