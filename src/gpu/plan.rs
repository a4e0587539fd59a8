//! Which kernel for which shape. No launch, no allocation: numbers in, an index out.

use super::norm::NormKernel;
use super::tiles::{ATTENTION_TILES, GEMM_TILES};

/// Tile rows that walk over N together, so that they share their W tiles in L2.
pub(super) const GROUP_M: usize = 8;

/// What a tile costs, measured on an H200 (bf16, 64 ≤ M ≤ 16384, N and K of RoBERTa-large's products). Ratios between tiles
/// decide, and these carry over to other cards well enough until their own are measured. In the order of [`GEMM_TILES`].
const GEMM_COSTS: [TileCost; 4] = [
    TileCost { alone_ns: 1256.0, shared_ns: 1420.0, fixed_ns: 2000.0, resident: 1 },
    TileCost { alone_ns: 695.0, shared_ns: 695.0, fixed_ns: 670.0, resident: 2 },
    TileCost { alone_ns: 306.0, shared_ns: 223.0, fixed_ns: 1080.0, resident: 2 },
    TileCost { alone_ns: 180.0, shared_ns: 160.0, fixed_ns: 170.0, resident: 3 },
];

struct TileCost {
    /// A step of 64 along K, with one block on the multiprocessor: latency shows.
    alone_ns: f64,
    /// A block's share of a step when the multiprocessor is full.
    shared_ns: f64,
    /// Filling the pipeline and writing the tile out.
    fixed_ns: f64,
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
        let (tile, cost) = (&GEMM_TILES[index], &GEMM_COSTS[index]);
        let tiles = m.div_ceil(tile.m) * n.div_ceil(tile.n);
        // Tiles of the busiest multiprocessor: whole rounds of `resident`, then a remainder that fills it in part.
        let busiest = tiles.div_ceil(multiprocessors);
        let rest = busiest % cost.resident;
        let full_ns = (busiest - rest) as f64 * cost.shared_ns;
        let rest_ns = if rest == 0 { 0.0 } else { cost.alone_ns.max(rest as f64 * cost.shared_ns) };
        steps * (full_ns + rest_ns) + busiest as f64 * cost.fixed_ns
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
        assert_eq!(name(16384, 4096, 1024), "128x128");
        assert_eq!(name(512, 4096, 1024), "128x128");
        assert_eq!(name(1, 1024, 1024), "64x32");
        assert_eq!(name(128, 1024, 4096), "64x32");
        // Where the best does not fit, another is taken.
        assert_eq!(GEMM_TILES[gemm_tile(16384, 4096, 1024, 84, |index| index > 1)].name, "64x64");
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
