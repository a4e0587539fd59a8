//! What the kernels of a layer compute, read and write, each kernel counted for itself.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::{BatchShape, Design, LayerConfig};

/// The work of one kernel on one batch.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Kernel {
    pub(super) name: &'static str,
    /// Of its product, as [`LayerConfig::flops`] counts them; 0 for norms and gates.
    pub(super) flops: f64,
    /// Weights, biases, γ and β.
    pub(super) weight_bytes: f64,
    /// Each matrix of activations that it reads.
    pub(super) reads: Vec<f64>,
    /// And that it writes.
    pub(super) writes: Vec<f64>,
}

impl Kernel {
    /// Bytes that go through memory: weights always; a matrix of activations if it is larger than the cache, in which it else
    /// stays from the kernel that makes it to the one that reads it.
    pub(super) fn memory_bytes(&self, l2_bytes: u64) -> f64 {
        let activations = self.reads.iter().chain(&self.writes).filter(|&&bytes| bytes > l2_bytes as f64);
        self.weight_bytes + activations.sum::<f64>()
    }
}

/// The work of one block, or of several kernels.
#[derive(Debug, Clone, Copy, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Block {
    /// Floating-point operations of its products (a multiply-add counts two).
    pub flops: f64,
    /// Weights, biases, γ and β, each once.
    pub weight_bytes: f64,
    /// Activations that its kernels read, each kernel's for itself.
    pub read_bytes: f64,
    /// Activations that they write.
    pub written_bytes: f64,
    /// `flops` over all bytes: its arithmetic intensity.
    pub flops_per_byte: f64,
}

impl Block {
    pub(super) fn of<'a>(kernels: impl IntoIterator<Item = &'a Kernel>) -> Self {
        let (mut flops, mut weight_bytes, mut read_bytes, mut written_bytes) = (0.0, 0.0, 0.0, 0.0);
        for kernel in kernels {
            flops += kernel.flops;
            weight_bytes += kernel.weight_bytes;
            read_bytes += kernel.reads.iter().sum::<f64>();
            written_bytes += kernel.writes.iter().sum::<f64>();
        }
        let flops_per_byte = flops / (weight_bytes + read_bytes + written_bytes);
        Self { flops, weight_bytes, read_bytes, written_bytes, flops_per_byte }
    }

    /// Weights and activations together.
    pub fn bytes(&self) -> f64 {
        self.weight_bytes + self.read_bytes + self.written_bytes
    }
}

/// The kernels of one layer in the middle of a stack, in both designs. Padding is not counted; queries and keys are rotated by the
/// product that makes them.
pub(super) struct Layer {
    /// QKV product, attention, output projection.
    pub(super) attention: Vec<Kernel>,
    /// First product, gate, second product.
    pub(super) ffn: Vec<Kernel>,
    /// What follows either in the serial design: residual sum and norm.
    pub(super) serial_join: Kernel,
    /// What follows both in the parallel design.
    pub(super) parallel_join: Kernel,
}

impl Layer {
    /// Of a layer in the parallel design, with elements of `element_bytes`.
    pub(super) fn new(config: &LayerConfig, shape: &BatchShape, element_bytes: usize) -> Self {
        let (h, f, first) = (config.hidden_size, config.intermediate_size, config.first_size());
        let (q, qkv) = (config.query_size(), config.qkv_size());
        let tokens = shape.tokens();
        let bytes = |elements: usize| (elements * element_bytes) as f64;
        let activations = |cols: usize| bytes(tokens * cols);
        let product = |name, n: usize, k: usize| Kernel {
            name,
            flops: 2.0 * tokens as f64 * n as f64 * k as f64,
            weight_bytes: bytes(n * k + n),
            reads: vec![activations(k)],
            writes: vec![activations(n)],
        };
        let pairs = |i: usize| {
            let len = shape.length(i) as f64;
            if config.causal { len * (len + 1.0) / 2.0 } else { len * len }
        };
        let attention = Kernel {
            name: "attention",
            flops: 4.0 * q as f64 * (0..shape.batch()).map(pairs).sum::<f64>(),
            weight_bytes: 0.0,
            reads: vec![activations(qkv)],
            writes: vec![activations(q)],
        };
        let gate = config.gated.then(|| Kernel {
            name: "gate",
            flops: 0.0,
            weight_bytes: 0.0,
            reads: vec![activations(first)],
            writes: vec![activations(f)],
        });
        // Where norms come first, a join stores the sum, and the norms of it that follow.
        let join = |addends: usize, norms: usize| Kernel {
            name: "join",
            flops: 0.0,
            weight_bytes: bytes(norms * 2 * h),
            reads: vec![activations(h); addends],
            writes: vec![activations(h); norms + usize::from(!config.design.is_post_norm())],
        };
        let parallel_norms = if config.design == Design::PafPreNormTwo { 2 } else { 1 };
        Self {
            attention: vec![product("QKV", qkv, h), attention, product("Wo", h, q)],
            ffn: [Some(product("W1", first, h)), gate, Some(product("W2", h, f))].into_iter().flatten().collect(),
            serial_join: join(2, 1),
            parallel_join: join(3, parallel_norms),
        }
    }

    /// The attention block of the serial design.
    pub(super) fn attention_block(&self) -> impl Iterator<Item = &Kernel> + Clone {
        self.attention.iter().chain([&self.serial_join])
    }

    /// The FFN block of the serial design.
    pub(super) fn ffn_block(&self) -> impl Iterator<Item = &Kernel> + Clone {
        self.ffn.iter().chain([&self.serial_join])
    }
}
