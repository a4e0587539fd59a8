//! Launchers of kernels/embed_sm80.cu: sums of the rows of tables, pooled hidden states, tanh.

use bytemuck::NoUninit;

use super::batch::Sequences;
use super::device::{Device, Stream};
use super::launch::{Grid, Kernels};
use super::memory::{Buffer, Matrix};
use super::norm::MAX_HIDDEN;
use crate::error::{Error, Result};

/// One instantiation of `embed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EmbedKernel {
    pub(super) name: &'static str,
    /// The widest row that it holds.
    max_hidden: usize,
    rows_per_block: usize,
    pub(super) threads: u32,
}

impl EmbedKernel {
    /// Narrowest first; the last is as wide as the norms'.
    pub(super) const ALL: [Self; 3] = [
        Self { name: "embed_warp", max_hidden: 1024, rows_per_block: 4, threads: 128 },
        Self { name: "embed_block", max_hidden: 4096, rows_per_block: 1, threads: 256 },
        Self { name: "embed_wide", max_hidden: MAX_HIDDEN, rows_per_block: 1, threads: 512 },
    ];
}

/// Threads of a block of `pool`, and the columns that it has.
pub(super) const POOL_THREADS: u32 = 256;
pub(super) const TANH_THREADS: u32 = 256;
/// Elements of a vector access.
const VECTOR: usize = 8;

/// Numbers of rows on a device, for kernels that gather them.
#[derive(Debug)]
pub struct Indices {
    buffer: Buffer,
    device: Device,
    len: usize,
    /// All are less.
    end: usize,
}

impl Indices {
    /// Copies them to the device. `None` stands for no row at all.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for an empty slice, or a number of 2³¹ or more; [`Error::OutOfMemory`], [`Error::Cuda`],
    /// [`Error::ContextLost`].
    pub fn new(device: &Device, rows: &[Option<usize>]) -> Result<Self> {
        let end = rows.iter().flatten().max().map_or(0, |&most| most.saturating_add(1));
        if rows.is_empty() || end > i32::MAX as usize {
            let got = format!("{} with a maximum of {}", rows.len(), end.saturating_sub(1));
            return Err(Error::mismatch("Indices", "numbers of rows", got, "at least one, all less than 2³¹ − 1"));
        }
        let values: Vec<i32> = rows.iter().map(|&row| as_index(row)).collect();
        let buffer = Buffer::new(device, "numbers of rows", values.len() * size_of::<i32>())?;
        buffer.write(0, &values)?;
        Ok(Self { buffer, device: device.clone(), len: rows.len(), end })
    }

    /// How many there are.
    #[expect(clippy::len_without_is_empty, reason = "there is always at least one")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Rows that a table must have at least.
    pub(super) fn end(&self) -> usize {
        self.end
    }

    /// The device that they live on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    pub(super) fn pointer(&self) -> u64 {
        self.buffer.pointer()
    }
}

/// As the kernels know it. A table that has so many rows does not fit any device.
pub(super) fn as_index(row: Option<usize>) -> i32 {
    row.map_or(-1, |row| i32::try_from(row).expect("fewer rows than 2³¹"))
}

/// Sums of the rows of tables, normed if there is a norm.
#[derive(Debug, Clone, Copy)]
pub(super) struct Embed {
    /// Each table with the pointer to i32 `[out.rows]`, one to three of them. A row of `out` is zeros where the first's number is
    /// negative; a negative one of another adds nothing.
    pub(super) tables: [Option<(Matrix, u64)>; 3],
    /// Pointers to γ and β, and ε.
    pub(super) norm: Option<(u64, u64, f32)>,
    pub(super) out: Matrix,
}

/// `EmbedParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct EmbedParams {
    tables: [u64; 3],
    indices: [u64; 3],
    gamma: u64,
    beta: u64,
    out: u64,
    rows: i32,
    hidden: i32,
    eps: f32,
    padding: i32,
}

/// Launches the sums on `stream`.
///
/// # Safety
/// As for [`gemm::launch`](super::gemm::launch); and every number of a row is less than the rows of its table.
pub(super) unsafe fn launch(kernels: &Kernels, stream: &Stream, embed: &Embed) -> Result<()> {
    let index = embed.check()?;
    let &Embed { tables, norm, out } = embed;
    let (gamma, beta, eps) = norm.unwrap_or_default();
    let parameters = EmbedParams {
        tables: tables.map(|table| table.map_or(0, |(matrix, _)| matrix.pointer)),
        indices: tables.map(|table| table.map_or(0, |(_, indices)| indices)),
        gamma,
        beta,
        out: out.pointer,
        rows: out.rows as i32,
        hidden: out.cols as i32,
        eps,
        padding: 0,
    };
    let blocks = out.rows.div_ceil(EmbedKernel::ALL[index].rows_per_block);
    // SAFETY: `EmbedParams` mirrors the kernel's struct; shapes were checked above; liveness and the numbers of rows are the
    // caller's promise.
    unsafe { kernels.embed[index].launch(stream, Grid::new(blocks, 1), &parameters) }
}

impl Embed {
    /// Index of the kernel, if everything fits.
    fn check(&self) -> Result<usize> {
        const OPERATION: &str = "embed";
        let &Self { tables, norm, out } = self;
        check_rows(OPERATION, "out", &out)?;
        if tables[0].is_none() {
            return Err(Error::mismatch(OPERATION, "number of tables", 0, "1 to 3"));
        }
        for (table, indices) in tables.iter().flatten() {
            if (table.cols, table.stride) != (out.cols, out.cols) {
                let got = format!("{} × {}, stride {}", table.rows, table.cols, table.stride);
                return Err(Error::mismatch(OPERATION, "table", got, format!("{} columns without gaps", out.cols)));
            }
            table.check_aligned(OPERATION, "table")?;
            if table.overlaps(&out) {
                let got = format!("at {:#x}, overlapping a table at {:#x}", out.pointer, table.pointer);
                return Err(Error::mismatch(OPERATION, "out", got, "memory of its own"));
            }
            if *indices == 0 || !indices.is_multiple_of(4) {
                let got = format!("at {indices:#x}");
                return Err(Error::mismatch(OPERATION, "numbers of rows", got, "a 4-byte aligned pointer"));
            }
        }
        if let Some((gamma, beta, _)) = norm
            && (gamma == 0 || beta == 0 || !gamma.is_multiple_of(16) || !beta.is_multiple_of(16))
        {
            let got = format!("at {gamma:#x} and {beta:#x}");
            return Err(Error::mismatch(OPERATION, "γ and β", got, "16-byte aligned pointers"));
        }
        Ok(EmbedKernel::ALL.iter().position(|kernel| out.cols <= kernel.max_hidden).expect("the width was checked"))
    }
}

/// Means of the first rows of each sequence.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pool {
    /// `[sequences.rows, …]`
    pub(super) hidden: Matrix,
    pub(super) sequences: Sequences,
    /// Rows of a sequence that count; no more than it has do.
    pub(super) most: usize,
    /// Pointer to fp32 `[batch, hidden.cols]`.
    pub(super) out: u64,
}

/// `PoolParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct PoolParams {
    hidden_states: u64,
    out: u64,
    lengths: u64,
    first_rows: u64,
    seq_len: i32,
    hidden: i32,
    most: i32,
    column_blocks: i32,
}

/// Launches the means on `stream`.
///
/// # Safety
/// As for [`gemm::launch`](super::gemm::launch).
pub(super) unsafe fn launch_pool(kernels: &Kernels, stream: &Stream, pool: &Pool) -> Result<()> {
    const OPERATION: &str = "pool";
    let &Pool { hidden, sequences, most, out } = pool;
    check_rows(OPERATION, "hidden states", &hidden)?;
    sequences.check(OPERATION)?;
    if hidden.rows != sequences.rows {
        return Err(Error::mismatch(OPERATION, "rows of the hidden states", hidden.rows, sequences.rows));
    }
    check_floats(OPERATION, out)?;
    let column_blocks = hidden.cols.div_ceil(POOL_THREADS as usize);
    let parameters = PoolParams {
        hidden_states: hidden.pointer,
        out,
        lengths: sequences.lengths,
        first_rows: sequences.first_rows,
        seq_len: sequences.seq_len as i32,
        hidden: hidden.cols as i32,
        most: i32::try_from(most).unwrap_or(i32::MAX),
        column_blocks: column_blocks as i32,
    };
    // SAFETY: `PoolParams` mirrors the kernel's struct; shapes were checked above; liveness is the caller's promise.
    unsafe { kernels.pool.launch(stream, Grid::new(sequences.batch * column_blocks, 1), &parameters) }
}

/// `TanhParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct TanhParams {
    x: u64,
    out: u64,
    vectors: u64,
}

/// Launches `out = tanh(x)` on `stream`; `out` is a pointer to fp32 of `x`'s shape.
///
/// # Safety
/// As for [`gemm::launch`](super::gemm::launch).
pub(super) unsafe fn launch_tanh(kernels: &Kernels, stream: &Stream, x: &Matrix, out: u64) -> Result<()> {
    const OPERATION: &str = "tanh";
    check_rows(OPERATION, "x", x)?;
    check_floats(OPERATION, out)?;
    let vectors = x.rows * x.cols / VECTOR;
    let parameters = TanhParams { x: x.pointer, out, vectors: vectors as u64 };
    let grid = Grid::new(vectors.div_ceil(TANH_THREADS as usize), 1);
    // SAFETY: `TanhParams` mirrors the kernel's struct; shapes were checked above; liveness is the caller's promise.
    unsafe { kernels.tanh.launch(stream, grid, &parameters) }
}

/// Checks that a matrix is one that these kernels take: rows without gaps, of whole vectors, not too wide.
fn check_rows(operation: &'static str, what: &'static str, matrix: &Matrix) -> Result<()> {
    const MAX_ROWS: usize = 1 << 20;
    let &Matrix { rows, cols, stride, .. } = matrix;
    let fits = (1..=MAX_ROWS).contains(&rows) && (1..=MAX_HIDDEN).contains(&cols);
    if !fits || !cols.is_multiple_of(VECTOR) || stride != cols {
        let expected =
            format!("1 to {MAX_ROWS} rows without gaps, of a multiple of {VECTOR} columns, {MAX_HIDDEN} at most");
        return Err(Error::mismatch(operation, what, format!("{rows} × {cols}, stride {stride}"), expected));
    }
    matrix.check_aligned(operation, what)
}

fn check_floats(operation: &'static str, out: u64) -> Result<()> {
    if out == 0 || !out.is_multiple_of(16) {
        return Err(Error::mismatch(operation, "out", format!("at {out:#x}"), "a 16-byte aligned pointer"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_operands_are_refused_with_their_values() {
        let matrix = |pointer| Matrix { pointer, rows: 3, cols: 16, stride: 16 };
        let table = Some((matrix(0x1000), 0x100));
        let good = Embed { tables: [table, None, None], norm: Some((0x200, 0x300, 1e-5)), out: matrix(0x3000) };
        assert_eq!(good.check().unwrap(), 0);
        let odd = Matrix { cols: 20, stride: 20, ..matrix(0x3000) };
        for (bad, part) in [
            (Embed { tables: [None; 3], ..good }, "number of tables"),
            (Embed { tables: [table, Some((matrix(0x3010), 0x100)), None], ..good }, "overlapping a table at 0x3010"),
            (
                Embed { tables: [Some((Matrix { stride: 24, ..matrix(0x1000) }, 0x100)), None, None], ..good },
                "stride 24",
            ),
            (Embed { tables: [Some((matrix(0x1000), 0)), None, None], ..good }, "at 0x0"),
            (Embed { tables: [Some((matrix(0x1008), 0x100)), None, None], ..good }, "0x1008"),
            (Embed { norm: Some((0x200, 0, 1e-5)), ..good }, "0x200 and 0x0"),
            (Embed { out: odd, ..good }, "3 × 20"),
            (Embed { out: Matrix { rows: 0, ..matrix(0x3000) }, ..good }, "0 × 16"),
            (Embed { out: Matrix { rows: (1 << 20) + 1, ..matrix(0x3000) }, ..good }, "1048577 × 16"),
        ] {
            let message = bad.check().unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
        assert!(check_floats("pool", 0x1004).unwrap_err().to_string().contains("0x1004"));
    }

    #[test]
    fn every_width_has_a_kernel() {
        let name = |cols| {
            let matrix = |pointer| Matrix { pointer, rows: 2, cols, stride: cols };
            let embed = Embed { tables: [Some((matrix(1 << 20), 16)), None, None], norm: None, out: matrix(1 << 30) };
            embed.check().map(|index| EmbedKernel::ALL[index].name).ok()
        };
        assert_eq!(name(8), Some("embed_warp"));
        assert_eq!(name(1024), Some("embed_warp"));
        assert_eq!(name(1032), Some("embed_block"));
        assert_eq!(name(4104), Some("embed_wide"));
        assert_eq!(name(MAX_HIDDEN), Some("embed_wide"));
        assert_eq!(name(MAX_HIDDEN + 8), None);
    }

    #[test]
    fn no_row_is_a_negative_index() {
        assert_eq!([None, Some(0), Some(7)].map(as_index), [-1, 0, 7]);
    }
}
