//! Launcher of kernels/attention_sm90.cu, Hopper's attention.

use bytemuck::{Pod, Zeroable};

use super::{Attention, no_such_rows};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::gpu::device::{Device, Stream};
use crate::gpu::launch::{Function, Grid, Module, TensorMap};
use crate::gpu::plan;
use crate::gpu::tiles::ATTENTION_SM90_TILES;

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
    padding: [i32; 14],
}

impl Sm90Attention {
    pub(in crate::gpu) fn load(device: &Device, dtype: Dtype) -> Result<Self> {
        let module = Module::load(device, &format!("attention_sm90_{dtype}"))?;
        let functions = ATTENTION_SM90_TILES
            .iter()
            .map(|tile| {
                module.function(device, &format!("attention_{}", tile.name), tile.threads(), tile.shared_bytes())
            })
            .collect::<Result<_>>()?;
        Ok(Self { dtype, functions, _module: module })
    }

    pub(in crate::gpu) fn functions(&self) -> impl Iterator<Item = &Function> {
        self.functions.iter()
    }

    /// Query rows of the tile that the planner chooses; `None` where there is none for the head's width.
    pub(super) fn planned(&self, device: &Device, attention: &Attention) -> Option<usize> {
        let &Attention { sequences, heads, head_dim, causal, .. } = attention;
        let tiles = |rows| heads * sequences.tiles(rows);
        plan::attention_sm90(head_dim, tiles, sequences.seq_len, causal, device.info().multiprocessors as usize)
            .map(|index| ATTENTION_SM90_TILES[index].rows())
    }

    /// # Safety
    /// As [`super::launch`]; `attention` has been checked.
    pub(super) unsafe fn launch(&self, stream: &Stream, attention: &Attention, rows: usize) -> Result<()> {
        let &Attention { qkv, out, log_sum_exp, sequences, heads, head_dim, causal, overlap, .. } = attention;
        let index = ATTENTION_SM90_TILES.iter().position(|tile| tile.head_dim == head_dim && tile.rows() == rows);
        let index = index.ok_or_else(|| no_such_rows(rows, head_dim, tiles(head_dim)))?;
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
            padding: [0; 14],
        };
        // Blocks are persistent: as many as find a place.
        let tiles = sequences.batch * sequences.seq_len.div_ceil(rows) * heads;
        if tiles > i32::MAX as usize / 2 {
            let expected = format!("at most {}", i32::MAX / 2);
            return Err(Error::mismatch(
                "attention",
                "number of query tiles of the longest sequence's",
                tiles,
                expected,
            ));
        }
        let places = device.info().multiprocessors as usize * tile.blocks;
        let grid = Grid { overlap, ..Grid::new(tiles.min(places), 1) };
        // SAFETY: `Params` mirrors the kernel's struct; shapes were checked; liveness is the caller's promise.
        unsafe { self.functions[index].launch(stream, grid, &parameters) }
    }
}

/// Query rows of the tiles for a head width, most first; none where there is no kernel for it.
pub(in crate::gpu) fn tiles(head_dim: usize) -> impl Iterator<Item = usize> {
    ATTENTION_SM90_TILES.iter().filter(move |tile| tile.head_dim == head_dim).map(|tile| tile.rows())
}
