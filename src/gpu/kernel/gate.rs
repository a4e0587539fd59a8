//! The kernel of gated FFNs.

use super::{check_shape, same_kind};
use crate::config::HiddenAct;
use crate::error::Result;
use crate::gpu::device::Stream;
use crate::gpu::gate::{self, Gate};
use crate::gpu::memory::Tensor;

/// Enqueues `out = act(gate) ∘ inner`, `[rows, n]`, of `both`, `[rows, 2n]`: the gate's columns, then the inner layer's, as one product
/// by `[Wg; W1]` makes them. Every activation is there.
///
/// # Errors
/// As [`gemm`](super::gemm()); [`Error::Mismatch`](crate::Error::Mismatch) for an n that is no multiple of 8.
pub fn gate(stream: &Stream, act: HiddenAct, both: &Tensor, out: &mut Tensor) -> Result<()> {
    const OPERATION: &str = "gate";
    let dtype = same_kind(OPERATION, stream, [both, &*out])?;
    check_shape(OPERATION, "output", out, (both.shape().0, both.shape().1 / 2))?;
    let kernels = stream.device().kernels(dtype)?;
    stream.device().enter()?;
    // SAFETY: the operands are borrowed, checked, and wait for the device before they are freed.
    unsafe { gate::launch(kernels, stream, &Gate { act, both: both.matrix(), out: out.matrix() }) }
}
