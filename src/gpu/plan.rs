//! Which kernel for which shape. No launch, no allocation: numbers in, an index out.

use super::norm::NormKernel;
use super::tiles::{ATTENTION_TILES, GEMM_TILES};

/// Tile rows that walk over N together, so that they share their W tiles in L2.
pub(super) const GROUP_M: usize = 8;

/// Cost of one 64-wide step along K of one tile, ns: alone on a multiprocessor (latency shows), and a tile's share when
/// the multiprocessor is full. In the order of [`GEMM_TILES`].
const GEMM_STEP_NS: [StepCost; 4] = [
    StepCost { alone: 1380.0, shared: 1380.0, resident: 1 },
    StepCost { alone: 950.0, shared: 690.0, resident: 2 },
    StepCost { alone: 450.0, shared: 280.0, resident: 3 },
    StepCost { alone: 330.0, shared: 190.0, resident: 3 },
];

struct StepCost {
    alone: f64,
    shared: f64,
    /// Blocks that a multiprocessor holds at once.
    resident: usize,
}

/// The row of [`GEMM_TILES`] with the least estimated time, among those that `available` allows.
pub(super) fn gemm_tile(
    m: usize,
    n: usize,
    k: usize,
    multiprocessors: usize,
    available: impl Fn(usize) -> bool,
) -> usize {
    let steps = k.div_ceil(64) as f64;
    let cost = |index: usize| {
        let (tile, cost) = (&GEMM_TILES[index], &GEMM_STEP_NS[index]);
        let tiles = m.div_ceil(tile.m) * n.div_ceil(tile.n);
        // Tiles of the busiest multiprocessor: whole rounds of `resident`, then a remainder that fills it in part.
        let per_multiprocessor = tiles.div_ceil(multiprocessors);
        let (full, rest) = (per_multiprocessor / cost.resident, per_multiprocessor % cost.resident);
        let full_cost = (full * cost.resident) as f64 * cost.shared;
        let rest_cost = if rest == 0 { 0.0 } else { cost.alone.max(rest as f64 * cost.shared) };
        steps * (full_cost + rest_cost)
    };
    (0..GEMM_TILES.len())
        .filter(|&index| available(index))
        .min_by(|&a, &b| cost(a).total_cmp(&cost(b)))
        .expect("the smallest tile fits every device that the kernels run on")
}

/// The row of [`ATTENTION_TILES`] for this head width: the largest query tile that still gives three quarters of the
/// multiprocessors a block, else the smallest. `None` if there is none for this width.
pub(super) fn attention_tile(
    head_dim: usize,
    seq_len: usize,
    batch_heads: usize,
    multiprocessors: usize,
    available: impl Fn(usize) -> bool,
) -> Option<usize> {
    let candidates =
        || (0..ATTENTION_TILES.len()).filter(|&index| ATTENTION_TILES[index].head_dim == head_dim && available(index));
    let rows = |index: usize| ATTENTION_TILES[index].rows();
    let fills = |&index: &usize| batch_heads * seq_len.div_ceil(rows(index)) * 4 >= multiprocessors * 3;
    candidates()
        .filter(fills)
        .max_by_key(|&index| rows(index))
        .or_else(|| candidates().min_by_key(|&index| rows(index)))
}

/// The row of [`NormKernel::ALL`] for rows of this width, which is at most `norm::MAX_HIDDEN`.
pub(super) fn norm_kernel(rows: usize, hidden: usize, multiprocessors: usize) -> usize {
    // Few rows: more threads a row, so that the one load each thread does is all the latency there is.
    let few = rows <= 4 * multiprocessors && hidden > 256;
    (0..NormKernel::ALL.len())
        .find(|&index| {
            let kernel = &NormKernel::ALL[index];
            hidden <= kernel.max_hidden() && !(few && kernel.row_threads == 32)
        })
        .expect("the caller has checked the width")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_products_take_large_tiles_and_small_ones_small() {
        let name = |m, n, k| GEMM_TILES[gemm_tile(m, n, k, 132, |_| true)].name;
        assert!(name(16384, 4096, 1024).starts_with("128x"));
        assert_eq!(name(1, 1024, 1024), "64x32");
        // Where the largest does not fit, the next is taken.
        assert_eq!(GEMM_TILES[gemm_tile(16384, 4096, 1024, 84, |index| index != 0)].name, "128x128");
    }

    #[test]
    fn attention_tiles_fill_the_device() {
        let rows = |seq_len, batch_heads| {
            ATTENTION_TILES[attention_tile(64, seq_len, batch_heads, 132, |_| true).unwrap()].rows()
        };
        assert_eq!(rows(128, 16), 32);
        assert_eq!(rows(512, 16), 64);
        assert_eq!(rows(512, 128), 128);
        assert!(attention_tile(72, 512, 16, 132, |_| true).is_none());
    }

    #[test]
    fn every_width_has_a_norm_kernel_that_holds_it() {
        for hidden in (8..=super::super::norm::MAX_HIDDEN).step_by(8) {
            for rows in [1, 128, 1 << 20] {
                assert!(NormKernel::ALL[norm_kernel(rows, hidden, 132)].max_hidden() >= hidden);
            }
        }
    }
}
