//! Queries and keys rotated by their positions: in place, by kernels/rotary_sm80.cu, which this launches, or by Hopper's GEMM on their
//! way to memory.

use bytemuck::{NoUninit, Zeroable};
use rayon::prelude::*;

use super::batch::Sequences;
use super::device::{Device, Stream};
use super::launch::{Grid, Kernels};
use super::memory::{Buffer, Matrix};
use crate::config::{MAX_DIMENSION, Rotary};
use crate::error::{Error, Result};

/// One instantiation in kernels/rotary_sm80.cu.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RotaryKernel {
    pub(super) name: &'static str,
    /// Elements that move at once.
    width: usize,
    interleaved: bool,
}

impl RotaryKernel {
    pub(super) const THREADS: u32 = 128;

    /// Widest first.
    pub(super) const ALL: [Self; 7] = [
        Self { name: "rotary_halves_8", width: 8, interleaved: false },
        Self { name: "rotary_halves_4", width: 4, interleaved: false },
        Self { name: "rotary_halves_2", width: 2, interleaved: false },
        Self { name: "rotary_halves_1", width: 1, interleaved: false },
        Self { name: "rotary_neighbours_8", width: 8, interleaved: true },
        Self { name: "rotary_neighbours_4", width: 4, interleaved: true },
        Self { name: "rotary_neighbours_2", width: 2, interleaved: true },
    ];

    /// Index of the widest whose accesses stay aligned and inside what is rotated.
    fn choose(rotary: &Rotary, head_dim: usize) -> Option<usize> {
        let piece = if rotary.interleaved { rotary.dim } else { rotary.dim / 2 };
        Self::ALL.iter().position(|kernel| {
            kernel.interleaved == rotary.interleaved
                && piece.is_multiple_of(kernel.width)
                && head_dim.is_multiple_of(kernel.width)
                && piece / kernel.width <= Self::THREADS as usize
        })
    }
}

/// Cosines and sines of the angles by which positions are rotated, on a device: `[positions, dim / 2]` pairs of f32, made in
/// f64.
#[derive(Debug)]
pub struct RotaryTable {
    buffer: Buffer,
    device: Device,
    rotary: Rotary,
    positions: usize,
}

impl RotaryTable {
    /// For the positions from 0 to `positions − 1`.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for a number of dimensions that is 0 or odd, or a base that is not positive;
    /// [`Error::Mismatch`] for no positions; [`Error::OutOfMemory`], [`Error::Cuda`], [`Error::ContextLost`].
    pub fn new(device: &Device, rotary: &Rotary, positions: usize) -> Result<Self> {
        rotary.check(usize::MAX)?;
        if positions == 0 {
            return Err(Error::mismatch("RotaryTable", "number of positions", 0, "at least 1"));
        }
        let buffer = Buffer::new(device, "a table of rotary angles", Self::bytes(rotary, positions))?;
        buffer.write(0, &angles(rotary, positions))?;
        Ok(Self { buffer, device: device.clone(), rotary: *rotary, positions })
    }

    /// Device memory that it takes, bytes.
    pub fn bytes(rotary: &Rotary, positions: usize) -> usize {
        positions * rotary.dim * size_of::<f32>()
    }

    /// What it is of.
    pub fn rotary(&self) -> &Rotary {
        &self.rotary
    }

    /// How many positions it holds.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// The device that it lives on.
    pub fn device(&self) -> &Device {
        &self.device
    }
}

/// cos, sin of pair 0, of pair 1, ... of each position.
fn angles(rotary: &Rotary, positions: usize) -> Vec<f32> {
    let frequency = |pair: usize| f64::from(rotary.base).powf(-2.0 * pair as f64 / rotary.dim as f64);
    let frequencies: Vec<f64> = (0..rotary.dim / 2).map(frequency).collect();
    let mut table = vec![0.0; positions * rotary.dim];
    table.par_chunks_exact_mut(rotary.dim).enumerate().for_each(|(position, row)| {
        for ([cos, sin], frequency) in row.as_chunks_mut().0.iter_mut().zip(&frequencies) {
            let (s, c) = (position as f64 * frequency).sin_cos();
            (*cos, *sin) = (c as f32, s as f32);
        }
    });
    table
}

/// What of a packed QKV product is rotated, and by what: of `heads` heads from its first column on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rotation {
    table: u64,
    positions: usize,
    pub(super) rotary: Rotary,
    pub(super) sequences: Sequences,
    /// Query heads and key heads together.
    pub(super) heads: usize,
    pub(super) head_dim: usize,
}

/// `Rotation` of kernels/rotation.cuh.
#[repr(C)]
#[derive(Clone, Copy, NoUninit, Zeroable)]
pub(super) struct RotationParams {
    table: u64,
    lengths: u64,
    positions: u64,
    seq_len: i32,
    heads: i32,
    head_dim: i32,
    dim: i32,
    neighbours: i32,
    padding: i32,
}

impl Rotation {
    /// Of the first `heads` heads of `head_dim` columns in the rows of `sequences`.
    pub(super) fn new(table: &RotaryTable, sequences: Sequences, heads: usize, head_dim: usize) -> Self {
        let &RotaryTable { ref buffer, rotary, positions, .. } = table;
        Self { table: buffer.pointer(), positions, rotary, sequences, heads, head_dim }
    }

    /// Columns in which there is something to rotate.
    pub(super) fn columns(&self) -> usize {
        self.heads.saturating_mul(self.head_dim)
    }

    /// As kernels take it.
    pub(super) fn parameters(&self) -> RotationParams {
        let &Self { table, rotary, sequences, heads, head_dim, .. } = self;
        RotationParams {
            table,
            lengths: sequences.padding(),
            positions: sequences.positions,
            seq_len: sequences.seq_len as i32,
            heads: heads as i32,
            head_dim: head_dim as i32,
            dim: rotary.dim as i32,
            neighbours: rotary.interleaved.into(),
            padding: 0,
        }
    }

    /// Whether `qkv`'s rows and columns, and the table, are enough.
    pub(super) fn check(&self, operation: &'static str, qkv: &Matrix) -> Result<()> {
        let &Self { positions, rotary, sequences, heads, head_dim, .. } = self;
        sequences.check(operation)?;
        rotary.check(head_dim)?;
        if qkv.rows != sequences.rows || heads == 0 || qkv.cols < self.columns() || qkv.cols > MAX_DIMENSION {
            return Err(Error::mismatch(
                operation,
                "QKV",
                format!("{} × {}", qkv.rows, qkv.cols),
                format!(
                    "{} rows of at least {heads} heads of {head_dim}, {MAX_DIMENSION} columns at most",
                    sequences.rows
                ),
            ));
        }
        qkv.check_aligned(operation, "QKV")?;
        // Of packed sequences `seq_len` may be more than the longest has, which has no more than all rows.
        let longest = sequences.seq_len.min(sequences.rows);
        if longest > positions {
            let expected = format!("at most the {positions} positions of the table");
            return Err(Error::mismatch(operation, "longest sequence", longest, expected));
        }
        Ok(())
    }
}

/// `RotaryParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Params {
    qkv: u64,
    by: RotationParams,
    ld: i32,
    padding: i32,
}

/// Launches the rotation of `qkv` in place on `stream`. `overlap`: programmatic dependent launch, only the table is read before the
/// kernel before this one has ended; a hint.
///
/// # Safety
/// As for [`gemm::launch`](super::gemm::launch).
pub(super) unsafe fn launch(
    kernels: &Kernels,
    stream: &Stream,
    qkv: Matrix,
    rotation: &Rotation,
    overlap: bool,
) -> Result<()> {
    rotation.check("rotary", &qkv)?;
    let &Rotation { rotary, sequences, head_dim, .. } = rotation;
    let index = RotaryKernel::choose(&rotary, head_dim).ok_or_else(|| Error::Unsupported {
        what: format!("rotary embedding of {} of {head_dim} dimensions on a GPU", rotary.dim),
        remedy: "use fewer, or a multiple of 16, or --backend cpu".into(),
    })?;
    let parameters = Params { qkv: qkv.pointer, by: rotation.parameters(), ld: qkv.stride as i32, padding: 0 };
    let grid = Grid { overlap: overlap && kernels.overlaps, ..Grid::new(sequences.rows, 1) };
    // SAFETY: `Params` mirrors the kernel's struct; shapes were checked above; liveness is the caller's promise.
    unsafe { kernels.rotary[index].launch(stream, grid, &parameters) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_are_as_wide_as_alignment_allows() {
        let name = |dim, interleaved, head_dim| {
            RotaryKernel::choose(&Rotary { dim, base: 1e4, interleaved }, head_dim).map(|i| RotaryKernel::ALL[i].name)
        };
        assert_eq!(name(64, false, 64), Some("rotary_halves_8"));
        assert_eq!(name(24, false, 96), Some("rotary_halves_4"));
        assert_eq!(name(20, false, 80), Some("rotary_halves_2"));
        assert_eq!(name(2, false, 32), Some("rotary_halves_1"));
        assert_eq!(name(64, true, 256), Some("rotary_neighbours_8"));
        assert_eq!(name(20, true, 80), Some("rotary_neighbours_4"));
        assert_eq!(name(10, true, 80), Some("rotary_neighbours_2"));
        // Every number of dimensions that a head of the attention kernels can have.
        for dim in (2..=256).step_by(2) {
            assert!([false, true].into_iter().all(|interleaved| name(dim, interleaved, 256).is_some()), "{dim}");
        }
    }

    #[test]
    fn the_table_has_to_have_the_positions_that_there_can_be() {
        let rotary = Rotary { dim: 16, base: 1e4, interleaved: false };
        let check = |positions, batch, seq_len, packed| {
            let rows = if packed { 64 } else { batch * seq_len };
            let pointer = if packed { 0x100 } else { 0 };
            let sequences =
                Sequences { batch, seq_len, rows, lengths: pointer, first_rows: pointer, positions: pointer };
            let qkv = Matrix { pointer: 0x1000, rows, cols: 64, stride: 64 };
            Rotation { table: 0x100, positions, rotary, sequences, heads: 2, head_dim: 16 }.check("test", &qkv)
        };
        check(64, 2, 64, false).unwrap();
        check(64, 2, 50, true).unwrap();
        // Packed sequences may be said to be longer than they are.
        check(64, 2, 2048, true).unwrap();
        for (positions, batch, seq_len, packed) in [(63, 2, 64, false), (63, 2, 2048, true), (49, 2, 50, true)] {
            let message = check(positions, batch, seq_len, packed).unwrap_err().to_string();
            assert!(message.contains(&format!("{positions} positions")), "{message}");
        }
    }

    #[test]
    fn angles_turn_by_one_radian_a_position_and_less_for_later_pairs() {
        let table = angles(&Rotary { dim: 4, base: 100.0, interleaved: false }, 3);
        let expected = [0.0, 0.0, 1.0, 0.1, 2.0, 0.2].map(|angle: f64| [angle.cos() as f32, angle.sin() as f32]);
        assert_eq!(table, expected.as_flattened());
    }
}
