//! Launcher of kernels/gemm_sm90.cu, the GEMM for Hopper.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use bytemuck::{NoUninit, Zeroable};

use super::{Cluster, Count, Counted, First, Gemm, GemmVariant, Ready, Then};
use crate::config::HiddenAct;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::gpu::device::{Device, Stream};
use crate::gpu::launch::{Function, Grid, Module, TensorMap};
use crate::gpu::memory::Matrix;
use crate::gpu::plan::{self, Limits};
use crate::gpu::rotary::RotationParams;
use crate::gpu::tiles::{GEMM_MAX_PARTS, GEMM_SM90_TILES, GEMM_TILE_K, Sm90GemmTile};

/// The kernels of one element type.
pub(in crate::gpu) struct Sm90Gemm {
    /// In the order of [`Ends::ALL`] and [`GEMM_SM90_TILES`]; `None` where a tile cannot end so.
    functions: Vec<Vec<Option<Function>>>,
    room: Room,
    /// The planner's choices so far: estimating takes a microsecond, as long as half a launch.
    plans: Mutex<HashMap<(Shape, Limits), GemmVariant>>,
    _modules: Vec<Module>,
}

/// What products of a module end in: `Ends` of kernels/gemm_sm90_tile.cuh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    Linear,
    Gelu,
    GeluNew,
    Relu,
    Split,
    Sums,
}

impl Ends {
    const ALL: [Self; 6] = [Self::Linear, Self::Gelu, Self::GeluNew, Self::Relu, Self::Split, Self::Sums];

    const fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Gelu => "gelu",
            Self::GeluNew => "gelu_new",
            Self::Relu => "relu",
            Self::Split => "split",
            Self::Sums => "sums",
        }
    }

    /// Whether a tile can end so: `GemmTile::EXISTS` of the kernel.
    const fn has(self, tile: &Sm90GemmTile) -> bool {
        match self {
            Self::Split => tile.splits(),
            Self::Sums => !tile.in_turn,
            Self::Linear | Self::Gelu | Self::GeluNew | Self::Relu => true,
        }
    }

    fn of(gemm: &Gemm, cluster: Cluster) -> Result<Self> {
        Ok(match (cluster, gemm.then) {
            (Cluster::Parts { .. }, _) => Self::Sums,
            (Cluster::Split(_), _) => Self::Split,
            (Cluster::Share { .. }, Then::Bias | Then::Residual(_)) => Self::Linear,
            (Cluster::Share { .. }, Then::Activation(act, _)) => match act {
                HiddenAct::Gelu => Self::Gelu,
                HiddenAct::GeluNew => Self::GeluNew,
                HiddenAct::Relu => Self::Relu,
                HiddenAct::Silu => return Err(super::no_activation(act)),
            },
        })
    }
}

/// M, N, steps along K.
pub(in crate::gpu) type Shape = (usize, usize, usize);

/// Choices that are kept; a caller with more shapes than that has them estimated again.
const MAX_PLANS: usize = 4096;

/// What a device has room for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::gpu) struct Room {
    /// Shared memory that a block may have.
    pub(in crate::gpu) shared_bytes: usize,
    /// `[blocks a multiprocessor − 1][log2 of blocks a cluster]`: clusters that run at once.
    pub(in crate::gpu) clusters: [[usize; 4]; 2],
}

impl Room {
    /// Clusters of this variant that run at once.
    pub(in crate::gpu) fn clusters_at_once(&self, tile: &Sm90GemmTile, cluster: Cluster, stages: usize) -> usize {
        self.clusters_of(tile, cluster, stages, cluster.blocks()).max(1)
    }

    /// The same if so many of its blocks made a cluster.
    fn clusters_of(&self, tile: &Sm90GemmTile, cluster: Cluster, stages: usize, blocks: usize) -> usize {
        let resident = plan::sm90_blocks_per_multiprocessor(tile, stages, cluster);
        self.clusters[resident - 1][blocks.ilog2() as usize]
    }
}

/// `GemmParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Params {
    a: [TensorMap; 2],
    w: [TensorMap; 2],
    c: [TensorMap; 2],
    residual_map: TensorMap,
    bias: u64,
    sums: u64,
    ready: u64,
    m: i32,
    n: i32,
    first_step: [[i32; GEMM_MAX_PARTS + 1]; 2],
    activation: i32,
    activation_from: i32,
    rotated: i32,
    residual: i32,
    log2_n: i32,
    log2_m: i32,
    log2_split: i32,
    parts: i32,
    stages: i32,
    rows: i32,
    columns: i32,
    group_m: i32,
    a_from: i32,
    columns_before: i32,
    ready_columns: i32,
    first: i32,
    counts_end: i32,
    padding_1: i32,
    rotation: RotationParams,
    group_tiles: u64,
    group_rows: u64,
    last_group_rows: u64,
    end: u64,
    first_pair: u64,
    first_count: u32,
    first_is_last: i32,
    padding_2: [i32; 12],
}

impl Sm90Gemm {
    pub(in crate::gpu) fn load(device: &Device, dtype: Dtype) -> Result<Self> {
        let shared_bytes = device.info().shared_bytes_per_block;
        let mut modules = Vec::with_capacity(Ends::ALL.len());
        let mut functions = Vec::with_capacity(Ends::ALL.len());
        for ends in Ends::ALL {
            let module = Module::load(device, &format!("gemm_sm90_{}_{dtype}", ends.name()))?;
            let load = |tile: &Sm90GemmTile| {
                let load = || module.function(device, &format!("gemm_{}", tile.name), tile.threads(), shared_bytes);
                ends.has(tile).then(load).transpose()
            };
            functions.push(GEMM_SM90_TILES.iter().map(load).collect::<Result<Vec<_>>>()?);
            modules.push(module);
        }
        let last = functions[0].last().and_then(Option::as_ref).expect("every tile can end linearly");
        // Clusters need multiprocessors that are neighbours, and these are not grouped in powers of two.
        let mut clusters = [[0; 4]; 2];
        for (resident, clusters) in clusters.iter_mut().enumerate() {
            let shared = [shared_bytes, plan::SM90_TWO_BLOCKS_BYTES as u32][resident];
            for (log2, clusters) in clusters.iter_mut().enumerate() {
                // All tiles of two blocks a multiprocessor have the registers for it; the last is one of them.
                *clusters = last.active_clusters(device, 1 << log2, shared)?;
            }
        }
        let room = Room { shared_bytes: shared_bytes as usize, clusters };
        Ok(Self { functions, room, plans: Mutex::default(), _modules: modules })
    }

    pub(in crate::gpu) fn functions(&self) -> impl Iterator<Item = &Function> {
        self.functions.iter().flatten().flatten()
    }

    /// The planner's choice.
    pub(super) fn planned(&self, shape: Shape, limits: Limits) -> GemmVariant {
        // A choice is inserted whole or not at all, so a panic elsewhere has broken none.
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if plans.len() >= MAX_PLANS {
            plans.clear();
        }
        let (m, n, steps) = shape;
        *plans.entry((shape, limits)).or_insert_with(|| plan::gemm_sm90(m, n, steps, limits, &self.room))
    }

    /// All that is worth considering, what is estimated to be fast first.
    pub(super) fn ranked(&self, (m, n, steps): Shape, limits: Limits) -> Vec<GemmVariant> {
        plan::ranked_gemm_sm90(m, n, steps, limits, &self.room)
    }

    /// The tile of a variant, if that can do so many steps along each pair's K.
    pub(super) fn check(
        &self,
        tile: usize,
        cluster: Cluster,
        stages: usize,
        steps: [usize; 2],
    ) -> Result<&'static Sm90GemmTile> {
        let tile = GEMM_SM90_TILES.get(tile).ok_or_else(|| super::no_such_tile(tile))?;
        check(tile, cluster, stages, steps, self.room.shared_bytes)?;
        Ok(tile)
    }

    /// Blocks of a launch: as many clusters as run at once, each taking tile after tile of `tiles` (clusters' tiles) for each part; but
    /// one that splits K has one tile, since its sums have one place and arrive once.
    fn blocks(&self, tiles: usize, tile: &Sm90GemmTile, cluster: Cluster, stages: usize) -> usize {
        let tiles = tiles * cluster.parts();
        let at_once = if cluster.split() > 1 { tiles } else { self.room.clusters_at_once(tile, cluster, stages) };
        at_once.min(tiles) * cluster.blocks()
    }

    /// What the variant counts up to of what is `ready`. The end only of products with an activation: the others have no code for it.
    pub(super) fn counted(
        &self,
        gemm: &Gemm,
        ready: Ready,
        tile: usize,
        cluster: Cluster,
        stages: usize,
    ) -> Result<Counted> {
        let tile = self.check(tile, cluster, stages, gemm.steps())?;
        let ((m, n), edge) = (gemm.shape(), gemm.beside.map_or(0, |(_, column)| column));
        let (rows, _, columns) = tile.clusters(m, n, edge, cluster);
        let end = self.blocks(rows * columns, tile, cluster, stages) * tile.consumers();
        let activates = matches!(gemm.then, Then::Activation(..));
        let count = |counters, of_one: u32| Count {
            counters,
            count: of_one * (ready.layer + 1) as u32,
            is_last: ready.is_last,
        };
        Ok(Counted {
            columns: ready.columns.map(|(counters, columns)| count(counters, counted(tile, cluster, m, columns))),
            end: ready.end.filter(|_| activates).map(|counters| count(counters, end as u32)),
        })
    }

    /// # Safety
    /// As [`super::launch`]; `gemm` has been checked.
    pub(super) unsafe fn launch(
        &self,
        stream: &Stream,
        dtype: Dtype,
        gemm: &Gemm,
        tile_index: usize,
        cluster: Cluster,
        stages: usize,
    ) -> Result<()> {
        let tile = self.check(tile_index, cluster, stages, gemm.steps())?;
        let steps = tile.steps(gemm.steps());
        if (cluster.parts() > 1) != (gemm.sums != 0) {
            let got = if gemm.sums != 0 { "given" } else { "absent" };
            return Err(Error::mismatch(
                "gemm",
                "room for the sums of parts of K",
                got,
                "a variant in parts and room, or neither",
            ));
        }
        if gemm.rotation.is_some_and(|by| !tile.rotates(&by.rotary, by.head_dim)) {
            return Err(super::no_rotation(GemmVariant::Sm90 { tile: tile_index, cluster, stages }));
        }
        let ends = Ends::of(gemm, cluster)?;
        let function = self.functions[ends as usize][tile_index].as_ref().expect("`check` knows which tiles end so");
        let device = stream.device();
        let ((m, n), (activation, activation_from, residual)) = (gemm.shape(), gemm.epilogue());
        let ((cluster_n, cluster_m), split, size) = (cluster.shared(), cluster.split(), cluster.blocks());
        // Each block of a cluster loads its slice of what it shares; a split tile leaves in groups of eight tokens.
        let (a_rows, w_rows) = (tile.m / cluster_n, tile.n / cluster_m);
        let c_box = if split > 1 { (64, 8) } else { tile.c_box() };
        let edge = gemm.beside.map_or(0, |(_, column)| column);
        let (rows, before, columns) = tile.clusters(m, n, edge, cluster);
        let group_m = (plan::GROUP_M / cluster_m).clamp(1, rows);
        let (ready, ready_columns) = gemm.ready.columns.unwrap_or_default();
        // `First` of the kernel.
        let (first, first_pair, first_count, first_is_last) = match gemm.first {
            First::Waits => (0, 0, 0, false),
            First::IsThere => (1, 0, 0, false),
            First::Counted(Count { counters, count, is_last }) => (2, counters, count, is_last),
        };
        let map = |matrix, boxes| TensorMap::new(device, dtype, matrix, boxes);
        let (a_box, w_box) = ((64, a_rows), (64, w_rows));
        let mut parameters = Params {
            a: [map(&gemm.a, a_box)?, TensorMap::default()],
            w: [map(&gemm.w, w_box)?, TensorMap::default()],
            c: [map(&gemm.c, c_box)?; 2],
            residual_map: residual.map_or(Ok(TensorMap::default()), |residual| map(residual, c_box))?,
            bias: gemm.bias,
            sums: gemm.sums,
            ready,
            m: m as i32,
            n: n as i32,
            first_step: first_steps(steps, split * cluster.parts()),
            activation,
            activation_from,
            rotated: gemm.rotation.map_or(0, |rotation| rotation.columns() as i32),
            residual: i32::from(residual.is_some()),
            log2_n: cluster_n.ilog2() as i32,
            log2_m: cluster_m.ilog2() as i32,
            log2_split: split.ilog2() as i32,
            parts: cluster.parts() as i32,
            stages: stages as i32,
            rows: rows as i32,
            columns: columns as i32,
            group_m: group_m as i32,
            a_from: edge as i32,
            columns_before: if edge > 0 { before as i32 } else { i32::MAX },
            ready_columns: ready_columns as i32,
            first,
            counts_end: gemm.ready.end.is_some().into(),
            padding_1: 0,
            rotation: gemm.rotation.map_or_else(RotationParams::zeroed, |rotation| rotation.parameters()),
            group_tiles: divisor(group_m * columns),
            group_rows: divisor(group_m),
            last_group_rows: divisor((rows - 1) % group_m + 1),
            end: gemm.ready.end.unwrap_or(0),
            first_pair,
            first_count,
            first_is_last: first_is_last.into(),
            padding_2: [0; 12],
        };
        if let Some((a2, w2)) = &gemm.second {
            parameters.a[1] = map(a2, a_box)?;
            parameters.w[1] = map(w2, w_box)?;
        }
        if let Some((a2, column)) = &gemm.beside {
            parameters.a[1] = map(a2, a_box)?;
            // What tiles before that column compute of columns behind it stays out.
            parameters.c[0] = map(&Matrix { cols: *column, ..gemm.c }, c_box)?;
        }
        let shared_bytes = tile.shared_bytes(stages, cluster) as u32;
        let blocks = self.blocks(rows * columns, tile, cluster, stages);
        let pairs = self.room.clusters_of(tile, cluster, stages, 2);
        let cluster = if gemm.overlap && in_pairs(cluster, m, blocks, pairs) { 2 } else { size };
        let grid = Grid { x: blocks, y: 1, cluster, overlap: gemm.overlap };
        // SAFETY: `Params` mirrors the kernel's struct; shapes were checked; liveness is the caller's promise.
        unsafe { function.launch_with(stream, grid, shared_bytes, &parameters) }
    }
}

/// `Divisor` of the kernel.
fn divisor(of: usize) -> u64 {
    (u64::MAX / of as u64).wrapping_add(1)
}

/// Whether blocks that share nothing are launched in clusters of two all the same, for the place alone, where they begin while the kernel
/// before still runs. That scatters them over the multiprocessors as these get free, and tiles want their neighbours near: dealt out at
/// random, 2048 × 1024 × 5120 alone takes 43.7 µs instead of 34.4, 512 × 14336 × 2048 64 instead of 51; probably since loads of the same
/// bytes by neighbours leave L2 once. Blocks that find the device empty lie better than in pairs: 512 × 1024 × 4096 in 64×64 takes 11.2 µs
/// then, in pairs 14.3. `pairs`: how many run at once.
///
/// On an H100, µs a layer as estimated, before → after: RoBERTa-large SAF 1 × 128 28.2 → 27.0, 1 × 256 33.9 → 33.0, fused PAF 2 × 32
/// 17.6 → 16.8, 1 × 128 20.2 → 19.3, serial PAF 1 × 512 44.4 → 43.4; BERT-base fused 1 × 128 16.4 → 15.5; pythia-410m 20.5 → 19.6; pythia-1.4b
/// serial 59.7 → 58.1, fused 52.1 → 52.0. Parts of more rows, which fill the device beside attention, lose what place there is for one block
/// alone: pythia-1.4b fused 1 × 512 95.1 → 97.3. Of more rows still, 4 × 512 gained 2 % in variants that are not chosen there, and 8 × 128
/// seems to have lost 4 % by the one that is, 128×224. Clusters of four and eight for the place: fused 1 × 128 19.3 and 19.5, 1 × 512
/// 33.4 → 38 to 39. Attention's blocks in pairs: no difference.
fn in_pairs(cluster: Cluster, m: usize, blocks: usize, pairs: usize) -> bool {
    let most_rows = if cluster.parts() == 1 { 512 } else { plan::MAX_ROWS_ANYWHERE };
    cluster.blocks() == 1 && m <= most_rows && blocks.is_multiple_of(2) && blocks / 2 <= pairs
}

/// How often `columns` of C, which has `m` rows, are counted: each tile by each warpgroup that stores some of it. Clusters' tiles
/// may lie below C.
fn counted(tile: &Sm90GemmTile, cluster: Cluster, m: usize, columns: usize) -> u32 {
    let (_, down) = cluster.shared();
    let tiles = m.div_ceil(tile.m * down) * down * columns.div_ceil(tile.n);
    let warpgroups = if tile.in_turn { 1 } else { tile.consumers() };
    (tiles * warpgroups * cluster.split()) as u32
}

/// What the kernel asks of a variant.
fn check(tile: &Sm90GemmTile, cluster: Cluster, stages: usize, steps: [usize; 2], shared_bytes: usize) -> Result<()> {
    const OPERATION: &str = "gemm";
    let (most, steps) = (tile.stages_in(shared_bytes, cluster), tile.steps(steps));
    let step = tile.panels * GEMM_TILE_K;
    if stages < 2 || stages > most {
        return Err(Error::mismatch(OPERATION, "stages", stages, format!("2 to {most} for tile {}", tile.name)));
    }
    let (n, m) = cluster.shared();
    // Slices are whole atoms of eight rows; of a warpgroup's four warps each tells one block that a stage has been read.
    let fits = matches!(n, 1 | 2 | 4)
        && matches!(m, 1 | 2 | 4)
        && n * m <= 4
        && tile.m.is_multiple_of(8 * n)
        && tile.n.is_multiple_of(8 * m);
    if !fits {
        let expected = "1, 2 or 4 each way, at most 4 blocks, slices of whole 8 rows";
        return Err(Error::mismatch(OPERATION, "shared cluster", format!("{n} × {m}"), expected));
    }
    match cluster {
        Cluster::Share { .. } => {}
        Cluster::Split(_) if !tile.splits() => {
            let expected = format!("none for tile {}", tile.name);
            return Err(Error::mismatch(OPERATION, "split of K", cluster.split(), expected));
        }
        Cluster::Parts { parts, .. } if !Ends::Sums.has(tile) => {
            return Err(Error::mismatch(OPERATION, "parts of K", parts, format!("none for tile {}", tile.name)));
        }
        Cluster::Split(split) if !matches!(split, 2 | 4 | 8) || some_are_empty(steps, split) => {
            let expected = format!("2, 4 or 8, each with some of the {steps:?} steps of {step} along K");
            return Err(Error::mismatch(OPERATION, "split of K", split, expected));
        }
        Cluster::Parts { parts, .. } if !(2..=GEMM_MAX_PARTS).contains(&parts) || some_are_empty(steps, parts) => {
            let expected = format!("2 to {GEMM_MAX_PARTS}, each with some of the {steps:?} steps of {step} along K");
            return Err(Error::mismatch(OPERATION, "parts of K", parts, expected));
        }
        Cluster::Split(_) | Cluster::Parts { .. } => {}
    }
    Ok(())
}

/// First step along the K of each pair, of each part, and one past the last. Every part gets its share of each pair, so that all of
/// them can begin with the first; rounded down in one and up in the other, which leaves hardly a part without a step.
fn first_steps(steps: [usize; 2], parts: usize) -> [[i32; GEMM_MAX_PARTS + 1]; 2] {
    let first = |part: usize| [part.min(parts) * steps[0] / parts, (part.min(parts) * steps[1]).div_ceil(parts)];
    std::array::from_fn(|pair| std::array::from_fn(|part| first(part)[pair] as i32))
}

/// Whether some part of K would have no step.
fn some_are_empty(steps: [usize; 2], parts: usize) -> bool {
    let table = first_steps(steps, parts);
    (0..parts).any(|part| table.iter().all(|first| first[part] == first[part + 1]))
}

#[cfg(test)]
mod tests;
