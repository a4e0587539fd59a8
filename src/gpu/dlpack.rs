//! Tensors from and to other libraries in the same process by DLPack, without a copy.

use std::ffi::c_void;
use std::ptr::NonNull;

use dlpk::sys::{DLDataType, DLDataTypeCode, DLDeviceType, DLManagedTensorVersioned, DLTensor};
use dlpk::{DLDevice, DLPackTensor, DLPackVersion};

use super::borrowed::CurrentContext;
use super::device::Device;
use super::memory::Tensor;
use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// Another library's tensor, kept until nothing here uses its memory any more.
struct Kept {
    _tensor: DLPackTensor,
}

// SAFETY: whoever made a tensor of it has promised that any thread may drop it; nothing else is done with it.
unsafe impl Send for Kept {}
// SAFETY: as above.
unsafe impl Sync for Kept {}

/// What `into_dlpack` lends out.
struct Lent {
    tensor: Tensor,
    shape: [i64; 2],
    strides: [i64; 2],
}

const fn data_type(dtype: Dtype) -> DLDataType {
    let code = match dtype {
        Dtype::Bf16 => DLDataTypeCode::kDLBfloat,
        Dtype::F16 => DLDataTypeCode::kDLFloat,
    };
    DLDataType { code, bits: 16, lanes: 1 }
}

impl Tensor {
    /// Another library's tensor as a matrix on `device`: of more than two dimensions, all but the last are rows. It is given back when
    /// this one is dropped, which waits for the device first.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for a tensor that is not on the device, is read-only, has gaps, or does not begin on 16 bytes;
    /// [`Error::Unsupported`] for an element type that is not bfloat16 or float16.
    ///
    /// # Safety
    /// It is what it says; any thread may give it back; what has been enqueued to write it is ordered before its use here, and nothing
    /// else touches its memory but in the order of the streams on which it is used here.
    pub unsafe fn from_dlpack(device: &Device, tensor: DLPackTensor) -> Result<Self> {
        let (dtype, pointer, rows, cols) = describe(&tensor, device.info().ordinal)?;
        // SAFETY: the caller's promise, passed on.
        let matrix = unsafe { Self::from_raw(device, dtype, pointer, rows, cols)? };
        Ok(matrix.keeping(Box::new(Kept { _tensor: tensor })))
    }

    /// This matrix as another library's tensor, `[rows, columns]`; that library says when it is no longer needed. What was enqueued to
    /// write it has to be ordered before its use there.
    pub fn into_dlpack(self) -> DLPackTensor {
        let (rows, cols) = self.shape();
        let (pointer, dtype, ordinal) = (self.matrix().pointer, self.dtype(), self.device().info().ordinal);
        let shape = [rows as i64, cols as i64];
        let lent = Box::into_raw(Box::new(Lent { tensor: self, shape, strides: [cols as i64, 1] }));
        // SAFETY: made just above, and freed by `give_back` alone.
        let (shape, strides) = unsafe { (&raw mut (*lent).shape, &raw mut (*lent).strides) };
        let dl_tensor = DLTensor {
            data: std::ptr::with_exposed_provenance_mut(pointer as usize),
            device: DLDevice::cuda(ordinal as i32),
            ndim: 2,
            dtype: data_type(dtype),
            shape: shape.cast(),
            strides: strides.cast(),
            byte_offset: 0,
        };
        let managed = Box::new(DLManagedTensorVersioned {
            version: DLPackVersion::current(),
            manager_ctx: lent.cast::<c_void>(),
            deleter: Some(give_back),
            flags: 0,
            dl_tensor,
        });
        // SAFETY: of this version, with a deleter that frees both boxes.
        unsafe { DLPackTensor::from_raw(NonNull::from(Box::leak(managed))) }
    }
}

unsafe extern "C" fn give_back(managed: *mut DLManagedTensorVersioned) {
    // Whoever gives it back does so on a thread of their own, whose current context stays what it is.
    let _context = CurrentContext::keep();
    // SAFETY: made by `into_dlpack`, and called once, as DLPack has it.
    unsafe {
        let managed = Box::from_raw(managed);
        let lent = Box::from_raw(managed.manager_ctx.cast::<Lent>());
        drop(lent.tensor);
    }
}

/// Element type, address, rows and columns of a tensor that a [`Tensor`] can be.
fn describe(tensor: &DLPackTensor, ordinal: usize) -> Result<(Dtype, u64, usize, usize)> {
    const OPERATION: &str = "Tensor::from_dlpack";
    let device = tensor.device();
    let on_gpu = matches!(device.device_type, DLDeviceType::kDLCUDA | DLDeviceType::kDLCUDAManaged);
    if !on_gpu || device.device_id != ordinal as i32 {
        return Err(Error::mismatch(OPERATION, "device", device, DLDevice::cuda(ordinal as i32)));
    }
    if tensor.is_read_only() {
        return Err(Error::mismatch(OPERATION, "tensor", "read-only", "one that may be written"));
    }
    let dtype = [Dtype::Bf16, Dtype::F16].into_iter().find(|&dtype| data_type(dtype) == tensor.dtype());
    let dtype = dtype.ok_or_else(|| Error::Unsupported {
        what: format!("element type {} in a tensor of a GPU", tensor.dtype()),
        remedy: "convert it to bfloat16 or float16".into(),
    })?;
    let text = || format!("{:?} with strides {:?}", tensor.shape(), tensor.strides());
    let mut elements = 1usize;
    for (i, &size) in tensor.shape().iter().enumerate().rev() {
        // The stride of one element is of no account.
        let follows = tensor.strides().is_none_or(|strides| size == 1 || strides[i] == elements as i64);
        let next = usize::try_from(size).ok().and_then(|size| elements.checked_mul(size)).filter(|&next| next > 0);
        let (Some(next), true) = (next, follows) else {
            return Err(Error::mismatch(OPERATION, "shape", text(), "elements without gaps, one or more"));
        };
        elements = next;
    }
    let cols = tensor.shape().last().map_or(1, |&cols| cols as usize);
    let pointer = tensor.as_dltensor().data.expose_provenance() as u64 + tensor.byte_offset() as u64;
    Ok((dtype, pointer, elements / cols, cols))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Foreign {
        shape: Vec<i64>,
        strides: Option<Vec<i64>>,
    }

    unsafe extern "C" fn delete(managed: *mut DLManagedTensorVersioned) {
        // SAFETY: made by `foreign`.
        unsafe { drop(Box::from_raw(Box::from_raw(managed).manager_ctx.cast::<Foreign>())) };
    }

    /// A tensor that nothing reads, at 0x1000 and 32 bytes.
    fn foreign(
        shape: &[i64],
        strides: Option<&[i64]>,
        dtype: DLDataType,
        device: DLDevice,
        flags: u64,
    ) -> DLPackTensor {
        let mut context = Box::new(Foreign { shape: shape.to_vec(), strides: strides.map(<[i64]>::to_vec) });
        let dl_tensor = DLTensor {
            data: std::ptr::without_provenance_mut(0x1000),
            device,
            ndim: shape.len() as i32,
            dtype,
            shape: context.shape.as_mut_ptr(),
            strides: context.strides.as_mut().map_or(std::ptr::null_mut(), Vec::as_mut_ptr),
            byte_offset: 32,
        };
        let managed = Box::new(DLManagedTensorVersioned {
            version: DLPackVersion::current(),
            manager_ctx: Box::into_raw(context).cast(),
            deleter: Some(delete),
            flags,
            dl_tensor,
        });
        // SAFETY: of this version, with a deleter that frees both boxes.
        unsafe { DLPackTensor::from_raw(NonNull::from(Box::leak(managed))) }
    }

    #[test]
    fn foreign_tensors_are_matrices_or_refused_with_their_values() {
        let (bf16, f16, cuda) = (data_type(Dtype::Bf16), data_type(Dtype::F16), DLDevice::cuda(1));
        for (shape, strides, expected) in [
            (&[6, 8][..], None, (6, 8)),
            (&[2, 3, 8], Some(&[24, 8, 1][..]), (6, 8)),
            (&[1, 3, 8], Some(&[77, 8, 1]), (3, 8)),
            (&[8], Some(&[1]), (1, 8)),
            (&[], None, (1, 1)),
        ] {
            let (dtype, pointer, rows, cols) = describe(&foreign(shape, strides, f16, cuda, 0), 1).unwrap();
            assert_eq!((dtype, pointer, (rows, cols)), (Dtype::F16, 0x1020, expected));
        }
        let float = DLDataType { code: DLDataTypeCode::kDLFloat, bits: 32, lanes: 1 };
        for (tensor, part) in [
            (foreign(&[6, 8], None, bf16, DLDevice::cuda(0), 0), "CUDA:0, expected CUDA:1"),
            (foreign(&[6, 8], None, bf16, DLDevice::cpu(), 0), "device is CPU"),
            (foreign(&[6, 8], None, float, cuda, 0), "element type f32"),
            (foreign(&[6, 8], None, bf16, cuda, dlpk::sys::DLPACK_FLAG_BITMASK_READ_ONLY), "read-only"),
            (foreign(&[6, 8], Some(&[16, 1]), bf16, cuda, 0), "[6, 8] with strides Some([16, 1])"),
            (foreign(&[6, 0], None, bf16, cuda, 0), "[6, 0]"),
            (foreign(&[i64::MAX, 8], None, bf16, cuda, 0), "without gaps"),
            (foreign(&[-1, 8], None, bf16, cuda, 0), "without gaps"),
        ] {
            let message = describe(&tensor, 1).unwrap_err().to_string();
            assert!(message.contains(part), "{part:?} is missing in: {message}");
        }
    }
}
