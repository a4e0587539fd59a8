//! Launcher of kernels/attention_sm90.cu, Hopper's attention.

use bytemuck::{Pod, Zeroable};

use super::{Attention, AttentionVariant, no_such_rows};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::gpu::batch::Sequences;
use crate::gpu::device::{Device, Stream};
use crate::gpu::gemm::Meanwhile;
use crate::gpu::launch::{Function, Grid, Module, TensorMap};
use crate::gpu::plan;
use crate::gpu::tiles::{ATTENTION_SM90_TILES, Sm90AttentionTile};

/// The kernels of one element type.
pub(in crate::gpu) struct Sm90Attention {
    dtype: Dtype,
    /// In the order of [`ATTENTION_SM90_TILES`].
    functions: Vec<Function>,
    _module: Module,
}

/// `AttentionParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Zeroable, Pod)]
struct Params {
    q: TensorMap,
    kv: TensorMap,
    out: u64,
    log_sum_exp: u64,
    lengths: u64,
    first_rows: u64,
    rows: i32,
    seq_len: i32,
    ld_out: i32,
    batch: i32,
    heads: i32,
    group: i32,
    k_column: i32,
    v_column: i32,
    scale_log2: f32,
    causal: i32,
    next: i32,
    padding_1: i32,
    ready: u64,
    ready_count: u32,
    ready_is_last: i32,
    padding: [i32; 8],
}

impl Sm90Attention {
    pub(in crate::gpu) fn load(device: &Device, dtype: Dtype) -> Result<Self> {
        let module = Module::load(device, &format!("attention_sm90_{dtype}"))?;
        let load = |tile: &Sm90AttentionTile| {
            let most_bytes = if tile.half() { tile.shared_bytes() } else { apart_bytes(tile) };
            module.function(device, &format!("attention_{}", tile.name), tile.threads(), most_bytes)
        };
        let functions = ATTENTION_SM90_TILES.iter().map(load).collect::<Result<_>>()?;
        Ok(Self { dtype, functions, _module: module })
    }

    pub(in crate::gpu) fn functions(&self) -> impl Iterator<Item = &Function> {
        self.functions.iter()
    }

    /// The row of [`ATTENTION_SM90_TILES`] that the planner chooses; `None` where there is none for the head's width.
    pub(super) fn planned(&self, device: &Device, attention: &Attention) -> Option<usize> {
        let &Attention { sequences, heads, head_dim, causal, .. } = attention;
        let tiles = |rows| heads * sequences.tiles(rows);
        plan::attention_sm90(head_dim, tiles, sequences.seq_len, causal, device.info().multiprocessors as usize)
    }

    /// The tile for attention beside a product; `None` if each would have most of the device. The smallest of which there
    /// are at most a quarter as many as multiprocessors; else the largest that leaves half of these to the product. Tiles that would be
    /// mostly empty are none. On an H100, against always the largest: RoBERTa-large at 1 × 256 0.599 ms → 0.561, at 1 × 128 0.478 → 0.472,
    /// GPT-J at 1 × 128 4.75 → 4.59.
    pub(super) fn planned_beside(&self, device: &Device, attention: &Attention) -> Option<usize> {
        let seq_len = attention.sequences.seq_len;
        let multiprocessors = device.info().multiprocessors as usize;
        let of = |tile: usize| &ATTENTION_SM90_TILES[tile];
        let rows = seq_len.next_multiple_of(64);
        let useful = || of_width(attention.head_dim, false).filter(move |&tile| of(tile).rows() <= rows);
        let at_most = |most: usize| move |&tile: &usize| tiles_of(attention, of(tile)) <= most;
        useful().filter(at_most(multiprocessors / 4)).last().or_else(|| useful().find(at_most(multiprocessors / 2)))
    }

    /// Whether waiting for a count instead of a product's end is worth it: not by halves, where that end is what keeps blocks apart, nor where
    /// they are kept apart otherwise, about one a multiprocessor.
    /// They would crowd where the product's blocks end first. Such plans of RoBERTa-large took a sixth longer at 4 × 128 and 1 × 512 in
    /// the run that counted for them too, though other choices had changed as well.
    pub(super) fn gains_from_count(&self, device: &Device, attention: &Attention, tile: usize) -> bool {
        let tile = &ATTENTION_SM90_TILES[tile];
        !tile.half() && !fills_by_half(tiles_of(attention, tile), device)
    }

    /// What attention in that tile, not by halves, takes, all of it, ns.
    pub(super) fn takes_ns(&self, device: &Device, attention: &Attention, tile: usize) -> f64 {
        let tiles = tiles_of(attention, &ATTENTION_SM90_TILES[tile]);
        let multiprocessors = device.info().multiprocessors as usize;
        plan::sm90_attention_ns(tile, tiles, attention.sequences.seq_len, attention.causal, multiprocessors)
    }

    /// # Safety
    /// As [`super::launch`]; `attention` has been checked.
    pub(super) unsafe fn launch(&self, stream: &Stream, attention: &Attention, index: usize) -> Result<()> {
        let &Attention { qkv, out, log_sum_exp, sequences, heads, causal, overlap, .. } = attention;
        let tile = &ATTENTION_SM90_TILES[index];
        let device = stream.device();
        let map = |rows| TensorMap::new(device, self.dtype, &qkv, (tile.chunk(), rows));
        let parameters = Params {
            q: map(tile.rows())?,
            kv: map(tile.keys)?,
            out: out.pointer,
            log_sum_exp,
            lengths: sequences.lengths,
            first_rows: sequences.first_rows,
            rows: sequences.rows as i32,
            seq_len: sequences.seq_len as i32,
            ld_out: out.stride as i32,
            batch: sequences.batch as i32,
            heads: heads as i32,
            group: attention.group(),
            k_column: attention.k_column(),
            v_column: attention.v_column(),
            scale_log2: attention.scale_log2(),
            causal: causal.into(),
            next: attention.next as i32,
            padding_1: 0,
            ready: attention.ready.map_or(0, |ready| ready.counters),
            ready_count: attention.ready.map_or(0, |ready| ready.count),
            ready_is_last: attention.ready.is_some_and(|ready| ready.is_last).into(),
            padding: [0; 8],
        };
        // Blocks are persistent: as many as find a place.
        let tiles = tiles_of(attention, tile);
        if tiles > i32::MAX as usize / 2 {
            let expected = format!("at most {}", i32::MAX / 2);
            return Err(Error::mismatch(
                "attention",
                "number of query tiles of the longest sequence's",
                tiles,
                expected,
            ));
        }
        // By halves, blocks go one to each multiprocessor only where the kernel before has left them all: two on one would leave no room for
        // the product's.
        let overlap = overlap && !tile.half();
        let places = device.info().multiprocessors as usize * tile.blocks.max(1);
        let grid = Grid { overlap, ..Grid::new(tiles.min(places), 1) };
        let apart = overlap && fills_by_half(tiles, device);
        let shared_bytes = if apart { apart_bytes(tile) } else { tile.shared_bytes() };
        // SAFETY: `Params` mirrors the kernel's struct; shapes were checked; liveness is the caller's promise.
        unsafe { self.functions[index].launch_with(stream, grid, shared_bytes, &parameters) }
    }

    /// What a product must leave of the device, so that its blocks run beside those of `attention`, overlapped: multiprocessors
    /// where attention has few blocks, part of each where it has about as many and leaves it registers, or goes by halves, else
    /// nothing.
    pub(super) fn takes(&self, device: &Device, attention: &Attention, index: usize) -> Meanwhile {
        let tile = &ATTENTION_SM90_TILES[index];
        let tiles = tiles_of(attention, tile);
        // Each block costs a kilobyte beside, of which the limit of one block has deducted its own.
        if tile.half() {
            return Meanwhile { spare_bytes: tile.shared_bytes() as usize + 1024, half: true, ..Meanwhile::default() };
        }
        let spare_bytes =
            if tile.blocks == 2 && fills_by_half(tiles, device) { apart_bytes(tile) as usize + 1024 } else { 0 };
        let few = tiles <= device.info().multiprocessors as usize / 2;
        if !few {
            return Meanwhile { spare_bytes, ..Meanwhile::default() };
        }
        let nanoseconds =
            plan::sm90_attention_tile_ns(index, attention.sequences.seq_len, attention.causal, false) as usize;
        Meanwhile { spare_bytes, multiprocessors: tiles, nanoseconds, half: false }
    }
}

/// Tiles of all heads, if all sequences were as long as the longest.
fn tiles_of(attention: &Attention, tile: &Sm90AttentionTile) -> usize {
    let Sequences { batch, seq_len, .. } = attention.sequences;
    batch * seq_len.div_ceil(tile.rows()) * attention.heads
}

/// Whether one tile a multiprocessor is what most of them get. Where blocks begin early they would else crowd, in pairs, on the
/// multiprocessors that are free first.
fn fills_by_half(tiles: usize, device: &Device) -> bool {
    let multiprocessors = device.info().multiprocessors as usize;
    tiles > multiprocessors / 2 && tiles <= multiprocessors
}

/// Shared memory of a block of which no two find room on a multiprocessor.
fn apart_bytes(tile: &Sm90AttentionTile) -> u32 {
    tile.shared_bytes().max(plan::SM90_TWO_BLOCKS_BYTES as u32 + 512)
}

/// The rows of [`ATTENTION_SM90_TILES`] for a head width, by halves or not, most query rows first; none where there is no kernel for it.
pub(in crate::gpu) fn of_width(head_dim: usize, half: bool) -> impl Iterator<Item = usize> {
    let of = |tile: usize| &ATTENTION_SM90_TILES[tile];
    (0..ATTENTION_SM90_TILES.len()).filter(move |&tile| (of(tile).head_dim, of(tile).half()) == (head_dim, half))
}

/// The one of them with so many query rows.
pub(super) fn tile(head_dim: usize, rows: usize, half: bool) -> Result<usize> {
    let what = if half { "query rows by halves" } else { "query rows" };
    let rows_of = |tile: usize| ATTENTION_SM90_TILES[tile].rows();
    let found = of_width(head_dim, half).find(|&tile| rows_of(tile) == rows);
    found.ok_or_else(|| no_such_rows(what, rows, head_dim, of_width(head_dim, half).map(rows_of)))
}

/// What goes by that row.
pub(in crate::gpu) const fn variant(tile: usize) -> AttentionVariant {
    let tile = &ATTENTION_SM90_TILES[tile];
    AttentionVariant::Sm90 { rows: tile.rows(), half: tile.half() }
}
