//! What attention and FFN cost, block by block: counted, predicted from a device's ceilings, and, where there is the device, measured.
//!
//! The question is that of arXiv 2305.13297, which compares the time complexities of the two blocks and derives from them how much
//! faster a layer can be that runs both at once: `(A + F) / max(A, F)`, twice at most, if neither slows the other down. Here blocks
//! that run at once share the device: see [`Predicted`].
//!
//! A block is what the serial design (SAF) has one after the other: attention with its projections, FFN, each with the residual
//! sum and the norm behind it. Per token at equal widths (`d = hidden_size`, FFN of `4d`, `n = seq_len`) attention takes
//! `8d² + 4nd` FLOPs and the FFN `16d²`: attention is the more expensive one from `n = 2d` on ([`crossover_seq_len`]).

mod crossover;
mod experiment;
mod predict;
mod report;
mod work;

pub use crossover::crossover_seq_len;
pub use experiment::Experiment;
#[cfg(feature = "cuda")]
pub use experiment::Step;
pub use predict::{Bound, Predicted};
pub use report::{Case, Measured, Report, Row, SCHEMA, Subject};
pub use work::Block;

#[cfg(test)]
mod tests;
