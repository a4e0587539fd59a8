// The FFN's activation functions on fp32, numbered as src/gpu/gemm.rs numbers them.
#pragma once

enum Activation : int { GELU = 0, GELU_NEW = 1, RELU = 2 };

// x·Φ(x) (arXiv 1606.08415). erff's error of 2 ulp is far below the 16-bit rounding that follows.
__device__ __forceinline__ float gelu(float x) { return 0.5f * x * (1.f + erff(x * 0.70710678118654752f)); }

// x/2·(1 + tanh u) = x·σ(2u), u = √(2/π)·(x + 0.044715·x³): one exponential and one division, and no cancellation for
// negative u. For u → −∞ the exponential overflows to +inf and the quotient is the right −0.
__device__ __forceinline__ float gelu_new(float x) {
    const float u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
    return __fdividef(x, 1.f + __expf(-2.f * u));
}

template <int N>
__device__ __forceinline__ void activate(float (&x)[N], int activation) {
    switch (activation) {
        case GELU:
#pragma unroll
            for (int i = 0; i < N; ++i) x[i] = gelu(x[i]);
            break;
        case GELU_NEW:
#pragma unroll
            for (int i = 0; i < N; ++i) x[i] = gelu_new(x[i]);
            break;
        default:
#pragma unroll
            for (int i = 0; i < N; ++i) x[i] = x[i] != x[i] ? x[i] : fmaxf(x[i], 0.f);  // NaN stays NaN
    }
}
