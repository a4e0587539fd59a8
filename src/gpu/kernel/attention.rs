//! Attention.

use super::{check_device, same_kind};
use crate::error::{Error, Result};
use crate::gpu::attention::{self, AttentionVariant, sm80, sm90};
use crate::gpu::batch::Batch;
use crate::gpu::device::{Device, Stream};
use crate::gpu::graph::Graph;
use crate::gpu::memory::{Floats, Matrix, Tensor};
use crate::gpu::tiles::AttentionTile;

/// Attention to compute: `softmax(Q·Kᵀ/√head_dim)·V` for each sequence of a batch and each head.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Which rows are which sequences. Padded keys get no weight, padded rows become zeros.
    pub batch: &'a Batch,
    /// `[rows, (heads + 2 · key_value_heads) · head_dim]`: all query heads, all key heads, all value heads.
    pub qkv: &'a Tensor,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads, a divisor of `heads`: head `h` reads key and value head `h / (heads / key_value_heads)`.
    pub key_value_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Whether a position attends only to itself and to earlier ones.
    pub causal: bool,
    /// `None` leaves the choice to the planner.
    pub variant: Option<AttentionVariant>,
    /// Lets the kernel begin while the kernel before it on the stream still runs (programmatic dependent launch); a kernel that cannot
    /// ignores it. Neither that kernel nor an earlier one must write the batch's lengths, back to and with the last one on the stream that
    /// was launched without overlap: those in between may not have ended either.
    pub overlap: bool,
}

impl<'a> Attention<'a> {
    /// Not causal, with as many key and value heads as query heads.
    pub fn new(batch: &'a Batch, qkv: &'a Tensor, heads: usize, head_dim: usize) -> Self {
        let (causal, variant, overlap) = (false, None, false);
        Self { batch, qkv, heads, key_value_heads: heads, head_dim, causal, variant, overlap }
    }

    /// As the launchers take it.
    fn lower(&self, log_sum_exp: u64, out: Matrix) -> attention::Attention {
        let &Self { batch, qkv, heads, key_value_heads, head_dim, causal, variant, overlap } = self;
        attention::Attention {
            qkv: qkv.matrix(),
            out,
            log_sum_exp,
            sequences: batch.sequences(),
            heads,
            key_value_heads,
            head_dim,
            causal,
            variant,
            overlap,
            next: attention::Next::NearEnd,
            beside: false,
            ready: None,
        }
    }
}

/// The ways in which `device` could compute attention with heads of that width; empty where there is no kernel for it.
pub fn attention_variants(device: &Device, head_dim: usize) -> Vec<AttentionVariant> {
    let fits = |tile: &&AttentionTile| tile.shared_bytes() <= device.info().shared_bytes_per_block;
    let portable = sm80::tiles(head_dim).filter(fits).map(|tile| AttentionVariant::Sm80 { rows: tile.rows() });
    let hopper = [false, true].into_iter().flat_map(|half| sm90::of_width(head_dim, half).map(sm90::variant));
    portable.chain(hopper.filter(|_| device.uses_hopper_kernels())).collect()
}

/// What the planner chooses for `attention`, whatever variant that names.
///
/// # Errors
/// As [`attention`].
pub fn planned_attention(attention: &Attention<'_>) -> Result<AttentionVariant> {
    let (device, dtype) = (attention.qkv.device(), attention.qkv.dtype());
    attention::planned(device.kernels(dtype)?, device, &attention.lower(0, attention.qkv.matrix()))
}

/// Enqueues `out = attention`, `[rows, heads · head_dim]`. `log_sum_exp`, `[heads, rows]`, gets the natural logarithm of the
/// softmax's denominator, `ln Σ exp(q·k/√head_dim)` over the keys that a row sees; −∞ in rows of padding.
///
/// # Errors
/// As [`gemm`](super::gemm()); [`Error::Unsupported`] for a head width without a kernel.
pub fn attention(
    stream: &Stream,
    attention: &Attention<'_>,
    out: &mut Tensor,
    log_sum_exp: Option<&mut Floats>,
) -> Result<()> {
    const OPERATION: &str = "attention";
    let dtype = same_kind(OPERATION, stream, [attention.qkv, out])?;
    attention.batch.check_device(OPERATION, stream.device())?;
    if let Some(floats) = &log_sum_exp {
        let expected = attention.heads.saturating_mul(attention.batch.shape().rows());
        if floats.len() != expected {
            return Err(Error::mismatch(OPERATION, "length of log-sum-exp", floats.len(), expected));
        }
        check_device(OPERATION, stream, floats.device())?;
    }
    let attention = attention.lower(log_sum_exp.map_or(0, |floats| floats.pointer()), out.matrix());
    let kernels = stream.device().kernels(dtype)?;
    stream.device().enter()?;
    // SAFETY: the operands are borrowed, checked, and wait for the device before they are freed.
    unsafe { attention::launch(kernels, stream, &attention) }
}

/// Records attentions into a graph, one after the other into the same `out`, which with their operands stays borrowed.
///
/// # Errors
/// As [`attention()`]; [`Error::Cuda`] for an empty list.
pub fn record_attentions<'a>(stream: &Stream, attentions: &[Attention<'a>], out: &'a mut Tensor) -> Result<Graph<'a>> {
    // What a variant needs is loaded before the capture, in which nothing may be.
    for attention in attentions {
        let kernels = stream.device().kernels(attention.qkv.dtype())?;
        if let Some(AttentionVariant::Sm80 { .. }) = attention.variant {
            kernels.attention_sm80(stream.device())?;
        }
    }
    Graph::record(stream, || attentions.iter().try_for_each(|of| attention(stream, of, out, None)))
}
