//! Kernels as loaded modules and functions, and the one call that launches them.

use std::ffi::{CString, c_void};
use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::sys::{self, CUfunction_attribute_enum as FunctionAttribute, CUjit_option_enum as JitOption};
use cudarc::driver::{CudaContext, result};

use super::device::{Device, Stream};
use super::gemm::Epilogue;
use super::norm::NormKernel;
use super::ptx::PtxModule;
use super::tiles::{ATTENTION_TILES, GEMM_TILES};
use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// Grid and block of a launch. Blocks are one-dimensional.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grid {
    pub(super) x: usize,
    pub(super) y: usize,
}

/// A kernel, with the block and the shared memory that it was made for.
#[derive(Debug)]
pub(super) struct Function {
    raw: sys::CUfunction,
    threads: u32,
    shared_bytes: u32,
}

// SAFETY: a CUfunction is a handle that the driver lets any thread use.
unsafe impl Send for Function {}
// SAFETY: as above; nothing here changes it after loading.
unsafe impl Sync for Function {}

impl Function {
    /// Launches the kernel, whose only parameter is a struct of type `P` by value.
    ///
    /// # Safety
    /// `P` has the layout of the kernel's parameter, and every pointer in it is valid on the device for what the kernel
    /// reads and writes at these dimensions, until `stream` has run it.
    pub(super) unsafe fn launch<P: bytemuck::NoUninit>(
        &self,
        stream: &Stream,
        grid: Grid,
        parameters: &P,
    ) -> Result<()> {
        let device = stream.device();
        // x holds 2³¹ − 1 blocks, y 65535: rows of at most 2²⁰ and heads of at most 2²⁰/32 keep inside.
        let config = sys::CUlaunchConfig {
            gridDimX: grid.x as u32,
            gridDimY: grid.y as u32,
            gridDimZ: 1,
            blockDimX: self.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: self.shared_bytes,
            hStream: stream.raw(),
            attrs: std::ptr::null_mut(),
            numAttrs: 0,
        };
        let mut arguments = [std::ptr::from_ref(parameters).cast_mut().cast::<c_void>()];
        // SAFETY: the driver copies the struct before it returns; the rest is the caller's promise.
        let launched =
            unsafe { sys::cuLaunchKernelEx(&config, self.raw, arguments.as_mut_ptr(), std::ptr::null_mut()) };
        device.check("launching a kernel", launched.result())
    }
}

/// Every kernel for one element type.
pub(super) struct Kernels {
    /// `[tile][epilogue]`, in the order of [`GEMM_TILES`]; `None` where a block has too little shared memory here.
    pub(super) gemm: Vec<Option<[Function; Epilogue::COUNT]>>,
    /// In the order of [`ATTENTION_TILES`]; `None` as above.
    pub(super) attention: Vec<Option<Function>>,
    /// In the order of [`NormKernel::ALL`].
    pub(super) norm: Vec<Function>,
    /// Occupies a stream for a while.
    delay: Function,
    // Functions are handles into these.
    _modules: Vec<Module>,
}

impl Kernels {
    pub(super) fn load(device: &Device, dtype: Dtype) -> Result<Self> {
        device.enter()?;
        let module = |name: &str| Module::load(device, name);
        let gemm_module = module(&format!("gemm_sm80_{dtype}"))?;
        let attention_module = module(&format!("attention_sm80_{dtype}"))?;
        let norm_module = module(&format!("norm_sm80_{dtype}"))?;
        let probe_module = module("probe_sm80")?;

        let fits = |shared_bytes: u32| shared_bytes <= device.info().shared_bytes_per_block;
        let mut gemm = Vec::new();
        for tile in GEMM_TILES {
            let function = |epilogue: Epilogue| {
                let name = format!("gemm_{}_{}", tile.name, epilogue.name());
                gemm_module.function(device, &name, tile.threads(), tile.shared_bytes())
            };
            gemm.push(if fits(tile.shared_bytes()) {
                let [a, b, c] = Epilogue::ALL.map(function);
                Some([a?, b?, c?])
            } else {
                None
            });
        }
        let mut attention = Vec::new();
        for tile in ATTENTION_TILES {
            attention.push(if fits(tile.shared_bytes()) {
                Some(attention_module.function(device, &tile.kernel_name(), tile.threads(), tile.shared_bytes())?)
            } else {
                None
            });
        }
        let norm = NormKernel::ALL
            .iter()
            .map(|kernel| norm_module.function(device, &format!("norm_{}", kernel.name), kernel.threads, 0))
            .collect::<Result<_>>()?;
        let delay = probe_module.function(device, "delay", 1, 0)?;
        let _modules = vec![gemm_module, attention_module, norm_module, probe_module];
        Ok(Self { gemm, attention, norm, delay, _modules })
    }
}

impl Kernels {
    /// Occupies `stream` for `time`.
    pub(super) fn hold_back(&self, stream: &Stream, time: Duration) -> Result<()> {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        // SAFETY: the kernel takes one u64 and touches no memory.
        unsafe { self.delay.launch(stream, Grid { x: 1, y: 1 }, &nanoseconds) }
    }
}

/// A module in a context; unloaded when dropped.
struct Module {
    raw: sys::CUmodule,
    context: Arc<CudaContext>,
}

// SAFETY: a CUmodule is a handle that the driver lets any thread use.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Has the driver compile the embedded PTX of that name.
    fn load(device: &Device, name: &str) -> Result<Self> {
        let embedded = PtxModule::find(name).ok_or_else(|| Error::Unsupported {
            what: format!("kernel module {name}"),
            remedy: "this build embeds no kernels (it was made for documentation only); rebuild with nvcc".into(),
        })?;
        let image = CString::new(embedded.source).expect("PTX is text");
        let mut log = vec![0u8; 8192];
        let mut options = [JitOption::CU_JIT_ERROR_LOG_BUFFER, JitOption::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        let mut values = [log.as_mut_ptr().cast::<c_void>(), log.len() as *mut c_void];
        let mut raw = std::ptr::null_mut();
        // SAFETY: image and log outlive the call; two options with two values; the driver writes at most `log.len()`.
        let loaded = unsafe {
            sys::cuModuleLoadDataEx(&mut raw, image.as_ptr().cast(), 2, options.as_mut_ptr(), values.as_mut_ptr())
        };
        match device.check("loading a kernel module", loaded.result()) {
            Ok(()) => Ok(Self { raw, context: device.context().clone() }),
            Err(Error::Cuda { operation, code, text }) => {
                let log = String::from_utf8_lossy(&log);
                let log = log.trim_end_matches('\0').trim();
                Err(Error::Cuda { operation, code, text: format!("{text}: {name}: {log}") })
            }
            Err(other) => Err(other),
        }
    }

    fn function(&self, device: &Device, name: &str, threads: u32, shared_bytes: u32) -> Result<Function> {
        let entry = CString::new(name).expect("kernel names are text");
        // SAFETY: the module is loaded.
        let found = unsafe { result::module::get_function(self.raw, entry) };
        let raw = device.check("finding a kernel", found)?;
        if shared_bytes > 48 << 10 {
            // SAFETY: the function is live, and the caller has compared the size with the device's limit.
            let set = unsafe {
                result::function::set_function_attribute(
                    raw,
                    FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    shared_bytes as i32,
                )
            };
            device.check("raising a kernel's shared memory", set)?;
        }
        Ok(Function { raw, threads, shared_bytes })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: the context is alive (we hold it), nothing else unloads the module; errors mean the context is lost.
        unsafe {
            if result::ctx::set_current(self.context.cu_ctx()).is_ok() {
                let _ = result::module::unload(self.raw);
            }
        }
    }
}
