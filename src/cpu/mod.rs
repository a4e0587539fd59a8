//! Layers on the CPU: [`oracle`], the plain f64 reference that every test compares with, and [`Encoder`], the f32 engine
//! for machines without a GPU.

mod engine;
pub mod oracle;

pub use engine::{Encoder, Workspace};
