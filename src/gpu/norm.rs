//! Launcher of kernels/norm_sm80.cu and norm_sm90.cu: the join of up to three addends, and up to two layer norms of their sum.

use bytemuck::NoUninit;

use super::device::Stream;
use super::launch::{Grid, Kernels};
use super::memory::Matrix;
use super::plan;
use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// One instantiation in kernels/norm.cuh or norm_rows.cuh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NormKernel {
    pub(super) name: &'static str,
    /// Threads that share a row.
    pub(super) row_threads: usize,
    /// Vectors of eight elements that a thread holds.
    pub(super) chunks: usize,
    /// Threads of a block.
    pub(super) threads: u32,
    /// Blocks that share a multiprocessor.
    pub(super) blocks: usize,
    /// For no more rows than those have at once.
    pub(super) few: bool,
}

impl NormKernel {
    pub(super) const ALL: [Self; 9] = [
        Self { name: "warp_1", row_threads: 32, chunks: 1, threads: 128, blocks: 8, few: false },
        Self { name: "warp_2", row_threads: 32, chunks: 2, threads: 128, blocks: 6, few: false },
        Self { name: "warp_4", row_threads: 32, chunks: 4, threads: 128, blocks: 5, few: false },
        Self { name: "block_128", row_threads: 128, chunks: 1, threads: 128, blocks: 8, few: false },
        Self { name: "block_256_few", row_threads: 256, chunks: 1, threads: 256, blocks: 2, few: true },
        Self { name: "block_256_1", row_threads: 256, chunks: 1, threads: 256, blocks: 4, few: false },
        Self { name: "block_512_few", row_threads: 512, chunks: 1, threads: 512, blocks: 1, few: true },
        Self { name: "block_256", row_threads: 256, chunks: 2, threads: 256, blocks: 3, few: false },
        Self { name: "block_512", row_threads: 512, chunks: 4, threads: 512, blocks: 1, few: false },
    ];

    /// Of kernels/norm_rows.cuh: for rows that are just as wide, many of them, without parts.
    pub(super) const ROWS: [Self; 2] = [
        Self { name: "3", row_threads: 32, chunks: 3, threads: 128, blocks: 4, few: false },
        Self { name: "4", row_threads: 32, chunks: 4, threads: 128, blocks: 4, few: false },
    ];

    /// The widest row that it holds.
    pub(super) const fn max_hidden(&self) -> usize {
        self.row_threads * self.chunks * 8
    }

    pub(super) const fn rows_per_block(&self) -> usize {
        self.threads as usize / self.row_threads
    }
}

/// The widest row that some kernel holds.
pub(super) const MAX_HIDDEN: usize = NormKernel::ALL[NormKernel::ALL.len() - 1].max_hidden();

/// A norm of the sum: where it goes, and its γ and β (`hidden` elements each).
#[derive(Debug, Clone, Copy)]
pub(super) struct NormOutput {
    pub(super) out: Matrix,
    pub(super) gamma: u64,
    pub(super) beta: u64,
}

/// What a product has left to be added up, of parts of K: see `Gemm::sums`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parts {
    /// fp32 `[count, rows, hidden]`.
    pub(super) sums: u64,
    pub(super) count: usize,
    /// The product's bias, `hidden` elements, or 0.
    pub(super) bias: u64,
}

/// `s = Σ addends [+ Σ parts + bias]`, and norms of it. Outputs may be addends; they may not be each other.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Join {
    /// One to three, all of one shape, without gaps between rows.
    pub(super) addends: [Option<Matrix>; 3],
    pub(super) parts: Option<Parts>,
    /// Where the sum goes, if anywhere.
    pub(super) sum: Option<Matrix>,
    pub(super) norms: [Option<NormOutput>; 2],
    /// Pointer to i32 lengths of the sequences, or 0; rows past a length become zeros in every output.
    pub(super) lengths: u64,
    pub(super) seq_len: usize,
    pub(super) eps: f32,
    /// Programmatic dependent launch: only γ and β are read before the kernel before this one has ended. A hint.
    pub(super) overlap: bool,
}

/// `NormParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Params {
    addends: [u64; 3],
    parts: u64,
    bias: u64,
    sum: u64,
    out: [u64; 2],
    gamma: [u64; 2],
    beta: [u64; 2],
    lengths: u64,
    rows: i32,
    hidden: i32,
    seq_len: i32,
    part_count: i32,
    eps: f32,
    padding: i32,
}

/// Launches the join on `stream`.
///
/// # Safety
/// As for [`gemm::launch`](super::gemm::launch).
pub(super) unsafe fn launch(kernels: &Kernels, stream: &Stream, join: &Join) -> Result<()> {
    let (rows, hidden) = join.check()?;
    let multiprocessors = stream.device().info().multiprocessors as usize;
    let of_rows = plan::norm_rows_kernel(rows, hidden, multiprocessors).filter(|_| join.parts.is_none());
    let (kernel, function) = match of_rows {
        Some(index) => (&NormKernel::ROWS[index], &kernels.norm_rows[index]),
        None => {
            let index = plan::norm_kernel(rows, hidden, multiprocessors);
            let functions = if join.parts.is_some() { &kernels.norm_parts } else { &kernels.norm };
            (&NormKernel::ALL[index], &functions[index])
        }
    };
    let pointer = |matrix: Option<Matrix>| matrix.map_or(0, |matrix| matrix.pointer);
    let parameters = Params {
        addends: join.addends.map(pointer),
        parts: join.parts.map_or(0, |parts| parts.sums),
        bias: join.parts.map_or(0, |parts| parts.bias),
        sum: pointer(join.sum),
        out: join.norms.map(|norm| pointer(norm.map(|norm| norm.out))),
        gamma: join.norms.map(|norm| norm.map_or(0, |norm| norm.gamma)),
        beta: join.norms.map(|norm| norm.map_or(0, |norm| norm.beta)),
        lengths: join.lengths,
        rows: rows as i32,
        hidden: hidden as i32,
        seq_len: join.seq_len as i32,
        part_count: join.parts.map_or(0, |parts| parts.count as i32),
        eps: join.eps,
        padding: 0,
    };
    let blocks = rows.div_ceil(kernel.rows_per_block());
    // Of many rows a block takes one (four) after the other; parts, which few rows have, are added by a block for each.
    let blocks = if join.parts.is_some() { blocks } else { blocks.min(multiprocessors * kernel.blocks) };
    let grid = Grid { overlap: join.overlap && kernels.overlaps, ..Grid::new(blocks, 1) };
    // SAFETY: `Params` mirrors the kernel's struct; shapes were checked above; liveness is the caller's promise.
    unsafe { function.launch(stream, grid, &parameters) }
}

impl Join {
    /// Shape of the addends, if everything fits it.
    fn check(&self) -> Result<(usize, usize)> {
        const OPERATION: &str = "norm";
        let first = self.addends[0].ok_or_else(|| Error::mismatch(OPERATION, "number of addends", 0, "1 to 3"))?;
        let (rows, hidden) = (first.rows, first.cols);
        if rows == 0 || hidden == 0 || !hidden.is_multiple_of(8) || hidden > MAX_HIDDEN || self.seq_len == 0 {
            return Err(Error::mismatch(
                OPERATION,
                "shape",
                format!("{rows} × {hidden}, seq_len {}", self.seq_len),
                format!("rows, hidden a multiple of 8 up to {MAX_HIDDEN}, seq_len at least 1"),
            ));
        }
        let outputs = [self.sum, self.norms[0].map(|norm| norm.out), self.norms[1].map(|norm| norm.out)];
        if outputs.iter().all(Option::is_none) {
            return Err(Error::mismatch(OPERATION, "number of outputs", 0, "1 to 3"));
        }
        let addends = self.addends.iter().map(|matrix| ("addend", matrix));
        for (what, matrix) in addends.chain(outputs.iter().map(|matrix| ("output", matrix))) {
            let Some(matrix) = matrix else { continue };
            if (matrix.rows, matrix.cols, matrix.stride) != (rows, hidden, hidden) {
                return Err(Error::mismatch(
                    OPERATION,
                    what,
                    format!("{} × {}, stride {}", matrix.rows, matrix.cols, matrix.stride),
                    format!("{rows} × {hidden} without gaps"),
                ));
            }
            matrix.check_aligned(OPERATION, what)?;
        }
        for (i, one) in outputs.iter().enumerate() {
            let Some(one) = one else { continue };
            let others = outputs[i + 1..].iter().flatten().chain(self.addends.iter().flatten().filter(|a| *a != one));
            for other in others {
                if one.overlaps(other) {
                    return Err(Error::mismatch(
                        OPERATION,
                        "output",
                        format!("at {:#x}, overlapping another operand at {:#x}", one.pointer, other.pointer),
                        "an addend's memory exactly, or memory of its own",
                    ));
                }
            }
        }
        if let Some(Parts { sums, count, bias }) = self.parts
            && (sums == 0 || count == 0 || !sums.is_multiple_of(16) || !bias.is_multiple_of(16))
        {
            let got = format!("{count} at {sums:#x}, bias at {bias:#x}");
            return Err(Error::mismatch(OPERATION, "parts", got, "some, at 16-byte aligned pointers"));
        }
        for norm in self.norms.iter().flatten() {
            if norm.gamma == 0 || norm.beta == 0 || !norm.gamma.is_multiple_of(16) || !norm.beta.is_multiple_of(16) {
                return Err(Error::mismatch(
                    OPERATION,
                    "γ and β",
                    format!("at {:#x} and {:#x}", norm.gamma, norm.beta),
                    "16-byte aligned pointers",
                ));
            }
            for pointer in [norm.gamma, norm.beta] {
                if outputs.iter().flatten().any(|output| output.overlaps_bytes(pointer, hidden * Dtype::BYTES)) {
                    let got = format!("at {pointer:#x}, overlapping an output");
                    return Err(Error::mismatch(OPERATION, "γ or β", got, "memory apart from every output"));
                }
            }
        }
        Ok((rows, hidden))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_operands_are_refused_with_their_values() {
        let matrix = |pointer| Matrix { pointer, rows: 3, cols: 16, stride: 16 };
        let norm = NormOutput { out: matrix(0x3000), gamma: 0x100, beta: 0x200 };
        let good = Join {
            addends: [Some(matrix(0x1000)), Some(matrix(0x2000)), None],
            parts: Some(Parts { sums: 0x10_0000, count: 3, bias: 0x100 }),
            sum: Some(matrix(0x1000)),
            norms: [Some(norm), None],
            lengths: 0,
            seq_len: 3,
            eps: 1e-5,
            overlap: false,
        };
        assert_eq!(good.check().unwrap(), (3, 16));
        let wide = Matrix { cols: 24, ..matrix(0x2000) };
        for (bad, part) in [
            (Join { addends: [None; 3], ..good }, "0, expected 1 to 3"),
            (Join { addends: [Some(matrix(0x1000)), Some(wide), None], ..good }, "3 × 24"),
            (Join { sum: None, norms: [None; 2], ..good }, "number of outputs"),
            (Join { sum: Some(matrix(0x3000)), ..good }, "overlapping another operand at 0x3000"),
            (Join { sum: Some(matrix(0x1010)), ..good }, "overlapping another operand at 0x1000"),
            (Join { norms: [Some(NormOutput { gamma: 0, ..norm }), None], ..good }, "at 0x0"),
            (Join { norms: [Some(NormOutput { beta: 0x3020, ..norm }), None], ..good }, "at 0x3020, overlapping"),
            (Join { seq_len: 0, ..good }, "seq_len 0"),
            (Join { parts: Some(Parts { sums: 0x10_0008, count: 3, bias: 0 }), ..good }, "3 at 0x100008"),
            (Join { parts: Some(Parts { sums: 0x10_0000, count: 0, bias: 0 }), ..good }, "0 at 0x100000"),
        ] {
            let message = bad.check().unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }
}
