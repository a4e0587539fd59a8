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

// ---- GEMM on Hopper (gemm_sm90.cu) ------------------------------------------------------------------------------------
//
// Block tile M×N; which of them is wgmma's free width, the other being its 64 rows once or twice; whether two consumer
// warpgroups share a tile, take turns with whole tiles, or share one in the registers that attention by halves leaves; panels of
// GEMM_TILE_K along K in a stage; rows (columns, where N is free) of C that one finishes at a time, and in how many buffers. A
// panel is (M+N)·128 bytes, and as many stages as fit are used. `why` says N × M where it names shapes.
//
//     name       M    N  free consumers panels chunk buffers   why
#define GEMM_SM90_TILES(X)                                                                                              \
    X(256x128, 256, 128, M, TOGETHER, 1, 64, 2) /* long K: most flop a byte loaded, 85; 128 accumulators a thread */    \
    X(128x224, 128, 224, N, TOGETHER, 1, 64, 2) /* where 224 divides N into whole rounds: 7168 × 512, 12288 × 8192 */   \
    X(128x192, 128, 192, N, TOGETHER, 1, 64, 1) /* one round of 128 tiles at 6144 × 512, two at 12288 × 512 */          \
    X(128x128t, 128, 128, M, IN_TURN, 1, 128, 1) /* K of 1024 or 2048: what one finishes hides under the other */       \
    X(128x128, 128, 128, M, TOGETHER, 1, 128, 1) /* one round of 128 tiles: each finishes half as much */               \
    X(128x128h, 128, 128, M, HALF, 1, 64, 1) /* the same in what attention by halves leaves, which runs beside it */    \
    X(128x96, 128, 96, N, TOGETHER, 1, 96, 1) /* one round of 128 tiles at 3072 × 512 */                                \
    X(64x96, 64, 96, N, TOGETHER, 1, 96, 1) /* one round of 128 tiles at 6144 × 128 */                                  \
    X(128x64, 128, 64, M, TOGETHER, 1, 128, 1) /* up to 128 rows, split or two blocks a multiprocessor */               \
    X(64x64, 64, 64, M, TOGETHER, 2, 64, 1) /* 64 rows, or 128 tiles of few more */                                     \
    X(32x64, 32, 64, M, TOGETHER, 2, 32, 1) /* 32 rows, or narrow N */                                                  \
    X(16x64, 16, 64, M, TOGETHER, 2, 16, 1) /* one to sixteen rows: W streams */

constexpr int GEMM_MAX_STAGES = 16;
constexpr int GEMM_MAX_PARTS = 8;  // of K

// ---- Attention (attention_sm80.cu): head_dim, warps, query rows a warp, keys a step ---------------------------------
//
// Every warp reads the whole K and V tile, so 32 rows a warp halve the shared-memory traffic of 16 (at 16 it takes twice
// the products' time). 16-row variants are for few queries, where 128-row tiles leave multiprocessors idle. At head_dim 128 the
// 128-row tile takes 104 KB: cards with 99 KB a block take the 64-row one. At head_dim 256 the output alone takes 128 registers a
// thread with 16 rows a warp, so that is all a warp gets; 32 keys a step make 64 rows fit 99 KB, to the byte, and 128 rows
// (132 KB) an A100, where they are the way to eight warps a multiprocessor.
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
    X(128, 2, 16, 64)                                                                                                   \
    X(256, 8, 16, 32)                                                                                                   \
    X(256, 4, 16, 32)                                                                                                   \
    X(256, 2, 16, 32)

// ---- Attention on Hopper (attention_sm90.cu): name (head_dim, query rows × keys a step), head_dim, consumer warpgroups of 64
// query rows, keys a step, stages of K or V, blocks that a multiprocessor should hold, or 0: one, by halves, which leaves room for
// one of a product (128x128h) beside it ---------------------------------------------------------------------------------------
//
// At head_dim 64 four warpgroups, of which one always has products for the tensor cores: two reach 460 TFLOP/s at seq 8192 where
// three reach 480. Wider heads need the registers of two. 64 query rows are for few queries, which then occupy more multiprocessors, or
// go by halves, for many.
#define ATTENTION_SM90_TILES(X)                                                                                         \
    X(d32_192x128, 32, 3, 128, 8, 1)                                                                                    \
    X(d32_64x128, 32, 1, 128, 4, 2)                                                                                     \
    X(d64_256x64, 64, 4, 64, 16, 1)                                                                                     \
    X(d64_192x128, 64, 3, 128, 8, 1)                                                                                    \
    X(d64_128x128, 64, 2, 128, 8, 1)                                                                                    \
    X(d64_64x128, 64, 1, 128, 4, 2)                                                                                     \
    X(d64_64x64, 64, 1, 64, 5, 0)                                                                                       \
    X(d80_128x128, 80, 2, 128, 6, 1)                                                                                    \
    X(d80_64x128, 80, 1, 128, 4, 2)                                                                                     \
    X(d96_128x128, 96, 2, 128, 6, 1)                                                                                    \
    X(d96_64x128, 96, 1, 128, 6, 1)                                                                                     \
    X(d128_128x128, 128, 2, 128, 6, 1)                                                                                  \
    X(d128_64x128, 128, 1, 128, 6, 1)                                                                                   \
    X(d256_128x80, 256, 2, 80, 4, 1)                                                                                    \
    X(d256_64x80, 256, 1, 80, 4, 1)

// ---- By halves: threads of the two blocks that share a multiprocessor, attention's 256 and the product's 384. Each is launched
// with as many registers a thread as if one block had all of them, 96, and its warpgroups deal these out anew. ------------------
constexpr int HALVES_THREADS = 640;
