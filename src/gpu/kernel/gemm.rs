//! Products of matrices.

use super::{Rotate, check_device, check_shape, same_kind};
use crate::config::HiddenAct;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::gpu::device::{Device, Stream};
use crate::gpu::gemm::{self, Cluster, Gemm, GemmVariant, Then};
use crate::gpu::graph::Graph;
use crate::gpu::memory::{Floats, Matrix, Tensor};
use crate::gpu::plan::{self, Limits};
use crate::gpu::tiles::{GEMM_SM80_TILES, GEMM_TILE_K};

/// What [`gemm`] does to the product, beside adding the bias, before it rounds and stores it.
#[derive(Debug, Clone, Copy)]
pub enum Epilogue<'a> {
    /// Nothing.
    None,
    /// The activation function.
    Activation(HiddenAct),
    /// The activation function in the columns from this one on, for products side by side: `[Wqkv; W1]`.
    ActivationFrom(HiddenAct, usize),
    /// Adds a matrix of the output's shape.
    Residual(&'a Tensor),
}

/// A product to compute: `epilogue(a[M,K] · w[N,K]ᵀ + bias[1,N])`, accumulated in fp32.
#[derive(Debug, Clone, Copy)]
pub struct Product<'a> {
    /// Activations, `[M, K]`.
    pub a: &'a Tensor,
    /// Weights, `[N, K]`.
    pub w: &'a Tensor,
    /// Another pair, `[M, K₂]` and `[N, K₂]`, whose product is added before the bias: the product along the concatenation of
    /// both Ks, as `[context | inner] · [Wo | W2]ᵀ`.
    pub second: Option<(&'a Tensor, &'a Tensor)>,
    /// Other activations, `[M, K]`, for the columns from this one on: products of two inputs side by side, as
    /// `[n₁·Wqkvᵀ | n₂·W1ᵀ]`. Not with a second pair; on Hopper alone.
    pub beside: Option<(&'a Tensor, usize)>,
    /// `[1, N]`.
    pub bias: Option<&'a Tensor>,
    /// What follows.
    pub epilogue: Epilogue<'a>,
    /// What happens after that to the first columns, queries and keys of a packed QKV product.
    pub rotate: Option<Rotate<'a>>,
    /// `None` leaves the choice to the planner.
    pub variant: Option<GemmVariant>,
    /// Lets the kernel begin, and load weights, while the kernel before it on the stream still runs (programmatic dependent
    /// launch, on Hopper; elsewhere it changes nothing). Neither that kernel nor an earlier one must write `w` or `bias`, back to and with the
    /// last one on the stream that was launched without overlap: those in between may not have ended either.
    pub overlap: bool,
}

impl<'a> Product<'a> {
    /// `a · wᵀ` and nothing else.
    pub fn new(a: &'a Tensor, w: &'a Tensor) -> Self {
        let (second, beside, bias, rotate, variant) = (None, None, None, None, None);
        Self { a, w, second, beside, bias, epilogue: Epilogue::None, rotate, variant, overlap: false }
    }
}

/// The ways in which `device` could compute a product of that shape: the portable kernel's, then, on Hopper, those of its
/// own kernel that are worth considering.
pub fn gemm_variants(device: &Device, m: usize, k: usize) -> Vec<GemmVariant> {
    let steps = k.div_ceil(GEMM_TILE_K);
    let mut variants: Vec<_> = (0..GEMM_SM80_TILES.len()).map(|tile| GemmVariant::Sm80 { tile }).collect();
    if device.uses_hopper_kernels() {
        variants.extend(hopper_variants(device, m, steps).filter(|variant| !in_parts(variant)));
    }
    variants
}

/// The ways in which `device` could compute a product of that shape in parts of K: see [`gemm_in_parts`].
pub fn gemm_variants_in_parts(device: &Device, m: usize, k: usize) -> Vec<GemmVariant> {
    if !device.uses_hopper_kernels() {
        return Vec::new();
    }
    hopper_variants(device, m, k.div_ceil(GEMM_TILE_K)).filter(in_parts).collect()
}

fn hopper_variants(device: &Device, m: usize, steps: usize) -> impl Iterator<Item = GemmVariant> {
    plan::sm90_variants(m, steps, device.info().shared_bytes_per_block as usize)
}

fn in_parts(variant: &GemmVariant) -> bool {
    matches!(variant, GemmVariant::Sm90 { cluster: Cluster::Parts { .. }, .. })
}

/// What the planner chooses for a product of that shape, K being the sum over both pairs if there are two.
///
/// # Errors
/// [`Error::Cuda`], [`Error::ContextLost`] where the kernels cannot be loaded.
pub fn planned_gemm(device: &Device, dtype: Dtype, m: usize, n: usize, k: usize) -> Result<GemmVariant> {
    let steps = k.div_ceil(GEMM_TILE_K);
    gemm::planned(device.kernels(dtype)?, device, (m, n, steps), Limits::default())
}

/// Enqueues `c[M,N] = product`.
///
/// # Errors
/// [`Error::Mismatch`] for shapes that do not fit, N or K not a multiple of 8, a variant that cannot do the shape or leaves parts of
/// it (see [`gemm_in_parts`]), tensors of different types or devices; [`Error::Unsupported`] for a variant that the device cannot
/// run; [`Error::Cuda`], [`Error::ContextLost`].
pub fn gemm(stream: &Stream, product: &Product<'_>, c: &mut Tensor) -> Result<()> {
    let (dtype, gemm) = product.lower(stream, c.matrix(), Some(c))?;
    let kernels = stream.device().kernels(dtype)?;
    stream.device().enter()?;
    // SAFETY: the operands are borrowed, checked, and wait for the device before they are freed; what the kernel before
    // this one writes is the caller's promise.
    unsafe { gemm::launch(kernels, stream, &gemm) }
}

/// Enqueues a product of `n` columns whose variant is one in parts of K: their sums go to `sums`, fp32 `[parts, M, N]`, unrounded.
/// The product has no epilogue and no bias, which are the join's.
///
/// # Errors
/// As [`gemm`]; [`Error::Mismatch`] for another variant, a bias or epilogue, or too little room.
pub fn gemm_in_parts(stream: &Stream, product: &Product<'_>, sums: &mut Floats) -> Result<()> {
    const OPERATION: &str = "gemm";
    let parts = match product.variant {
        Some(GemmVariant::Sm90 { cluster: Cluster::Parts { parts, .. }, .. }) => parts,
        other => return Err(Error::mismatch(OPERATION, "variant", format!("{other:?}"), "one in parts")),
    };
    let (rows, cols) = (product.a.shape().0, product.w.shape().0);
    let needed = parts.saturating_mul(rows).saturating_mul(cols);
    if sums.len() < needed {
        return Err(Error::mismatch(OPERATION, "room for sums of parts", sums.len(), format!("{needed} at least")));
    }
    check_device(OPERATION, stream, sums.device())?;
    // Of C only the shape matters.
    let c = Matrix { pointer: sums.pointer(), rows, cols, stride: cols };
    let (dtype, gemm) = product.lower(stream, c, None)?;
    let kernels = stream.device().kernels(dtype)?;
    stream.device().enter()?;
    // SAFETY: as for `gemm`; there is room for the sums.
    unsafe { gemm::launch(kernels, stream, &Gemm { sums: sums.pointer(), ..gemm }) }
}

impl Product<'_> {
    /// As the launchers take it, and its element type.
    fn lower(&self, stream: &Stream, c: Matrix, c_tensor: Option<&Tensor>) -> Result<(Dtype, Gemm)> {
        const OPERATION: &str = "gemm";
        let &Self { a, w, second, beside, bias, epilogue, rotate, variant, overlap } = self;
        let residual = match epilogue {
            Epilogue::Residual(tensor) => Some(tensor),
            _ => None,
        };
        let others = second.into_iter().flat_map(|(a, w)| [a, w]).chain(beside.map(|(a, _)| a)).chain(c_tensor);
        let dtype = same_kind(OPERATION, stream, [a, w].into_iter().chain(others).chain(bias).chain(residual))?;
        if let Some(bias) = bias {
            check_shape(OPERATION, "bias", bias, (1, c.cols))?;
        }
        let then = match epilogue {
            Epilogue::None => Then::Bias,
            Epilogue::Activation(act) => Then::Activation(act, 0),
            Epilogue::ActivationFrom(act, column) => Then::Activation(act, column),
            Epilogue::Residual(tensor) => Then::Residual(tensor.matrix()),
        };
        let bias = bias.map_or(0, |bias| bias.matrix().pointer);
        let second = second.map(|(a, w)| (a.matrix(), w.matrix()));
        let beside = beside.map(|(a, column)| (a.matrix(), column));
        let rotation = rotate.map(|rotate| rotate.lower(OPERATION, stream)).transpose()?;
        let plain = Gemm::new(a.matrix(), w.matrix(), bias, then, c);
        Ok((dtype, Gemm { second, beside, rotation, variant, overlap, ..plain }))
    }
}

/// Records products into a graph, one after the other into the same `c`, which with their operands stays borrowed.
///
/// # Errors
/// As [`gemm`]; [`Error::Cuda`] for an empty list.
pub fn record_gemms<'a>(stream: &Stream, products: &[Product<'a>], c: &'a mut Tensor) -> Result<Graph<'a>> {
    if let Some(product) = products.first() {
        // What a variant needs is loaded before the capture, in which nothing may be.
        let kernels = stream.device().kernels(product.a.dtype())?;
        if products.iter().any(|product| matches!(product.variant, Some(GemmVariant::Sm80 { .. }))) {
            kernels.gemm_sm80(stream.device())?;
        }
    }
    Graph::record(stream, || products.iter().try_for_each(|product| gemm(stream, product, c)))
}
