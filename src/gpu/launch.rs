//! Kernels as loaded modules and functions, and the one call that launches them.

use std::ffi::{CString, c_void};
use std::sync::Arc;
use std::time::Duration;

use bytemuck::{NoUninit, Pod, Zeroable};
use cudarc::driver::sys::{
    self, CUfunction_attribute_enum as FunctionAttribute, CUjit_option_enum as JitOption,
    CUlaunchAttributeID as LaunchAttribute,
};
use cudarc::driver::{CudaContext, result};

use super::attention::sm80::Sm80Attention;
use super::attention::sm90::Sm90Attention;
use super::device::{Device, Stream};
use super::embed::{self, EmbedKernel};
use super::gate;
use super::gemm::sm80::Sm80Gemm;
use super::gemm::sm90::Sm90Gemm;
use super::memory::Matrix;
use super::norm::NormKernel;
use super::observe::{self, Kernel};
use super::once::Once;
use super::ptx::PtxModule;
use super::rotary::RotaryKernel;
use crate::config::HiddenAct;
use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// Blocks of a launch, which are one-dimensional, and how they belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grid {
    pub(super) x: usize,
    pub(super) y: usize,
    /// Blocks along x that form a cluster, which run at once and reach each other's shared memory; 1 for none.
    pub(super) cluster: usize,
    /// Programmatic dependent launch: blocks may begin while the kernel before them in the stream still runs, and wait for
    /// it themselves before they touch anything that it writes.
    pub(super) overlap: bool,
}

impl Grid {
    /// A grid without clusters that starts when the kernel before it has finished.
    pub(super) const fn new(x: usize, y: usize) -> Self {
        Self { x, y, cluster: 1, overlap: false }
    }
}

/// A matrix as the tensor copies of Hopper see it, in 128-byte-swizzled boxes of 64 columns. The kernels' `TensorMap`.
#[repr(C, align(64))]
#[derive(Clone, Copy, Default, Zeroable, Pod)]
pub(super) struct TensorMap([u64; 16]);

impl TensorMap {
    /// With boxes of 16, 32 or 64 columns and at most 256 rows, swizzled as wide as a row of them is. The matrix has passed
    /// [`Matrix::check_aligned`].
    pub(super) fn new(
        device: &Device,
        dtype: Dtype,
        matrix: &Matrix,
        (box_cols, box_rows): (usize, usize),
    ) -> Result<Self> {
        use sys::{
            CUtensorMapDataType as DataType, CUtensorMapFloatOOBfill as Fill, CUtensorMapInterleave as Interleave,
        };
        use sys::{CUtensorMapL2promotion as Promotion, CUtensorMapSwizzle as Swizzle};
        let data_type = match dtype {
            Dtype::Bf16 => DataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            Dtype::F16 => DataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        };
        let swizzle = match box_cols {
            16 => Swizzle::CU_TENSOR_MAP_SWIZZLE_32B,
            32 => Swizzle::CU_TENSOR_MAP_SWIZZLE_64B,
            _ => Swizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        };
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        let sizes = [matrix.cols as u64, matrix.rows as u64];
        let strides = [(matrix.stride * Dtype::BYTES) as u64];
        // SAFETY: arrays of rank and rank − 1 elements, alive during the call, which only encodes them.
        let encoded = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                data_type,
                2,
                matrix.pointer as *mut c_void,
                sizes.as_ptr(),
                strides.as_ptr(),
                [box_cols as u32, box_rows as u32].as_ptr(),
                [1, 1].as_ptr(),
                Interleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                Promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                Fill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        device.check("encoding a tensor map", encoded.result())?;
        Ok(Self(map.opaque))
    }
}

/// A kernel, with the block and the shared memory that it was made for.
#[derive(Debug)]
pub(super) struct Function {
    raw: sys::CUfunction,
    threads: u32,
    shared_bytes: u32,
    resources: KernelResources,
}

/// What a kernel takes of a multiprocessor, as the driver compiled it for this device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelResources {
    /// Name of the kernel, e.g. `gemm_sm90_bf16 gemm_256x128`.
    pub name: String,
    /// Threads of a block.
    pub threads: u32,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of a thread's registers and arrays that live in memory instead: 0 where nothing was spilled.
    pub local_bytes: u32,
    /// Most shared memory that a block is launched with, bytes.
    pub shared_bytes: u32,
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
    pub(super) unsafe fn launch<P: NoUninit>(&self, stream: &Stream, grid: Grid, parameters: &P) -> Result<()> {
        // SAFETY: the caller's promise, passed on.
        unsafe { self.launch_with(stream, grid, self.shared_bytes, parameters) }
    }

    /// Clusters of so many blocks, each with so much shared memory, that the device runs at once.
    pub(super) fn active_clusters(&self, device: &Device, cluster: usize, shared_bytes: u32) -> Result<usize> {
        let mut attribute = cluster_attribute(cluster);
        let config = sys::CUlaunchConfig {
            gridDimX: cluster as u32,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: self.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared_bytes,
            hStream: std::ptr::null_mut(),
            attrs: &mut attribute,
            numAttrs: 1,
        };
        let mut clusters = 0;
        // SAFETY: the function and the configuration are live; the driver writes one int.
        let counted = unsafe { sys::cuOccupancyMaxActiveClusters(&mut clusters, self.raw, &config) };
        device.check("counting the clusters that run at once", counted.result())?;
        Ok(clusters.max(0) as usize)
    }

    /// The same with other than the usual amount of shared memory, at most the one that the function was made for.
    ///
    /// # Safety
    /// As [`launch`](Self::launch).
    pub(super) unsafe fn launch_with<P: NoUninit>(
        &self,
        stream: &Stream,
        grid: Grid,
        shared_bytes: u32,
        parameters: &P,
    ) -> Result<()> {
        debug_assert!(shared_bytes <= self.shared_bytes);
        let device = stream.device();
        let overlap = sys::CUlaunchAttribute {
            id: LaunchAttribute::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let mut attributes = [cluster_attribute(grid.cluster), overlap];
        let wanted = match (grid.cluster > 1, grid.overlap) {
            (true, true) => &mut attributes[..],
            (true, false) => &mut attributes[..1],
            (false, true) => &mut attributes[1..],
            (false, false) => &mut [],
        };
        // x holds 2³¹ − 1 blocks, y 65535: rows of at most 2²⁰ and heads of at most 2²⁰/32 keep inside.
        let config = sys::CUlaunchConfig {
            gridDimX: grid.x as u32,
            gridDimY: grid.y as u32,
            gridDimZ: 1,
            blockDimX: self.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared_bytes,
            hStream: stream.raw(),
            attrs: wanted.as_mut_ptr(),
            numAttrs: wanted.len() as u32,
        };
        let mut arguments = [std::ptr::from_ref(parameters).cast_mut().cast::<c_void>()];
        let launch = || {
            // SAFETY: the driver copies the struct before it returns; the rest is the caller's promise.
            let launched =
                unsafe { sys::cuLaunchKernelEx(&config, self.raw, arguments.as_mut_ptr(), std::ptr::null_mut()) };
            device.check("launching a kernel", launched.result())
        };
        let kernel = || Kernel {
            name: self.resources.name.clone(),
            grid: [grid.x, grid.y],
            cluster: grid.cluster,
            threads: self.threads,
            shared_bytes,
            registers: self.resources.registers,
            overlap: grid.overlap,
        };
        observe::launching(stream, kernel, launch)
    }
}

fn cluster_attribute(blocks: usize) -> sys::CUlaunchAttribute {
    let dimensions = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: blocks as u32, y: 1, z: 1 };
    sys::CUlaunchAttribute {
        id: LaunchAttribute::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue { clusterDim: dimensions },
    }
}

/// Every kernel for one element type.
pub(super) struct Kernels {
    dtype: Dtype,
    /// Whether norms and rotary embeddings can begin before the kernel before them has ended.
    pub(super) overlaps: bool,
    // The portable ones are loaded at once where they are the path, else when they are first asked for; Hopper's are `None`
    // where the device is no Hopper, or is to use the portable kernels only.
    gemm_sm80: Once<Sm80Gemm>,
    pub(super) gemm_sm90: Option<Sm90Gemm>,
    attention_sm80: Once<Sm80Attention>,
    pub(super) attention_sm90: Option<Sm90Attention>,
    /// In the order of [`NormKernel::ALL`].
    pub(super) norm: Vec<Function>,
    /// Likewise, for joins with parts.
    pub(super) norm_parts: Vec<Function>,
    /// In the order of [`NormKernel::ROWS`].
    pub(super) norm_rows: Vec<Function>,
    /// In the order of [`RotaryKernel::ALL`].
    pub(super) rotary: Vec<Function>,
    /// In the order of [`HiddenAct::ALL`].
    pub(super) gate: Vec<Function>,
    /// In the order of [`EmbedKernel::ALL`].
    pub(super) embed: Vec<Function>,
    pub(super) pool: Function,
    pub(super) tanh: Function,
    /// Occupies a stream for a while.
    delay: Function,
    // Functions are handles into these.
    _modules: Vec<Module>,
}

impl Kernels {
    pub(super) fn load(device: &Device, dtype: Dtype) -> Result<Self> {
        device.enter()?;
        let hopper = device.uses_hopper_kernels();
        let target = if hopper { "sm90" } else { "sm80" };
        let norm_module = Module::load(device, &format!("norm_{target}_{dtype}"))?;
        let rotary_module = Module::load(device, &format!("rotary_{target}_{dtype}"))?;
        // Portable alone: the gate's has nothing that it could do early, the others are not of a layer.
        let gate_module = Module::load(device, &format!("gate_sm80_{dtype}"))?;
        let embed_module = Module::load(device, &format!("embed_sm80_{dtype}"))?;
        let probe_module = Module::load(device, "probe_sm80")?;
        let norms = |prefix: &str, kernels: &[NormKernel]| {
            let function = |kernel: &NormKernel| {
                norm_module.function(device, &format!("{prefix}_{}", kernel.name), kernel.threads, 0)
            };
            kernels.iter().map(function).collect::<Result<Vec<_>>>()
        };
        let norm = norms("norm", &NormKernel::ALL)?;
        let norm_parts = norms("norm_parts", &NormKernel::ALL)?;
        let norm_rows = norms("norm_rows", &NormKernel::ROWS)?;
        let rotary = RotaryKernel::ALL
            .iter()
            .map(|kernel| rotary_module.function(device, kernel.name, RotaryKernel::THREADS, 0))
            .collect::<Result<_>>()?;
        let gate = HiddenAct::ALL
            .iter()
            .map(|act| gate_module.function(device, &format!("gate_{act}"), gate::THREADS, 0))
            .collect::<Result<_>>()?;
        let embed = EmbedKernel::ALL
            .iter()
            .map(|kernel| embed_module.function(device, kernel.name, kernel.threads, 0))
            .collect::<Result<_>>()?;
        let pool = embed_module.function(device, "pool", embed::POOL_THREADS, 0)?;
        let tanh = embed_module.function(device, "tanh_floats", embed::TANH_THREADS, 0)?;
        let delay = probe_module.function(device, observe::DELAY, 1, 0)?;
        let kernels = Self {
            dtype,
            overlaps: hopper,
            gemm_sm80: Once::default(),
            gemm_sm90: hopper.then(|| Sm90Gemm::load(device, dtype)).transpose()?,
            attention_sm80: Once::default(),
            attention_sm90: hopper.then(|| Sm90Attention::load(device, dtype)).transpose()?,
            norm,
            norm_parts,
            norm_rows,
            rotary,
            gate,
            embed,
            pool,
            tanh,
            delay,
            _modules: vec![norm_module, rotary_module, gate_module, embed_module, probe_module],
        };
        if !hopper {
            kernels.gemm_sm80(device)?;
            kernels.attention_sm80(device)?;
        }
        Ok(kernels)
    }

    /// The portable GEMM.
    pub(super) fn gemm_sm80(&self, device: &Device) -> Result<&Sm80Gemm> {
        self.gemm_sm80.get_or_try(|| Sm80Gemm::load(device, self.dtype))
    }

    /// The portable attention.
    pub(super) fn attention_sm80(&self, device: &Device) -> Result<&Sm80Attention> {
        self.attention_sm80.get_or_try(|| Sm80Attention::load(device, self.dtype))
    }

    pub(super) fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Of every kernel that runs here.
    pub(super) fn resources(&self, device: &Device) -> Result<Vec<KernelResources>> {
        let portable = self.gemm_sm80(device)?.functions().chain(self.attention_sm80(device)?.functions());
        let gemm_sm90 = self.gemm_sm90.iter().flat_map(Sm90Gemm::functions);
        let attention_sm90 = self.attention_sm90.iter().flat_map(Sm90Attention::functions);
        let around = self.embed.iter().chain([&self.pool, &self.tanh, &self.delay]);
        let norms = self.norm.iter().chain(&self.norm_parts).chain(&self.norm_rows);
        let others = norms.chain(&self.rotary).chain(&self.gate).chain(around);
        let functions = portable.chain(gemm_sm90).chain(attention_sm90).chain(others);
        Ok(functions.map(|function| function.resources.clone()).collect())
    }
}

impl Kernels {
    /// Occupies `stream` for `time`.
    pub(super) fn hold_back(&self, stream: &Stream, time: Duration) -> Result<()> {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        // SAFETY: the kernel takes one u64 and touches no memory.
        unsafe { self.delay.launch(stream, Grid::new(1, 1), &nanoseconds) }
    }
}

/// A module in a context; unloaded when dropped.
pub(super) struct Module {
    name: String,
    raw: sys::CUmodule,
    context: Arc<CudaContext>,
}

// SAFETY: a CUmodule is a handle that the driver lets any thread use.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Has the driver compile the embedded PTX of that name.
    pub(super) fn load(device: &Device, name: &str) -> Result<Self> {
        let embedded = PtxModule::find(name).ok_or_else(|| Error::Unsupported {
            what: format!("kernel module {name}"),
            remedy: "this build embeds no kernels (it was made for documentation only); rebuild with nvcc".into(),
        })?;
        let image = CString::new(embedded.source()).expect("PTX is text");
        let mut log = vec![0u8; 8192];
        let mut options = [JitOption::CU_JIT_ERROR_LOG_BUFFER, JitOption::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        let mut values = [log.as_mut_ptr().cast::<c_void>(), log.len() as *mut c_void];
        let mut raw = std::ptr::null_mut();
        // SAFETY: image and log outlive the call; two options with two values; the driver writes at most `log.len()`.
        let loaded = unsafe {
            sys::cuModuleLoadDataEx(&mut raw, image.as_ptr().cast(), 2, options.as_mut_ptr(), values.as_mut_ptr())
        };
        match device.check("loading a kernel module", loaded.result()) {
            Ok(()) => Ok(Self { name: name.to_owned(), raw, context: device.context().clone() }),
            Err(Error::Cuda { operation, code, text }) => {
                let log = String::from_utf8_lossy(&log);
                let log = log.trim_end_matches('\0').trim();
                Err(Error::Cuda { operation, code, text: format!("{text}: {name}: {log}") })
            }
            Err(other) => Err(other),
        }
    }

    /// The kernel `name`, or `None` if a block of it needs more shared memory than the device gives.
    pub(super) fn function_if_it_fits(
        &self,
        device: &Device,
        name: &str,
        threads: u32,
        shared_bytes: u32,
    ) -> Result<Option<Function>> {
        let fits = shared_bytes <= device.info().shared_bytes_per_block;
        fits.then(|| self.function(device, name, threads, shared_bytes)).transpose()
    }

    /// The kernel `name`; `shared_bytes` is at most what the device gives a block.
    pub(super) fn function(&self, device: &Device, name: &str, threads: u32, shared_bytes: u32) -> Result<Function> {
        let entry = CString::new(name).expect("kernel names are text");
        // SAFETY: the module is loaded.
        let found = unsafe { result::module::get_function(self.raw, entry) };
        let raw = device.check("finding a kernel", found)?;
        let set = |attribute, value| {
            // SAFETY: the function is live, and the caller has compared the size with the device's limit.
            let set = unsafe { result::function::set_function_attribute(raw, attribute, value) };
            device.check("setting a kernel's shared memory", set)
        };
        if shared_bytes > 48 << 10 {
            set(FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes as i32)?;
        }
        // One division of a multiprocessor's memory into shared memory and cache for all: kernels that want another one cannot
        // run on it at the same time, and it has to be empty to change.
        set(FunctionAttribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 100)?;
        let attribute = |attribute| {
            // SAFETY: the function is live.
            let value = unsafe { result::function::get_function_attribute(raw, attribute) };
            device.check("asking for a kernel's resources", value).map(|value| value.max(0) as u32)
        };
        let resources = KernelResources {
            name: format!("{} {name}", self.name),
            threads,
            registers: attribute(FunctionAttribute::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
            local_bytes: attribute(FunctionAttribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
            shared_bytes,
        };
        Ok(Function { raw, threads, shared_bytes, resources })
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
