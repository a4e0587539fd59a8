//! One kernel at a time, on tensors: for engines that bring their own layers, for tests, and for benchmarks.
//!
//! Each function checks shapes, element types, devices and aliasing, enqueues one kernel on the stream, and returns. The
//! operands belong to the call until the stream has run it.

mod embed;
mod gate;

pub use embed::{Table, embed, pool, tanh};
pub use gate::gate;

pub use super::attention::AttentionVariant;
use super::attention::{self, sm80, sm90};
use super::batch::Batch;
use super::device::{Device, Stream};
pub use super::embed::Indices;
use super::gemm::{self, Gemm, Then};
pub use super::gemm::{Cluster, GemmVariant};
use super::graph::Graph;
pub use super::launch::KernelResources;
use super::memory::{Floats, Matrix, Tensor};
use super::norm::{self, Join, NormOutput};
use super::plan::{self, Limits};
pub use super::rotary::RotaryTable;
use super::rotary::{self, Rotation};
use super::tiles::{AttentionTile, GEMM_SM80_TILES};
use crate::config::{HiddenAct, Rotary};
use crate::dtype::Dtype;
use crate::error::{Error, Result};

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
    /// launch, on Hopper; elsewhere it changes nothing). That kernel must not write `w` or `bias`.
    pub overlap: bool,
}

impl<'a> Product<'a> {
    /// `a · wᵀ` and nothing else.
    pub fn new(a: &'a Tensor, w: &'a Tensor) -> Self {
        let (second, beside, bias, rotate, variant) = (None, None, None, None, None);
        Self { a, w, second, beside, bias, epilogue: Epilogue::None, rotate, variant, overlap: false }
    }
}

/// A rotation of queries and keys by positions (arXiv 2104.09864), in place ([`rotate`]), or of what a product stores, to the same bits:
/// Hopper's kernel can, with tiles whose stores hold both columns of each pair (see [`rotates`]).
#[derive(Debug, Clone, Copy)]
pub struct Rotate<'a> {
    /// Which rows are which sequences.
    pub batch: &'a Batch,
    /// The angles.
    pub table: &'a RotaryTable,
    /// Query heads and key heads together, from the first column on.
    pub heads: usize,
    /// Width of one head.
    pub head_dim: usize,
}

impl Rotate<'_> {
    fn lower(&self, operation: &'static str, stream: &Stream) -> Result<Rotation> {
        let &Self { batch, table, heads, head_dim } = self;
        batch.check_device(operation, stream.device())?;
        check_device(operation, stream, table.device())?;
        Ok(Rotation::new(table, batch.sequences(), heads, head_dim))
    }
}

/// Whether that variant can rotate heads of that width as it finishes them: see [`Rotate`].
pub fn rotates(variant: GemmVariant, rotary: &Rotary, head_dim: usize) -> bool {
    gemm::rotates(variant, rotary, head_dim)
}

/// The ways in which `device` could compute a product of that shape: the portable kernel's, then, on Hopper, those of its
/// own kernel that are worth considering.
pub fn gemm_variants(device: &Device, m: usize, k: usize) -> Vec<GemmVariant> {
    let steps = k.div_ceil(super::tiles::GEMM_TILE_K);
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
    hopper_variants(device, m, k.div_ceil(super::tiles::GEMM_TILE_K)).filter(in_parts).collect()
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
    let steps = k.div_ceil(super::tiles::GEMM_TILE_K);
    gemm::planned(device.kernels(dtype)?, device, (m, n, steps), Limits::default())
}

/// What each kernel takes of a multiprocessor, as the driver compiled it for `device`. The same kernels as the toolkit's
/// assembler compiles, which need not come out the same.
///
/// # Errors
/// [`Error::Cuda`], [`Error::ContextLost`] where the kernels cannot be loaded.
pub fn resources(device: &Device, dtype: Dtype) -> Result<Vec<KernelResources>> {
    device.kernels(dtype)?.resources(device)
}

/// Attention to compute: `softmax(Q·Kᵀ/√head_dim)·V` for each sequence of a batch and each head.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Which rows are which sequences. Padded keys get no weight, padded rows become zeros.
    pub batch: &'a Batch,
    /// `[rows, (heads + 2 · key_value_heads) · head_dim]`: all query heads, all key heads, all value heads.
    pub qkv: &'a Tensor,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads, a divisor of `heads`: head `h` reads key and value head `h / (heads / key_value_heads)`.
    pub key_value_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Whether a position attends only to itself and to earlier ones.
    pub causal: bool,
    /// `None` leaves the choice to the planner.
    pub variant: Option<AttentionVariant>,
    /// Lets the kernel begin while the kernel before it on the stream still runs (programmatic dependent launch); a kernel
    /// that cannot ignores it.
    pub overlap: bool,
}

impl<'a> Attention<'a> {
    /// Not causal, with as many key and value heads as query heads.
    pub fn new(batch: &'a Batch, qkv: &'a Tensor, heads: usize, head_dim: usize) -> Self {
        let (causal, variant, overlap) = (false, None, false);
        Self { batch, qkv, heads, key_value_heads: heads, head_dim, causal, variant, overlap }
    }

    /// As the launchers take it.
    fn lower(&self, log_sum_exp: u64, out: Matrix) -> attention::Attention {
        let &Self { batch, qkv, heads, key_value_heads, head_dim, causal, variant, overlap } = self;
        attention::Attention {
            qkv: qkv.matrix(),
            out,
            log_sum_exp,
            sequences: batch.sequences(),
            heads,
            key_value_heads,
            head_dim,
            causal,
            variant,
            overlap,
            early: false,
            beside: false,
            ready: None,
        }
    }
}

/// The ways in which `device` could compute attention with heads of that width; empty where there is no kernel for it.
pub fn attention_variants(device: &Device, head_dim: usize) -> Vec<AttentionVariant> {
    let fits = |tile: &&AttentionTile| tile.shared_bytes() <= device.info().shared_bytes_per_block;
    let portable = sm80::tiles(head_dim).filter(fits).map(|tile| AttentionVariant::Sm80 { rows: tile.rows() });
    let hopper = sm90::tiles(head_dim).map(|rows| AttentionVariant::Sm90 { rows });
    portable.chain(hopper.filter(|_| device.uses_hopper_kernels())).collect()
}

/// What the planner chooses for `attention`, whatever variant that names.
///
/// # Errors
/// As [`attention`].
pub fn planned_attention(attention: &Attention<'_>) -> Result<AttentionVariant> {
    let (device, dtype) = (attention.qkv.device(), attention.qkv.dtype());
    attention::planned(device.kernels(dtype)?, device, &attention.lower(0, attention.qkv.matrix()))
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

/// What [`gemm_in_parts`] has left, for [`join`] to add up: `Σ sums + bias`.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// fp32 `[count, M, N]`, or longer.
    pub sums: &'a Floats,
    /// How many there are.
    pub count: usize,
    /// `[1, N]`.
    pub bias: Option<&'a Tensor>,
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

/// Enqueues `out = attention`, `[rows, heads · head_dim]`. `log_sum_exp`, `[heads, rows]`, gets the natural logarithm of the
/// softmax's denominator, `ln Σ exp(q·k/√head_dim)` over the keys that a row sees; −∞ in rows of padding.
///
/// # Errors
/// As [`gemm`]; [`Error::Unsupported`] for a head width without a kernel.
pub fn attention(
    stream: &Stream,
    attention: &Attention<'_>,
    out: &mut Tensor,
    log_sum_exp: Option<&mut Floats>,
) -> Result<()> {
    const OPERATION: &str = "attention";
    let dtype = same_kind(OPERATION, stream, [attention.qkv, out])?;
    attention.batch.check_device(OPERATION, stream.device())?;
    if let Some(floats) = &log_sum_exp {
        let expected = attention.heads.saturating_mul(attention.batch.shape().rows());
        if floats.len() != expected {
            return Err(Error::mismatch(OPERATION, "length of log-sum-exp", floats.len(), expected));
        }
        check_device(OPERATION, stream, floats.device())?;
    }
    let attention = attention.lower(log_sum_exp.map_or(0, |floats| floats.pointer()), out.matrix());
    let kernels = stream.device().kernels(dtype)?;
    stream.device().enter()?;
    // SAFETY: the operands are borrowed, checked, and wait for the device before they are freed.
    unsafe { attention::launch(kernels, stream, &attention) }
}

/// Records attentions into a graph, one after the other into the same `out`, which with their operands stays borrowed.
///
/// # Errors
/// As [`attention()`]; [`Error::Cuda`] for an empty list.
pub fn record_attentions<'a>(stream: &Stream, attentions: &[Attention<'a>], out: &'a mut Tensor) -> Result<Graph<'a>> {
    // What a variant needs is loaded before the capture, in which nothing may be.
    let portable = |attention: &&Attention<'_>| matches!(attention.variant, Some(AttentionVariant::Sm80 { .. }));
    if let Some(first) = attentions.iter().find(portable) {
        stream.device().kernels(first.qkv.dtype())?.attention_sm80(stream.device())?;
    }
    Graph::record(stream, || attentions.iter().try_for_each(|of| attention(stream, of, out, None)))
}

/// Rotates the first `table.rotary().dim` columns of every query and key head of `qkv`, `[rows, heads · head_dim]` or wider (packed as
/// [`Attention`] takes it), by the angles of their positions, which are counted from each sequence's start. Rows of padding are left
/// alone.
///
/// # Errors
/// As [`gemm`]; [`Error::InvalidConfig`] for more dimensions than a head has; [`Error::Mismatch`] for a sequence that is
/// longer than the table.
pub fn rotate(stream: &Stream, rotate: &Rotate<'_>, qkv: &mut Tensor) -> Result<()> {
    const OPERATION: &str = "rotary";
    let dtype = same_kind(OPERATION, stream, [&*qkv])?;
    let rotation = rotate.lower(OPERATION, stream)?;
    let kernels = stream.device().kernels(dtype)?;
    stream.device().enter()?;
    // SAFETY: the operands are borrowed, checked, and wait for the device before they are freed.
    unsafe { rotary::launch(kernels, stream, qkv.matrix(), &rotation, false) }
}

/// A layer norm that [`join`] is to make of its sum.
#[derive(Debug)]
pub struct Norm<'a> {
    /// Where it goes, of the addends' shape.
    pub out: &'a mut Tensor,
    /// Scale, `[1, hidden_size]`.
    pub gamma: &'a Tensor,
    /// Shift, `[1, hidden_size]`.
    pub beta: &'a Tensor,
}

/// `s = Σ addends` (one to three, `[rows, hidden_size]`) and, if given, what a product has left in parts; stored to `sum` if given,
/// and up to two layer norms of it, `(s − mean)/√(var + eps)·γ + β`. Padded rows become zeros in every output.
///
/// # Errors
/// As [`gemm`]; [`Error::Mismatch`] for no or more than three addends, more than two norms, or no output.
pub fn join(
    stream: &Stream,
    batch: &Batch,
    addends: &[&Tensor],
    parts: Option<Parts<'_>>,
    sum: Option<&mut Tensor>,
    norms: &mut [Norm<'_>],
    eps: f32,
) -> Result<()> {
    const OPERATION: &str = "norm";
    if addends.len() > 3 || norms.len() > 2 {
        let got = format!("{} and {}", addends.len(), norms.len());
        return Err(Error::mismatch(OPERATION, "number of addends and norms", got, "at most 3 and 2"));
    }
    let sum = sum.map(|sum| &*sum);
    let of_norms = norms.iter().flat_map(|norm| [&*norm.out, norm.gamma, norm.beta]);
    let bias = parts.and_then(|parts| parts.bias);
    let dtype = same_kind(OPERATION, stream, addends.iter().copied().chain(sum).chain(of_norms).chain(bias))?;
    batch.check_device(OPERATION, stream.device())?;
    for norm in norms.iter() {
        for (what, vector) in [("γ", norm.gamma), ("β", norm.beta)] {
            check_shape(OPERATION, what, vector, (1, norm.out.shape().1))?;
        }
    }
    if let Some(first) = addends.first() {
        let (rows, hidden) = (batch.shape().rows(), first.shape().1);
        check_shape(OPERATION, "addend", first, (rows, hidden))?;
        if let Some(Parts { sums, count, bias }) = parts {
            let needed = count.saturating_mul(rows).saturating_mul(hidden);
            if sums.len() < needed {
                return Err(Error::mismatch(OPERATION, "length of parts", sums.len(), format!("{needed} at least")));
            }
            check_device(OPERATION, stream, sums.device())?;
            bias.map_or(Ok(()), |bias| check_shape(OPERATION, "bias", bias, (1, hidden)))?;
        }
    }
    let output = |norm: &Norm<'_>| NormOutput {
        out: norm.out.matrix(),
        gamma: norm.gamma.matrix().pointer,
        beta: norm.beta.matrix().pointer,
    };
    let join = Join {
        addends: std::array::from_fn(|i| addends.get(i).map(|tensor| tensor.matrix())),
        parts: parts.map(|parts| norm::Parts {
            sums: parts.sums.pointer(),
            count: parts.count,
            bias: bias.map_or(0, |bias| bias.matrix().pointer),
        }),
        sum: sum.map(Tensor::matrix),
        norms: std::array::from_fn(|i| norms.get(i).map(output)),
        lengths: batch.sequences().padding(),
        seq_len: batch.shape().seq_len(),
        eps,
        overlap: false,
    };
    let kernels = stream.device().kernels(dtype)?;
    stream.device().enter()?;
    // SAFETY: the operands are borrowed, checked, and wait for the device before they are freed.
    unsafe { norm::launch(kernels, stream, &join) }
}

/// The operands of one [`join`], without padding or parts.
#[derive(Debug)]
pub struct JoinOperands<'a> {
    /// Which rows there are.
    pub batch: &'a Batch,
    /// One to three.
    pub addends: Vec<&'a Tensor>,
    /// Where the sum goes, if anywhere.
    pub sum: Option<&'a mut Tensor>,
    /// Up to two.
    pub norms: Vec<Norm<'a>>,
    /// Added to the variance.
    pub eps: f32,
}

/// Records one join into a graph, so many times; its operands stay borrowed.
///
/// # Errors
/// As [`record_joins`].
pub fn record_join_again<'a>(stream: &Stream, join: JoinOperands<'a>, times: usize) -> Result<Graph<'a>> {
    let mut of = join;
    prepare_joins(stream, std::slice::from_ref(&of))?;
    Graph::record(stream, || (0..times).try_for_each(|_| of.enqueue(stream)))
}

/// Records joins into a graph, one after the other; their operands stay borrowed.
///
/// # Errors
/// As [`join`]; [`Error::Cuda`] for an empty list.
pub fn record_joins<'a>(stream: &Stream, joins: &mut [JoinOperands<'a>]) -> Result<Graph<'a>> {
    prepare_joins(stream, joins)?;
    Graph::record(stream, || joins.iter_mut().try_for_each(|of| of.enqueue(stream)))
}

/// Loads what the joins need before the capture, in which nothing may be.
fn prepare_joins(stream: &Stream, joins: &[JoinOperands<'_>]) -> Result<()> {
    let first = joins.first().and_then(|of| of.addends.first());
    first.map_or(Ok(()), |first| stream.device().kernels(first.dtype()).map(drop))
}

impl JoinOperands<'_> {
    fn enqueue(&mut self, stream: &Stream) -> Result<()> {
        let Self { batch, addends, sum, norms, eps } = self;
        join(stream, batch, addends, None, sum.as_deref_mut(), norms, *eps)
    }
}

/// The element type of all operands, if it is one, and if all are on the stream's device.
fn same_kind<'a>(
    operation: &'static str,
    stream: &Stream,
    tensors: impl IntoIterator<Item = &'a Tensor>,
) -> Result<Dtype> {
    let mut dtype = None;
    for tensor in tensors {
        let expected = *dtype.get_or_insert(tensor.dtype());
        if tensor.dtype() != expected {
            return Err(Error::mismatch(operation, "element type of an operand", tensor.dtype(), expected));
        }
        check_device(operation, stream, tensor.device())?;
    }
    dtype.ok_or_else(|| Error::mismatch(operation, "number of operands", 0, "at least 1"))
}

fn check_device(operation: &'static str, stream: &Stream, device: &Device) -> Result<()> {
    if !device.same_as(stream.device()) {
        return Err(Error::mismatch(
            operation,
            "device of an operand",
            device.info().ordinal,
            format!("the stream's device object (ordinal {})", stream.device().info().ordinal),
        ));
    }
    Ok(())
}

fn check_shape(operation: &'static str, what: &'static str, tensor: &Tensor, expected: (usize, usize)) -> Result<()> {
    let shape = tensor.shape();
    if shape != expected {
        let text = |(rows, cols): (usize, usize)| format!("{rows} × {cols}");
        return Err(Error::mismatch(operation, what, text(shape), text(expected)));
    }
    Ok(())
}
