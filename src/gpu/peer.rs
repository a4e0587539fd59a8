//! cuBLASLt, where it is installed, as the peer that the GEMM is measured beside. It is loaded when [`CublasLt::new`] asks
//! for it; nothing else in this crate needs it.

use std::ffi::c_void;

use cudarc::cublaslt::result::{self as lt, CublasError};
use cudarc::cublaslt::sys::{
    self, cublasComputeType_t as ComputeType, cublasLtEpilogue_t as LtEpilogue,
    cublasLtMatmulDescAttributes_t as DescAttribute, cublasLtMatmulPreferenceAttributes_t as PreferenceAttribute,
    cudaDataType_t as DataType,
};

use super::device::{Device, Stream};
use super::graph::Graph;
use super::memory::{Buffer, Tensor};
use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// What the peer does to a product beside computing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerEpilogue {
    /// Nothing.
    None,
    /// Adds a bias and applies the tanh form of GELU, which is `gelu_new`.
    GeluBias,
}

/// A handle of the library, with the workspace that it may use.
#[derive(Debug)]
pub struct CublasLt {
    handle: sys::cublasLtHandle_t,
    workspace: Buffer,
    device: Device,
}

/// As much as frameworks give it on Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;

fn error(operation: &'static str) -> impl Fn(CublasError) -> Error {
    move |error| Error::Cuda { operation, code: error.0 as u32, text: format!("cuBLASLt: {:?}", error.0) }
}

impl CublasLt {
    /// Loads the library; `None` if it is not there.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] for its workspace; [`Error::Cuda`] if it does not initialise.
    pub fn new(device: &Device) -> Result<Option<Self>> {
        // SAFETY: only looks for the library; every other call panics where it is missing.
        if !unsafe { sys::is_culib_present() } {
            return Ok(None);
        }
        device.enter()?;
        let workspace = Buffer::new(device, "the workspace of cuBLASLt", WORKSPACE_BYTES)?;
        let handle = lt::create_handle().map_err(error("creating a cuBLASLt handle"))?;
        Ok(Some(Self { handle, workspace, device: device.clone() }))
    }

    /// Its version, e.g. 130100.
    pub fn version(&self) -> usize {
        // SAFETY: the library is loaded; the call reads nothing.
        unsafe { sys::cublasLtGetVersion() }
    }

    /// Records `c = epilogue(a · wᵀ)` for each pair of operands, one after the other, with the algorithm that the library's own
    /// heuristic puts first. The pairs and their bias (`[1, N]`) have one shape.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if there are no pairs; [`Error::Cuda`] where the library has no algorithm or fails.
    pub fn record<'a>(
        &'a self,
        stream: &Stream,
        pairs: &[(&'a Tensor, &'a Tensor)],
        bias: &'a Tensor,
        epilogue: PeerEpilogue,
        c: &'a mut Tensor,
    ) -> Result<Graph<'a>> {
        let &[(a, w), ..] = pairs else {
            return Err(Error::mismatch("cuBLASLt", "number of operand pairs", 0, "at least 1"));
        };
        let ((m, k), (n, _)) = (a.shape(), w.shape());
        for (a, w) in pairs {
            if a.shape() != (m, k) || w.shape() != (n, k) || c.shape() != (m, n) || bias.shape() != (1, n) {
                let got = format!("{:?}, {:?}, {:?}, {:?}", a.shape(), w.shape(), c.shape(), bias.shape());
                return Err(Error::mismatch("cuBLASLt", "shapes of A, W, C, bias", got, "M×K, N×K, M×N, 1×N"));
            }
        }
        self.device.enter()?;
        let call = Call::new(self.handle, a.dtype(), (m, n, k), bias.pointer(), epilogue)?;
        Graph::record(stream, || pairs.iter().try_for_each(|(a, w)| self.enqueue(stream, &call, a, w, c)))
    }

    fn enqueue(&self, stream: &Stream, call: &Call, a: &Tensor, w: &Tensor, c: &Tensor) -> Result<()> {
        let (alpha, beta) = (1f32, 0f32);
        let c = c.pointer() as *mut c_void;
        // SAFETY: descriptors and operands are live and of the shapes that the descriptors state; the workspace is used by
        // one call after the other on one stream.
        unsafe {
            lt::matmul(
                self.handle,
                call.description,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                w.pointer() as *const c_void,
                call.w,
                a.pointer() as *const c_void,
                call.a,
                c,
                call.c,
                c,
                call.c,
                &call.heuristic.algo,
                self.workspace.pointer() as *mut c_void,
                WORKSPACE_BYTES,
                stream.raw().cast(),
            )
        }
        .map_err(error("a cuBLASLt product"))
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        if self.device.synchronize().is_ok() {
            // SAFETY: made in `new`, destroyed only here, and nothing runs.
            let _ = unsafe { lt::destroy_handle(self.handle) };
        }
    }
}

/// Descriptors of one product. cuBLASLt is column-major: it computes `Cᵀ (N×M) = W · Aᵀ` from W and A as they lie, W transposed.
struct Call {
    description: sys::cublasLtMatmulDesc_t,
    w: sys::cublasLtMatrixLayout_t,
    a: sys::cublasLtMatrixLayout_t,
    c: sys::cublasLtMatrixLayout_t,
    heuristic: sys::cublasLtMatmulHeuristicResult_t,
}

impl Call {
    fn new(
        handle: sys::cublasLtHandle_t,
        dtype: Dtype,
        (m, n, k): (usize, usize, usize),
        bias: u64,
        epilogue: PeerEpilogue,
    ) -> Result<Self> {
        let element = match dtype {
            Dtype::Bf16 => DataType::CUDA_R_16BF,
            Dtype::F16 => DataType::CUDA_R_16F,
        };
        let layout = |rows: usize, cols: usize| {
            lt::create_matrix_layout(element, rows as u64, cols as u64, rows as i64).map_err(error("a cuBLASLt layout"))
        };
        // SAFETY: of a C struct of integers, which the library fills in.
        let heuristic = unsafe { std::mem::zeroed() };
        let description = lt::create_matmul_desc(ComputeType::CUBLAS_COMPUTE_32F, DataType::CUDA_R_32F)
            .map_err(error("a cuBLASLt description"))?;
        let mut call = Self { description, w: layout(k, n)?, a: layout(k, m)?, c: layout(n, m)?, heuristic };
        call.set(DescAttribute::CUBLASLT_MATMUL_DESC_TRANSA, &1i32)?;
        if epilogue == PeerEpilogue::GeluBias {
            call.set(DescAttribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &LtEpilogue::CUBLASLT_EPILOGUE_GELU_BIAS)?;
            call.set(DescAttribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        let preference = lt::create_matmul_pref().map_err(error("a cuBLASLt preference"))?;
        let workspace_bytes = WORKSPACE_BYTES;
        // SAFETY: everything given is live; the attribute is a usize.
        let found = unsafe {
            lt::set_matmul_pref_attribute(
                preference,
                PreferenceAttribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const workspace_bytes).cast(),
                size_of::<usize>(),
            )
            .and_then(|()| {
                let Self { description, w, a, c, .. } = call;
                lt::get_matmul_algo_heuristic(handle, description, w, a, c, c, preference)
            })
        };
        // SAFETY: made above.
        let _ = unsafe { lt::destroy_matmul_pref(preference) };
        call.heuristic = found.map_err(error("choosing a cuBLASLt algorithm"))?;
        Ok(call)
    }

    fn set<T>(&self, attribute: DescAttribute, value: &T) -> Result<()> {
        // SAFETY: the description is live; the callers give values of the attributes' types.
        unsafe {
            lt::set_matmul_desc_attribute(self.description, attribute, std::ptr::from_ref(value).cast(), size_of::<T>())
        }
        .map_err(error("describing a cuBLASLt product"))
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed only here.
        unsafe {
            let _ = lt::destroy_matmul_desc(self.description);
            for layout in [self.w, self.a, self.c] {
                let _ = lt::destroy_matrix_layout(layout);
            }
        }
    }
}
