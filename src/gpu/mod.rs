//! The GPU engine: hand-written CUDA kernels, and the schedules that launch them.
//!
//! A forward call needs a [`Device`], an [`Encoder`] (a configuration with weights on that device), a [`Batch`] (how many
//! sequences of what lengths), a [`Workspace`], and a [`Stream`] of the caller's. It enqueues work and returns: no
//! allocation, no synchronisation, no default stream. With [`Schedule::TwoStream`](crate::Schedule::TwoStream)
//! or [`Schedule::Hybrid`](crate::Schedule::Hybrid) the workspace's two internal streams are forked from the caller's stream and
//! joined to it again by events.
//!
//! A [`Plan`] is such a schedule, with the variants of kernels that it shall use; a schedule alone leaves these to an estimate. A
//! [`Planner`] finds the fastest plan for a batch shape by measuring, and can keep it in a file.
//!
//! A [`Model`] is an encoder with what a language model has around its layers: from token ids to hidden states, which stay on the
//! device in a [`ModelWorkspace`], and from these to logits or pooled vectors. Unlike the encoder's, its calls copy from and to the host.
//!
//! Other programs' contexts, streams and memory are taken as they are: safely as cudarc has them ([`Device::from_cudarc`],
//! [`Stream::from_cudarc`], [`Encoder::forward_slices`]), and raw ([`Device::from_context`], [`Stream::from_raw`],
//! [`Tensor::from_raw`], [`Batch::from_raw`], [`Workspace::lend`], [`EncoderWeights::upload_borrowed`]). With the feature `dlpack`, `Tensor::from_dlpack` and `into_dlpack`.
//! [`ffi`](crate::ffi) has the same for C.
//!
//! [`Encoder::capture`] records the same launches into a [`Graph`], which replays them at a fraction of the host's cost.

mod attention;
mod batch;
mod borrowed;
#[cfg(feature = "cli")]
pub mod cupti;
mod device;
#[cfg(feature = "dlpack")]
mod dlpack;
mod embed;
mod encoder;
mod gate;
mod gemm;
mod graph;
pub mod kernel;
mod launch;
mod memory;
mod model;
mod norm;
pub mod observe;
mod once;
#[cfg(feature = "cli")]
pub mod peer;
mod plan;
pub mod ptx;
mod rotary;
mod schedule;
mod staging;
pub(crate) mod tiles;
mod workspace;

pub use batch::{Batch, BorrowedSequences};
pub(crate) use borrowed::CurrentContext;
pub use borrowed::{BorrowedLayer, Element, ElementType, Location};
pub use cudarc;
pub use device::{Device, DeviceInfo, Event, Stream, device_count, driver_version};
#[cfg(feature = "dlpack")]
pub use dlpk;
pub use encoder::{Encoder, EncoderWeights};
pub use graph::{Edges, Graph};
pub use memory::{Floats, Tensor};
pub use model::{Model, ModelWorkspace};
pub use plan::{LayerProduct, Plan, Planned, Planner, Timed};
pub use workspace::{Branch, Workspace};

pub use crate::cpu::Pooling;
