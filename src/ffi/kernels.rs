//! One kernel at a time, for engines that bring their own layers.

use super::handle::{PafDevice, with_device};
use super::read::{batch, dtype, hidden_act, or, read};
use super::status::{Failure, PafStatus};
use super::structs::{PafAttention, PafGemm, PafNorm};
use crate::config::BatchShape;
use crate::gpu::kernel::{self, Attention, Epilogue, Norm, Product};
use crate::gpu::{Batch, Floats, Stream, Tensor};

/// Enqueues one product with its epilogue. A graph that holds a call needs the device's handle, or an encoder made with it, for as long as
/// it is replayed.
///
/// # Safety
/// `call` is null or as PafGemm says, its pointers to memory of the device that nothing else touches until the stream has run the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paf_gemm(device: *mut PafDevice, call: *const PafGemm) -> PafStatus {
    with_device(device, |device| {
        // SAFETY: the caller's promises, passed on.
        unsafe {
            let call = read(call)?;
            let stream = Stream::from_raw(device, call.stream)?;
            let dtype = dtype(call.dtype)?;
            let tensor = |address: usize, rows, cols| Tensor::from_raw(device, dtype, address as u64, rows, cols);
            let optional = |address: usize, rows, cols| (address != 0).then(|| tensor(address, rows, cols)).transpose();
            let (a, w) = (tensor(call.a.addr(), call.m, call.k)?, tensor(call.w.addr(), call.n, call.k)?);
            let bias = optional(call.bias.addr(), 1, call.n)?;
            let residual = optional(call.residual.addr(), call.m, call.n)?;
            let mut c = tensor(call.c.addr(), call.m, call.n)?;
            let epilogue = match (call.activation, &residual) {
                (0, None) => Epilogue::None,
                (0, Some(residual)) => Epilogue::Residual(residual),
                (activation, None) => Epilogue::Activation(hidden_act(activation)?),
                (_, Some(_)) => return Err(Failure::invalid("activation and residual are given, expected one")),
            };
            let product = Product { bias: bias.as_ref(), epilogue, ..Product::new(&a, &w) };
            Ok(kernel::gemm(&stream, &product, &mut c)?)
        }
    })
}

/// Enqueues attention.
///
/// # Safety
/// As paf_gemm, of PafAttention.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paf_attention(device: *mut PafDevice, call: *const PafAttention) -> PafStatus {
    with_device(device, |device| {
        // SAFETY: the caller's promises, passed on.
        unsafe {
            let call = read(call)?;
            let stream = Stream::from_raw(device, call.stream)?;
            let (dtype, batch) = (dtype(call.dtype)?, batch(device, call.batch)?);
            let rows = batch.shape().rows();
            let key_value_heads = or(call.key_value_heads, call.heads);
            let width = |heads: usize| heads.saturating_mul(call.head_dim);
            let all_heads = call.heads.saturating_add(key_value_heads.saturating_mul(2));
            let tensor = |address: usize, cols| Tensor::from_raw(device, dtype, address as u64, rows, cols);
            let qkv = tensor(call.qkv.addr(), width(all_heads))?;
            let mut out = tensor(call.out.addr(), width(call.heads))?;
            let mut log_sum_exp = match call.log_sum_exp.addr() {
                0 => None,
                address => Some(Floats::from_raw(device, address as u64, call.heads.saturating_mul(rows))?),
            };
            let attention = Attention {
                key_value_heads,
                causal: call.causal != 0,
                ..Attention::new(&batch, &qkv, call.heads, call.head_dim)
            };
            Ok(kernel::attention(&stream, &attention, &mut out, log_sum_exp.as_mut())?)
        }
    })
}

/// Enqueues a sum with its layer norm.
///
/// # Safety
/// As paf_gemm, of PafNorm.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paf_norm(device: *mut PafDevice, call: *const PafNorm) -> PafStatus {
    with_device(device, |device| {
        // SAFETY: the caller's promises, passed on.
        unsafe {
            let call = read(call)?;
            let stream = Stream::from_raw(device, call.stream)?;
            let dtype = dtype(call.dtype)?;
            let batch = if call.batch.is_null() {
                // Without lengths nothing is allocated.
                Batch::new(device, &BatchShape::new(1, call.rows)?)?
            } else {
                batch(device, call.batch)?
            };
            let rows = batch.shape().rows();
            if rows != call.rows {
                return Err(Failure::invalid(format!("rows is {}, expected the batch's, {rows}", call.rows)));
            }
            let tensor = |address: usize, rows| Tensor::from_raw(device, dtype, address as u64, rows, call.hidden_size);
            let addends = call.addends.iter().filter(|addend| !addend.is_null());
            let addends: Vec<Tensor> = addends.map(|addend| tensor(addend.addr(), rows)).collect::<Result<_, _>>()?;
            let addends: Vec<&Tensor> = addends.iter().collect();
            let mut sum = (!call.sum.is_null()).then(|| tensor(call.sum.addr(), rows)).transpose()?;
            let (gamma, beta) = (tensor(call.gamma.addr(), 1)?, tensor(call.beta.addr(), 1)?);
            let mut out = tensor(call.out.addr(), rows)?;
            let norm = Norm { out: &mut out, gamma: &gamma, beta: &beta };
            Ok(kernel::join(&stream, &batch, &addends, None, sum.as_mut(), &mut [norm], or(call.eps, 1e-5))?)
        }
    })
}
