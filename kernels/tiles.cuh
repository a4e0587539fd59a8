// Tile shapes, stages and register budgets, each with its reason. src/gpu/{gemm,attention,norm}.rs choose among them.
#pragma once

// ---- GEMM (gemm_sm80.cu): block tile M×N, warp tile M×N, slices of K, stages of 64 elements along K ----------------
//
// Shared-memory traffic decides: a 64×64 warp tile reads 4 KB for 2·64·64·16 flop, so at 128 B a clock the reads of four
// such warps cost what mma.sync needs for their products on Hopper. Small block tiles, for few tokens, keep large warp tiles
// by slicing K: each of four warps does every fourth step of 16 for the whole tile, and the four sums are added at the end.
// Before that, with a 32×16 tile a warp, a step of 64 took 0.28 µs on an H200, of which the tensor cores worked a quarter.
//
//     name       M    N  warp M, N  slices stages   smem     why
#define GEMM_SM80_TILES(X)                                                                                              \
    X(128x256, 128, 256, 64, 64, 1, 3) /* 144 KB  8 warps, one block an SM: fewest bytes a flop; needs A100 or Hopper */\
    X(128x128, 128, 128, 64, 64, 1, 3) /*  96 KB  4 warps, two blocks an SM on Hopper: one's epilogue under the other's \
                                                  products; the largest that fits 99 KB (consumer cards) */             \
    X(64x64, 64, 64, 64, 64, 4, 4)     /*  64 KB  4 warps, two blocks an SM by registers: middling M·N */               \
    X(64x32, 64, 32, 64, 32, 4, 6)     /*  72 KB  4 warps: few tokens, weights stream; depth covers the latency */

constexpr int GEMM_TILE_K = 64;  // 128-byte rows: eight 16-byte chunks, swizzled by row % 8, conflict-free both ways

// ---- GEMM on Hopper (gemm_sm90.cu): block tile M×N, rows of C that leave at once -----------------------------------
//
// M is the free width of wgmma, N its 64 rows once or twice. A stage is (M+N)·128 bytes, and as many as fit are used.
//
//     name       M    N  rows     why
#define GEMM_SM90_TILES(X)                                                                                              \
    X(256x128, 256, 128, 64) /* many tokens: most flop a byte, 85 a clock; 128 accumulators a thread */                 \
    X(192x128, 192, 128, 64) /* where 256 leaves the last round of multiprocessors half empty */                        \
    X(128x128, 128, 128, 64) /* a few hundred tokens, or one round of 128 tiles */                                      \
    X(112x128, 112, 128, 56) /* 512 tokens in five: 120 tiles at N = 3072 */                                            \
    X(128x64, 128, 64, 64)   /* few tokens, split; two blocks an SM */                                                  \
    X(64x64, 64, 64, 64)                                                                                                \
    X(32x64, 32, 64, 32)                                                                                                \
    X(16x64, 16, 64, 16) /* one to sixteen tokens: W streams */

constexpr int GEMM_MAX_STAGES = 16;

// ---- Attention (attention_sm80.cu): head_dim, warps, query rows a warp, keys a step ---------------------------------
//
// Every warp reads the whole K and V tile, so 32 rows a warp halve the shared-memory traffic of 16 (at 16 it takes twice
// the products' time). 16-row variants are for few queries, where 128-row tiles leave multiprocessors idle. At head_dim 128 the
// 128-row tile takes 104 KB: cards with 99 KB a block take the 64-row one.
#define ATTENTION_TILES(X)                                                                                              \
    X(32, 4, 32, 64)                                                                                                    \
    X(32, 4, 16, 64)                                                                                                    \
    X(32, 2, 16, 64)                                                                                                    \
    X(64, 4, 32, 64)                                                                                                    \
    X(64, 4, 16, 64)                                                                                                    \
    X(64, 2, 16, 64)                                                                                                    \
    X(80, 4, 32, 64)                                                                                                    \
    X(80, 4, 16, 64)                                                                                                    \
    X(80, 2, 16, 64)                                                                                                    \
    X(96, 4, 32, 64)                                                                                                    \
    X(96, 4, 16, 64)                                                                                                    \
    X(96, 2, 16, 64)                                                                                                    \
    X(128, 4, 32, 64)                                                                                                   \
    X(128, 4, 16, 64)                                                                                                   \
    X(128, 2, 16, 64)
