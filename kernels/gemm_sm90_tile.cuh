// What the parts of Hopper's GEMM (gemm_sm90.cu) share: its parameter, a tile's numbers, where things lie.
#pragma once
#include <type_traits>

#include "activation.cuh"
#include "counters.cuh"
#include "element.cuh"
#include "rotation.cuh"
#include "tiles.cuh"

using ptx::TensorMap;

// To divide by a number, of at least 1, that the host knows: 2^64 over it, rounded up (src/gpu/gemm/sm90.rs), or 0 for 1.
struct Divisor {
    uint32_t low, high;

    __device__ __forceinline__ uint32_t quotient(uint32_t n) const {
        const uint64_t sum = static_cast<uint64_t>(n) * high + __umulhi(n, low);
        return (low | high) == 0 ? n : static_cast<uint32_t>(sum >> 32);
    }
};

// When the first A of two, and the residual, are there: when the kernels before have ended, as the second A is; before this begins; or, for
// parts of K, when a pair's count has come so far (counters.cuh).
enum First { WAITS, IS_THERE, COUNTED };

// As src/gpu/gemm/sm90.rs lays it out.
struct GemmParams {
    TensorMap a[2], w[2];  // boxes of 64 columns and the rows of a block's slice, 128-byte swizzle; [1] if it is used
    TensorMap c[2], r;     // boxes of 64 columns and CHUNK rows (8 under split); c[1] from a_from on; r if `residual`
    const void* bias;      // [N] or null
    float* sums;           // [parts][M][N], where parts of K leave their sums instead of C; null if they do not
    unsigned* ready;       // counts the tiles, of each warpgroup that has some of it, that are in memory; or null. See counters.cuh
    int m, n;
    // First step, of a stage, along the K of each pair, of each part that K is split into, and one past the last.
    int first_step[2][GEMM_MAX_PARTS + 1];
    int activation;            // of activation.cuh
    int activation_from;       // first column that gets it; n or more: none
    int rotated;               // columns, the first ones, of queries and keys to rotate; 0: none
    int residual;              // 0 or 1
    int log2_n, log2_m;        // blocks that share operands, 2^ of each
    int log2_split;            // blocks of a cluster that share K, 2^
    int parts;                 // of K, whose tiles are apart
    int stages;
    int rows, columns;  // of tiles, or of clusters' tiles where they share
    int group_m;        // rows, as many as there are at most, that share their W in L2 before the raster moves on
    int a_from;         // column from which on a[1] takes the place of a[0], with one pair only; tiles begin anew there
    int columns_before; // of tiles (clusters' tiles), up to there; more than there are if there is no such column
    int ready_columns;  // only those that begin before this column
    int first;          // of First above
    int counts_end;     // whether to count the warpgroups whose tiles are all in memory
    // Read by few kernels, and so last: what every tile reads lies in fewer lines of the constants' cache, which is cold then.
    Rotation rotation;
    Divisor group_tiles, group_rows, last_group_rows;  // tiles of a group; rows of one, and of the last
    unsigned* end;         // where to count those
    unsigned* first_pair;  // if `first` is counted
    unsigned first_count;
    int first_is_last;     // whether no later layer of the call waits there
};

// What the products of a module end in, which is compiled once for each (PAF_ENDS): what a product does not need has no code among what
// it runs. See gemm_sm90.cu.
enum class Ends {
    LINEAR,                // bias, residual
    GELU, GELU_NEW, RELU,  // bias, that activation
    SPLIT,                 // any of these, after a cluster's blocks have added up their parts of K
    SUMS,                  // fp32 sums of parts of K
};
constexpr Ends ENDS = Ends::PAF_ENDS;
constexpr bool IS_SPLIT = ENDS == Ends::SPLIT, LEAVES_SUMS = ENDS == Ends::SUMS;
constexpr bool ACTIVATES = ENDS != Ends::LINEAR && !LEAVES_SUMS;

__device__ __forceinline__ bool has_residual(const GemmParams& p) {
    return (ENDS == Ends::LINEAR || IS_SPLIT) && p.residual;
}

__device__ __forceinline__ int activation_of(const GemmParams& p) {
    return ENDS == Ends::GELU ? GELU : ENDS == Ends::GELU_NEW ? GELU_NEW : ENDS == Ends::RELU ? RELU : p.activation;
}

__device__ __forceinline__ int log2_split_of(const GemmParams& p) { return IS_SPLIT ? p.log2_split : 0; }

// The side of a tile that is wgmma's free width; the other is its 64 rows, once for each consumer warpgroup.
enum class Free { M, N };

// How consumer warpgroups share the work: each has its 64 rows of every tile; or two take turns, each with all rows of every
// other tile, so that one finishes its tile while the other's products keep the tensor cores busy; or they share tiles in a block that
// leaves a multiprocessor room for one of attention.
enum class Consumers { TOGETHER, IN_TURN, HALF };

// CHUNK rows of C (columns, where N is free) are finished at a time, in BUFFERS buffers on their way out.
template <typename Element_, int BM_, int BN_, Free FREE_, Consumers WORK_, int PANELS_, int CHUNK_, int BUFFERS_>
struct GemmTile {
    using Element = Element_;
    static constexpr int BM = BM_, BN = BN_, PANELS = PANELS_, CHUNK = CHUNK_, BUFFERS = BUFFERS_;
    static constexpr bool FREE_IS_M = FREE_ == Free::M;
    static constexpr int WIDTH = FREE_IS_M ? BM : BN;
    static constexpr int BK = PANELS * GEMM_TILE_K, ROW_BYTES = GEMM_TILE_K * ELEMENT_BYTES;  // a row of a panel
    static constexpr bool IN_TURN = WORK_ == Consumers::IN_TURN, HALF = WORK_ == Consumers::HALF;
    static constexpr int PARTS = (FREE_IS_M ? BN : BM) / 64;  // of a tile, 64 rows each
    static constexpr int CONSUMERS = IN_TURN ? 2 : PARTS;     // warpgroups
    static constexpr int OWN_PARTS = IN_TURN ? PARTS : 1;     // of each
    static constexpr int READERS = IN_TURN ? 1 : CONSUMERS;   // of a stage
    static constexpr int W_WARP = CONSUMERS * 4, A_WARP = W_WARP + 1;     // the producers
    // By halves a whole warpgroup gives registers to the consumers: two of its four warps are the producers, the others only do that.
    static constexpr int THREADS = CONSUMERS * 128 + (HALF ? 128 : 64);
    static constexpr int BOUND = HALF ? HALVES_THREADS : THREADS;  // threads that share a multiprocessor's registers
    static constexpr int LAUNCHED = 65536 / BOUND / 8 * 8, PRODUCER_REGISTERS = 40, REGISTERS = 120;  // a thread, if HALF
    static_assert(!HALF || PRODUCER_REGISTERS + CONSUMERS * REGISTERS <= LAUNCHED * (CONSUMERS + 1));
    static constexpr int BLOCKS = CONSUMERS == 1 && WIDTH <= 128 ? 2 : 1;  // that a multiprocessor should hold
    static constexpr int PANEL_W = BN * ROW_BYTES, PANEL_A = BM * ROW_BYTES;
    static constexpr int STAGE_W = PANELS * PANEL_W, STAGE = PANELS * (PANEL_W + PANEL_A);
    static constexpr int CHUNK_BYTES = CHUNK * 64 * ELEMENT_BYTES;
    // Of the boxes in which C leaves: the widest swizzled rows that fill the width.
    static constexpr int BOX = FREE_IS_M || WIDTH % 64 == 0 ? 64 : WIDTH % 32 == 0 ? 32 : 16;
    // Whether there is a kernel for it: blocks that share K meet where M is free, and parts of K have no turns.
    static constexpr bool EXISTS = IS_SPLIT ? FREE_IS_M && !IN_TURN && !HALF : !LEAVES_SUMS || !IN_TURN;
    static constexpr int UNITS = BM / 8;  // groups of eight tokens
    static constexpr int UNIT_BYTES = 8 * 64 * ELEMENT_BYTES;
    static constexpr int PART_BYTES = 8 * 64 * 4;  // of a unit's sums, of one warpgroup

    static_assert(ROW_BYTES == 128 && BM % 8 == 0 && BN % 8 == 0, "swizzle atoms are eight rows of 128 bytes");
    static_assert(WIDTH % 16 == 0 && WIDTH <= 256 && CHUNK <= 256, "wgmma's widths, TMA's boxes");
    static_assert(FREE_IS_M ? BM % CHUNK == 0 && CHUNK % 8 == 0 : CHUNK % BOX == 0, "chunks are of whole boxes");
    static_assert(!IS_SPLIT || !EXISTS || UNITS / 2 * UNIT_BYTES <= BUFFERS * CHUNK_BYTES, "a split tile's part must fit the buffers");

    // A position in the ring of stages; barriers of a round complete with alternating parity.
    struct Ring {
        int stage = 0;
        uint32_t parity = 0;
        __device__ __forceinline__ void advance(int stages) {
            if (++stage == stages) {
                stage = 0;
                parity ^= 1;
            }
        }
        __device__ __forceinline__ void skip(int steps, int stages) {
            stage += steps;
            const int rounds = stage / stages;
            stage -= rounds * stages;
            parity ^= rounds & 1;
        }
    };

    struct Place {
        uint32_t stages, output, sums, full, empty, residual, sums_full, begin;  // shared memory
        int rank;                                                         // in the cluster
        int rank_n, rank_m;                                               // share: which of the neighbouring tiles
    };

    // First row and column of a tile (a consumer's are those of its warpgroup's part), the part of K, and whether it is one of those
    // from a_from on.
    struct Corner {
        int m0, n0;
        int part;
        int beside;

        __device__ __forceinline__ int steps(const GemmParams& p) const {
            return p.first_step[0][part + 1] - p.first_step[0][part] + p.first_step[1][part + 1] - p.first_step[1][part];
        }
    };

    // Raster: column by column inside a group of rows, so that a wave shares A and W in L2. The first load waits for it: one row, which
    // few tokens are, has no divisions, and others no slow ones. Tiles of one part of K are neighbours: they share A.
    static __device__ __forceinline__ bool tile_at(const GemmParams& p, const Place& at, int index, Corner& tile) {
        const int tiles = p.rows * p.columns;
        if (index >= tiles * (LEAVES_SUMS ? p.parts : 1)) return false;
        tile.part = IS_SPLIT ? at.rank : 0;
        if (LEAVES_SUMS)
            for (; index >= tiles; index -= tiles) ++tile.part;
        int row = 0, column = index;
        if (p.rows > 1) {
            const int group = p.group_tiles.quotient(index), first = group * p.group_m;
            const int in_group = index - first * p.columns;
            const bool last = p.rows - first < p.group_m;
            column = (last ? p.last_group_rows : p.group_rows).quotient(in_group);
            row = first + in_group - column * (last ? p.rows - first : p.group_m);
        }
        tile.m0 = ((row << p.log2_m) + at.rank_m) * BM;
        tile.beside = column >= p.columns_before;
        if (tile.beside) column -= p.columns_before;
        tile.n0 = (tile.beside ? p.a_from : 0) + ((column << p.log2_n) + at.rank_n) * BN;
        return true;
    }

    struct Units {
        int first, end;
    };

    // Split: the units that this block finishes.
    static __device__ __forceinline__ Units own_units(const GemmParams& p, const Place& at) {
        return {at.rank * UNITS >> p.log2_split, (at.rank + 1) * UNITS >> p.log2_split};
    }
};
