//! Launcher of kernels/gemm_sm80.cu, the portable GEMM.

use bytemuck::NoUninit;

use super::Gemm;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::gpu::device::{Device, Stream};
use crate::gpu::launch::{Function, Grid, Module};
use crate::gpu::memory::Matrix;
use crate::gpu::plan;
use crate::gpu::tiles::GEMM_SM80_TILES;

/// The kernels of one element type.
pub(in crate::gpu) struct Sm80Gemm {
    /// `[tile][one pair or two]`; `None` where a block has too little shared memory.
    functions: Vec<Option<[Function; 2]>>,
    _module: Module,
}

/// `GemmParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Params {
    a: u64,
    w: u64,
    a2: u64,
    w2: u64,
    bias: u64,
    residual: u64,
    c: u64,
    m: i32,
    n: i32,
    k: i32,
    k2: i32,
    lda: i32,
    ldw: i32,
    lda2: i32,
    ldw2: i32,
    ldc: i32,
    activation: i32,
    activation_from: i32,
    group_m: i32,
}

impl Sm80Gemm {
    pub(in crate::gpu) fn load(device: &Device, dtype: Dtype) -> Result<Self> {
        let module = Module::load(device, &format!("gemm_sm80_{dtype}"))?;
        let mut functions = Vec::new();
        for tile in GEMM_SM80_TILES {
            let function = |pairs: &str| {
                let name = format!("gemm_{}{pairs}", tile.name);
                module.function_if_it_fits(device, &name, tile.threads(), tile.shared_bytes())
            };
            functions.push(function("")?.zip(function("_pairs")?).map(|(one, two)| [one, two]));
        }
        Ok(Self { functions, _module: module })
    }

    pub(in crate::gpu) fn functions(&self) -> impl Iterator<Item = &Function> {
        self.functions.iter().flatten().flatten()
    }

    /// Whether the device can run that row of [`GEMM_SM80_TILES`].
    pub(in crate::gpu) fn has(&self, tile: usize) -> bool {
        self.functions[tile].is_some()
    }

    /// The kernels of one tile, for one pair and for two.
    pub(super) fn functions_of(&self, tile: usize) -> Result<&[Function; 2]> {
        let functions = self.functions.get(tile).ok_or_else(|| super::no_such_tile(tile))?.as_ref();
        let tile = &GEMM_SM80_TILES[tile];
        functions.ok_or_else(|| Error::Unsupported {
            what: format!("GEMM tile {} ({} bytes of shared memory)", tile.name, tile.shared_bytes()),
            remedy: "choose a smaller tile for this device".into(),
        })
    }

    /// # Safety
    /// As [`super::launch`]; `gemm` has been checked.
    pub(super) unsafe fn launch(&self, stream: &Stream, gemm: &Gemm, tile: usize) -> Result<()> {
        let functions = self.functions_of(tile)?;
        let tile = &GEMM_SM80_TILES[tile];
        let nothing = Matrix { pointer: 0, rows: 0, cols: 0, stride: 0 };
        let (a2, w2) = gemm.second.unwrap_or((nothing, nothing));
        let ((m, n), (activation, activation_from, residual)) = (gemm.shape(), gemm.epilogue());
        let parameters = Params {
            a: gemm.a.pointer,
            w: gemm.w.pointer,
            a2: a2.pointer,
            w2: w2.pointer,
            bias: gemm.bias,
            residual: residual.map_or(0, |residual| residual.pointer),
            c: gemm.c.pointer,
            m: m as i32,
            n: n as i32,
            k: gemm.a.cols as i32,
            k2: a2.cols as i32,
            lda: gemm.a.stride as i32,
            ldw: gemm.w.stride as i32,
            lda2: a2.stride as i32,
            ldw2: w2.stride as i32,
            ldc: gemm.c.stride as i32,
            activation,
            activation_from,
            group_m: plan::GROUP_M as i32,
        };
        let grid = Grid::new(m.div_ceil(tile.m) * n.div_ceil(tile.n), 1);
        let function = &functions[usize::from(gemm.second.is_some())];
        // SAFETY: `Params` mirrors the kernel's struct; shapes were checked; liveness is the caller's promise.
        unsafe { function.launch(stream, grid, &parameters) }
    }
}
