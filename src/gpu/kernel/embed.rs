//! The kernels around a model's layers.

use super::{check_device, check_shape, same_kind};
use crate::cpu::Pooling;
use crate::error::{Error, Result};
use crate::gpu::batch::Batch;
use crate::gpu::device::Stream;
use crate::gpu::embed::{self, Embed, Indices, Pool};
use crate::gpu::memory::{Floats, Tensor};

/// A table, and which of its rows go where.
#[derive(Debug, Clone, Copy)]
pub struct Table<'a> {
    /// `[any, hidden_size]`.
    pub values: &'a Tensor,
    /// One a row of the result.
    pub rows: &'a Indices,
}

/// Enqueues `out = norm(Σ rows of tables)`, `[rows, hidden_size]`: of one to three tables, summed in fp32, and normed if there are
/// γ and β (`[1, hidden_size]` each) and ε. A row that the first table has none for becomes zeros; one that another table has
/// none for lacks that addend. With one table and no norm, this gathers rows as they are.
///
/// # Errors
/// [`Error::Mismatch`] for shapes that do not fit, numbers of rows outside their tables, `out` in a table's memory, tensors of
/// different types or devices; [`Error::Cuda`], [`Error::ContextLost`].
pub fn embed(
    stream: &Stream,
    tables: &[Table<'_>],
    norm: Option<(&Tensor, &Tensor, f32)>,
    out: &mut Tensor,
) -> Result<()> {
    const OPERATION: &str = "embed";
    if tables.is_empty() || tables.len() > 3 {
        return Err(Error::mismatch(OPERATION, "number of tables", tables.len(), "1 to 3"));
    }
    let vectors = norm.into_iter().flat_map(|(gamma, beta, _)| [gamma, beta]);
    let dtype = same_kind(OPERATION, stream, tables.iter().map(|table| table.values).chain(vectors).chain([&*out]))?;
    for Table { values, rows } in tables {
        check_device(OPERATION, stream, rows.device())?;
        if rows.len() != out.shape().0 {
            return Err(Error::mismatch(
                OPERATION,
                "numbers of rows",
                rows.len(),
                format!("{}, one a row", out.shape().0),
            ));
        }
        if rows.end() > values.shape().0 {
            let expected = format!("less than {}, the rows of its table", values.shape().0);
            return Err(Error::mismatch(OPERATION, "number of a row", rows.end() - 1, expected));
        }
    }
    if let Some((gamma, beta, _)) = norm {
        for (what, vector) in [("γ", gamma), ("β", beta)] {
            check_shape(OPERATION, what, vector, (1, out.shape().1))?;
        }
    }
    let embed = Embed {
        tables: std::array::from_fn(|i| tables.get(i).map(|table| (table.values.matrix(), table.rows.pointer()))),
        norm: norm.map(|(gamma, beta, eps)| (gamma.matrix().pointer, beta.matrix().pointer, eps)),
        out: out.matrix(),
    };
    let kernels = stream.device().kernels(dtype)?;
    stream.device().enter()?;
    // SAFETY: the operands are borrowed, checked, and wait for the device before they are freed; all numbers of rows are inside
    // their tables.
    unsafe { embed::launch(kernels, stream, &embed) }
}

/// Enqueues one vector a sequence, `out` fp32 `[batch, hidden_size]`, of the hidden states `[rows, hidden_size]`: summed in fp32,
/// zeros for an empty sequence.
///
/// # Errors
/// As [`embed()`].
pub fn pool(stream: &Stream, pooling: Pooling, batch: &Batch, hidden: &Tensor, out: &mut Floats) -> Result<()> {
    const OPERATION: &str = "pool";
    let dtype = same_kind(OPERATION, stream, [hidden])?;
    batch.check_device(OPERATION, stream.device())?;
    check_device(OPERATION, stream, out.device())?;
    // Of a batch in someone else's memory they know how many sequences there are, its shape does not.
    let (sequences, hidden_size, most) = (batch.sequences(), hidden.shape().1, pooling.most_rows());
    check_shape(OPERATION, "hidden states", hidden, (sequences.rows, hidden_size))?;
    check_floats(OPERATION, out, sequences.batch.saturating_mul(hidden_size))?;
    let pool = Pool { hidden: hidden.matrix(), sequences, most, out: out.pointer() };
    let kernels = stream.device().kernels(dtype)?;
    stream.device().enter()?;
    // SAFETY: the operands are borrowed, checked, and wait for the device before they are freed.
    unsafe { embed::launch_pool(kernels, stream, &pool) }
}

/// Enqueues `out = tanh(x)`, fp32 of `x`'s shape.
///
/// # Errors
/// As [`embed()`].
pub fn tanh(stream: &Stream, x: &Tensor, out: &mut Floats) -> Result<()> {
    const OPERATION: &str = "tanh";
    let dtype = same_kind(OPERATION, stream, [x])?;
    check_device(OPERATION, stream, out.device())?;
    check_floats(OPERATION, out, x.shape().0 * x.shape().1)?;
    let kernels = stream.device().kernels(dtype)?;
    stream.device().enter()?;
    // SAFETY: the operands are borrowed, checked, and wait for the device before they are freed.
    unsafe { embed::launch_tanh(kernels, stream, &x.matrix(), out.pointer()) }
}

fn check_floats(operation: &'static str, out: &Floats, expected: usize) -> Result<()> {
    if out.len() != expected {
        return Err(Error::mismatch(operation, "length of out", out.len(), expected));
    }
    Ok(())
}
