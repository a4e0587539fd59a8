//! Which kernel for which shape: by estimate here, where there is no launch and no allocation, numbers in, an index out; by
//! measurement in [`measured`].

mod cache;
mod candidates;
mod choice;
mod measured;
mod search;

use super::attention::sm90;
use super::gemm::sm90::Room;
use super::gemm::{Cluster, Early, GemmVariant, Meanwhile};
use super::norm::NormKernel;
use super::tiles::{
    ATTENTION_SM90_TILES, ATTENTION_TILES, GEMM_MAX_PARTS, GEMM_SM80_TILES, GEMM_SM90_TILES, GEMM_TILE_K,
    Sm90AttentionTile, Sm90GemmTile,
};
use crate::config::Schedule;
pub(super) use candidates::{attention_of, early_attention, prepare};
pub use choice::{LayerProduct, Plan};
pub use measured::{Planned, Planner, Timed};

/// Rows up to which products may leave sums of parts of K to a join: more fill the device without, and the sums, four bytes an
/// element and part, take more time to read than they save.
pub(super) const MAX_ROWS_IN_PARTS: usize = 1024;

/// Rows up to which it does not matter where the blocks of parts of K lie. More rows are several blocks that read the same weights, and
/// these want to be neighbours: what gets blocks in early, or in pairs, scatters them.
pub(super) const MAX_ROWS_ANYWHERE: usize = 256;

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
    let tile = (0..GEMM_SM80_TILES.len())
        .filter(|&index| available(index))
        .min_by(|&a, &b| {
            let cost = |index| sm80_cost_ns(m, n, steps, multiprocessors, index);
            cost(a).total_cmp(&cost(b))
        })
        .expect("the smallest tile fits every device that the kernels run on");
    GemmVariant::Sm80 { tile }
}

/// The portable tiles that `available` allows, those with the least estimated time first.
pub(super) fn ranked_gemm_sm80(
    m: usize,
    n: usize,
    steps: usize,
    multiprocessors: usize,
    available: impl Fn(usize) -> bool,
) -> Vec<GemmVariant> {
    let tiles = (0..GEMM_SM80_TILES.len()).filter(|&index| available(index));
    ranked(tiles.map(|tile| (sm80_cost_ns(m, n, steps, multiprocessors, tile), GemmVariant::Sm80 { tile })))
}

fn sm80_cost_ns(m: usize, n: usize, steps: usize, multiprocessors: usize, index: usize) -> f64 {
    let (tile, cost) = (&GEMM_SM80_TILES[index], &SM80_COSTS[index]);
    let tiles = m.div_ceil(tile.m) * n.div_ceil(tile.n);
    // Tiles of the busiest multiprocessor: whole rounds of `resident`, then a remainder that fills it in part.
    let busiest = tiles.div_ceil(multiprocessors);
    let rest = busiest % cost.resident;
    let full_ns = (busiest - rest) as f64 * cost.shared_ns;
    let rest_ns = if rest == 0 { 0.0 } else { cost.alone_ns.max(rest as f64 * cost.shared_ns) };
    steps as f64 * (full_ns + rest_ns) + busiest as f64 * cost.fixed_ns
}

/// Variants by their costs; of equals, the first stays first.
fn ranked(variants: impl Iterator<Item = (f64, GemmVariant)>) -> Vec<GemmVariant> {
    let mut variants: Vec<_> = variants.collect();
    variants.sort_by(|a, b| a.0.total_cmp(&b.0));
    variants.into_iter().map(|(_, variant)| variant).collect()
}

/// What a tile of Hopper's kernel costs.
struct Sm90TileCost {
    /// A step of 64 along K, with one block on the multiprocessor and with two, if it holds two.
    step_ns: [f64; 2],
    /// From the last product to the tile's having left.
    finish_ns: f64,
}

/// In the order of [`GEMM_SM90_TILES`]. These and the numbers in [`sm90_cost_ns`] are fitted to what layers take with other variants of one
/// product: 4836 plans of 40 shapes, designs and models that `paf plan --candidates` measured on an H100 (bf16; RoBERTa-large, BERT-base,
/// Pythia 410M and 1.4B, GPT-J; 32 to 8192 tokens). Of the variants measured for a product, the choice costs a layer 1.3 % against the best
/// on average and 9 % at worst; with numbers fitted to products alone, as they were, 2.0 and 12 %. The other way round, of the 84 products
/// of `paf kernels gemm` those for which the choice is another one now take 0.6 % longer than with those numbers, 4 % at worst. Layers alone
/// would have 64×64 at 229 ns a step; then two products of 512 rows took 19 and 38 % longer. That was before the three narrowest had
/// stages of two panels: their steps are less by what each of `paf kernels gemm`'s products took less.
const SM90_COSTS: [Sm90TileCost; 12] = [
    Sm90TileCost { step_ns: [933.0, 1866.0], finish_ns: 2324.0 }, // 256x128
    Sm90TileCost { step_ns: [873.0, 1746.0], finish_ns: 2130.0 }, // 128x224
    Sm90TileCost { step_ns: [720.0, 1440.0], finish_ns: 2074.0 }, // 128x192
    Sm90TileCost { step_ns: [492.0, 984.0], finish_ns: 2247.0 },  // 128x128t
    Sm90TileCost { step_ns: [485.0, 970.0], finish_ns: 1442.0 },  // 128x128
    Sm90TileCost { step_ns: [485.0, 970.0], finish_ns: 1442.0 },  // 128x128h: that of 128x128
    Sm90TileCost { step_ns: [401.0, 802.0], finish_ns: 996.0 },   // 128x96
    Sm90TileCost { step_ns: [278.0, 517.0], finish_ns: 439.0 },   // 64x96
    Sm90TileCost { step_ns: [307.0, 594.0], finish_ns: 607.0 },   // 128x64
    Sm90TileCost { step_ns: [171.0, 322.0], finish_ns: 334.0 },   // 64x64
    Sm90TileCost { step_ns: [150.0, 208.0], finish_ns: 347.0 },   // 32x64
    Sm90TileCost { step_ns: [138.0, 195.0], finish_ns: 489.0 },   // 16x64
];

/// What a choice of variant has to observe beside the shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Limits {
    /// A column at which tiles begin anew; 0: none.
    pub(super) edge: usize,
    /// What to leave to another kernel.
    pub(super) meanwhile: Meanwhile,
    /// What begins before the product has ended.
    pub(super) early: Early,
    /// Whether parts of K may leave their sums to a join.
    pub(super) parts: bool,
}

impl Limits {
    fn allow(&self, variant: GemmVariant) -> bool {
        let GemmVariant::Sm90 { tile, cluster, .. } = variant else { return false };
        let tile = &GEMM_SM90_TILES[tile];
        let Meanwhile { spare_bytes, half, .. } = self.meanwhile;
        let fits = if half { tile.half } else { !tile.half && (spare_bytes == 0 || tile.holds_two_blocks()) };
        fits && (self.parts || cluster.parts() == 1)
    }
}

/// The variant of Hopper's kernel with the least estimated time.
pub(super) fn gemm_sm90(m: usize, n: usize, steps: usize, limits: Limits, room: &Room) -> GemmVariant {
    sm90_estimates(m, n, steps, limits, room).min_by(|a, b| a.0.total_cmp(&b.0)).expect("every shape has a variant").1
}

/// All variants of Hopper's kernel that are worth considering, those with the least estimated time first.
pub(super) fn ranked_gemm_sm90(m: usize, n: usize, steps: usize, limits: Limits, room: &Room) -> Vec<GemmVariant> {
    ranked(sm90_estimates(m, n, steps, limits, room))
}

fn sm90_estimates(
    m: usize,
    n: usize,
    steps: usize,
    limits: Limits,
    room: &Room,
) -> impl Iterator<Item = (f64, GemmVariant)> {
    sm90_variants(m, steps, room.shared_bytes - limits.meanwhile.spare_bytes)
        .filter(move |&variant| limits.allow(variant))
        .map(move |variant| (sm90_cost_ns(m, n, steps, room, limits, variant), variant))
}

/// What is worth considering: tiles that are not mostly empty, alone, in pairs or split in up to four (larger clusters find
/// fewer places on the device than what they share makes up for), or in parts; as many stages as fit one or two blocks a
/// multiprocessor.
pub(super) fn sm90_variants(m: usize, steps: usize, shared_bytes: usize) -> impl Iterator<Item = GemmVariant> {
    // The narrowest tile that holds all tokens, and narrower ones.
    let enough = GEMM_SM90_TILES.iter().map(|tile| tile.m).filter(|&rows| rows >= m).min().unwrap_or(usize::MAX);
    // What runs beside attention by halves has but one.
    let fits = move |&tile: &usize| GEMM_SM90_TILES[tile].half || GEMM_SM90_TILES[tile].m <= enough;
    let tiles = (0..GEMM_SM90_TILES.len()).filter(fits);
    tiles.flat_map(move |tile| {
        let row = &GEMM_SM90_TILES[tile];
        let steps = steps / row.panels;
        let shares = [(1, 1), (2, 1), (1, 2)];
        let splits = [2, 4].map(Cluster::Split);
        let parts = (2..=GEMM_MAX_PARTS).flat_map(|parts| [1, 2].map(|n| Cluster::Parts { parts, n, m: 1 }));
        let alone = shares.map(|(n, m)| Cluster::Share { n, m }).into_iter();
        let clusters = alone.chain(splits).chain(parts).filter(move |cluster| match cluster {
            // Instructions limit narrow tiles, not loads.
            Cluster::Share { n: 1, m: 1 } => true,
            Cluster::Share { m: rows, .. } => row.consumers() == 2 && m > row.m * (rows - 1),
            // Narrower tiles than there are rows would read each part of W again.
            Cluster::Split(split) => row.splits() && row.m >= m.min(128) && m <= row.m * 8 && split * 2 <= steps,
            // Pairs share A, which the kernel before has just written: reads that are saved may count more than instructions here.
            Cluster::Parts { parts, .. } => !row.in_turn && row.m >= m.min(128) && m <= row.m * 8 && parts * 2 <= steps,
        });
        clusters.flat_map(move |cluster| {
            let most = row.stages_in(shared_bytes, cluster);
            let two_blocks = row.stages_in(SM90_TWO_BLOCKS_BYTES.min(shared_bytes), cluster);
            let stages = [most, two_blocks].into_iter().enumerate();
            stages
                .filter(move |&(i, n)| n >= 2 && (i == 0 || row.holds_two_blocks() && n != most))
                .map(move |(_, stages)| GemmVariant::Sm90 { tile, cluster, stages })
        })
    })
}

/// Shared memory of a block of which a multiprocessor holds two: half of 228 KB, less the kilobyte that each block costs.
pub(super) const SM90_TWO_BLOCKS_BYTES: usize = 113 * 1024;

/// Blocks that a multiprocessor holds at once.
pub(super) fn sm90_blocks_per_multiprocessor(tile: &Sm90GemmTile, stages: usize, cluster: Cluster) -> usize {
    if tile.holds_two_blocks() && tile.shared_bytes(stages, cluster) <= SM90_TWO_BLOCKS_BYTES { 2 } else { 1 }
}

/// Estimated time of one product within limits, while another kernel may have some multiprocessors; infinite for other kernels'
/// variants.
fn sm90_cost_ns(m: usize, n: usize, steps: usize, room: &Room, limits: Limits, variant: GemmVariant) -> f64 {
    /// From the launch to the first product, and from the last tile's having left to the next kernel.
    const START_NS: f64 = 2724.0;
    /// From a request to the data's being there, while all ask.
    const LATENCY_NS: f64 = 2340.0;
    /// The meeting of a split tile's parts, and each kilobyte of sums that a block gets.
    const SPLIT_NS: f64 = 1775.0;
    const SPLIT_KB_NS: f64 = 73.8;
    /// What the join takes longer for each part of K, and what is written and read of it.
    const PART_NS: f64 = 173.0;
    const PARTS_BYTES_PER_NS: f64 = 3700.0;
    /// What sharing W does to a step (sharing A: nothing), and what either costs once.
    const PAIR_ALONG_M: f64 = 0.975;
    const PAIR_NS: f64 = 44.0;
    /// Device memory's rate, of weights that no kernel has read before.
    const MEMORY_BYTES_PER_NS: f64 = 2052.0;
    /// Part of the time of places that are empty in the last round that the others gain: power is what limits them.
    const IDLE_GAIN: f64 = 0.53;
    /// What takes less time, instructions or memory, adds so much of itself where they are near each other.
    const OVERLAP_LOSS: f64 = 0.29;
    /// Part of what begins early that shows where it lasts longer than the product; under the rest of it the next one has work.
    const EARLY_SHOWS: f64 = 0.24;
    let GemmVariant::Sm90 { tile, cluster, stages } = variant else { return f64::INFINITY };
    let (cost, tile) = (&SM90_COSTS[tile], &GEMM_SM90_TILES[tile]);
    let (split, taken) = (cluster.split(), limits.meanwhile.multiprocessors);
    let (rows, _, columns) = tile.clusters(m, n, limits.edge, cluster);
    let clusters = rows * columns * cluster.parts();
    let at_once = room.clusters_at_once(tile, cluster, stages);
    let rounds = clusters.div_ceil(at_once) as f64;
    // Blocks that share a multiprocessor: two only where there are more than multiprocessors, but for those that are taken.
    let all = room.clusters[0][0];
    let beside = |places: usize| places * (all - taken.min(all)) / all;
    let waits = taken > 0 && clusters > beside(at_once);
    let resident = sm90_blocks_per_multiprocessor(tile, stages, cluster);
    let alone = at_once.div_ceil(resident);
    let together = clusters.div_ceil(if waits { alone } else { beside(alone).max(1) }).min(resident);

    let along_m = if cluster.shared().1 > 1 { PAIR_ALONG_M } else { 1.0 };
    let filled = clusters as f64 / (at_once as f64 * rounds);
    let step_ns = (cost.step_ns[together - 1] * along_m).max(LATENCY_NS / (stages * tile.panels) as f64);
    let step_ns = step_ns * (1.0 - IDLE_GAIN * (1.0 - filled));
    let finished = if tile.in_turn { 1.0 } else { rounds };
    let mut ns =
        rounds * steps.div_ceil(split * cluster.parts()) as f64 * step_ns + finished * together as f64 * cost.finish_ns;
    if split > 1 {
        ns += SPLIT_NS + SPLIT_KB_NS * (tile.m * tile.n * 4 / split) as f64 / 1024.0;
    } else if cluster.blocks() > 1 {
        ns += PAIR_NS;
    }
    if cluster.parts() > 1 {
        ns += cluster.parts() as f64 * PART_NS + (cluster.parts() * m * n * 4) as f64 / PARTS_BYTES_PER_NS;
    }
    if waits {
        // Blocks that begin when the other kernel ends.
        ns += limits.meanwhile.nanoseconds as f64;
    }
    let k = steps * GEMM_TILE_K;
    let memory_ns = ((m * k + n * k + m * n) * 2) as f64 / MEMORY_BYTES_PER_NS;
    let (less, more) = (ns.min(memory_ns), ns.max(memory_ns));
    // Of equals, the one with fewer stages.
    let ns = more + OVERLAP_LOSS * less * less / more + 0.1 * stages as f64;
    let Early { columns: first_columns, nanoseconds } = limits.early;
    if first_columns == 0 {
        return START_NS + ns;
    }
    // Rows of clusters walk over N in groups: of the last one, the first columns' are enough.
    let (across, down) = cluster.shared();
    let group = (GROUP_M / down).max(1);
    let before = (rows - 1) / group * group;
    let first = before * columns + (rows - before) * first_columns.div_ceil(tile.n * across);
    let left_ns = ns * (1.0 - first.div_ceil(at_once) as f64 / rounds);
    START_NS + ns + EARLY_SHOWS * (nanoseconds as f64 - left_ns).max(0.0)
}

/// The row of [`ATTENTION_TILES`] for this head width: the largest query tile that still gives three quarters of the
/// multiprocessors a block, else the smallest. `None` if there is none for this width. `blocks` tells how many there are
/// of so many rows.
pub(super) fn attention_tile(
    head_dim: usize,
    blocks: impl Fn(usize) -> usize,
    multiprocessors: usize,
    available: impl Fn(usize) -> bool,
) -> Option<usize> {
    let candidates =
        || (0..ATTENTION_TILES.len()).filter(|&index| ATTENTION_TILES[index].head_dim == head_dim && available(index));
    let rows = |index: usize| ATTENTION_TILES[index].rows();
    let fills = |&index: &usize| blocks(rows(index)) * 4 >= multiprocessors * 3;
    candidates()
        .filter(fills)
        .max_by_key(|&index| rows(index))
        .or_else(|| candidates().min_by_key(|&index| rows(index)))
}

/// Of one block of Hopper's attention with so many consumer warpgroups, at head_dim 64: ns for one step along the keys, and for
/// a tile beside its steps. Measured on an H200; wider heads' steps take longer in proportion.
const SM90_ATTENTION_NS: [(f64, f64); 4] = [(1000.0, 1500.0), (1170.0, 1500.0), (1500.0, 1500.0), (1100.0, 1500.0)];
/// What two blocks of one warpgroup on one multiprocessor take for a step each, and beside their steps. On an H100, RoBERTa-large at
/// 8 × 128, SAF: 1.492 ms with such pairs, 1.602 with one block of two warpgroups. At other head widths pairs count for nothing: at
/// head_dim 80, 4 × 16 × 2048, they take 381 µs where blocks of two warpgroups take 216.
const SM90_ATTENTION_PAIR_NS: (f64, f64) = (1130.0, 1200.0);

/// Estimated time of one tile of Hopper's attention, alone on a multiprocessor or as one of two; of causal ones, on average.
pub(super) fn sm90_attention_tile_ns(index: usize, seq_len: usize, causal: bool, paired: bool) -> f64 {
    let tile = &ATTENTION_SM90_TILES[index];
    let (step_ns, tile_ns) = if paired { SM90_ATTENTION_PAIR_NS } else { SM90_ATTENTION_NS[tile.warpgroups - 1] };
    let step_ns = step_ns * tile.head_dim.max(64) as f64 / 64.0;
    let steps = seq_len.div_ceil(tile.keys) as f64;
    let steps = if causal { (steps + 1.0) / 2.0 } else { steps };
    steps * step_ns + tile_ns
}

/// Estimated time of so many tiles.
pub(super) fn sm90_attention_ns(
    index: usize,
    tiles: usize,
    seq_len: usize,
    causal: bool,
    multiprocessors: usize,
) -> f64 {
    let tile = &ATTENTION_SM90_TILES[index];
    let blocks = tile.blocks;
    let paired = blocks > 1 && tile.head_dim == 64 && tiles > multiprocessors;
    let places = if paired { multiprocessors * blocks } else { multiprocessors };
    let tile_ns = |causal| sm90_attention_tile_ns(index, seq_len, causal, paired);
    // The last tile along a causal sequence sees all of it.
    (tiles.div_ceil(places) as f64 * tile_ns(causal)).max(tile_ns(false))
}

/// The row of [`ATTENTION_SM90_TILES`] that is the fastest by estimate; `None` if there is none for this head width. `tiles` tells
/// how many there are of so many query rows.
pub(super) fn attention_sm90(
    head_dim: usize,
    tiles: impl Fn(usize) -> usize,
    seq_len: usize,
    causal: bool,
    multiprocessors: usize,
) -> Option<usize> {
    let cost_ns = |index: usize| {
        let count = tiles(ATTENTION_SM90_TILES[index].rows());
        sm90_attention_ns(index, count, seq_len, causal, multiprocessors)
    };
    sm90::of_width(head_dim, false).min_by(|&a, &b| cost_ns(a).total_cmp(&cost_ns(b)))
}

/// Whether attention by halves, in so many tiles, makes `fused` faster by estimate: the product beside it, of so many rows, columns and steps
/// along K, has a block on most multiprocessors, and lasts long enough for attention to pass under it, which is slow so; and there is
/// enough of that to make up for a product in one kind of tile. On an H100, under load, gains by RoBERTa-large of 6 to 10 %: 8 × 64, 8 × 128,
/// 16 × 64, 32 × 32, 12 × 128, 24 × 64, 4 × 384; by RoBERTa-base of 6 to 7 %: 16 × 128, 20 × 128, 8 × 256; of 1 to 4 %: 4 × 128, 4 × 256, 4 × 512;
/// 2 × 256 loses 1 %. Not taken: 2 × 512, which would gain 2 %, and what would lose 4 to 10 %: 1 × 512, 1 × 1024, 2 × 384, 6 × 128, 8 × 512,
/// 1 × 2048, falcon-7b at 1 × 256 and 4 × 128.
pub(super) fn is_faster_by_halves(
    attention: &Sm90AttentionTile,
    (tiles, seq_len, causal): (usize, usize, bool),
    (m, n, steps): (usize, usize, usize),
    multiprocessors: usize,
) -> bool {
    let Some(product) = GEMM_SM90_TILES.iter().find(|tile| tile.half) else { return false };
    let blocks = m.div_ceil(product.m) * n.div_ceil(product.n);
    let most_parts = if m <= MAX_ROWS_IN_PARTS { GEMM_MAX_PARTS } else { 1 };
    let parts = (multiprocessors / blocks.max(1)).clamp(1, most_parts);
    let of_tile = seq_len.div_ceil(attention.keys);
    let of_tile = if causal { of_tile.div_ceil(2) } else { of_tile };
    let of_attention = (tiles.div_ceil(multiprocessors) * of_tile * parts) as f64 / steps as f64;
    let filled = (blocks * parts) as f64 / multiprocessors as f64;
    let (least_filled, most) = if parts > 1 { (0.9, 0.2) } else { (0.7, 0.4) };
    // Fewer rows gain more by kernels that begin early.
    let many = m > MAX_ROWS_ANYWHERE;
    many && (least_filled..=1.0).contains(&filled) && (0.025..=most).contains(&of_attention)
}

/// Whether kernels of a schedule begin before the one before them on their stream has ended. Of two streams, one's blocks that only
/// wait would take the place of the other's that have work, which costs more than it saves once the rows are many: on an H200,
/// RoBERTa-large at 8 × 128 takes 1.59 ms with and 1.56 without, at 1 × 512 1.10 and 1.11.
pub(super) fn kernels_overlap(schedule: Schedule, rows: usize) -> bool {
    const FEW_ROWS: usize = 512;
    schedule != Schedule::TwoStream || rows <= FEW_ROWS
}

/// Rows of which more threads share each, so that the one load that a thread does is all the latency there is.
fn are_few(rows: usize, multiprocessors: usize) -> bool {
    rows <= 4 * multiprocessors
}

/// The row of [`NormKernel::ROWS`] for many rows of this width, if there is one.
pub(super) fn norm_rows_kernel(rows: usize, hidden: usize, multiprocessors: usize) -> Option<usize> {
    let of_width = || NormKernel::ROWS.iter().position(|kernel| kernel.max_hidden() == hidden);
    if are_few(rows, multiprocessors) { None } else { of_width() }
}

/// The row of [`NormKernel::ALL`] for rows of this width, which is at most `norm::MAX_HIDDEN`.
pub(super) fn norm_kernel(rows: usize, hidden: usize, multiprocessors: usize) -> usize {
    // Where there is room for all rows at once, the kernels that are at their best then.
    let few = are_few(rows, multiprocessors) && hidden > 256;
    (0..NormKernel::ALL.len())
        .find(|&index| {
            let kernel = &NormKernel::ALL[index];
            let fits = !kernel.few || rows <= kernel.blocks * multiprocessors;
            hidden <= kernel.max_hidden() && fits && !(few && kernel.row_threads == 32)
        })
        .expect("the caller has checked the width")
}

#[cfg(test)]
mod tests;
