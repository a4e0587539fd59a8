//! Stacks of layers beside PyTorch's: eager, on two streams, in wide products, compiled, in both designs, in a process of its own that
//! takes turns with ours.

mod anchors;
mod experiment;
mod peer;
mod report;

pub use anchors::anchors;
pub use experiment::{Experiment, Subject};
pub use peer::{Peer, Way};
pub use report::{Absent, Case, Missing, PeerRow, Report, SCHEMA, Stack, Versions};
