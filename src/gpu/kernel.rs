//! One kernel at a time, on tensors: for engines that bring their own layers, for tests, and for benchmarks.
//!
//! Each function checks shapes, element types, devices and aliasing, enqueues one kernel on the stream, and returns. The
//! operands belong to the call until the stream has run it.

mod attention;
mod embed;
mod gate;
mod gemm;
mod norm;
mod rotary;

pub use attention::{Attention, attention, attention_variants, planned_attention, record_attentions};
pub use embed::{Table, embed, pool, tanh};
pub use gate::gate;
pub use gemm::{
    Epilogue, Product, gemm, gemm_in_parts, gemm_variants, gemm_variants_in_parts, planned_gemm, record_gemms,
};
pub use norm::{JoinOperands, Norm, Parts, join, record_join_again, record_joins};
pub use rotary::{Rotate, rotate, rotates};

pub use super::attention::AttentionVariant;
use super::device::{Device, Stream};
pub use super::embed::Indices;
pub use super::gemm::{Cluster, GemmVariant};
pub use super::launch::KernelResources;
use super::memory::Tensor;
pub use super::rotary::RotaryTable;
use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// What each kernel takes of a multiprocessor, as the driver compiled it for `device`. The same kernels as the toolkit's
/// assembler compiles, which need not come out the same.
///
/// # Errors
/// [`Error::Cuda`], [`Error::ContextLost`] where the kernels cannot be loaded.
pub fn resources(device: &Device, dtype: Dtype) -> Result<Vec<KernelResources>> {
    device.kernels(dtype)?.resources(device)
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
