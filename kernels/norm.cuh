// The join of a layer's branches: s = Σ addends (one to three), and up to two layer norms of it in the same pass.
//
//   sum  = a0 [+ a1 [+ a2]] [+ Σ parts + b]      (fp32; stored if asked for, rounded to 16 bits)
//   outᵢ = (sum − mean)/√(var + ε)·γᵢ + βᵢ       for i in 1, 2, if asked for; both from the unrounded sum
//
// `parts` are sums of parts of K that a product has left in fp32, [parts][rows][hidden]; b is that product's bias, [hidden].
// All others are [rows, hidden] row-major without gaps, hidden a multiple of 8. With lengths, row r is position r % seq_len of
// sequence r / seq_len, and rows at or past its length become zeros in every output, whatever the addends hold.
//
// With programmatic dependent launch γ and β, which no kernel writes, are read before the wait for the kernel before; the next
// one may begin at once, to load its weights.
//
// Idea: the row lives in registers from the one read of each addend to the one write of each output; the variance is the
// second pass over those registers, so that nothing cancels. One warp a row up to 1024 columns when there are rows enough
// for all multiprocessors, one block a row otherwise. Of many rows a warp (block) takes one after the other: γ and β stay in its
// registers where there is room, and its next row's first addend is on its way while it finishes this one. Outputs may be the same
// buffer as an addend: a thread writes only elements that it alone has read, after it has read them.
//
// Many rows of 768 or 1024 columns without parts have a kernel of their own, norm_rows.cuh; what is said of them here was before it.
//
// Tried on an H200 (hidden 1024, 65536 rows, µs; a copy of as many bytes takes 63 of one addend, 127 of three):
//   A warp for each row, without a loop: 114 and 166. Now 88 and 155, and 85 to 87 % of a copy for wider rows. A profile of the
//     first: 59 % of the memory's peak, 2.1 of 4 instructions a cycle, 20 warps a multiprocessor.
//   A block a row instead of a warp, also of many rows: 93 and 153; of 2048 rows 5.26 instead of 5.32, and 7.42 instead of 7.70.
//   Eight parts under way at once instead of four: RoBERTa-large 1 × 128 as before. For hidden 4096, 128 threads a row, so that the
//     next product's blocks find registers beside them: 6.8 µs instead of 4.9 for 128 rows, and gpt-j-6b no faster.
#pragma once
#include "element.cuh"
#include "ptx.cuh"

struct NormParams {
    const void* addend[3];  // unused ones null
    const float* parts;     // null if there are none
    const void* bias;       // null if there is none
    void* sum;              // null if not wanted
    void* out[2];           // null if not wanted
    const void* gamma[2];
    const void* beta[2];
    const int* lengths;     // null: no padding
    int rows, hidden, seq_len, part_count;
    float eps;
};

// THREADS of a block share ROW_THREADS a row; a thread holds CHUNKS vectors of eight elements. With or without PARTS, whose registers
// joins without them do better without.
template <typename T, int ROW_THREADS, int CHUNKS, int THREADS, int TOGETHER>
struct Norm {
    static constexpr bool PARTS = TOGETHER > 0;
    using S = typename T::Storage;

    static __device__ __forceinline__ float reduce(float value) {
#pragma unroll
        for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffff, value, offset);
        if constexpr (ROW_THREADS > 32) {
            __shared__ float partial[ROW_THREADS / 32];
            if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
            __syncthreads();
            value = 0.f;
#pragma unroll
            for (int i = 0; i < ROW_THREADS / 32; ++i) value += partial[i];
            __syncthreads();  // before the array is written again
        }
        return value;
    }

    static __device__ __forceinline__ void run(const NormParams& p) {
        constexpr int ROWS = THREADS / ROW_THREADS;
        const int thread = threadIdx.x % ROW_THREADS;
        int row = blockIdx.x * ROWS + threadIdx.x / ROW_THREADS;
        if (row >= p.rows) return;  // whole warps, and whole blocks where a block has one row

        ptx::dependents_launch();
        uint4 gamma[2][CHUNKS], beta[2][CHUNKS];
        const auto load_weights = [&](int i, int c, int column) {
            gamma[i][c] = *reinterpret_cast<const uint4*>(static_cast<const S*>(p.gamma[i]) + column);
            beta[i][c] = *reinterpret_cast<const uint4*>(static_cast<const S*>(p.beta[i]) + column);
        };
        constexpr bool EARLY_BIAS = CHUNKS < 4;
        uint4 bias[CHUNKS] = {};
        const auto load_bias = [&] {
            if (p.bias != nullptr)
                for_each(thread, p.hidden, [&](int c, int column) {
                    bias[c] = *reinterpret_cast<const uint4*>(static_cast<const S*>(p.bias) + column);
                });
        };
        if (PARTS && EARLY_BIAS) load_bias();
        // Long rows, and blocks that are to share a multiprocessor in spite of parts (two at a time), leave registers for the first
        // norm's only, or for neither: that more rows are under way is worth more than four kilobytes from L1 a row.
        constexpr int EARLY = CHUNKS == 4 && (ROW_THREADS > 32 || !PARTS) ? 0 : CHUNKS > 1 || TOGETHER == 2 ? 1 : 2;
#pragma unroll
        for (int i = 0; i < 2; ++i)
            if (i < EARLY && p.out[i] != nullptr) for_each(thread, p.hidden, [&](int c, int column) { load_weights(i, c, column); });
        ptx::dependency_wait();

        bool valid;
        uint4 first[CHUNKS] = {};
        const auto load_first = [&] {
            valid = p.lengths == nullptr || row % p.seq_len < p.lengths[row / p.seq_len];
            const S* from = static_cast<const S*>(p.addend[0]) + static_cast<int64_t>(row) * p.hidden;
            if (valid)
                for_each(thread, p.hidden, [&](int c, int column) { first[c] = *reinterpret_cast<const uint4*>(from + column); });
        };
        load_first();
        for (bool more = true; more;) {
            const int64_t offset = static_cast<int64_t>(row) * p.hidden;
            const bool zero = !valid;
            float x[CHUNKS][VECTOR] = {};
            if (valid) {
                for_each(thread, p.hidden, [&](int c, int) { add_vector(x[c], first[c]); });
#pragma unroll (CHUNKS == 4 ? 1 : 2)
                for (int a = 1; a < 3; ++a)
                    if (p.addend[a] != nullptr) add(x, static_cast<const S*>(p.addend[a]) + offset, thread, p.hidden);
                if (PARTS) {
                    for (int part = 0; part < p.part_count; part += TOGETHER) add_parts(x, p, part, offset, thread);
                    if (!EARLY_BIAS) load_bias();
                    for_each(thread, p.hidden, [&](int c, int) { add_vector(x[c], bias[c]); });
                }
            }
            row += gridDim.x * ROWS;
            more = !PARTS && row < p.rows;
            if (more) load_first();

            if (p.sum != nullptr) store(x, static_cast<S*>(p.sum) + offset, thread, p.hidden);
            if (p.out[0] == nullptr && p.out[1] == nullptr) continue;

            float total = 0.f;
            for_each(thread, p.hidden, [&](int c, int) {
#pragma unroll
                for (int e = 0; e < VECTOR; ++e) total += x[c][e];
            });
            const float mean = reduce(total) / p.hidden;
            float squares = 0.f;
            for_each(thread, p.hidden, [&](int c, int) {
#pragma unroll
                for (int e = 0; e < VECTOR; ++e) {
                    x[c][e] -= mean;
                    squares += x[c][e] * x[c][e];
                }
            });
            const float inverse = rsqrtf(reduce(squares) / p.hidden + p.eps);

#pragma unroll
            for (int i = 0; i < 2; ++i) {
                if (p.out[i] == nullptr) continue;
                S* out = static_cast<S*>(p.out[i]) + offset;
                for_each(thread, p.hidden, [&](int c, int column) {
                    if (i >= EARLY) load_weights(i, c, column);
                    const uint4 g = gamma[i][c], b = beta[i][c];
                    const uint32_t gs[4] = {g.x, g.y, g.z, g.w}, bs[4] = {b.x, b.y, b.z, b.w};
                    uint32_t y[4];
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        const float2 scale = T::unpack(gs[e]), shift = T::unpack(bs[e]);
                        y[e] = T::pack(x[c][2 * e] * inverse * scale.x + shift.x, x[c][2 * e + 1] * inverse * scale.y + shift.y);
                    }
                    *reinterpret_cast<uint4*>(out + column) =
                        zero ? make_uint4(0, 0, 0, 0) : make_uint4(y[0], y[1], y[2], y[3]);
                });
            }
        }
    }

    // Calls visit(chunk, column) for each of this thread's vectors inside the row.
    template <typename F>
    static __device__ __forceinline__ void for_each(int thread, int hidden, F&& visit) {
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) {
            const int column = (c * ROW_THREADS + thread) * VECTOR;
            if (column < hidden) visit(c, column);
        }
    }

    static __device__ __forceinline__ void add(float (&x)[CHUNKS][VECTOR], const S* from, int thread, int hidden) {
        for_each(thread, hidden, [&](int c, int column) {
            add_vector(x[c], *reinterpret_cast<const uint4*>(from + column));
        });
    }

    static __device__ __forceinline__ void add_vector(float (&x)[VECTOR], uint4 raw) {
        const uint32_t pairs[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const float2 pair = T::unpack(pairs[e]);
            x[2 * e] += pair.x;
            x[2 * e + 1] += pair.y;
        }
    }

    // Some parts from this one on: all their loads are under way before the first is needed, or each would wait for L2 alone.
    static __device__ __forceinline__ void add_parts(float (&x)[CHUNKS][VECTOR], const NormParams& p, int part, int64_t offset,
                                                     int thread) {
        float4 y[PARTS ? TOGETHER : 1][CHUNKS][2];
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i) {
            const float* from = p.parts + static_cast<int64_t>(part + i) * p.rows * p.hidden + offset;
            for_each(thread, p.hidden, [&](int c, int column) {
#pragma unroll
                for (int half = 0; half < 2; ++half)
                    y[i][c][half] = part + i < p.part_count ? *reinterpret_cast<const float4*>(from + column + half * 4)
                                                            : make_float4(0.f, 0.f, 0.f, 0.f);
            });
        }
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i)
            for_each(thread, p.hidden, [&](int c, int) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const float4 add = y[i][c][half];
                    float* const to = x[c] + half * 4;
                    to[0] += add.x, to[1] += add.y, to[2] += add.z, to[3] += add.w;
                }
            });
    }

    static __device__ __forceinline__ void store(const float (&x)[CHUNKS][VECTOR], S* to, int thread, int hidden) {
        for_each(thread, hidden, [&](int c, int column) {
            *reinterpret_cast<uint4*>(to + column) = make_uint4(T::pack(x[c][0], x[c][1]), T::pack(x[c][2], x[c][3]),
                                                                T::pack(x[c][4], x[c][5]), T::pack(x[c][6], x[c][7]));
        });
    }
};

// BLOCKS of them share a multiprocessor, or PARTS_BLOCKS where there are parts, of which TOGETHER are loaded at a time.
// src/gpu/norm.rs launches no more blocks of many rows than share the device.
#define NORM_KERNEL(NAME, ROW_THREADS, CHUNKS, THREADS, BLOCKS, PARTS_BLOCKS, TOGETHER)                                    \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) norm_##NAME(const __grid_constant__ NormParams p) {      \
        Norm<PAF_ELEMENT, ROW_THREADS, CHUNKS, THREADS, 0>::run(p);                                                        \
    }                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS, PARTS_BLOCKS) norm_parts_##NAME(const __grid_constant__ NormParams p) { \
        Norm<PAF_ELEMENT, ROW_THREADS, CHUNKS, THREADS, TOGETHER>::run(p);                                                 \
    }

NORM_KERNEL(warp_1, 32, 1, 128, 8, 4, 4)          // hidden ≤ 256
NORM_KERNEL(warp_2, 32, 2, 128, 6, 4, 2)          // hidden ≤ 512
NORM_KERNEL(warp_4, 32, 4, 128, 5, 3, 2)          // hidden ≤ 1024
NORM_KERNEL(block_128, 128, 1, 128, 8, 5, 4)      // hidden ≤ 1024, few rows
NORM_KERNEL(block_256_few, 256, 1, 256, 2, 2, 4)  // hidden ≤ 2048, few rows
NORM_KERNEL(block_256_1, 256, 1, 256, 4, 4, 2)    // hidden ≤ 2048
NORM_KERNEL(block_512_few, 512, 1, 512, 1, 1, 8)  // hidden ≤ 4096, one row a multiprocessor
NORM_KERNEL(block_256, 256, 2, 256, 3, 2, 2)      // hidden ≤ 4096
NORM_KERNEL(block_512, 512, 4, 512, 1, 1, 2)      // hidden ≤ 16384
