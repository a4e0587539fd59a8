// C[M,N] = epilogue(A[M,K] · W[N,K]ᵀ), A, W and C 16-bit and row-major (W as PyTorch stores a Linear), fp32 accumulation.
//
//   Bias            C = A·Wᵀ + b
//   BiasActivation  C = act(A·Wᵀ + b)          act: 0 gelu, 1 gelu_new, 2 relu
//   BiasResidual    C = A·Wᵀ + b + R[M,N]
//
// N, K and the leading dimensions are multiples of 8, pointers 16-byte aligned; M is free; b may be null.
//
// Idea: mma.sync m16n8k16 fed by ldmatrix from a cp.async pipeline. A stage holds 64 elements along K, a row of 128 bytes
// in eight 16-byte chunks; chunk c of row r lies at c ^ (r % 8), so that both the copies (eight rows a warp) and ldmatrix
// (eight rows a matrix) touch all 32 banks. Fragments of step k+1 load while step k multiplies. The output passes through
// shared memory so that global stores are 16 bytes a thread and whole rows a warp.
#include "activation.cuh"
#include "element.cuh"
#include "tiles.cuh"

enum class Epilogue { Bias, BiasActivation, BiasResidual };

struct GemmParams {
    const void* a;
    const void* w;
    const void* bias;      // [N] or null
    const void* residual;  // [M,N], leading dimension ldc; BiasResidual only
    void* c;
    int m, n, k;
    int lda, ldw, ldc;
    int activation;  // BiasActivation only
    int group_m;     // tile rows that share their W tiles in L2 before the raster moves on
};

template <typename T, int BM, int BN, int WM, int WN, int STAGES, Epilogue EPILOGUE>
struct Gemm {
    static constexpr int BK = GEMM_TILE_K;
    static constexpr int WARPS_M = BM / WM, WARPS_N = BN / WN;
    static constexpr int THREADS = WARPS_M * WARPS_N * 32;
    static constexpr int ROW_BYTES = BK * ELEMENT_BYTES;
    static constexpr int STAGE_A = BM * ROW_BYTES, STAGE_W = BN * ROW_BYTES, STAGE = STAGE_A + STAGE_W;
    static constexpr int SHARED = STAGES * STAGE;
    // C tile in shared memory: rows padded by one vector, so that the eight rows of a fragment fall into distinct banks.
    static constexpr int C_STRIDE = (BN + VECTOR) * ELEMENT_BYTES;
    static constexpr int MT = WM / 16, NT = WN / 8;
    static constexpr int ROWS_PER_PASS = THREADS / 8;  // eight threads copy one 128-byte row

    static_assert(ROW_BYTES == 128, "the swizzle is made for 128-byte rows");
    static_assert(BM % ROWS_PER_PASS == 0 && BN % ROWS_PER_PASS == 0, "every thread copies whole chunks");
    static_assert(BM * C_STRIDE <= SHARED, "the output tile must fit where the stages were");
    static_assert(WM % 16 == 0 && WN % 16 == 0, "whole ldmatrix.x4 fragments");

    using S = typename T::Storage;

    // Copies rows [row0, row0 + ROWS) × columns [k0, k0 + 64) into a stage; what lies outside the matrix becomes zero.
    template <int ROWS>
    static __device__ __forceinline__ void copy_tile(uint32_t stage, const S* matrix, int ld, int row0, int rows, int k0,
                                                     int k) {
        const int chunk = threadIdx.x % 8, first = threadIdx.x / 8;
        const int column = k0 + chunk * VECTOR;
        const bool in_k = column < k;
        const uint32_t to = stage + first * ROW_BYTES + ((chunk ^ (first % 8)) * 16);
#pragma unroll
        for (int i = 0; i < ROWS / ROWS_PER_PASS; ++i) {
            const int row = row0 + first + i * ROWS_PER_PASS;
            const bool valid = in_k && row < rows;
            const S* from = valid ? matrix + static_cast<int64_t>(row) * ld + column : matrix;
            ptx::copy_async_16(to + i * ROWS_PER_PASS * ROW_BYTES, from, valid ? 16 : 0);
        }
    }

    static __device__ __forceinline__ void load_fragments(uint32_t (&a)[MT][4], uint32_t (&b)[NT / 2][4], uint32_t a_at,
                                                          uint32_t b_at, int step) {
#pragma unroll
        for (int i = 0; i < MT; ++i) ptx::load_matrix_x4(a[i], (a_at + i * 16 * ROW_BYTES) ^ (step << 5));
#pragma unroll
        for (int j = 0; j < NT / 2; ++j) ptx::load_matrix_x4(b[j], (b_at + j * 16 * ROW_BYTES) ^ (step << 5));
    }

    static __device__ __forceinline__ void run(const GemmParams& p) {
        extern __shared__ __align__(1024) unsigned char shared[];
        const uint32_t base = ptx::shared_address(shared);
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        const int warp_m = (warp % WARPS_M) * WM, warp_n = (warp / WARPS_M) * WN;

        // Raster: column by column inside a group of tile rows, so that a wave of blocks shares A and W in L2.
        const int tiles_m = (p.m + BM - 1) / BM, tiles_n = (p.n + BN - 1) / BN;
        const int group_tiles = p.group_m * tiles_n;
        const int group = blockIdx.x / group_tiles;
        const int first_m = group * p.group_m;
        const int rows_in_group = min(p.group_m, tiles_m - first_m);
        const int in_group = blockIdx.x - group * group_tiles;
        const int m0 = (first_m + in_group % rows_in_group) * BM;
        const int n0 = (in_group / rows_in_group) * BN;

        const S* a = static_cast<const S*>(p.a);
        const S* w = static_cast<const S*>(p.w);
        const int steps = (p.k + BK - 1) / BK;

        auto copy_stage = [&](int step) {
            if (step < steps) {
                const uint32_t stage = base + (step % STAGES) * STAGE;
                copy_tile<BM>(stage, a, p.lda, m0, p.m, step * BK, p.k);
                copy_tile<BN>(stage + STAGE_A, w, p.ldw, n0, p.n, step * BK, p.k);
            }
            ptx::copy_async_commit();  // empty groups too: the waits below count groups
        };

#pragma unroll
        for (int s = 0; s < STAGES - 1; ++s) copy_stage(s);

        // A fragments: matrices (rows 0–7, k 0–7), (8–15, 0–7), (0–7, 8–15), (8–15, 8–15).
        // W fragments: matrices (n 0–7, k 0–7), (0–7, 8–15), (8–15, 0–7), (8–15, 8–15): two n8 operands.
        const int row = lane % 8;
        const uint32_t a_at = (warp_m + row + (lane / 8 % 2) * 8) * ROW_BYTES + (((lane / 16) ^ row) << 4);
        const uint32_t b_at = STAGE_A + (warp_n + row + (lane / 16) * 8) * ROW_BYTES + (((lane / 8 % 2) ^ row) << 4);

        float c[MT][NT][4] = {};
        uint32_t a_fragment[2][MT][4], b_fragment[2][NT / 2][4];

        for (int step = 0; step < steps; ++step) {
            ptx::copy_async_wait<STAGES - 2>();
            __syncthreads();  // this stage has arrived for all, and all have left the stage that is refilled next
            copy_stage(step + STAGES - 1);
            const uint32_t stage = base + (step % STAGES) * STAGE;
            load_fragments(a_fragment[0], b_fragment[0], stage + a_at, stage + b_at, 0);
#pragma unroll
            for (int kk = 0; kk < BK / 16; ++kk) {
                if (kk + 1 < BK / 16)
                    load_fragments(a_fragment[(kk + 1) % 2], b_fragment[(kk + 1) % 2], stage + a_at, stage + b_at, kk + 1);
#pragma unroll
                for (int i = 0; i < MT; ++i)
#pragma unroll
                    for (int j = 0; j < NT; ++j)
                        T::mma(c[i][j], a_fragment[kk % 2][i], b_fragment[kk % 2][j / 2][j % 2 * 2],
                               b_fragment[kk % 2][j / 2][j % 2 * 2 + 1]);
            }
        }
        ptx::copy_async_wait<0>();
        __syncthreads();  // the stages become the output tile

        finish(p, shared, c, m0, n0, warp_m, warp_n, lane);
    }

    // Visits the output tile in shared memory in 16-byte vectors, whole rows a warp; skips what lies outside C.
    template <typename F>
    static __device__ __forceinline__ void for_each_vector(const GemmParams& p, int m0, int n0, F&& visit) {
        constexpr int VECTORS_PER_ROW = BN / VECTOR;
#pragma unroll 4
        for (int i = threadIdx.x; i < BM * VECTORS_PER_ROW; i += THREADS) {
            const int r = i / VECTORS_PER_ROW, column = (i % VECTORS_PER_ROW) * VECTOR;
            if (m0 + r < p.m && n0 + column < p.n)
                visit(r * C_STRIDE + column * ELEMENT_BYTES, static_cast<int64_t>(m0 + r) * p.ldc + n0 + column);
        }
    }

    static __device__ __forceinline__ void finish(const GemmParams& p, unsigned char* shared, float (&c)[MT][NT][4], int m0,
                                                  int n0, int warp_m, int warp_n, int lane) {
        if constexpr (EPILOGUE == Epilogue::BiasResidual) {
            const S* residual = static_cast<const S*>(p.residual);
            for_each_vector(p, m0, n0, [&](int at, int64_t index) {
                *reinterpret_cast<uint4*>(shared + at) = *reinterpret_cast<const uint4*>(residual + index);
            });
            __syncthreads();
        }

        const int row = warp_m + lane / 4, column = warp_n + lane % 4 * 2;
        const S* bias = static_cast<const S*>(p.bias);
#pragma unroll
        for (int j = 0; j < NT; ++j) {
            const int n = n0 + column + j * 8;
            float2 b = make_float2(0.f, 0.f);
            if (bias != nullptr && n < p.n) b = T::unpack(*reinterpret_cast<const uint32_t*>(bias + n));
#pragma unroll
            for (int i = 0; i < MT; ++i) {
                c[i][j][0] += b.x;
                c[i][j][1] += b.y;
                c[i][j][2] += b.x;
                c[i][j][3] += b.y;
            }
        }
        if constexpr (EPILOGUE == Epilogue::BiasActivation) {
            // The switch stands outside the loops: one branch a tile, not one an element.
            float(&flat)[MT * NT * 4] = reinterpret_cast<float(&)[MT * NT * 4]>(c);
            activate(flat, p.activation);
        }
#pragma unroll
        for (int j = 0; j < NT; ++j)
#pragma unroll
            for (int i = 0; i < MT; ++i)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    uint32_t* at = reinterpret_cast<uint32_t*>(
                        shared + (row + i * 16 + half * 8) * C_STRIDE + (column + j * 8) * ELEMENT_BYTES);
                    float x = c[i][j][half * 2], y = c[i][j][half * 2 + 1];
                    if constexpr (EPILOGUE == Epilogue::BiasResidual) {
                        const float2 r = T::unpack(*at);
                        x += r.x;
                        y += r.y;
                    }
                    *at = T::pack(x, y);
                }
        __syncthreads();

        S* out = static_cast<S*>(p.c);
        for_each_vector(p, m0, n0, [&](int at, int64_t index) {
            *reinterpret_cast<uint4*>(out + index) = *reinterpret_cast<const uint4*>(shared + at);
        });
    }
};

#define GEMM_KERNEL(NAME, TYPE, TILE, BM, BN, WM, WN, STAGES, EPILOGUE)                                               \
    extern "C" __global__ void __launch_bounds__(Gemm<TYPE, BM, BN, WM, WN, STAGES, Epilogue::EPILOGUE>::THREADS)     \
        gemm_##NAME(const __grid_constant__ GemmParams p) {                                                           \
        Gemm<TYPE, BM, BN, WM, WN, STAGES, Epilogue::EPILOGUE>::run(p);                                               \
    }

#define GEMM_TILE(TILE, BM, BN, WM, WN, STAGES)                                                \
    GEMM_KERNEL(TILE##_bias, PAF_ELEMENT, TILE, BM, BN, WM, WN, STAGES, Bias)                  \
    GEMM_KERNEL(TILE##_bias_activation, PAF_ELEMENT, TILE, BM, BN, WM, WN, STAGES, BiasActivation) \
    GEMM_KERNEL(TILE##_bias_residual, PAF_ELEMENT, TILE, BM, BN, WM, WN, STAGES, BiasResidual)

GEMM_TILES(GEMM_TILE)
