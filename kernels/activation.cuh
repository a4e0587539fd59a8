// The FFN's activation functions on fp32, numbered as src/gpu/gemm.rs numbers them.
#pragma once
#include "ptx.cuh"

enum Activation : int { GELU = 0, GELU_NEW = 1, RELU = 2 };

// Both GELUs are relu(x) − |x|·q(|x|), with q the weight that x's own sign leaves out: Φ(−|x|) in gelu (arXiv 1606.08415),
// σ(−2·√(2/π)·(|x| + 0.044715·|x|³)) in gelu_new. log2 q is smooth, so q is 2^P(|x|) with a short polynomial P: no division,
// no cancellation, and one instruction on the slow special-function pipe, which would hold up the tensor cores otherwise.
// P is fitted on [0, 6] (gelu_new: [0, 5]) with weights for the error of |x|·q where it counts, and its leading coefficient is negative, so
// that q goes to 0 beyond. Largest error of |x|·q: gelu 1.5e-5, and relative to it 1.0e-4 while it is above 1e-3;
// gelu_new 8e-6 and 5e-5. An f16 rounds by 4.9e-4, a bf16 by 3.9e-3, relatively. NaN stays NaN; so becomes +inf.
template <int DEGREE>
__device__ __forceinline__ float smooth_relu(float x, const float (&p)[DEGREE + 1]) {
    const float a = fabsf(x);
    float log2_q = p[DEGREE];
#pragma unroll
    for (int i = DEGREE - 1; i >= 0; --i) log2_q = fmaf(log2_q, a, p[i]);
    return fmaf(-a, ptx::exp2_approximate(log2_q), fmaxf(x, 0.f));
}

__device__ __forceinline__ float gelu(float x) {
    constexpr float P[6] = {-1.00013959f, -1.14892459f, -0.464736402f, -0.0476994105f, 0.0056350613f, -0.000296563288f};
    return smooth_relu<5>(x, P);
}

__device__ __forceinline__ float gelu_new(float x) {
    constexpr float P[8] = {-0.999924779f, -1.15333414f,    -0.448030949f,   -0.0724856853f,
                            0.0260553006f, -0.00774457632f, 0.000812483602f, -2.71577701e-05f};
    return smooth_relu<7>(x, P);
}

__device__ __forceinline__ float relu(float x) { return x != x ? x : fmaxf(x, 0.f); }  // NaN stays NaN

// x·σ(x), of a gate (gate_sm80.cu), which waits for memory and has time for a division: relative error below 1e-6. The products'
// epilogues do not know it. Where the denominator overflows, below −88, the result is −0.
__device__ __forceinline__ float silu(float x) {
    constexpr float MINUS_LOG2_E = -1.44269504f;
    return __fdividef(x, 1.f + ptx::exp2_approximate(MINUS_LOG2_E * x));
}

// Applies the activation to those of a thread's accumulators that `wanted(i)` names. The switch stands outside the loops: one
// branch for all of them.
template <int N, typename F>
__device__ __forceinline__ void activate(float (&x)[N], int activation, F&& wanted) {
    switch (activation) {
        case GELU:
#pragma unroll
            for (int i = 0; i < N; ++i) x[i] = ptx::select(gelu(x[i]), x[i], wanted(i));
            break;
        case GELU_NEW:
#pragma unroll
            for (int i = 0; i < N; ++i) x[i] = ptx::select(gelu_new(x[i]), x[i], wanted(i));
            break;
        default:
#pragma unroll
            for (int i = 0; i < N; ++i) x[i] = ptx::select(relu(x[i]), x[i], wanted(i));
    }
}
