//! The tables and constants of kernels/tiles.cuh, as the build script read them.

use super::gemm::Cluster;
use crate::config::Rotary;

/// One row of `GEMM_SM80_TILES`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sm80GemmTile {
    pub(crate) name: &'static str,
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) warp_m: usize,
    pub(crate) warp_n: usize,
    pub(crate) slices: usize,
    pub(crate) stages: usize,
}

impl Sm80GemmTile {
    pub(crate) const fn threads(&self) -> u32 {
        (self.m / self.warp_m * (self.n / self.warp_n) * self.slices * 32) as u32
    }

    /// `Gemm::SHARED` of kernels/gemm_sm80.cu: stages of each row of both tiles.
    pub(crate) const fn shared_bytes(&self) -> u32 {
        (self.stages * (self.m + self.n) * GEMM_TILE_K * 2) as u32
    }
}

/// The side of a tile that is wgmma's free width; the other is its 64 rows, once for each consumer warpgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Free {
    /// Rows of C.
    M,
    /// Its columns.
    N,
}

/// One row of `GEMM_SM90_TILES`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sm90GemmTile {
    pub(crate) name: &'static str,
    /// Rows of C.
    pub(crate) m: usize,
    /// Its columns.
    pub(crate) n: usize,
    /// Which of them is free.
    pub(crate) free: Free,
    /// Two warpgroups take turns with whole tiles.
    pub(crate) in_turn: bool,
    /// Its block leaves a multiprocessor room for one of [such attention](Sm90AttentionTile::half), and is planned for nothing else.
    pub(crate) half: bool,
    /// Of a stage, [`GEMM_TILE_K`] elements along K each.
    pub(crate) panels: usize,
    /// Rows of C (columns where N is free) that a warpgroup finishes at a time.
    pub(crate) chunk: usize,
    /// Chunks that are on their way out at a time.
    pub(crate) buffers: usize,
}

impl Sm90GemmTile {
    /// Warpgroups that multiply.
    pub(crate) const fn consumers(&self) -> usize {
        match self.free {
            _ if self.in_turn => 2,
            Free::M => self.n / 64,
            Free::N => self.m / 64,
        }
    }

    /// Whether blocks can share K of one tile.
    pub(crate) const fn splits(&self) -> bool {
        matches!(self.free, Free::M) && !self.in_turn && !self.half
    }

    /// Whether two blocks have the registers to share a multiprocessor: `GemmTile::BLOCKS` of the kernel.
    pub(crate) const fn holds_two_blocks(&self) -> bool {
        let width = match self.free {
            Free::M => self.m,
            Free::N => self.n,
        };
        self.consumers() == 1 && width <= 128
    }

    /// Of C, which is M × N, with tiles that begin anew at column `edge` (0: none do): rows of clusters, columns of them before that
    /// column, columns of them in all.
    pub(crate) const fn clusters(&self, m: usize, n: usize, edge: usize, cluster: Cluster) -> (usize, usize, usize) {
        let (across, down) = cluster.shared();
        let before = edge.div_ceil(self.n * across);
        (m.div_ceil(self.m * down), before, before + (n - edge).div_ceil(self.n * across))
    }

    /// The consumers, and the producers' two warps, or a whole warpgroup: `GemmTile::THREADS` of the kernel.
    pub(crate) const fn threads(&self) -> u32 {
        (self.consumers() * 128 + if self.half { 128 } else { 64 }) as u32
    }

    /// Columns and rows of the boxes in which C leaves: `GemmTile::BOX` of the kernel.
    pub(crate) const fn c_box(&self) -> (usize, usize) {
        match self.free {
            Free::M => (64, self.chunk),
            Free::N if self.n.is_multiple_of(64) => (64, 64),
            Free::N if self.n.is_multiple_of(32) => (32, 64),
            Free::N => (16, 64),
        }
    }

    /// Whether it can rotate queries and keys as it finishes them: `BoxRotation` of kernels/gemm_sm90_rotate.cuh. A box of C must hold
    /// both of each pair, and be of one head or of whole ones; pieces of four columns in it, a power of two of each head.
    pub(crate) fn rotates(&self, rotary: &Rotary, head_dim: usize) -> bool {
        let (columns, _) = self.c_box();
        let pieces = |of: usize| of.is_multiple_of(4) && (of / 4).is_power_of_two();
        let whole = head_dim.is_multiple_of(columns) || columns.is_multiple_of(head_dim);
        whole
            && match rotary.interleaved {
                true => rotary.dim.is_multiple_of(columns) || pieces(rotary.dim % columns),
                false => rotary.dim <= columns && pieces(rotary.dim / 2),
            }
    }

    pub(crate) const fn stage_bytes(&self) -> usize {
        self.panels * (self.m + self.n) * GEMM_TILE_K * 2
    }

    /// Stages along each K of so many panels.
    pub(crate) fn steps(&self, panels: [usize; 2]) -> [usize; 2] {
        panels.map(|panels| panels.div_ceil(self.panels))
    }

    /// Stages, output buffers, barriers, sums that the blocks of a split send each other: in the order of `Place` in
    /// kernels/gemm_sm90_tile.cuh.
    pub(crate) const fn shared_bytes(&self, stages: usize, cluster: Cluster) -> usize {
        let (consumers, split) = (self.consumers(), cluster.split());
        let barriers = (2 * GEMM_MAX_STAGES + 2 * consumers + 2) * 8;
        // A block gets from each block the sums of the groups of eight tokens that it finishes.
        let units = split.saturating_mul((self.m / 8).div_ceil(split));
        let sums = if split > 1 { units.saturating_mul(consumers * (8 * 64 * 4)) } else { 0 };
        // Sums of parts leave from registers.
        let buffers = if cluster.parts() > 1 { 0 } else { consumers * self.buffers * self.chunk * 64 * 2 };
        sums.saturating_add(stages.saturating_mul(self.stage_bytes()) + buffers + barriers)
    }

    /// Most stages that fit so much shared memory.
    pub(crate) fn stages_in(&self, shared_bytes: usize, cluster: Cluster) -> usize {
        (shared_bytes.saturating_sub(self.shared_bytes(0, cluster)) / self.stage_bytes()).min(GEMM_MAX_STAGES)
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

/// One row of `ATTENTION_SM90_TILES`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sm90AttentionTile {
    pub(crate) name: &'static str,
    pub(crate) head_dim: usize,
    /// Of 64 query rows each.
    pub(crate) warpgroups: usize,
    /// Of one step.
    pub(crate) keys: usize,
    pub(crate) stages: usize,
    /// That share a multiprocessor; 0: it has one, by halves.
    pub(crate) blocks: usize,
}

impl Sm90AttentionTile {
    /// Whether its block leaves a multiprocessor room for one of a product.
    pub(crate) const fn half(&self) -> bool {
        self.blocks == 0
    }

    pub(crate) const fn rows(&self) -> usize {
        self.warpgroups * 64
    }

    /// The consumers, and the producer's warpgroup.
    pub(crate) const fn threads(&self) -> u32 {
        (self.warpgroups * 128 + 128) as u32
    }

    /// Columns of the boxes that operands come in: `Attention::CHUNK` of kernels/attention_sm90.cu.
    pub(crate) const fn chunk(&self) -> usize {
        match self.head_dim {
            d if d.is_multiple_of(64) => 64,
            d if d.is_multiple_of(32) => 32,
            _ => 16,
        }
    }

    /// Q, the stages, two barriers each, Q's two, and one for the beginning.
    pub(crate) const fn shared_bytes(&self) -> u32 {
        ((self.rows() + self.stages * self.keys) * self.head_dim * 2 + (2 * self.stages + 3) * 8) as u32
    }
}

include!(concat!(env!("OUT_DIR"), "/tiles.rs"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_rotated_where_a_box_of_c_holds_both() {
        let rotates = |name: &str, head_dim, dim, interleaved| {
            let tile = GEMM_SM90_TILES.iter().find(|tile| tile.name == name).unwrap();
            tile.rotates(&Rotary { dim, base: 1e4, interleaved }, head_dim)
        };
        // Boxes of 64 columns.
        for name in ["128x128", "128x128t", "128x192", "16x64"] {
            // Pythia, Falcon, GPT-J, Command-R; two heads in a box.
            for (head_dim, dim, interleaved) in
                [(128, 32, false), (64, 64, false), (256, 64, true), (128, 128, true), (32, 32, false)]
            {
                assert!(rotates(name, head_dim, dim, interleaved), "{name} {head_dim} {dim}");
            }
            // Pairs further apart than a box is wide; heads that begin amid one; pieces that are no power of two.
            for (head_dim, dim, interleaved) in
                [(128, 128, false), (80, 32, false), (96, 32, true), (128, 96, false), (128, 48, true), (64, 4, false)]
            {
                assert!(!rotates(name, head_dim, dim, interleaved), "{name} {head_dim} {dim}");
            }
        }
        // Of 32.
        for name in ["128x224", "128x96"] {
            assert!(rotates(name, 128, 32, false) && rotates(name, 96, 32, false) && rotates(name, 256, 64, true));
            assert!(!rotates(name, 64, 64, false) && !rotates(name, 80, 32, true));
        }
    }
}
