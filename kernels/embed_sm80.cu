// What a language model has around its layers, for every card:
//
//   embed  out[r] = norm(Σₜ tableₜ[indexₜ[r]])       up to three tables (words, token types, positions); the norm if there is one
//   pool   out[s] = Σ hidden[r] / n                  over the first n rows of sequence s; zeros where n is 0
//   tanh   out = tanh(x)
//
// Tables, norm, hidden and x are 16-bit, row-major and without gaps, hidden_size a multiple of 8; out is 16-bit [rows, hidden_size]
// of embed, and fp32 of the others: [batch, hidden_size] of pool, x's shape of tanh. Sums are fp32, and the norm is of the unrounded
// sum. A row of embed whose first index is negative is padding: zeros. With one table and no norm embed gathers rows, and changes
// no bit of them.
//
// Idea: memory traffic is all there is. embed holds the row in registers from the one read of each table to the one write, as
// norm.cuh does, and its variance is the second pass over those registers. In pool a warp reads 512 bytes of a row at a time, warps
// take turns with the rows, and add up in a fixed order: results repeat bitwise.
//
// Indices are not looked at here: src/gpu/embed.rs launches nothing before it knows that all are inside their tables.
#include "element.cuh"

struct EmbedParams {
    const void* table[3];  // unused ones null
    const int* index[3];   // [rows]; negative: nothing of this table
    const void* gamma;     // [hidden]; null: no norm
    const void* beta;
    void* out;
    int rows, hidden;
    float eps;
};

struct PoolParams {
    const void* hidden_states;
    float* out;
    const int* lengths;     // null: all are seq_len
    const int* first_rows;  // null: sequence s begins at row s·seq_len
    int seq_len, hidden;
    int most;               // rows of a sequence that count
    int column_blocks;      // blocks that share a sequence
};

struct TanhParams {
    const void* x;
    float* out;
    unsigned long long vectors;  // of eight elements
};

// THREADS of a block share ROW_THREADS a row; a thread holds CHUNKS vectors.
template <typename T, int ROW_THREADS, int CHUNKS, int THREADS>
struct Embed {
    using S = typename T::Storage;

    // Calls visit(chunk, column) for each of this thread's vectors inside the row.
    template <typename F>
    static __device__ __forceinline__ void for_each(int thread, int hidden, F&& visit) {
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) {
            const int column = (c * ROW_THREADS + thread) * VECTOR;
            if (column < hidden) visit(c, column);
        }
    }

    // The sum over the threads of a row, all of which call it.
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

    static __device__ __forceinline__ void normalize(const EmbedParams& p, float (&x)[CHUNKS][VECTOR], int thread) {
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
        for_each(thread, p.hidden, [&](int c, int column) {
            float scale[VECTOR], shift[VECTOR];
            unpack_vector<T>(scale, *reinterpret_cast<const uint4*>(static_cast<const S*>(p.gamma) + column));
            unpack_vector<T>(shift, *reinterpret_cast<const uint4*>(static_cast<const S*>(p.beta) + column));
#pragma unroll
            for (int e = 0; e < VECTOR; ++e) x[c][e] = x[c][e] * inverse * scale[e] + shift[e];
        });
    }

    static __device__ __forceinline__ void run(const EmbedParams& p) {
        const int thread = threadIdx.x % ROW_THREADS;
        const int row = blockIdx.x * (THREADS / ROW_THREADS) + threadIdx.x / ROW_THREADS;
        if (row >= p.rows) return;  // whole warps, and whole blocks where a block has one row
        float x[CHUNKS][VECTOR] = {};
        // The same for all threads of a row: they take each branch, and meet in each sum, together.
        const bool valid = p.index[0][row] >= 0;
        if (valid) {
#pragma unroll
            for (int t = 0; t < 3; ++t) {
                if (p.table[t] == nullptr) continue;
                const int from = p.index[t][row];
                if (from < 0) continue;
                const S* values = static_cast<const S*>(p.table[t]) + static_cast<int64_t>(from) * p.hidden;
                for_each(thread, p.hidden, [&](int c, int column) {
                    float y[VECTOR];
                    unpack_vector<T>(y, *reinterpret_cast<const uint4*>(values + column));
#pragma unroll
                    for (int e = 0; e < VECTOR; ++e) x[c][e] = t == 0 ? y[e] : x[c][e] + y[e];  // −0 stays −0
                });
            }
            if (p.gamma != nullptr) normalize(p, x, thread);
        }
        S* out = static_cast<S*>(p.out) + static_cast<int64_t>(row) * p.hidden;
        for_each(thread, p.hidden, [&](int c, int column) { *reinterpret_cast<uint4*>(out + column) = pack_vector<T>(x[c]); });
    }
};

#define EMBED_KERNEL(NAME, ROW_THREADS, CHUNKS, THREADS)                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS) embed_##NAME(const __grid_constant__ EmbedParams p) {         \
        Embed<PAF_ELEMENT, ROW_THREADS, CHUNKS, THREADS>::run(p);                                                       \
    }

EMBED_KERNEL(warp, 32, 4, 128)    // hidden ≤ 1024
EMBED_KERNEL(block, 256, 2, 256)  // hidden ≤ 4096
EMBED_KERNEL(wide, 512, 4, 512)   // hidden ≤ 16384

constexpr int POOL_WARPS = 8, POOL_COLUMNS = 32 * VECTOR;

// A block has POOL_COLUMNS of one sequence.
extern "C" __global__ void __launch_bounds__(POOL_WARPS * 32) pool(const __grid_constant__ PoolParams p) {
    using T = PAF_ELEMENT;
    __shared__ float4 sums[POOL_WARPS][32][VECTOR / 4];
    const int sequence = blockIdx.x / p.column_blocks, first_column = blockIdx.x % p.column_blocks * POOL_COLUMNS;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int length = p.lengths == nullptr ? p.seq_len : p.lengths[sequence];
    const int count = min(length, p.most);
    const int64_t first_row = p.first_rows == nullptr ? static_cast<int64_t>(sequence) * p.seq_len : p.first_rows[sequence];

    float x[VECTOR] = {};
    const int column = first_column + lane * VECTOR;
    if (column < p.hidden) {
        const auto* from = static_cast<const typename T::Storage*>(p.hidden_states) + first_row * p.hidden + column;
        for (int row = warp; row < count; row += POOL_WARPS) {
            float y[VECTOR];
            unpack_vector<T>(y, *reinterpret_cast<const uint4*>(from + static_cast<int64_t>(row) * p.hidden));
#pragma unroll
            for (int e = 0; e < VECTOR; ++e) x[e] += y[e];
        }
    }
#pragma unroll
    for (int half = 0; half < VECTOR / 4; ++half)
        sums[warp][lane][half] = make_float4(x[half * 4], x[half * 4 + 1], x[half * 4 + 2], x[half * 4 + 3]);
    __syncthreads();

    // As many threads as columns.
    const int own = first_column + threadIdx.x;
    if (own >= p.hidden) return;
    float total = 0.f;
#pragma unroll
    for (int i = 0; i < POOL_WARPS; ++i) total += reinterpret_cast<const float*>(sums[i])[threadIdx.x];
    p.out[static_cast<int64_t>(sequence) * p.hidden + own] = total / max(count, 1);
}
static_assert(POOL_WARPS * 32 == POOL_COLUMNS, "a thread a column at the end of pool");

constexpr int TANH_THREADS = 256;

extern "C" __global__ void __launch_bounds__(TANH_THREADS) tanh_floats(const __grid_constant__ TanhParams p) {
    const uint64_t vector = static_cast<uint64_t>(blockIdx.x) * TANH_THREADS + threadIdx.x;
    if (vector >= p.vectors) return;
    float x[VECTOR];
    unpack_vector<PAF_ELEMENT>(x, static_cast<const uint4*>(p.x)[vector]);
#pragma unroll
    for (int half = 0; half < VECTOR / 4; ++half)
        reinterpret_cast<float4*>(p.out)[vector * 2 + half] =
            make_float4(tanhf(x[half * 4]), tanhf(x[half * 4 + 1]), tanhf(x[half * 4 + 2]), tanhf(x[half * 4 + 3]));
}
