// The join (norm.cuh) of many rows of 768 or 1024 columns: a warp a row, row after row, each addend's next rows on their way.
//
// Idea: copies to shared memory are under way whatever registers a row occupies: each thread has a ring of SLOTS places for what it
// will read itself, an addend of a row each, so that nothing but its own copies has to be waited for. Rows fill the warp wholly, so
// that nothing asks whether a column is inside. A row is read once; its lanes' means and squares are merged pairwise (Chan, Golub,
// LeVeque, 1979), which cancels as little as a second pass does and asks the warp once, not twice, for five exchanges.
//
// On an H100, hidden 1024, µs, against norm_warp_4 (a copy of 16384 rows: 25.8): 4096 rows of one addend, in L2, 6.8 → 5.0, of three
// 9.2 → 7.0; 16384 rows, from memory, 28.7 → 25.3 and 50.8 → 49.0; 65536 rows 104 → 101 and 183 → 182.
// Tried there: four slots and five blocks a multiprocessor: 5.2, 7.6, 25.8, 48.9; two sums one after the other instead of merging: 0.1
// more; γ and β in shared memory for six or eight blocks: 5.5 to 6.8, 7.7 to 9.6; with a look at each column's place: 36 of 16384 rows.
#pragma once
#include "norm.cuh"

template <typename T, int CHUNKS, int WARPS, int SLOTS>
struct NormRows {
    using S = typename T::Storage;
    static constexpr int CHUNK_BYTES = 32 * VECTOR * ELEMENT_BYTES;  // of a warp
    static constexpr int THREAD_COLUMNS = CHUNKS * VECTOR;

    // Calls visit(chunk, column) for each of this thread's vectors of a row.
    template <typename F>
    static __device__ __forceinline__ void for_each(F&& visit) {
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) visit(c, (c * 32 + static_cast<int>(threadIdx.x) % 32) * VECTOR);
    }

    static __device__ __forceinline__ uint4 load(const void* from, int64_t element) {
        return *reinterpret_cast<const uint4*>(static_cast<const S*>(from) + element);
    }

    static __device__ __forceinline__ bool is_valid(const NormParams& p, int row) {
        return p.lengths == nullptr || row % p.seq_len < p.lengths[row / p.seq_len];
    }

    static __device__ __forceinline__ void run(const NormParams& p) {
        __shared__ __align__(16) unsigned char slots[WARPS * SLOTS * CHUNKS * CHUNK_BYTES];
        const int warp = threadIdx.x / 32, stride = gridDim.x * WARPS;
        const uint32_t own = ptx::shared_address(slots) + warp * (SLOTS * CHUNKS * CHUNK_BYTES) + threadIdx.x % 32 * 16;
        int row = blockIdx.x * WARPS + warp;
        if (row >= p.rows) return;

        ptx::dependents_launch();
        uint4 gamma[CHUNKS] = {}, beta[CHUNKS] = {};
        if (p.out[0] != nullptr)
            for_each([&](int c, int column) { gamma[c] = load(p.gamma[0], column), beta[c] = load(p.beta[0], column); });
        ptx::dependency_wait();

        const int addends = 1 + (p.addend[1] != nullptr) + (p.addend[2] != nullptr);
        int next_row = row, next_addend = 0, next_slot = 0;
        const auto fetch = [&] {
            if (next_row < p.rows) {
                if (is_valid(p, next_row)) {
                    const void* addend = next_addend == 0 ? p.addend[0] : next_addend == 1 ? p.addend[1] : p.addend[2];
                    const S* from = static_cast<const S*>(addend) + static_cast<int64_t>(next_row) * p.hidden;
                    for_each([&](int c, int column) {
                        ptx::copy_async_16(own + (next_slot * CHUNKS + c) * CHUNK_BYTES, from + column, 16);
                    });
                }
                if (++next_addend == addends) next_addend = 0, next_row += stride;
            }
            if (++next_slot == SLOTS) next_slot = 0;
            ptx::copy_async_commit();
        };
#pragma unroll 1
        for (int i = 0; i < SLOTS; ++i) fetch();

        // Calls visit(chunk, vector) for the oldest slot, which then is free.
        int slot = 0;
        const auto take = [&](auto&& visit) {
            ptx::copy_async_wait<SLOTS - 1>();
            for_each([&](int c, int) { visit(c, ptx::shared_load_16(own + (slot * CHUNKS + c) * CHUNK_BYTES)); });
            if (++slot == SLOTS) slot = 0;
            fetch();
        };
#pragma unroll 1
        for (; row < p.rows; row += stride) {
            const bool valid = is_valid(p, row);
            const int64_t offset = static_cast<int64_t>(row) * p.hidden;
            float x[CHUNKS][VECTOR];
            take([&](int c, uint4 raw) { unpack_vector<T>(x[c], raw); });
#pragma unroll 1
            for (int a = 1; a < addends; ++a) take([&](int c, uint4 raw) { Norm<T, 32, CHUNKS, 32, 0>::add_vector(x[c], raw); });

            const auto store = [&](void* to, int column, const float(&y)[VECTOR]) {
                *reinterpret_cast<uint4*>(static_cast<S*>(to) + offset + column) = valid ? pack_vector<T>(y) : make_uint4(0, 0, 0, 0);
            };
            if (p.sum != nullptr) for_each([&](int c, int column) { store(p.sum, column, x[c]); });
            if (p.out[0] == nullptr && p.out[1] == nullptr) continue;

            float mean, inverse;
            moments(p, x, mean, inverse);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                if (p.out[i] == nullptr) continue;
                for_each([&](int c, int column) {
                    float scale[VECTOR], bias[VECTOR], y[VECTOR];
                    unpack_vector<T>(scale, i == 0 ? gamma[c] : load(p.gamma[i], column));
                    unpack_vector<T>(bias, i == 0 ? beta[c] : load(p.beta[i], column));
#pragma unroll
                    for (int e = 0; e < VECTOR; ++e) y[e] = fmaf((x[c][e] - mean) * inverse, scale[e], bias[e]);
                    store(p.out[i], column, y);
                });
            }
        }
    }

    // 1/√(var + ε) is the inverse. Of x·inverse − mean·inverse a constant row would leave the latter's rounding, times 1/√ε.
    static __device__ __forceinline__ void moments(const NormParams& p, const float (&x)[CHUNKS][VECTOR], float& mean,
                                                   float& inverse) {
        float squares = 0.f;
        mean = 0.f;
        for_each([&](int c, int) {
#pragma unroll
            for (int e = 0; e < VECTOR; ++e) mean += x[c][e];
        });
        mean /= THREAD_COLUMNS;
        for_each([&](int c, int) {
#pragma unroll
            for (int e = 0; e < VECTOR; ++e) {
                const float apart = x[c][e] - mean;
                squares += apart * apart;
            }
        });
        float half = THREAD_COLUMNS / 2.f;  // of the elements that either side has
#pragma unroll
        for (int offset = 1; offset < 32; offset *= 2) {
            // Alike on either side, to the bit.
            const float other = __shfl_xor_sync(0xffffffff, mean, offset), apart = other - mean;
            squares = fmaf(apart * apart, half, squares + __shfl_xor_sync(0xffffffff, squares, offset));
            mean = (mean + other) / 2;
            half *= 2;
        }
        inverse = rsqrtf(squares / p.hidden + p.eps);
    }
};

// BLOCKS share a multiprocessor, where there is shared memory for them.
#define NORM_ROWS_KERNEL(CHUNKS, BLOCKS)                                                                               \
    extern "C" __global__ void __launch_bounds__(128, BLOCKS) norm_rows_##CHUNKS(const __grid_constant__ NormParams p) { \
        NormRows<PAF_ELEMENT, CHUNKS, 4, 6>::run(p);                                                                   \
    }

NORM_ROWS_KERNEL(3, 4)  // hidden 768
NORM_ROWS_KERNEL(4, 4)  // hidden 1024
