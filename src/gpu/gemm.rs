//! Matrix products: `C[M,N] = act(A[M,K] · W[N,K]ᵀ + b) + R`, K in one piece or two. What they are, what they check, and
//! which of the two kernels runs them: [`sm80`] anywhere, [`sm90`] on Hopper.

mod check;
pub(super) mod sm80;
pub(super) mod sm90;
mod variant;

pub(super) use sm90::Shape;

use super::device::{Device, Stream};
use super::launch::Kernels;
use super::memory::Matrix;
use super::plan::{self, Limits};
use super::rotary::Rotation;
use super::tiles::{GEMM_SM90_TILES, GEMM_TILE_K};
use crate::config::{HiddenAct, Rotary};
use crate::error::{Error, Result};
pub use variant::{Cluster, GemmVariant};

/// What happens to the product before it is rounded and stored.
#[derive(Debug, Clone, Copy)]
pub(super) enum Then {
    /// `+ b`
    Bias,
    /// `act(· + b)` in the columns from this one on, `+ b` in those before.
    Activation(HiddenAct, usize),
    /// `+ b + R`, R of C's shape and stride; R may be C itself.
    Residual(Matrix),
}

/// One product. `bias` is the pointer to N elements, or 0 for none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gemm {
    pub(super) a: Matrix,
    pub(super) w: Matrix,
    /// A second pair: `A·Wᵀ + A₂·W₂ᵀ`, the product along the concatenation of both Ks.
    pub(super) second: Option<(Matrix, Matrix)>,
    /// Another A, of A's shape, for the columns from this one on: products side by side. Hopper's kernel alone has that, not
    /// together with a second pair or parts of K.
    pub(super) beside: Option<(Matrix, usize)>,
    pub(super) bias: u64,
    pub(super) then: Then,
    /// Of C's first columns, queries and keys, after the rounding. Only Hopper's kernel can, and not with every tile: see [`settled`].
    pub(super) rotation: Option<Rotation>,
    pub(super) c: Matrix,
    /// Pointer to fp32 `[GEMM_MAX_PARTS, M, N]`, or 0: with a variant that computes parts of K apart, where their sums go. C is not
    /// written then, and bias and residual are left to whoever adds them up; there must be no activation.
    pub(super) sums: u64,
    /// Instead of the planned one.
    pub(super) variant: Option<GemmVariant>,
    /// Programmatic dependent launch: load weights while the kernel before this one on the stream still runs. Neither that kernel nor one
    /// before it, back to and with the last without overlap, must write W or the bias. Only Hopper's kernel can; it is no more than a hint.
    pub(super) overlap: bool,
    /// With two pairs: when the first one's A, and the residual, are there.
    pub(super) first: First,
    /// What another kernel needs meanwhile. For the planner.
    pub(super) meanwhile: Meanwhile,
    /// What begins before this has ended. For the planner.
    pub(super) early: Early,
    /// Tells the next kernels what is there already of C. Only Hopper's kernel can.
    pub(super) ready: Ready,
}

/// When a product may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum First {
    /// When the kernel before has ended.
    Waits,
    /// At once: what it reads is complete before the kernel before lets it begin.
    IsThere,
    /// When that count is complete, of a kernel that has ended when the one before has. Only for parts of K.
    Counted(Count),
}

/// What a product counts as its tiles reach memory (kernels/counters.cuh), so that kernels after it can begin before it has ended. Those of
/// a call's last layer make the counters 0 again: nothing may be counted that nobody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Ready {
    /// The first so many columns of C: pointer to two u32; and how many.
    pub(super) columns: Option<(u64, usize)>,
    /// All of it: pointer to two u32.
    pub(super) end: Option<u64>,
    /// The layers of the call before this one have counted as much each.
    pub(super) layer: usize,
    /// No later one will.
    pub(super) is_last: bool,
}

/// What [`Ready`] comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counted {
    pub(super) columns: Option<Count>,
    pub(super) end: Option<Count>,
}

/// A pair of counters, what the first one reaches, and whether whoever has seen that is to make them 0 again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) counters: u64,
    pub(super) count: u32,
    pub(super) is_last: bool,
}

/// What a kernel that runs at the same time has of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Meanwhile {
    /// Shared memory, bytes, of each multiprocessor, and, unless it goes by halves, half of its registers.
    pub(super) spare_bytes: usize,
    /// Whole multiprocessors,
    pub(super) multiprocessors: usize,
    /// for about that long.
    pub(super) nanoseconds: usize,
    /// Whether it is attention by halves: beside it a tile by halves alone finds registers.
    pub(super) half: bool,
}

/// A kernel that begins when the first columns of C are there, and what it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Early {
    pub(super) columns: usize,
    pub(super) nanoseconds: usize,
}

impl Gemm {
    /// `c = a·wᵀ + bias`, as planned.
    pub(super) fn new(a: Matrix, w: Matrix, bias: u64, then: Then, c: Matrix) -> Self {
        Self {
            a,
            w,
            second: None,
            beside: None,
            bias,
            then,
            rotation: None,
            c,
            sums: 0,
            variant: None,
            overlap: false,
            first: First::Waits,
            meanwhile: Meanwhile::default(),
            early: Early::default(),
            ready: Ready::default(),
        }
    }

    /// (M, N).
    fn shape(&self) -> (usize, usize) {
        (self.c.rows, self.c.cols)
    }

    /// Steps along K of both pairs.
    fn steps(&self) -> [usize; 2] {
        [self.a.cols.div_ceil(GEMM_TILE_K), self.second.map_or(0, |(a, _)| a.cols.div_ceil(GEMM_TILE_K))]
    }

    /// Number of the activation, first column that gets it, pointer to the residual: as the kernels know them.
    fn epilogue(&self) -> (i32, i32, Option<&Matrix>) {
        match &self.then {
            Then::Bias => (0, i32::MAX, None),
            Then::Activation(act, from) => {
                let number = activation_number(*act).expect("what has no number does not pass the check");
                (number, i32::try_from(*from).unwrap_or(i32::MAX), None)
            }
            Then::Residual(residual) => (0, i32::MAX, Some(residual)),
        }
    }
}

/// The planner's choice for this device; a shape's steps are of 64 along K.
pub(super) fn planned(kernels: &Kernels, device: &Device, shape: Shape, limits: Limits) -> Result<GemmVariant> {
    Ok(match &kernels.gemm_sm90 {
        Some(hopper) => hopper.planned(shape, limits),
        None => {
            let portable = kernels.gemm_sm80(device)?;
            let ((m, n, steps), multiprocessors) = (shape, device.info().multiprocessors as usize);
            plan::gemm_sm80(m, n, steps, multiprocessors, |tile| portable.has(tile))
        }
    })
}

/// The variants with the least estimated time on this device, `most` at the most; [`planned`]'s comes first.
pub(super) fn ranked(
    kernels: &Kernels,
    device: &Device,
    (m, n, steps): Shape,
    limits: Limits,
    most: usize,
) -> Result<Vec<GemmVariant>> {
    let mut ranked = match &kernels.gemm_sm90 {
        Some(hopper) => hopper.ranked((m, n, steps), limits),
        None => {
            let portable = kernels.gemm_sm80(device)?;
            plan::ranked_gemm_sm80(m, n, steps, device.info().multiprocessors as usize, |tile| portable.has(tile))
        }
    };
    ranked.truncate(most);
    Ok(ranked)
}

/// Loads what a variant needs. An error if it cannot compute a product with so many steps along each pair's K within the limits;
/// those that only make it slow are none.
pub(super) fn prepare(
    kernels: &Kernels,
    device: &Device,
    variant: GemmVariant,
    steps: [usize; 2],
    limits: Limits,
) -> Result<()> {
    match variant {
        GemmVariant::Sm80 { .. } if limits.edge > 0 => Err(no_second_input(variant)),
        GemmVariant::Sm80 { tile } => kernels.gemm_sm80(device)?.functions_of(tile).map(drop),
        GemmVariant::Sm90 { cluster: Cluster::Parts { .. }, .. } if !limits.parts => Err(Error::Unsupported {
            what: format!("GEMM variant {variant} for this product and number of rows"),
            remedy: "choose one that computes C whole: no join adds parts of it up here".into(),
        }),
        GemmVariant::Sm90 { tile, cluster, stages } => {
            hopper(kernels, variant)?.check(tile, cluster, stages, steps).map(drop)
        }
    }
}

fn no_second_input(variant: GemmVariant) -> Error {
    Error::Unsupported {
        what: format!("a second A with GEMM variant {variant}"),
        remedy: "the portable kernel has none: compute two products".into(),
    }
}

fn hopper(kernels: &Kernels, variant: GemmVariant) -> Result<&sm90::Sm90Gemm> {
    kernels.gemm_sm90.as_ref().ok_or_else(|| Error::Unsupported {
        what: format!("GEMM variant {variant}"),
        remedy: "it needs a device of compute capability 9.0, opened with its kernels enabled".into(),
    })
}

/// Whether that variant leaves room for attention by halves.
pub(super) fn is_by_halves(variant: GemmVariant) -> bool {
    match variant {
        GemmVariant::Sm80 { .. } => false,
        GemmVariant::Sm90 { tile, .. } => GEMM_SM90_TILES.get(tile).is_some_and(|tile| tile.half),
    }
}

/// Whether there is a kernel for a product with another A from some column on.
pub(super) fn takes_two_inputs(kernels: &Kernels) -> bool {
    kernels.gemm_sm90.is_some()
}

/// Whether that variant can rotate queries and keys as it finishes them.
pub(super) fn rotates(variant: GemmVariant, rotary: &Rotary, head_dim: usize) -> bool {
    match variant {
        GemmVariant::Sm80 { .. } => false,
        GemmVariant::Sm90 { tile, .. } => GEMM_SM90_TILES.get(tile).is_some_and(|tile| tile.rotates(rotary, head_dim)),
    }
}

fn no_rotation(variant: GemmVariant) -> Error {
    Error::Unsupported {
        what: format!("rotating queries and keys of that width with GEMM variant {variant}"),
        remedy: "rotate them afterwards".into(),
    }
}

/// The product with its variant, and without a rotation that this variant cannot do: whoever asked for it has to launch it.
pub(super) fn settled(kernels: &Kernels, device: &Device, gemm: Gemm) -> Result<Gemm> {
    let variant = gemm.variant(kernels, device)?;
    let rotation = gemm.rotation.filter(|by| rotates(variant, &by.rotary, by.head_dim));
    Ok(Gemm { variant: Some(variant), rotation, ..gemm })
}

/// Launches the product, and tells what the next kernels may wait for of `ready` instead of its end, if its kernel can count.
///
/// # Safety
/// As [`launch`].
pub(super) unsafe fn launch_counted(kernels: &Kernels, stream: &Stream, gemm: &Gemm, ready: Ready) -> Result<Counted> {
    let variant = gemm.variant(kernels, stream.device())?;
    let gemm = Gemm { variant: Some(variant), ..*gemm };
    let (ready, counted) = match variant {
        GemmVariant::Sm80 { .. } => Default::default(),
        GemmVariant::Sm90 { tile, cluster, stages } => {
            let counted = hopper(kernels, variant)?.counted(&gemm, ready, tile, cluster, stages)?;
            (Ready { end: ready.end.filter(|_| counted.end.is_some()), ..ready }, counted)
        }
    };
    // SAFETY: the caller's promise, passed on.
    unsafe { launch(kernels, stream, &Gemm { ready, ..gemm })? };
    Ok(counted)
}

/// Launches the product on `stream`.
///
/// # Safety
/// The matrices (and the bias) are live on the stream's device until the stream has run the kernel, and nothing else
/// writes what it reads, or touches what it writes, meanwhile; with `overlap`, neither do the kernels before it with
/// weights and bias, back to and with the last that was launched without.
pub(super) unsafe fn launch(kernels: &Kernels, stream: &Stream, gemm: &Gemm) -> Result<()> {
    gemm.check()?;
    let variant = gemm.variant(kernels, stream.device())?;
    // SAFETY: shapes were checked; liveness is the caller's promise.
    match variant {
        GemmVariant::Sm80 { .. } if gemm.beside.is_some() => Err(no_second_input(variant)),
        GemmVariant::Sm80 { .. } if gemm.rotation.is_some() => Err(no_rotation(variant)),
        GemmVariant::Sm80 { tile } => unsafe { kernels.gemm_sm80(stream.device())?.launch(stream, gemm, tile) },
        GemmVariant::Sm90 { tile, cluster, stages } => unsafe {
            hopper(kernels, variant)?.launch(stream, kernels.dtype(), gemm, tile, cluster, stages)
        },
    }
}

/// Launches a product whose result, without activation, a join is to add up, and which may be left in parts at `sums` (room for
/// fp32 `[GEMM_MAX_PARTS, M, N]`, or 0 for none) instead of in C. The number of parts, if so: then neither bias nor residual has
/// been added.
///
/// # Safety
/// As [`launch`].
pub(super) unsafe fn launch_for_join(
    kernels: &Kernels,
    stream: &Stream,
    gemm: &Gemm,
    sums: u64,
) -> Result<Option<usize>> {
    let gemm = Gemm { sums, ..*gemm };
    let variant = gemm.variant(kernels, stream.device())?;
    let GemmVariant::Sm90 { cluster: Cluster::Parts { parts, .. }, .. } = variant else {
        // SAFETY: the caller's promise, passed on.
        unsafe { launch(kernels, stream, &Gemm { sums: 0, variant: Some(variant), ..gemm })? };
        return Ok(None);
    };
    // SAFETY: as above.
    unsafe { launch(kernels, stream, &Gemm { bias: 0, then: Then::Bias, variant: Some(variant), ..gemm })? };
    Ok(Some(parts))
}

fn no_such_tile(tile: usize) -> Error {
    Error::mismatch("gemm", "tile", tile, "a row of the kernel's table (see GemmVariant's names)")
}

/// As numbered in kernels/activation.cuh.
fn activation_number(act: HiddenAct) -> Option<i32> {
    match act {
        HiddenAct::Gelu => Some(0),
        HiddenAct::GeluNew => Some(1),
        HiddenAct::Relu => Some(2),
        HiddenAct::Silu => None,
    }
}

/// An error for an activation that the products' epilogues do not know.
pub(super) fn check_activation(act: HiddenAct) -> Result<()> {
    activation_number(act).map(drop).ok_or_else(|| no_activation(act))
}

fn no_activation(act: HiddenAct) -> Error {
    Error::Unsupported {
        what: format!("activation {act} after a product on a GPU"),
        remedy: "it is there for the gates of gated FFNs; else use gelu, gelu_new or relu, or the CPU".into(),
    }
}

impl Gemm {
    /// Whether the kernel of a [settled](settled) product can wait for a count: of parts of K, which few rows have.
    pub(super) fn waits_for_count(&self) -> bool {
        matches!(self.variant, Some(GemmVariant::Sm90 { cluster: Cluster::Parts { .. }, .. }))
    }

    /// The one that was asked for, or the planner's choice.
    fn variant(&self, kernels: &Kernels, device: &Device) -> Result<GemmVariant> {
        if let Some(variant) = self.variant {
            return Ok(variant);
        }
        let ((m, n), steps) = (self.shape(), self.steps().iter().sum());
        let edge = self.beside.map_or(0, |(_, column)| column);
        let (meanwhile, early, parts) = (self.meanwhile, self.early, self.sums != 0);
        planned(kernels, device, (m, n, steps), Limits { edge, meanwhile, early, parts })
    }
}
