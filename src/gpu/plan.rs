//! Which kernel for which shape. No launch, no allocation: numbers in, an index out.

use super::gemm::sm90::Room;
use super::gemm::{Cluster, GemmVariant};
use super::norm::NormKernel;
use super::tiles::{ATTENTION_TILES, GEMM_SM80_TILES, GEMM_SM90_TILES, Sm90GemmTile};

/// Tile rows that walk over N together, so that they share their W tiles in L2.
pub(super) const GROUP_M: usize = 8;

/// What a tile costs, measured on an H200 (bf16, 64 ≤ M ≤ 16384, N and K of RoBERTa-large's products). Ratios between tiles
/// decide, and these carry over to other cards well enough until their own are measured. In the order of [`GEMM_SM80_TILES`].
const SM80_COSTS: [TileCost; 4] = [
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

/// The portable tile with the least estimated time, among those that `available` allows. `steps` are of 64 along K.
pub(super) fn gemm_sm80(
    m: usize,
    n: usize,
    steps: usize,
    multiprocessors: usize,
    available: impl Fn(usize) -> bool,
) -> GemmVariant {
    let steps = steps as f64;
    let cost = |index: usize| {
        let (tile, cost) = (&GEMM_SM80_TILES[index], &SM80_COSTS[index]);
        let tiles = m.div_ceil(tile.m) * n.div_ceil(tile.n);
        // Tiles of the busiest multiprocessor: whole rounds of `resident`, then a remainder that fills it in part.
        let busiest = tiles.div_ceil(multiprocessors);
        let rest = busiest % cost.resident;
        let full_ns = (busiest - rest) as f64 * cost.shared_ns;
        let rest_ns = if rest == 0 { 0.0 } else { cost.alone_ns.max(rest as f64 * cost.shared_ns) };
        steps * (full_ns + rest_ns) + busiest as f64 * cost.fixed_ns
    };
    let tile = (0..GEMM_SM80_TILES.len())
        .filter(|&index| available(index))
        .min_by(|&a, &b| cost(a).total_cmp(&cost(b)))
        .expect("the smallest tile fits every device that the kernels run on");
    GemmVariant::Sm80 { tile }
}

/// The variant of Hopper's kernel with the least estimated time.
pub(super) fn gemm_sm90(m: usize, n: usize, steps: usize, room: &Room) -> GemmVariant {
    let cost = |variant: &GemmVariant| match variant {
        &GemmVariant::Sm90 { tile, cluster, stages } => {
            sm90_cost_ns(m, n, steps, room, &GEMM_SM90_TILES[tile], cluster, stages)
        }
        GemmVariant::Sm80 { .. } => f64::INFINITY,
    };
    sm90_variants(m, steps, room.shared_bytes)
        .min_by(|a, b| cost(a).total_cmp(&cost(b)))
        .expect("every shape has a variant")
}

/// What is worth considering: tiles that are not mostly empty, as many stages as fit one or two blocks a multiprocessor.
pub(super) fn sm90_variants(m: usize, steps: usize, shared_bytes: usize) -> impl Iterator<Item = GemmVariant> {
    let widest = m.next_multiple_of(16).max(16);
    let tiles = (0..GEMM_SM90_TILES.len()).filter(move |&tile| {
        // The narrowest tile that holds all tokens, and narrower ones.
        let narrower = GEMM_SM90_TILES.iter().map(|tile| tile.m).filter(|&m| m >= widest).min().unwrap_or(usize::MAX);
        GEMM_SM90_TILES[tile].m <= narrower
    });
    tiles.flat_map(move |tile| {
        let row = &GEMM_SM90_TILES[tile];
        let shares = [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (4, 2)].map(|(n, m)| Cluster::Share { n, m });
        let splits = [2, 4, 8].map(Cluster::Split);
        let clusters = shares.into_iter().chain(splits).filter(move |cluster| match cluster {
            Cluster::Share { n, m: rows } => m > row.m * (rows - 1) && (row.m / n).is_multiple_of(8),
            Cluster::Split(split) => split * 2 <= steps,
        });
        clusters.flat_map(move |cluster| {
            let split = cluster.split();
            let most = row.stages_in(shared_bytes, split);
            let two_blocks = row.stages_in(SM90_TWO_BLOCKS_BYTES, split);
            let stages = [most, two_blocks].into_iter().filter(move |&n| n >= 2 && (n == most || row.n == 64));
            stages.map(move |stages| GemmVariant::Sm90 { tile, cluster, stages })
        })
    })
}

/// Shared memory of a block of which a multiprocessor holds two: half of 228 KB, less the kilobyte that each block costs.
pub(super) const SM90_TWO_BLOCKS_BYTES: usize = 113 * 1024;

/// Blocks that a multiprocessor holds at once.
pub(super) fn sm90_blocks_per_multiprocessor(tile: &Sm90GemmTile, stages: usize, split: usize) -> usize {
    if tile.n == 64 && tile.shared_bytes(stages, split) <= SM90_TWO_BLOCKS_BYTES { 2 } else { 1 }
}

/// Estimated time of one product on an H200, ns; only differences between variants count. The constants are fitted to
/// measured times of all variants over the shapes of `paf kernels gemm`.
fn sm90_cost_ns(
    m: usize,
    n: usize,
    steps: usize,
    room: &Room,
    tile: &Sm90GemmTile,
    cluster: Cluster,
    stages: usize,
) -> f64 {
    /// Tensor cores' time for a step of a 256×128 tile at the clocks that they sustain.
    const STEP_256_128_NS: f64 = 740.0;
    /// What one multiprocessor gets from L2.
    const L2_BYTES_PER_NS: f64 = 62.0;
    /// From a request to the data's being there.
    const LATENCY_NS: f64 = 900.0;
    /// Converting and storing a 256×128 tile.
    const EPILOGUE_256_128_NS: f64 = 700.0;
    /// Meeting of the parts of a split tile, and each kilobyte of sums that a block reads.
    const SPLIT_NS: f64 = 700.0;
    const SPLIT_KB_NS: f64 = 12.0;
    /// Device memory's rate, all multiprocessors together.
    const MEMORY_BYTES_PER_NS: f64 = 4000.0;

    let ((share_n, share_m), split) = (cluster.shared(), cluster.split());
    let area = (tile.m * tile.n) as f64 / (256.0 * 128.0);
    let clusters = m.div_ceil(tile.m * share_m) * n.div_ceil(tile.n * share_n);
    let resident = sm90_blocks_per_multiprocessor(tile, stages, split);
    let at_once = room.clusters_at_once(tile, cluster, stages);
    let rounds = clusters.div_ceil(at_once) as f64;
    let together = clusters.div_ceil(at_once.div_ceil(resident)).min(resident) as f64;
    let part_steps = steps.div_ceil(split) as f64;
    let loaded = (tile.m / share_n + tile.n / share_m) as f64 * 128.0;
    let step_ns =
        (together * area * STEP_256_128_NS).max(together * loaded / L2_BYTES_PER_NS).max(LATENCY_NS / stages as f64);
    let split_ns = if split > 1 { SPLIT_NS + (tile.m * tile.n * 4) as f64 / 1024.0 * SPLIT_KB_NS } else { 0.0 };
    let block_ns = part_steps * step_ns + LATENCY_NS + area * EPILOGUE_256_128_NS * together;
    let memory_ns = (n * steps * 128) as f64 / MEMORY_BYTES_PER_NS;
    (rounds * block_ns + split_ns).max(memory_ns) + 0.05 * (rounds * block_ns + split_ns)
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
        let name = |m, n, k: usize| gemm_sm80(m, n, k.div_ceil(64), 132, |_| true).to_string();
        assert_eq!(name(16384, 4096, 1024), "sm80:128x128");
        assert_eq!(name(512, 4096, 1024), "sm80:128x128");
        assert_eq!(name(1, 1024, 1024), "sm80:64x32");
        assert_eq!(name(128, 1024, 4096), "sm80:64x32");
        // Where the best does not fit, another is taken.
        assert_eq!(gemm_sm80(16384, 4096, 16, 84, |index| index > 1).to_string(), "sm80:64x64");
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
