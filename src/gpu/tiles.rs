//! The tables of kernels/tiles.cuh, as the build script read them.

/// One row of `GEMM_TILES`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GemmTile {
    pub(crate) name: &'static str,
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) warp_m: usize,
    pub(crate) warp_n: usize,
    pub(crate) slices: usize,
    pub(crate) stages: usize,
}

impl GemmTile {
    pub(crate) const fn threads(&self) -> u32 {
        (self.m / self.warp_m * (self.n / self.warp_n) * self.slices * 32) as u32
    }

    /// `Gemm::SHARED` of kernels/gemm_sm80.cu: stages of 64 elements of each row of both tiles.
    pub(crate) const fn shared_bytes(&self) -> u32 {
        (self.stages * (self.m + self.n) * 64 * 2) as u32
    }
}

/// One row of `ATTENTION_TILES`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AttentionTile {
    pub(crate) head_dim: usize,
    pub(crate) warps: usize,
    pub(crate) warp_rows: usize,
    pub(crate) keys: usize,
}

impl AttentionTile {
    pub(crate) const fn rows(&self) -> usize {
        self.warps * self.warp_rows
    }

    pub(crate) const fn threads(&self) -> u32 {
        (self.warps * 32) as u32
    }

    /// `Attention::SHARED` of kernels/attention_sm80.cu: Q, and two stages of K and V, in rows padded by 16 bytes.
    pub(crate) const fn shared_bytes(&self) -> u32 {
        ((self.rows() + 4 * self.keys) * (self.head_dim + 8) * 2) as u32
    }

    pub(crate) fn kernel_name(&self) -> String {
        format!("attention_d{}_w{}_r{}", self.head_dim, self.warps, self.warp_rows)
    }
}

include!(concat!(env!("OUT_DIR"), "/tiles.rs"));
