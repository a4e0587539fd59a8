//! The PTX that `build.rs` made of `kernels/*.cu`, embedded in the library.

/// One kernel family compiled for one target and, where it has elements, for one element type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PtxModule {
    /// Name: family, generation, element type, e.g. `gemm_sm80_bf16`.
    pub name: &'static str,
    /// Virtual architecture that it was compiled for, e.g. `compute_80`.
    pub target: &'static str,
    /// The PTX text, zlib-compressed: it is twenty times as long.
    compressed: &'static [u8],
}

impl PtxModule {
    /// The module of that name.
    pub fn find(name: &str) -> Option<&'static Self> {
        MODULES.iter().find(|module| module.name == name)
    }

    /// Its bytes as they are embedded.
    pub(super) fn compressed(&self) -> &'static [u8] {
        self.compressed
    }

    /// The PTX text.
    pub fn source(&self) -> String {
        let text = miniz_oxide::inflate::decompress_to_vec_zlib(self.compressed).expect("build.rs compressed it");
        String::from_utf8(text).expect("PTX is text")
    }

    /// PTX ISA version of the text, e.g. `9.0`.
    pub fn isa_version(&self) -> String {
        let source = self.source();
        source.lines().find_map(|line| line.strip_prefix(".version ")).map_or("unknown", str::trim).to_owned()
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
