//! The join of a layer's branches: residual sum and norms.

use super::{check_device, check_shape, same_kind};
use crate::error::{Error, Result};
use crate::gpu::batch::Batch;
use crate::gpu::device::Stream;
use crate::gpu::graph::Graph;
use crate::gpu::memory::{Floats, Tensor};
use crate::gpu::norm::{self, Join, NormOutput};

/// What [`gemm_in_parts`](super::gemm_in_parts) has left, for [`join`] to add up: `Σ sums + bias`.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// fp32 `[count, M, N]`, or longer.
    pub sums: &'a Floats,
    /// How many there are.
    pub count: usize,
    /// `[1, N]`.
    pub bias: Option<&'a Tensor>,
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
/// As [`gemm`](super::gemm()); [`Error::Mismatch`] for no or more than three addends, more than two norms, or no output.
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
pub fn record_joins<'a>(stream: &Stream, joins: Vec<JoinOperands<'a>>) -> Result<Graph<'a>> {
    let mut joins = joins;
    prepare_joins(stream, &joins)?;
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
