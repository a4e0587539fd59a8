#![deny(missing_docs)]
//! (front page to come)

pub mod config;
pub mod cpu;
mod dtype;
mod error;
#[cfg(feature = "cuda")]
pub mod gpu;
#[cfg(feature = "cli")]
pub mod measure;
pub mod verify;
pub mod weights;

pub use config::{BatchShape, Design, EncoderConfig, HiddenAct, LayerConfig, Schedule};
pub use dtype::Dtype;
pub use error::{Error, Result};
