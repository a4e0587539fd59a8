//! The PTX that `build.rs` made of `kernels/*.cu`, embedded in the library.

/// One kernel family compiled for one target and, where it has elements, for one element type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PtxModule {
    /// Name: family, generation, element type, e.g. `gemm_sm80_bf16`.
    pub name: &'static str,
    /// Virtual architecture that it was compiled for, e.g. `compute_80`.
    pub target: &'static str,
    /// The PTX text.
    pub source: &'static str,
}

impl PtxModule {
    /// The module of that name.
    pub fn find(name: &str) -> Option<&'static Self> {
        MODULES.iter().find(|module| module.name == name)
    }

    /// PTX ISA version of the text, e.g. `9.0`.
    pub fn isa_version(&self) -> &'static str {
        self.source.lines().find_map(|line| line.strip_prefix(".version ")).map_or("unknown", str::trim)
    }
}

mod generated {
    use super::PtxModule;
    include!(concat!(env!("OUT_DIR"), "/ptx_modules.rs"));
}

/// Every embedded module. Empty only in documentation builds.
pub static MODULES: &[PtxModule] = generated::MODULES;
/// CUDA version of the nvcc that made them, as (major, minor): the oldest driver that loads them supports it.
pub const TOOLKIT_VERSION: (u32, u32) = generated::TOOLKIT_VERSION;
/// Where that nvcc was.
pub const NVCC: &str = generated::NVCC;
