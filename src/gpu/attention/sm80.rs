//! Launcher of kernels/attention_sm80.cu, the portable attention.

use bytemuck::NoUninit;

use super::{Attention, no_such_rows, unsupported_head_dim};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::gpu::device::{Device, Stream};
use crate::gpu::launch::{Function, Grid, Module};
use crate::gpu::plan;
use crate::gpu::tiles::{ATTENTION_TILES, AttentionTile};

/// The kernels of one element type.
pub(in crate::gpu) struct Sm80Attention {
    /// In the order of [`ATTENTION_TILES`]; `None` where a block has too little shared memory here.
    functions: Vec<Option<Function>>,
    _module: Module,
}

/// `AttentionParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Params {
    qkv: u64,
    out: u64,
    log_sum_exp: u64,
    lengths: u64,
    first_rows: u64,
    rows: i32,
    seq_len: i32,
    ld_qkv: i32,
    ld_out: i32,
    k_offset: i32,
    v_offset: i32,
    group: i32,
    scale_log2: f32,
    causal: i32,
    padding: i32,
}

impl Sm80Attention {
    pub(in crate::gpu) fn load(device: &Device, dtype: Dtype) -> Result<Self> {
        let module = Module::load(device, &format!("attention_sm80_{dtype}"))?;
        let functions = ATTENTION_TILES
            .iter()
            .map(|tile| module.function_if_it_fits(device, &tile.kernel_name(), tile.threads(), tile.shared_bytes()))
            .collect::<Result<_>>()?;
        Ok(Self { functions, _module: module })
    }

    pub(in crate::gpu) fn functions(&self) -> impl Iterator<Item = &Function> {
        self.functions.iter().flatten()
    }

    /// Query rows of the tile that the planner chooses.
    pub(super) fn planned(&self, device: &Device, attention: &Attention) -> Result<usize> {
        let &Attention { sequences, heads, head_dim, .. } = attention;
        let multiprocessors = device.info().multiprocessors as usize;
        let blocks = |rows| heads * sequences.tiles(rows);
        let index = plan::attention_tile(head_dim, blocks, multiprocessors, |index| self.functions[index].is_some());
        Ok(ATTENTION_TILES[index.ok_or_else(|| unsupported_head_dim(head_dim))?].rows())
    }

    /// The kernel for heads of that width with so many query rows a block.
    pub(super) fn function(&self, head_dim: usize, rows: usize) -> Result<&Function> {
        let known = || tiles(head_dim).map(AttentionTile::rows);
        if tiles(head_dim).next().is_none() {
            return Err(unsupported_head_dim(head_dim));
        }
        let index = ATTENTION_TILES.iter().position(|tile| tile.head_dim == head_dim && tile.rows() == rows);
        let index = index.ok_or_else(|| no_such_rows("query rows", rows, head_dim, known()))?;
        let tile = &ATTENTION_TILES[index];
        self.functions[index].as_ref().ok_or_else(|| Error::Unsupported {
            what: format!("attention with {rows} query rows a block ({} bytes of shared memory)", tile.shared_bytes()),
            remedy: format!("choose fewer for this device, of {:?}", known().collect::<Vec<_>>()),
        })
    }

    /// # Safety
    /// As [`super::launch`]; `attention` has been checked.
    pub(super) unsafe fn launch(&self, stream: &Stream, attention: &Attention, rows: usize) -> Result<()> {
        let &Attention { qkv, out, log_sum_exp, sequences, heads, head_dim, causal, .. } = attention;
        let function = self.function(head_dim, rows)?;
        let parameters = Params {
            qkv: qkv.pointer,
            out: out.pointer,
            log_sum_exp,
            lengths: sequences.lengths,
            first_rows: sequences.first_rows,
            rows: sequences.rows as i32,
            seq_len: sequences.seq_len as i32,
            ld_qkv: qkv.stride as i32,
            ld_out: out.stride as i32,
            k_offset: attention.k_column(),
            v_offset: attention.v_column(),
            group: attention.group(),
            scale_log2: attention.scale_log2(),
            causal: causal.into(),
            padding: 0,
        };
        let grid = Grid::new(sequences.batch * sequences.seq_len.div_ceil(rows), heads);
        // SAFETY: `Params` mirrors the kernel's struct; shapes were checked; liveness is the caller's promise.
        unsafe { function.launch(stream, grid, &parameters) }
    }
}

/// The tiles for a head width, those with most query rows first; none where there is no kernel for it.
pub(in crate::gpu) fn tiles(head_dim: usize) -> impl Iterator<Item = &'static AttentionTile> {
    ATTENTION_TILES.iter().filter(move |tile| tile.head_dim == head_dim)
}
