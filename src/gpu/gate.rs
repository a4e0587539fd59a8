//! Launcher of kernels/gate_sm80.cu: `out = act(gate) ∘ inner`, of what a gated FFN's first product made.

use bytemuck::NoUninit;

use super::device::Stream;
use super::launch::{Grid, Kernels};
use super::memory::Matrix;
use crate::config::HiddenAct;
use crate::error::{Error, Result};

pub(super) const THREADS: u32 = 256;
/// Elements of a vector access.
const VECTOR: usize = 8;
/// Most rows, and columns of `out`: keeps blocks and columns inside 32 bits.
const MAX_DIMENSION: usize = 1 << 20;

/// One gate.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gate {
    pub(super) act: HiddenAct,
    /// `[rows, 2 · out.cols]`: the gate's columns, then the inner layer's.
    pub(super) both: Matrix,
    /// Memory of its own, or the gate's columns of `both`.
    pub(super) out: Matrix,
}

/// `GateParams` of the kernels.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Params {
    both: u64,
    out: u64,
    cols: i32,
    ld: i32,
    ld_out: i32,
    column_blocks: i32,
}

/// Launches the gate on `stream`. It begins when what was launched there before has ended.
///
/// # Safety
/// As for [`gemm::launch`](super::gemm::launch).
pub(super) unsafe fn launch(kernels: &Kernels, stream: &Stream, gate: &Gate) -> Result<()> {
    gate.check()?;
    let &Gate { act, both, out } = gate;
    let column_blocks = out.cols.div_ceil(THREADS as usize * VECTOR);
    let parameters = Params {
        both: both.pointer,
        out: out.pointer,
        cols: out.cols as i32,
        ld: both.stride as i32,
        ld_out: out.stride as i32,
        column_blocks: column_blocks as i32,
    };
    let index = HiddenAct::ALL.iter().position(|&known| known == act).expect("all activations are there");
    // SAFETY: `Params` mirrors the kernels' struct; shapes were checked above; liveness is the caller's promise.
    unsafe { kernels.gate[index].launch(stream, Grid::new(out.rows * column_blocks, 1), &parameters) }
}

impl Gate {
    fn check(&self) -> Result<()> {
        const OPERATION: &str = "gate";
        let Self { both, out, .. } = self;
        let fits = (1..=MAX_DIMENSION).contains(&out.rows) && (1..=MAX_DIMENSION).contains(&out.cols);
        if !fits || !out.cols.is_multiple_of(VECTOR) || (both.rows, both.cols) != (out.rows, 2 * out.cols) {
            return Err(Error::mismatch(
                OPERATION,
                "shapes",
                format!("{} × {} of {} × {}", out.rows, out.cols, both.rows, both.cols),
                format!("M×N of M×2N, 1 to {MAX_DIMENSION} each, N a multiple of {VECTOR}"),
            ));
        }
        both.check_aligned(OPERATION, "gate and inner layer")?;
        out.check_aligned(OPERATION, "output")?;
        let in_place = (both.pointer, both.stride) == (out.pointer, out.stride);
        if !in_place && both.overlaps(out) {
            return Err(Error::mismatch(
                OPERATION,
                "output",
                format!("at {:#x}, partly overlapping the operands at {:#x}", out.pointer, both.pointer),
                "the gate's own columns or memory of its own",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_operands_are_refused_with_their_values() {
        let matrix = |pointer, cols, stride| Matrix { pointer, rows: 3, cols, stride };
        let good = Gate { act: HiddenAct::Silu, both: matrix(0x1000, 32, 40), out: matrix(0x1000, 16, 40) };
        good.check().unwrap();
        Gate { out: matrix(0x2000, 16, 16), ..good }.check().unwrap();
        for (bad, part) in [
            (Gate { both: matrix(0x1000, 24, 40), ..good }, "3 × 16 of 3 × 24"),
            (Gate { both: matrix(0x1000, 24, 40), out: matrix(0x2000, 12, 16), ..good }, "3 × 12"),
            (Gate { out: Matrix { rows: 4, ..good.out }, ..good }, "4 × 16 of 3 × 32"),
            (Gate { both: Matrix { rows: 0, ..good.both }, out: Matrix { rows: 0, ..good.out }, ..good }, "0 × 16"),
            // The inner layer's columns; the gate's with other rows.
            (Gate { out: matrix(0x1020, 16, 40), ..good }, "at 0x1020, partly overlapping"),
            (Gate { out: matrix(0x1000, 16, 16), ..good }, "at 0x1000, partly overlapping"),
            (Gate { out: matrix(0x2008, 16, 16), ..good }, "0x2008"),
            (Gate { both: matrix(0x1000, 32, 36), ..good }, "stride 36"),
        ] {
            let message = bad.check().unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }
}
