//! Rotary position embeddings.

use super::{check_device, same_kind};
use crate::config::Rotary;
use crate::error::Result;
use crate::gpu::batch::Batch;
use crate::gpu::device::Stream;
use crate::gpu::gemm::{self, GemmVariant};
use crate::gpu::memory::Tensor;
use crate::gpu::rotary::{self, RotaryTable, Rotation};

/// A rotation of queries and keys by positions (arXiv 2104.09864), in place ([`rotate`]), or of what a product stores, to the same bits:
/// Hopper's kernel can, with tiles whose stores hold both columns of each pair (see [`rotates`]).
#[derive(Debug, Clone, Copy)]
pub struct Rotate<'a> {
    /// Which rows are which sequences.
    pub batch: &'a Batch,
    /// The angles.
    pub table: &'a RotaryTable,
    /// Query heads and key heads together, from the first column on.
    pub heads: usize,
    /// Width of one head.
    pub head_dim: usize,
}

impl Rotate<'_> {
    pub(super) fn lower(&self, operation: &'static str, stream: &Stream) -> Result<Rotation> {
        let &Self { batch, table, heads, head_dim } = self;
        batch.check_device(operation, stream.device())?;
        check_device(operation, stream, table.device())?;
        Ok(Rotation::new(table, batch.sequences(), heads, head_dim))
    }
}

/// Whether that variant can rotate heads of that width as it finishes them: see [`Rotate`].
pub fn rotates(variant: GemmVariant, rotary: &Rotary, head_dim: usize) -> bool {
    gemm::rotates(variant, rotary, head_dim)
}

/// Rotates the first `table.rotary().dim` columns of every query and key head of `qkv`, `[rows, heads · head_dim]` or wider (packed as
/// [`Attention`](super::Attention) takes it), by the angles of their positions, which are counted from each sequence's start. Rows of
/// padding are left alone.
///
/// # Errors
/// As [`gemm`](super::gemm()); [`Error::InvalidConfig`](crate::Error::InvalidConfig) for more dimensions than a head has;
/// [`Error::Mismatch`](crate::Error::Mismatch) for a sequence that is longer than the table.
pub fn rotate(stream: &Stream, rotate: &Rotate<'_>, qkv: &mut Tensor) -> Result<()> {
    const OPERATION: &str = "rotary";
    let dtype = same_kind(OPERATION, stream, [&*qkv])?;
    let rotation = rotate.lower(OPERATION, stream)?;
    let kernels = stream.device().kernels(dtype)?;
    stream.device().enter()?;
    // SAFETY: the operands are borrowed, checked, and wait for the device before they are freed.
    unsafe { rotary::launch(kernels, stream, qkv.matrix(), &rotation, false) }
}
