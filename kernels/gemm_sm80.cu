// C[M,N] = epilogue(A[M,K] · W[N,K]ᵀ), A, W and C 16-bit and row-major (W as PyTorch stores a Linear), fp32 accumulation.
//
//   C = act(A·Wᵀ + b) + R      act on the columns from a given one on, or on none; b, R optional
//   C = A₁·W₁ᵀ + A₂·W₂ᵀ …      K as the concatenation of two pairs of operands (`_pairs`)
//
// N, K and the leading dimensions are multiples of 8, pointers 16-byte aligned; M is free.
//
// Idea: mma.sync m16n8k16 fed by ldmatrix from a cp.async pipeline. A stage holds 64 elements along K, a row of 128 bytes
// in eight 16-byte chunks; chunk c of row r lies at c ^ (r % 8), so that both the copies (eight rows a warp) and ldmatrix
// (eight rows a matrix) touch all 32 banks. Fragments load one step ahead of the products that use them, and the copies of
// a stage are spread between the products. The output passes through shared memory so that global stores are 16 bytes a
// thread and whole rows a warp.
//
// Tried on an H200, µs of the 128x128 tile at M = N = 4096, K = 1024: all copies first, with a branch around them: 92; one
// pointer a thread instead of one a row: 100; copies in four parts, each behind a branch that splits the schedule: 123; in
// four parts without branches: 92, and 49 instead of 52 for lone tiles at M = 128, K = 4096. For few tokens see tiles.cuh.
#include "activation.cuh"
#include "element.cuh"
#include "tiles.cuh"

struct GemmParams {
    const void* a;
    const void* w;
    const void* a2;        // the second pair; PAIRS only
    const void* w2;
    const void* bias;      // [N] or null
    const void* residual;  // [M,N], leading dimension ldc; or null
    void* c;
    int m, n, k, k2;
    int lda, ldw, lda2, ldw2, ldc;
    int activation;       // of activation.cuh
    int activation_from;  // first column that gets it; n or more: none
    int group_m;          // tile rows that share their W tiles in L2 before the raster moves on
};

template <typename T, bool PAIRS, int BM, int BN, int WM, int WN, int SLICES, int STAGES>
struct Gemm {
    static constexpr int BK = GEMM_TILE_K;
    static constexpr int WARPS_M = BM / WM, WARPS_N = BN / WN;
    static constexpr int THREADS = WARPS_M * WARPS_N * SLICES * 32;
    static constexpr int ROW_BYTES = BK * ELEMENT_BYTES;
    static constexpr int STAGE_A = BM * ROW_BYTES, STAGE_W = BN * ROW_BYTES, STAGE = STAGE_A + STAGE_W;
    static constexpr int SHARED = STAGES * STAGE;
    // C tile in shared memory: rows padded by one vector, so that the eight rows of a fragment fall into distinct banks.
    static constexpr int C_STRIDE = (BN + VECTOR) * ELEMENT_BYTES;
    static constexpr int MT = WM / 16, NT = WN / 8;
    static constexpr int ROWS_PER_PASS = THREADS / 8;  // eight threads copy one 128-byte row
    // Steps of 16 along K that a warp does in a stage, and how many of them have their fragments loaded ahead.
    static constexpr int KSTEPS = BK / 16 / SLICES, AHEAD = KSTEPS > 1 ? 1 : 0;
    // After the slices are added up each warp finishes one slice's share of the rows.
    static constexpr int MT_OUT = MT / SLICES;

    static_assert(ROW_BYTES == 128, "the swizzle is made for 128-byte rows");
    static_assert(BM % ROWS_PER_PASS == 0 && BN % ROWS_PER_PASS == 0, "every thread copies whole chunks");
    static_assert(BM * C_STRIDE <= SHARED, "the output tile must fit where the stages were");
    static_assert(WM % 16 == 0 && WN % 16 == 0, "whole ldmatrix.x4 fragments");
    static_assert(MT % SLICES == 0 && BK / 16 % SLICES == 0, "slices share rows and steps evenly");
    static_assert(SLICES == 1 || SLICES * BM * BN * 4 <= SHARED, "partial sums must fit where the stages were");

    using S = typename T::Storage;

    // Copies ROWS × 64 tiles of one operand, step after step along K; what lies outside the matrix becomes zero. A thread
    // copies the same 16-byte column of every ROWS_PER_PASS-th row: one pointer, one mask of rows, and adds.
    template <int ROWS>
    struct Copier {
        static constexpr int PASSES = ROWS / ROWS_PER_PASS;
        const S* from;
        int64_t pass_elements;
        uint32_t to, valid_rows;
        int column;

        __device__ __forceinline__ Copier(const S* matrix, int ld, int row0, int rows) {
            const int chunk = threadIdx.x % 8, first = threadIdx.x / 8;
            column = chunk * VECTOR;
            from = matrix + static_cast<int64_t>(row0 + first) * ld + column;
            pass_elements = static_cast<int64_t>(ROWS_PER_PASS) * ld;
            to = first * ROW_BYTES + ((chunk ^ (first % 8)) * 16);
            valid_rows = 0;
#pragma unroll
            for (int i = 0; i < PASSES; ++i) valid_rows |= (row0 + first + i * ROWS_PER_PASS < rows ? 1u : 0u) << i;
        }

        // This one or that, without a branch.
        __device__ __forceinline__ Copier or_if(bool second, const Copier& that) const {
            Copier chosen = *this;
            chosen.from = second ? that.from : from;
            chosen.pass_elements = second ? that.pass_elements : pass_elements;
            return chosen;
        }

        // One of PARTS equal parts of the passes. The pointer may lie outside the matrix where nothing is read.
        template <int PARTS>
        __device__ __forceinline__ void copy(uint32_t stage, int k0, int k, int part) const {
            const uint32_t valid = k0 + column < k ? valid_rows : 0;
#pragma unroll
            for (int i = part * PASSES / PARTS; i < (part + 1) * PASSES / PARTS; ++i)
                ptx::copy_async_16(stage + to + i * ROWS_PER_PASS * ROW_BYTES, from + k0 + i * pass_elements,
                                   (valid >> i & 1) * 16);
        }
    };

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
        const int warp_m = (warp % WARPS_M) * WM, warp_n = (warp / WARPS_M % WARPS_N) * WN;
        const int slice = warp / (WARPS_M * WARPS_N);

        // Raster: column by column inside a group of tile rows, so that a wave of blocks shares A and W in L2.
        const int tiles_m = (p.m + BM - 1) / BM, tiles_n = (p.n + BN - 1) / BN;
        const int group_tiles = p.group_m * tiles_n;
        const int group = blockIdx.x / group_tiles;
        const int first_m = group * p.group_m;
        const int rows_in_group = min(p.group_m, tiles_m - first_m);
        const int in_group = blockIdx.x - group * group_tiles;
        const int m0 = (first_m + in_group % rows_in_group) * BM;
        const int n0 = (in_group / rows_in_group) * BN;

        const Copier<BM> a(static_cast<const S*>(p.a), p.lda, m0, p.m);
        const Copier<BN> w(static_cast<const S*>(p.w), p.ldw, n0, p.n);
        const Copier<BM> a2(static_cast<const S*>(p.a2), p.lda2, m0, p.m);
        const Copier<BN> w2(static_cast<const S*>(p.w2), p.ldw2, n0, p.n);
        const int steps_1 = (p.k + BK - 1) / BK, steps = steps_1 + (PAIRS ? (p.k2 + BK - 1) / BK : 0);

        // One of KSTEPS parts of a stage, so that the copies spread between the products; the last part closes the group. Past
        // the last step it only fills with zeros: a branch here would split the products' schedule.
        auto copy_part = [&](int step, int part) {
            const uint32_t stage = base + (step % STAGES) * STAGE;
            if constexpr (PAIRS) {
                const bool second = step >= steps_1;
                const int k0 = (second ? step - steps_1 : step) * BK, k = second ? p.k2 : p.k;
                a.or_if(second, a2).template copy<KSTEPS>(stage, k0, k, part);
                w.or_if(second, w2).template copy<KSTEPS>(stage + STAGE_A, k0, k, part);
            } else {
                a.template copy<KSTEPS>(stage, step * BK, p.k, part);
                w.template copy<KSTEPS>(stage + STAGE_A, step * BK, p.k, part);
            }
            if (part == KSTEPS - 1) ptx::copy_async_commit();
        };

#pragma unroll
        for (int s = 0; s < STAGES - 1; ++s)
#pragma unroll
            for (int part = 0; part < KSTEPS; ++part) copy_part(s, part);

        // A fragments: matrices (rows 0–7, k 0–7), (8–15, 0–7), (0–7, 8–15), (8–15, 8–15).
        // W fragments: matrices (n 0–7, k 0–7), (0–7, 8–15), (8–15, 0–7), (8–15, 8–15): two n8 operands.
        const int row = lane % 8;
        const uint32_t a_at = (warp_m + row + (lane / 8 % 2) * 8) * ROW_BYTES + (((lane / 16) ^ row) << 4);
        const uint32_t b_at = STAGE_A + (warp_n + row + (lane / 16) * 8) * ROW_BYTES + (((lane / 8 % 2) ^ row) << 4);

        float c[MT][NT][4] = {};
        uint32_t a_fragment[AHEAD + 1][MT][4], b_fragment[AHEAD + 1][NT / 2][4];

        for (int step = 0; step < steps; ++step) {
            ptx::copy_async_wait<STAGES - 2>();
            __syncthreads();  // this stage has arrived for all, and all have left the stage that is refilled next
            const uint32_t stage = base + (step % STAGES) * STAGE;
            auto load = [&](int i) {
                load_fragments(a_fragment[i % (AHEAD + 1)], b_fragment[i % (AHEAD + 1)], stage + a_at, stage + b_at,
                               i * SLICES + slice);
            };
            load(0);
#pragma unroll
            for (int k = 0; k < KSTEPS; ++k) {
                if (AHEAD > 0 && k + 1 < KSTEPS) load(k + 1);
                copy_part(step + STAGES - 1, k);
                const int from = k % (AHEAD + 1);
#pragma unroll
                for (int i = 0; i < MT; ++i)
#pragma unroll
                    for (int j = 0; j < NT; ++j)
                        T::mma(c[i][j], a_fragment[from][i], b_fragment[from][j / 2][j % 2 * 2],
                               b_fragment[from][j / 2][j % 2 * 2 + 1]);
                if (AHEAD == 0 && k + 1 < KSTEPS) load(k + 1);
            }
        }
        ptx::copy_async_wait<0>();
        __syncthreads();  // the stages become the output tile

        if constexpr (SLICES == 1) {
            finish(p, shared, c, m0, n0, warp_m, warp_n, lane);
        } else {
            float sum[MT_OUT][NT][4];
            add_slices(reinterpret_cast<float4*>(shared), c, sum, slice, warp % (WARPS_M * WARPS_N), lane);
            finish(p, shared, sum, m0, n0, warp_m + slice * MT_OUT * 16, warp_n, lane);
        }
    }

    // Adds up the slices' partial sums in a fixed order, so that results repeat bitwise; each warp gets its rows of the sum.
    static __device__ __forceinline__ void add_slices(float4* shared, const float (&c)[MT][NT][4],
                                                      float (&sum)[MT_OUT][NT][4], int slice, int tile, int lane) {
        auto at = [&](int from, int i, int j) {
            return (((tile * SLICES + from) * MT + i) * NT + j) * 32 + lane;  // a warp's 512 bytes in a row
        };
#pragma unroll
        for (int i = 0; i < MT; ++i)
#pragma unroll
            for (int j = 0; j < NT; ++j)
                shared[at(slice, i, j)] = make_float4(c[i][j][0], c[i][j][1], c[i][j][2], c[i][j][3]);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < MT_OUT; ++i)
#pragma unroll
            for (int j = 0; j < NT; ++j) {
                float4 total = shared[at(0, slice * MT_OUT + i, j)];
#pragma unroll
                for (int from = 1; from < SLICES; ++from) {
                    const float4 part = shared[at(from, slice * MT_OUT + i, j)];
                    total.x += part.x, total.y += part.y, total.z += part.z, total.w += part.w;
                }
                sum[i][j][0] = total.x, sum[i][j][1] = total.y, sum[i][j][2] = total.z, sum[i][j][3] = total.w;
            }
        __syncthreads();  // the partial sums become the output tile
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

    static __device__ __forceinline__ void finish(const GemmParams& p, unsigned char* shared, float (&c)[MT_OUT][NT][4], int m0,
                                                  int n0, int warp_m, int warp_n, int lane) {
        const S* residual = static_cast<const S*>(p.residual);
        if (residual != nullptr) {
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
            for (int i = 0; i < MT_OUT; ++i) {
                c[i][j][0] += b.x;
                c[i][j][1] += b.y;
                c[i][j][2] += b.x;
                c[i][j][3] += b.y;
            }
        }
        if (n0 + warp_n + WN > p.activation_from) {
            float(&flat)[MT_OUT * NT * 4] = reinterpret_cast<float(&)[MT_OUT * NT * 4]>(c);
            activate(flat, p.activation,
                     [&](int i) { return n0 + column + i / 4 % NT * 8 + i % 2 >= p.activation_from; });
        }
#pragma unroll
        for (int j = 0; j < NT; ++j)
#pragma unroll
            for (int i = 0; i < MT_OUT; ++i)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    uint32_t* at = reinterpret_cast<uint32_t*>(
                        shared + (row + i * 16 + half * 8) * C_STRIDE + (column + j * 8) * ELEMENT_BYTES);
                    float x = c[i][j][half * 2], y = c[i][j][half * 2 + 1];
                    if (residual != nullptr) {
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

#define GEMM_KERNEL(NAME, ...)                                                                               \
    extern "C" __global__ void __launch_bounds__(Gemm<PAF_ELEMENT, __VA_ARGS__>::THREADS, 1)                 \
        gemm_##NAME(const __grid_constant__ GemmParams p) {                                                  \
        Gemm<PAF_ELEMENT, __VA_ARGS__>::run(p);                                                              \
    }

#define GEMM_TILE(TILE, ...)               \
    GEMM_KERNEL(TILE, false, __VA_ARGS__)  \
    GEMM_KERNEL(TILE##_pairs, true, __VA_ARGS__)

GEMM_SM80_TILES(GEMM_TILE)
