// Rotary position embedding (arXiv 2104.09864) of the query and key heads in the packed QKV product, in place:
//
//   pair i of a head at position t:  (a, b) ← (a·cos − b·sin, a·sin + b·cos),  angle t·base^(−2i/dim),  0 ≤ i < dim/2
//
//   qkv [rows, ld]: `heads` heads of queries and keys from column 0 on, the first dim columns of each are rotated; 16-bit
//   pairs: halves (GPT-NeoX), columns i and i + dim/2; neighbours (GPT-J), columns 2i and 2i + 1
//   grid: a block a row. A row's position is counted from its sequence's start; rows of padding are left alone.
//
// With programmatic dependent launch the table, which no kernel writes, is read before the wait for the kernel before.
//
// Idea: memory traffic is all there is. A thread holds cosines and sines of a few pairs and takes them to one head after the
// other, 16 bytes an access where dim allows it (the second half of 24 columns does not start on 16 bytes).
#pragma once
#include "element.cuh"
#include "ptx.cuh"
#include "rotation.cuh"

struct RotaryParams {
    void* qkv;
    Rotation by;
    int ld;
};

constexpr int THREADS = 128;

// WIDTH elements that move at once.
template <typename T, int WIDTH>
struct Piece {
    static constexpr int WORDS = (WIDTH + 1) / 2;
    struct alignas(WIDTH * ELEMENT_BYTES) Raw {
        uint32_t words[WORDS];
    };

    static __device__ __forceinline__ void load(float (&x)[WIDTH], const void* from) {
        const Raw raw = *static_cast<const Raw*>(from);
#pragma unroll
        for (int w = 0; w < WORDS; ++w) {
            const float2 pair = T::unpack(raw.words[w]);
            x[2 * w] = pair.x, x[2 * w + 1] = pair.y;
        }
    }

    static __device__ __forceinline__ void store(const float (&x)[WIDTH], void* to) {
        Raw raw;
#pragma unroll
        for (int w = 0; w < WORDS; ++w) raw.words[w] = T::pack(x[2 * w], x[2 * w + 1]);
        *static_cast<Raw*>(to) = raw;
    }
};

template <typename T>
struct Piece<T, 1> {
    static __device__ __forceinline__ void load(float (&x)[1], const void* from) {
        x[0] = T::unpack(*static_cast<const uint16_t*>(from)).x;
    }

    static __device__ __forceinline__ void store(const float (&x)[1], void* to) {
        *static_cast<uint16_t*>(to) = static_cast<uint16_t>(T::pack(x[0], 0.f));
    }
};

template <typename T, int WIDTH, bool NEIGHBOURS>
struct Rotary {
    using S = typename T::Storage;
    static constexpr int PAIRS = NEIGHBOURS ? WIDTH / 2 : WIDTH;  // that a thread turns at once

    static __device__ __forceinline__ void run(const RotaryParams& p) {
        ptx::dependents_launch();
        const Rotation& rotation = p.by;
        const int row = blockIdx.x, half = rotation.dim / 2, position = rotation.position(row);
        if (rotation.lengths != nullptr && position >= rotation.lengths[row / rotation.seq_len]) {
            ptx::dependency_wait();  // who waits for this kernel's end relies on that of those before it, were all rows padding, too
            return;
        }

        // Threads of a part of a head stand side by side, then heads; what is left over of the block has nothing to do.
        const int parts = half / PAIRS, part = threadIdx.x % parts;
        const int first_head = threadIdx.x / parts, heads_at_once = THREADS / parts;
        if (first_head >= heads_at_once) return;
        float2 by[PAIRS];
#pragma unroll
        for (int i = 0; i < PAIRS; ++i) by[i] = rotation.table[static_cast<int64_t>(position) * half + part * PAIRS + i];

        ptx::dependency_wait();
        S* from = static_cast<S*>(p.qkv) + static_cast<int64_t>(row) * p.ld + part * WIDTH;
        for (int head = first_head; head < rotation.heads; head += heads_at_once) {
            S* a_at = from + static_cast<int64_t>(head) * rotation.head_dim;
            float a[WIDTH];
            Piece<T, WIDTH>::load(a, a_at);
            if constexpr (NEIGHBOURS) {
#pragma unroll
                for (int i = 0; i < PAIRS; ++i) rotate(a[2 * i], a[2 * i + 1], by[i]);
            } else {
                float b[WIDTH];
                Piece<T, WIDTH>::load(b, a_at + half);
#pragma unroll
                for (int i = 0; i < PAIRS; ++i) rotate(a[i], b[i], by[i]);
                Piece<T, WIDTH>::store(b, a_at + half);
            }
            Piece<T, WIDTH>::store(a, a_at);
        }
    }
};

#define ROTARY_KERNEL(NAME, WIDTH, NEIGHBOURS)                                                                          \
    extern "C" __global__ void __launch_bounds__(THREADS, 8) rotary_##NAME##_##WIDTH(                                   \
        const __grid_constant__ RotaryParams p) {                                                                       \
        Rotary<PAF_ELEMENT, WIDTH, NEIGHBOURS>::run(p);                                                                 \
    }

ROTARY_KERNEL(halves, 8, false)
ROTARY_KERNEL(halves, 4, false)
ROTARY_KERNEL(halves, 2, false)
ROTARY_KERNEL(halves, 1, false)
ROTARY_KERNEL(neighbours, 8, true)
ROTARY_KERNEL(neighbours, 4, true)
ROTARY_KERNEL(neighbours, 2, true)
