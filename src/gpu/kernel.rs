//! One kernel at a time, on tensors: for engines that bring their own layers, for tests, and for benchmarks.
//!
//! Each function checks shapes, element types, devices and aliasing, enqueues one kernel on the stream, and returns. The
//! operands belong to the call until the stream has run it.

use super::attention::{self, Attention};
use super::device::Stream;
use super::encoder::Batch;
use super::gemm::{self, Gemm, Then};
use super::memory::Tensor;
use super::norm::{self, Join, NormOutput};
use super::tiles::{ATTENTION_TILES, GEMM_TILES};
use crate::config::HiddenAct;
use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// What [`gemm`] does to the product, beside adding the bias, before it rounds and stores it.
#[derive(Debug, Clone, Copy)]
pub enum Epilogue<'a> {
    /// Nothing.
    None,
    /// The activation function.
    Activation(HiddenAct),
    /// Adds a matrix of the output's shape.
    Residual(&'a Tensor),
}

/// Names of the GEMM's tiles, rows of the output by columns, e.g. `128x128`.
pub fn gemm_tiles() -> impl Iterator<Item = &'static str> {
    GEMM_TILES.iter().map(|tile| tile.name)
}

/// Query rows of the attention kernel's tiles for a head width; empty where there is no kernel for it.
pub fn attention_tiles(head_dim: usize) -> impl Iterator<Item = usize> {
    ATTENTION_TILES.iter().filter(move |tile| tile.head_dim == head_dim).map(|tile| tile.rows())
}

/// `c[M,N] = epilogue(a[M,K] · w[N,K]ᵀ + bias[1,N])`, accumulated in fp32. `tile` is one of [`gemm_tiles`]; `None` leaves
/// the choice to the planner.
///
/// # Errors
/// [`Error::Mismatch`] for shapes that do not fit, N or K not a multiple of 8, an unknown tile, tensors of different types
/// or devices; [`Error::Unsupported`] for a tile that the device has too little shared memory for; [`Error::Cuda`],
/// [`Error::ContextLost`].
pub fn gemm(
    stream: &Stream,
    a: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    epilogue: Epilogue<'_>,
    c: &mut Tensor,
    tile: Option<&str>,
) -> Result<()> {
    const OPERATION: &str = "gemm";
    let tile =
        match tile {
            None => None,
            Some(name) => Some(gemm_tiles().position(|known| known == name).ok_or_else(|| {
                Error::mismatch(OPERATION, "tile", name, gemm_tiles().collect::<Vec<_>>().join(", "))
            })?),
        };
    let residual = match epilogue {
        Epilogue::Residual(tensor) => Some(tensor),
        _ => None,
    };
    let dtype = same_kind(OPERATION, stream, [a, w, c].into_iter().chain(bias).chain(residual))?;
    if let Some(bias) = bias {
        check_shape(OPERATION, "bias", bias, (1, c.shape().1))?;
    }
    let then = match epilogue {
        Epilogue::None => Then::Bias,
        Epilogue::Activation(act) => Then::Activation(act),
        Epilogue::Residual(tensor) => Then::Residual(tensor.matrix()),
    };
    let bias = bias.map_or(0, |bias| bias.matrix().pointer);
    let gemm = Gemm { a: a.matrix(), w: w.matrix(), bias, then, c: c.matrix(), tile };
    let kernels = stream.device().kernels(dtype)?;
    stream.device().enter()?;
    // SAFETY: the operands are borrowed, checked, and wait for the device before they are freed.
    unsafe { gemm::launch(kernels, stream, &gemm) }
}

/// `out = softmax(Q·Kᵀ/√head_dim)·V` per sequence and head; `qkv` is `[batch · seq_len, 3 · heads · head_dim]`: all query
/// heads, all key heads, all value heads; `out` is `[batch · seq_len, heads · head_dim]`. Padded keys get no weight, padded
/// rows become zeros. `query_rows` is one of [`attention_tiles`]; `None` leaves the choice to the planner.
///
/// # Errors
/// As [`gemm`]; [`Error::Unsupported`] for a head width without a kernel.
#[expect(clippy::too_many_arguments, reason = "one argument for each thing that a caller may vary")]
pub fn attention(
    stream: &Stream,
    batch: &Batch,
    heads: usize,
    head_dim: usize,
    causal: bool,
    qkv: &Tensor,
    out: &mut Tensor,
    query_rows: Option<usize>,
) -> Result<()> {
    const OPERATION: &str = "attention";
    let tile = match query_rows {
        None => None,
        Some(rows) => {
            let is_it = |tile: &_| attention_tile_is(tile, head_dim, rows);
            Some(ATTENTION_TILES.iter().position(is_it).ok_or_else(|| {
                let known = attention_tiles(head_dim).collect::<Vec<_>>();
                Error::mismatch(OPERATION, "query rows", rows, format!("one of {known:?} for head_dim {head_dim}"))
            })?)
        }
    };
    let dtype = same_kind(OPERATION, stream, [qkv, out])?;
    batch.check_device(OPERATION, stream.device())?;
    let attention = Attention {
        qkv: qkv.matrix(),
        out: out.matrix(),
        lengths: batch.lengths_pointer(),
        batch: batch.shape().batch(),
        seq_len: batch.shape().seq_len(),
        heads,
        head_dim,
        causal,
        tile,
    };
    let kernels = stream.device().kernels(dtype)?;
    stream.device().enter()?;
    // SAFETY: the operands are borrowed, checked, and wait for the device before they are freed.
    unsafe { attention::launch(kernels, stream, &attention) }
}

fn attention_tile_is(tile: &super::tiles::AttentionTile, head_dim: usize, rows: usize) -> bool {
    tile.head_dim == head_dim && tile.rows() == rows
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

/// `s = Σ addends` (one to three, `[batch · seq_len, hidden_size]`), stored to `sum` if given, and up to two layer norms of
/// it, `(s − mean)/√(var + eps)·γ + β`. Padded rows become zeros in every output.
///
/// # Errors
/// As [`gemm`]; [`Error::Mismatch`] for no or more than three addends, more than two norms, or no output.
pub fn join(
    stream: &Stream,
    batch: &Batch,
    addends: &[&Tensor],
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
    let dtype = same_kind(OPERATION, stream, addends.iter().copied().chain(sum).chain(of_norms))?;
    batch.check_device(OPERATION, stream.device())?;
    for norm in norms.iter() {
        for (what, vector) in [("γ", norm.gamma), ("β", norm.beta)] {
            check_shape(OPERATION, what, vector, (1, norm.out.shape().1))?;
        }
    }
    if let Some(first) = addends.first() {
        check_shape(OPERATION, "addend", first, (batch.shape().rows(), first.shape().1))?;
    }
    let output = |norm: &Norm<'_>| NormOutput {
        out: norm.out.matrix(),
        gamma: norm.gamma.matrix().pointer,
        beta: norm.beta.matrix().pointer,
    };
    let join = Join {
        addends: std::array::from_fn(|i| addends.get(i).map(|tensor| tensor.matrix())),
        sum: sum.map(Tensor::matrix),
        norms: std::array::from_fn(|i| norms.get(i).map(output)),
        lengths: batch.lengths_pointer(),
        seq_len: batch.shape().seq_len(),
        eps,
    };
    let kernels = stream.device().kernels(dtype)?;
    stream.device().enter()?;
    // SAFETY: the operands are borrowed, checked, and wait for the device before they are freed.
    unsafe { norm::launch(kernels, stream, &join) }
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
        if !tensor.device().same_as(stream.device()) {
            return Err(Error::mismatch(
                operation,
                "device of an operand",
                tensor.device().info().ordinal,
                format!("the stream's device object (ordinal {})", stream.device().info().ordinal),
            ));
        }
    }
    dtype.ok_or_else(|| Error::mismatch(operation, "number of operands", 0, "at least 1"))
}

fn check_shape(operation: &'static str, what: &'static str, tensor: &Tensor, expected: (usize, usize)) -> Result<()> {
    let shape = tensor.shape();
    if shape != expected {
        let text = |(rows, cols): (usize, usize)| format!("{rows} × {cols}");
        return Err(Error::mismatch(operation, what, text(shape), text(expected)));
    }
    Ok(())
}
