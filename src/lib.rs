#![deny(missing_docs)]
#![deny(unsafe_op_in_unsafe_fn)]
//! Transformer layers whose attention and feed-forward blocks run **at the same time** on one GPU.
//!
//! In the parallel design (PAF: GPT-J, GPT-NeoX, Pythia, Falcon, Phi, Command-R; arXiv 2305.13297) attention and FFN read
//! the same input and meet in one residual sum, so nothing keeps them from overlapping. This crate has hand-written CUDA kernels for
//! such layers and for the serial design (SAF: BERT, RoBERTa, GPT-2), the runtime that puts a layer's attention on one stream
//! and its FFN on another and joins them by events before the residual add, and the measuring that says what it is worth.
//!
//! On the CPU, in f32 — the same layers, for machines without a GPU:
//!
//! ```
//! use std::sync::Arc;
//!
//! use paf_cuda::weights::{random_activations, random_layers};
//! use paf_cuda::{BatchShape, Design, EncoderConfig, LayerConfig, Schedule, cpu};
//!
//! // Two post-norm PAF layers of 128 wide, 4 heads, FFN of 512.
//! let layer = LayerConfig { design: Design::PafPostNorm, ..LayerConfig::new(128, 4, 512)? };
//! let config = EncoderConfig { layer, num_hidden_layers: 2 };
//! let weights: Vec<_> = random_layers(&config, 1).collect();
//!
//! // Two sequences, padded to 16 tokens; the second has 9. Activations are [batch · seq_len, hidden_size].
//! let shape = BatchShape::new(2, 16)?.with_lengths(vec![16, 9])?;
//! let x = random_activations(shape.rows(), 128, 2);
//! let mut y = vec![0.0; x.len()];
//!
//! let encoder = cpu::Encoder::new(config, Arc::new(weights))?;
//! let mut workspace = encoder.workspace(&shape)?;
//! encoder.forward(Schedule::TwoStream, &shape, &x, &mut y, &mut workspace)?;
//! assert!(y[25 * 128..].iter().all(|&padding| padding == 0.0));
//! # Ok::<(), paf_cuda::Error>(())
//! ```
//!
//! On a GPU, in bf16, on the caller's stream:
//!
//! ```
//! # #[cfg(feature = "cuda")]
//! fn run() -> paf_cuda::Result<Vec<f32>> {
//!     use std::sync::Arc;
//!
//!     use paf_cuda::gpu::{Batch, Device, Encoder, EncoderWeights, Stream, Tensor};
//!     use paf_cuda::weights::{random_activations, random_layers};
//!     use paf_cuda::{BatchShape, Dtype, Schedule, config};
//!
//!     let device = Device::new(0)?;
//!     let config = config::preset("roberta-large")?.config;
//!     let config = config.with_design(config.layer.design.parallel());
//!     let weights = EncoderWeights::upload(&device, &config, Dtype::Bf16, random_layers(&config, 1))?;
//!     let encoder = Encoder::new(&config, Arc::new(weights))?;
//!
//!     let batch = Batch::new(&device, &BatchShape::new(1, 128)?)?;
//!     let x = Tensor::from_host(&device, Dtype::Bf16, 128, 1024, &random_activations(128, 1024, 2))?;
//!     let mut y = Tensor::poisoned(&device, Dtype::Bf16, 128, 1024)?;
//!     let mut workspace = encoder.workspace(&batch)?;
//!     let stream = Stream::new(&device)?;
//!     encoder.forward(&stream, Schedule::TwoStream, &batch, &x, &mut y, &mut workspace)?; // returns at once
//!     y.to_host() // waits
//! }
//! # #[cfg(feature = "cuda")]
//! match run() {
//!     Ok(y) => assert!(y.iter().all(|y| y.is_finite())),
//!     Err(error) => println!("{error}"), // "no CUDA driver: …" on a machine without one
//! }
//! ```
//!
//! Whole models are [`cpu::Model`] and [`gpu::Model`]: with the feature `checkpoint` made of a folder in Hugging Face's format by
//! `from_pretrained`.
//!
//! # Modules
//!
//! Data flows one way: [`config`] → [`weights`] → encoder ([`gpu`], [`cpu`]) → launches → output.
//!
//! | module | what |
//! |---|---|
//! | [`config`] | what a layer is: dimensions, design, activation, gate, rotary embedding; presets; the batch's shape |
//! | [`weights`] | host-side weights, row-major f32 as PyTorch stores them |
//! | [`checkpoint`] | models in Hugging Face's format, memory-mapped |
//! | [`gpu`] | kernels, streams, schedules, graphs; whole models |
//! | [`ffi`] | the C ABI of `include/paf.h` |
//! | [`cpu`] | the f32 engine, whole models on it, and the f64 oracle that everything is checked against |
//! | [`verify`] | what is checked, and how far it may be off |
//! | [`measure`] | verified, interleaved, paired measurement of the speedup |
//!
//! # Features
//!
//! `cuda` (default): kernels and GPU engine; the build needs nvcc. `cli` (default): the `paf` program and [`measure`].
//! `checkpoint` (default): [`checkpoint`]. `tokenizers`: `checkpoint::Tokenizer`, from texts to token ids;
//! with `cli`, `paf run`.
//! `dlpack`: tensors from and to other libraries without a copy.
//! With `--no-default-features` the crate is the CPU library and needs no nvcc.

/// The README's examples, compiled and run as documentation tests.
#[cfg(all(doctest, feature = "checkpoint", feature = "cuda"))]
#[doc = include_str!("../README.md")]
pub struct Readme;

#[cfg(feature = "checkpoint")]
pub mod checkpoint;
pub mod config;
pub mod cpu;
mod dtype;
mod error;
#[cfg(feature = "cuda")]
pub mod ffi;
#[cfg(feature = "cuda")]
pub mod gpu;
#[cfg(feature = "cli")]
pub mod measure;
#[cfg(any(feature = "cli", feature = "cuda"))]
mod turns;
pub mod verify;
pub mod weights;

pub use config::{BatchShape, Design, EncoderConfig, HiddenAct, LayerConfig, Schedule};
pub use dtype::Dtype;
pub use error::{Error, Result};
