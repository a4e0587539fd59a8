// The two 16-bit element types behind one interface: pairs of elements travel as one 32-bit register.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "ptx.cuh"

struct Bf16 {
    using Storage = __nv_bfloat16;
    static __device__ __forceinline__ uint32_t pack(float low, float high) {
        __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
        return *reinterpret_cast<uint32_t*>(&pair);
    }
    static __device__ __forceinline__ float2 unpack(uint32_t pair) {
        return __bfloat1622float2(*reinterpret_cast<__nv_bfloat162*>(&pair));
    }
    static __device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
        ptx::mma_16x8x16_bf16(d, a, b0, b1);
    }
    template <int N>
    static __device__ __forceinline__ void warpgroup_product(float (&d)[N / 2], uint64_t a, uint64_t b, int accumulate) {
        ptx::WarpgroupProduct<N>::bf16(d, a, b, accumulate);
    }
    template <int N>
    static __device__ __forceinline__ void warpgroup_product_rows(float (&d)[N / 2], const uint32_t* a, uint64_t b) {
        ptx::WarpgroupProductOfRows<N>::bf16(d, a, b);
    }
};

struct F16 {
    using Storage = __half;
    static __device__ __forceinline__ uint32_t pack(float low, float high) {
        __half2 pair = __floats2half2_rn(low, high);
        return *reinterpret_cast<uint32_t*>(&pair);
    }
    static __device__ __forceinline__ float2 unpack(uint32_t pair) {
        return __half22float2(*reinterpret_cast<__half2*>(&pair));
    }
    static __device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
        ptx::mma_16x8x16_f16(d, a, b0, b1);
    }
    template <int N>
    static __device__ __forceinline__ void warpgroup_product(float (&d)[N / 2], uint64_t a, uint64_t b, int accumulate) {
        ptx::WarpgroupProduct<N>::f16(d, a, b, accumulate);
    }
    template <int N>
    static __device__ __forceinline__ void warpgroup_product_rows(float (&d)[N / 2], const uint32_t* a, uint64_t b) {
        ptx::WarpgroupProductOfRows<N>::f16(d, a, b);
    }
};

constexpr int ELEMENT_BYTES = 2;
// A vector access moves 16 bytes: eight elements. Every row length and leading dimension is a multiple of it.
constexpr int VECTOR = 16 / ELEMENT_BYTES;

template <typename T>
__device__ __forceinline__ void unpack_vector(float (&x)[VECTOR], uint4 raw) {
    const uint32_t pairs[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
        const float2 pair = T::unpack(pairs[e]);
        x[2 * e] = pair.x, x[2 * e + 1] = pair.y;
    }
}

template <typename T>
__device__ __forceinline__ uint4 pack_vector(const float (&x)[VECTOR]) {
    return make_uint4(T::pack(x[0], x[1]), T::pack(x[2], x[3]), T::pack(x[4], x[5]), T::pack(x[6], x[7]));
}
