//! Launcher of kernels/attention_sm80.cu: softmax attention read in place from the packed QKV product.

use bytemuck::NoUninit;

use super::device::Stream;
use super::launch::{Grid, Kernels};
use super::memory::Matrix;
use super::plan;
use super::tiles::ATTENTION_TILES;
use crate::error::{Error, Result};

/// One attention over a batch of sequences padded to `seq_len`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attention {
    /// `[batch · seq_len, 3 · heads · head_dim]`: all Q heads, all K heads, all V heads.
    pub(super) qkv: Matrix,
    /// `[batch · seq_len, heads · head_dim]`.
    pub(super) out: Matrix,
    /// Pointer to `batch` i32 lengths, or 0 where nothing is padded.
    pub(super) lengths: u64,
    pub(super) batch: usize,
    pub(super) seq_len: usize,
    pub(super) heads: usize,
    pub(super) head_dim: usize,
    pub(super) causal: bool,
    /// Row of [`ATTENTION_TILES`] to use instead of the planned one.
    pub(super) tile: Option<usize>,
}

/// `AttentionParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Params {
    qkv: u64,
    out: u64,
    lengths: u64,
    seq_len: i32,
    ld_qkv: i32,
    ld_out: i32,
    k_offset: i32,
    v_offset: i32,
    scale_log2: f32,
    causal: i32,
    padding: i32,
}

/// Launches the attention on `stream`.
///
/// # Safety
/// As for [`gemm::launch`](super::gemm::launch).
pub(super) unsafe fn launch(kernels: &Kernels, stream: &Stream, attention: &Attention) -> Result<()> {
    attention.check()?;
    let &Attention { qkv, out, lengths, batch, seq_len, heads, head_dim, causal, tile } = attention;
    let multiprocessors = stream.device().info().multiprocessors as usize;
    let available = |index: usize| kernels.attention[index].is_some();
    let index = match tile {
        Some(index) => index,
        None => plan::attention_tile(head_dim, seq_len, batch * heads, multiprocessors, available)
            .ok_or_else(|| unsupported_head_dim(head_dim))?,
    };
    let (tile, function) = (&ATTENTION_TILES[index], kernels.attention[index].as_ref());
    let function = function.filter(|_| tile.head_dim == head_dim).ok_or_else(|| unsupported_head_dim(head_dim))?;
    let width = heads * head_dim;
    let parameters = Params {
        qkv: qkv.pointer,
        out: out.pointer,
        lengths,
        seq_len: seq_len as i32,
        ld_qkv: qkv.stride as i32,
        ld_out: out.stride as i32,
        k_offset: width as i32,
        v_offset: 2 * width as i32,
        scale_log2: std::f32::consts::LOG2_E / (head_dim as f32).sqrt(),
        causal: causal.into(),
        padding: 0,
    };
    let grid = Grid::new(batch * seq_len.div_ceil(tile.rows()), heads);
    // SAFETY: `Params` mirrors the kernel's struct; shapes were checked above; liveness is the caller's promise.
    unsafe { function.launch(stream, grid, &parameters) }
}

/// The head widths that there are kernels for.
pub(super) fn head_dims() -> Vec<usize> {
    let mut dims: Vec<_> = ATTENTION_TILES.iter().map(|tile| tile.head_dim).collect();
    dims.dedup();
    dims
}

pub(super) fn unsupported_head_dim(head_dim: usize) -> Error {
    Error::Unsupported {
        what: format!("head_dim = {head_dim} on a GPU"),
        remedy: format!("the attention kernels are made for {:?}; use one of these, or --backend cpu", head_dims()),
    }
}

impl Attention {
    fn check(&self) -> Result<()> {
        const OPERATION: &str = "attention";
        let Self { qkv, out, lengths, batch, seq_len, heads, head_dim, .. } = *self;
        let width = heads * head_dim;
        let expected = [(batch * seq_len, 3 * width), (batch * seq_len, width)];
        for ((what, matrix), (rows, cols)) in [("QKV", qkv), ("output", out)].into_iter().zip(expected) {
            if (matrix.rows, matrix.cols) != (rows, cols) || rows * cols == 0 {
                return Err(Error::mismatch(
                    OPERATION,
                    what,
                    format!("{} × {}", matrix.rows, matrix.cols),
                    format!("{rows} × {cols} (batch {batch}, seq_len {seq_len}, {heads} heads of {head_dim})"),
                ));
            }
            matrix.check_aligned(OPERATION, what)?;
        }
        if !lengths.is_multiple_of(4) {
            return Err(Error::mismatch(OPERATION, "lengths", format!("at {lengths:#x}"), "a 4-byte aligned pointer"));
        }
        if qkv.overlaps(&out) {
            return Err(Error::mismatch(
                OPERATION,
                "output",
                format!("at {:#x}, overlapping QKV at {:#x}", out.pointer, qkv.pointer),
                "memory of its own",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_shapes_are_refused_with_their_values() {
        let matrix = |pointer, cols| Matrix { pointer, rows: 6, cols, stride: cols };
        let good = Attention {
            qkv: matrix(0x1000, 192),
            out: matrix(0x8000, 64),
            lengths: 0,
            batch: 2,
            seq_len: 3,
            heads: 2,
            head_dim: 32,
            causal: false,
            tile: None,
        };
        good.check().unwrap();
        for (bad, part) in [
            (Attention { qkv: matrix(0x1000, 128), ..good }, "6 × 128"),
            (Attention { seq_len: 4, ..good }, "8 × 192"),
            (Attention { out: matrix(0x1010, 64), ..good }, "overlapping"),
            (Attention { lengths: 0x1002, ..good }, "0x1002"),
        ] {
            let message = bad.check().unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn the_promised_head_dims_are_there() {
        assert_eq!(head_dims(), [32, 64, 80, 96, 128]);
    }
}
