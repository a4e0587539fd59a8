// O = softmax(Q·Kᵀ/√d [causal, lengths])·V per sequence and head, never writing the scores (FlashAttention-2,
// arXiv 2307.08691, algorithm 1).
//
//   qkv [rows, ld_qkv]: Q at column head·d, K at k_offset + (head / group)·d, V likewise at v_offset; 16-bit
//   out [rows, ld_out]: column head·d
//   log_sum_exp [heads, rows] or null: ln Σ exp(q·k/√d), −∞ in rows of padding; fp32
//   grid: (batch · query tiles of the longest sequence, heads)
// Sequences are padded: first_rows is null, sequence i has the rows from i·seq_len on; keys at or past its length get no
// weight whatever they hold (they are read as zeros, since 0·NaN is NaN), rows at or past it are written as zeros. Or they
// are packed: sequence i has lengths[i] rows from first_rows[i] on, and there is no padding to write.
//
// Idea: one block a tile of queries, K and V tiles double-buffered with cp.async, one barrier a step. Scores, probabilities
// and output stay in registers: the accumulator layout of Q·Kᵀ is the A operand layout of P·V. Softmax runs in base 2
// with the scale folded into the exponent's multiply-add; row sums are reduced once, at the end. Shared rows are padded by
// 16 bytes, which makes eight rows of any head_dim (a multiple of 16) fall into distinct banks.
//
// Tried on an H200, 128-query tiles: 64 instead of 32 keys a step: head_dim 64 222 → 275 TFLOP/s, 128 300 → 330; a stage
// of 128 keys in two steps, so that barriers halve: 275 → 260, since the inner loop ends the prefetch of fragments; leaving
// a step out for warps whose rows are all masked: spills at head_dim 96 and 128. What limits: 8 warps a multiprocessor, of
// which the exponentials and the products of one hide under the other's only by chance.
#include "element.cuh"
#include "tiles.cuh"

struct AttentionParams {
    const void* qkv;
    void* out;
    float* log_sum_exp;
    const int* lengths;     // null: every sequence has seq_len tokens
    const int* first_rows;  // null: sequences are padded to seq_len
    int rows, seq_len;
    int ld_qkv, ld_out;
    int k_offset, v_offset;
    int group;         // query heads that share a head of K and V
    float scale_log2;  // log2(e) / √head_dim
    int causal;
};

template <typename T, int D, int WARPS, int WARP_ROWS, int BN>
struct Attention {
    using S = typename T::Storage;
    static constexpr int THREADS = WARPS * 32, BM = WARPS * WARP_ROWS;
    static constexpr int STRIDE = (D + VECTOR) * ELEMENT_BYTES;
    static constexpr int TILE_Q = BM * STRIDE, TILE_KV = BN * STRIDE;
    static constexpr int SHARED = TILE_Q + 4 * TILE_KV;  // Q, then two stages of K and V
    static constexpr int MT = WARP_ROWS / 16;            // 16-row tiles a warp
    static constexpr int NT = BN / 8, DT = D / 8, KD = D / 16, KN = BN / 16;
    // Q's fragments stay in registers where they fit beside scores and output; otherwise they are read again each step.
    static constexpr bool Q_IN_REGISTERS = MT * KD * 4 <= 32;
    static_assert(D % 16 == 0 && BN % 16 == 0 && WARP_ROWS % 16 == 0);

    // Rows [first, first + ROWS) of one head into shared memory; rows at or past `end` become zeros, unread (the pointer may
    // lie outside the matrix there).
    template <int ROWS>
    static __device__ __forceinline__ void copy_rows(uint32_t to, const S* from, int ld, int first, int end) {
        constexpr int VECTORS = D / VECTOR;
        static_assert(ROWS * VECTORS % THREADS == 0, "every thread copies as much");
        const int row = threadIdx.x / VECTORS, column = threadIdx.x % VECTORS * VECTOR;
#pragma unroll
        for (int i = 0; i < ROWS * VECTORS / THREADS; ++i) {
            int r, c;
            if constexpr (THREADS % VECTORS == 0) {  // whole rows a pass: one column a thread
                r = row + i * (THREADS / VECTORS), c = column;
            } else {
                r = (threadIdx.x + i * THREADS) / VECTORS, c = (threadIdx.x + i * THREADS) % VECTORS * VECTOR;
            }
            ptx::copy_async_16(to + r * STRIDE + c * ELEMENT_BYTES, from + static_cast<int64_t>(first + r) * ld + c,
                               first + r < end ? 16 : 0);
        }
    }

    static __device__ __forceinline__ void run(const AttentionParams& p) {
        extern __shared__ __align__(16) unsigned char shared[];
        const uint32_t q_tile = ptx::shared_address(shared), kv_tiles = q_tile + TILE_Q;
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        // Under a causal mask late tiles have the most keys: they start first.
        const int tiles = (p.seq_len + BM - 1) / BM, sequence = blockIdx.x / tiles, rank = blockIdx.x % tiles;
        const int tile = p.causal ? tiles - 1 - rank : rank;
        const int q0 = tile * BM, head = blockIdx.y;
        const bool packed = p.first_rows != nullptr;
        const int first_row = packed ? p.first_rows[sequence] : sequence * p.seq_len;
        const int length = p.lengths == nullptr ? p.seq_len : min(max(p.lengths[sequence], 0), p.seq_len);
        if (packed && q0 >= length) return;
        const S* from = static_cast<const S*>(p.qkv) + static_cast<int64_t>(first_row) * p.ld_qkv;
        const S* q = from + head * D;
        const S* k = from + p.k_offset + head / p.group * D;
        const S* v = from + p.v_offset + head / p.group * D;

        // Keys that some row of this tile may see. None for a tile of padding: its rows become zeros below.
        const int key_end = q0 >= length ? 0 : (p.causal ? min(length, q0 + BM) : length);
        const int steps = (key_end + BN - 1) / BN;

        float o[MT][DT][4] = {};
        float row_max[MT][2], row_sum[MT][2];
#pragma unroll
        for (int i = 0; i < MT; ++i)
#pragma unroll
            for (int h = 0; h < 2; ++h) row_max[i][h] = -INFINITY, row_sum[i][h] = 0.f;

        if (steps > 0) {
            copy_rows<BM>(q_tile, q, p.ld_qkv, q0, length);
            copy_rows<BN>(kv_tiles, k, p.ld_qkv, 0, length);
            copy_rows<BN>(kv_tiles + TILE_KV, v, p.ld_qkv, 0, length);
        }
        ptx::copy_async_commit();

        const int warp_row = warp * WARP_ROWS;
        // ldmatrix addresses. Q (A operand) and Vᵀ: rows lane % 16, columns (lane / 16)·8.
        // K (B operand): two n8 tiles, rows lane % 8 + (lane / 16)·8, columns (lane / 8 % 2)·8.
        const uint32_t q_at = q_tile + (warp_row + lane % 16) * STRIDE + lane / 16 * 16;
        const uint32_t k_at = (lane % 8 + lane / 16 * 8) * STRIDE + lane / 8 % 2 * 16;
        const uint32_t v_at = (lane % 16) * STRIDE + lane / 16 * 16;

        uint32_t q_fragment[Q_IN_REGISTERS ? KD : 1][MT][4];

        for (int step = 0; step < steps; ++step) {
            ptx::copy_async_wait<0>();
            __syncthreads();  // this step's tiles are there for all, and all are done with the other buffers
            const uint32_t k_tile = kv_tiles + (step % 2) * 2 * TILE_KV, v_tile = k_tile + TILE_KV;
            if (step + 1 < steps) {
                const uint32_t next = kv_tiles + ((step + 1) % 2) * 2 * TILE_KV;
                copy_rows<BN>(next, k, p.ld_qkv, (step + 1) * BN, length);
                copy_rows<BN>(next + TILE_KV, v, p.ld_qkv, (step + 1) * BN, length);
            }
            ptx::copy_async_commit();
            if constexpr (Q_IN_REGISTERS) {
                if (step == 0) {
#pragma unroll
                    for (int kk = 0; kk < KD; ++kk)
#pragma unroll
                        for (int i = 0; i < MT; ++i)
                            ptx::load_matrix_x4(q_fragment[kk][i], q_at + i * 16 * STRIDE + kk * 32);
                }
            }

            float s[MT][NT][4] = {};
#pragma unroll
            for (int kk = 0; kk < KD; ++kk) {
                if constexpr (!Q_IN_REGISTERS) {
#pragma unroll
                    for (int i = 0; i < MT; ++i) ptx::load_matrix_x4(q_fragment[0][i], q_at + i * 16 * STRIDE + kk * 32);
                }
                const int from = Q_IN_REGISTERS ? kk : 0;
#pragma unroll
                for (int j = 0; j < NT / 2; ++j) {
                    uint32_t b[4];
                    ptx::load_matrix_x4(b, k_tile + k_at + j * 16 * STRIDE + kk * 32);
#pragma unroll
                    for (int i = 0; i < MT; ++i) {
                        T::mma(s[i][2 * j], q_fragment[from][i], b[0], b[1]);
                        T::mma(s[i][2 * j + 1], q_fragment[from][i], b[2], b[3]);
                    }
                }
            }

            const int key0 = step * BN;
            if (key0 + BN > length || (p.causal && key0 + BN > q0 + warp_row + 1)) mask(p, s, key0, length, q0 + warp_row, lane);
            soften(p, s, o, row_max, row_sum);

#pragma unroll
            for (int kk = 0; kk < KN; ++kk) {
                uint32_t a[MT][4];
#pragma unroll
                for (int i = 0; i < MT; ++i) {
                    a[i][0] = T::pack(s[i][2 * kk][0], s[i][2 * kk][1]);
                    a[i][1] = T::pack(s[i][2 * kk][2], s[i][2 * kk][3]);
                    a[i][2] = T::pack(s[i][2 * kk + 1][0], s[i][2 * kk + 1][1]);
                    a[i][3] = T::pack(s[i][2 * kk + 1][2], s[i][2 * kk + 1][3]);
                }
#pragma unroll
                for (int j = 0; j < DT / 2; ++j) {
                    uint32_t b[4];
                    ptx::load_matrix_x4_transposed(b, v_tile + v_at + kk * 16 * STRIDE + j * 32);
#pragma unroll
                    for (int i = 0; i < MT; ++i) {
                        T::mma(o[i][2 * j], a[i], b[0], b[1]);
                        T::mma(o[i][2 * j + 1], a[i], b[2], b[3]);
                    }
                }
            }
        }
        ptx::copy_async_wait<0>();
        finish(p, shared + warp_row * STRIDE, o, row_max, row_sum, sequence, q0 + warp_row, length, lane);
    }

    // −∞ for keys past the length or, causally, past the row.
    static __device__ __forceinline__ void mask(const AttentionParams& p, float (&s)[MT][NT][4], int key0, int length,
                                                int first_row, int lane) {
#pragma unroll
        for (int i = 0; i < MT; ++i)
#pragma unroll
            for (int j = 0; j < NT; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const int key = key0 + j * 8 + lane % 4 * 2 + e % 2;
                    const int row = first_row + i * 16 + lane / 4 + e / 2 * 8;
                    if (key >= length || (p.causal && key > row)) s[i][j][e] = -INFINITY;
                }
    }

    // Scores become probabilities relative to the running row maximum; output and row sums are rescaled to it.
    static __device__ __forceinline__ void soften(const AttentionParams& p, float (&s)[MT][NT][4], float (&o)[MT][DT][4],
                                                  float (&row_max)[MT][2], float (&row_sum)[MT][2]) {
#pragma unroll
        for (int i = 0; i < MT; ++i)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float m = row_max[i][h];
#pragma unroll
                for (int j = 0; j < NT; ++j) m = fmaxf(m, fmaxf(s[i][j][2 * h], s[i][j][2 * h + 1]));
                m = fmaxf(m, __shfl_xor_sync(0xffffffff, m, 1));
                m = fmaxf(m, __shfl_xor_sync(0xffffffff, m, 2));
                // A row that has seen no key yet keeps −∞; 0 in its place avoids −∞ − −∞.
                const float shift = m == -INFINITY ? 0.f : m * p.scale_log2;
                const float rescale = ptx::exp2_approximate(row_max[i][h] * p.scale_log2 - shift);
                row_max[i][h] = m;
                float sum = row_sum[i][h] * rescale;
#pragma unroll
                for (int j = 0; j < NT; ++j)
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        const float probability = ptx::exp2_approximate(s[i][j][2 * h + e] * p.scale_log2 - shift);
                        s[i][j][2 * h + e] = probability;
                        sum += probability;
                    }
                row_sum[i][h] = sum;
                // After the first few tiles maxima rarely move: the whole warp skips the multiplications then.
                if (__any_sync(0xffffffff, rescale != 1.f)) {
#pragma unroll
                    for (int j = 0; j < DT; ++j) o[i][j][2 * h] *= rescale, o[i][j][2 * h + 1] *= rescale;
                }
            }
    }

    // Divides by the row sums and stores; a warp's rows, the first of them at `position`, pass through its own rows of the Q
    // tile (`rows`), so no block barrier.
    static __device__ __forceinline__ void finish(const AttentionParams& p, unsigned char* rows, float (&o)[MT][DT][4],
                                                  float (&row_max)[MT][2], float (&row_sum)[MT][2], int sequence,
                                                  int position, int length, int lane) {
        // Where the rows go is worked out again: through the loop it would take registers that head_dim 128 has not.
        const bool packed = p.first_rows != nullptr;
        const int64_t to = (packed ? p.first_rows[sequence] : sequence * p.seq_len) + position;
        const int head = blockIdx.y, valid = length - position, end = packed ? valid : p.seq_len - position;
        float* lse = p.log_sum_exp == nullptr ? nullptr : p.log_sum_exp + static_cast<int64_t>(head) * p.rows + to;
        S* out = static_cast<S*>(p.out) + to * p.ld_out + head * D;
        __syncwarp();  // the other lanes have read their queries
#pragma unroll
        for (int i = 0; i < MT; ++i)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float sum = row_sum[i][h];
                sum += __shfl_xor_sync(0xffffffff, sum, 1);
                sum += __shfl_xor_sync(0xffffffff, sum, 2);
                const int r = i * 16 + h * 8 + lane / 4;
                const float inverse = r < valid ? 1.f / sum : 0.f;
#pragma unroll
                for (int j = 0; j < DT; ++j) {
                    const uint32_t pair = T::pack(o[i][j][2 * h] * inverse, o[i][j][2 * h + 1] * inverse);
                    *reinterpret_cast<uint32_t*>(rows + r * STRIDE + j * 16 + lane % 4 * 4) = r < valid ? pair : 0;
                }
                if (lse != nullptr && lane % 4 == 0 && r < end) {
                    constexpr float LN_2 = 0.693147181f;
                    lse[r] = r < valid ? (row_max[i][h] * p.scale_log2 + log2f(sum)) * LN_2 : -INFINITY;
                }
            }
        __syncwarp();
        constexpr int VECTORS = D / VECTOR;
#pragma unroll
        for (int i = lane; i < WARP_ROWS * VECTORS; i += 32) {
            const int r = i / VECTORS, column = i % VECTORS * VECTOR;
            if (r < end)
                *reinterpret_cast<uint4*>(out + static_cast<int64_t>(r) * p.ld_out + column) =
                    *reinterpret_cast<const uint4*>(rows + r * STRIDE + column * ELEMENT_BYTES);
        }
    }
};

#define ATTENTION_KERNEL(D, WARPS, ROWS, BN)                                                  \
    extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)                                \
        attention_d##D##_w##WARPS##_r##ROWS(const __grid_constant__ AttentionParams p) {      \
        Attention<PAF_ELEMENT, D, WARPS, ROWS, BN>::run(p);                                   \
    }

ATTENTION_TILES(ATTENTION_KERNEL)
