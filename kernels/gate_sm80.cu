// The gate of a gated FFN (arXiv 2002.05202; with SiLU: SwiGLU), for every card:
//
//   out[r, c] = act(both[r, c]) · both[r, cols + c]     0 ≤ c < cols
//
//   both [rows, 2·cols], leading dimension ld: what the FFN's first product made, the gate's columns beside the inner layer's
//   out [rows, cols], leading dimension ld_out: may be the gate's columns of `both`, or other memory
//   16-bit; cols and leading dimensions multiples of 8. One kernel an activation.
//
// Idea: memory traffic is all there is. A thread reads eight elements of either half, and only then writes its eight: in place no
// thread reads what another one writes. Blocks of a row are neighbours.
//
// It begins when the product before it has ended, and the kernel after it, whatever that asks for, when this one has: there is no
// programmatic dependent launch here, and schedule.rs relies on that. Next step: do it where the product's tiles are finished, which
// saves this kernel and the traffic of half of `both`. That needs a gate's column and its inner one in one thread's accumulators:
// their rows of the weights interleaved in groups of eight as they are packed, and a C of half the width.
#include "activation.cuh"
#include "element.cuh"

struct GateParams {
    const void* both;
    void* out;
    int cols, ld, ld_out;
    int column_blocks;  // blocks that share a row
};

constexpr int GATE_THREADS = 256;

template <typename T, float ACT(float)>
__device__ __forceinline__ void gate(const GateParams& p) {
    using S = typename T::Storage;
    const int row = blockIdx.x / p.column_blocks;
    const int column = (blockIdx.x % p.column_blocks * GATE_THREADS + threadIdx.x) * VECTOR;
    if (column >= p.cols) return;
    const S* from = static_cast<const S*>(p.both) + static_cast<int64_t>(row) * p.ld + column;
    float x[VECTOR], inner[VECTOR];
    unpack_vector<T>(x, *reinterpret_cast<const uint4*>(from));
    unpack_vector<T>(inner, *reinterpret_cast<const uint4*>(from + p.cols));
#pragma unroll
    for (int e = 0; e < VECTOR; ++e) x[e] = ACT(x[e]) * inner[e];
    *reinterpret_cast<uint4*>(static_cast<S*>(p.out) + static_cast<int64_t>(row) * p.ld_out + column) = pack_vector<T>(x);
}

#define GATE_KERNEL(ACT)                                                                                             \
    extern "C" __global__ void __launch_bounds__(GATE_THREADS) gate_##ACT(const __grid_constant__ GateParams p) {    \
        gate<PAF_ELEMENT, ACT>(p);                                                                                   \
    }

GATE_KERNEL(gelu)
GATE_KERNEL(gelu_new)
GATE_KERNEL(relu)
GATE_KERNEL(silu)
