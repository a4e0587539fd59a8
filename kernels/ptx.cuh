// Every line of inline PTX in the tree: one named wrapper an instruction.
// Shared-memory operands are 32-bit addresses in the shared window (`shared_address`).
#pragma once
#include <cstdint>

namespace ptx {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// The value, which all lanes have, in a register of the warp, so that it is not computed anew each time it is used.
__device__ __forceinline__ uint32_t uniform(uint32_t value) { return __reduce_or_sync(0xffffffff, value); }

// Has the value computed here at the latest, before whatever is waited for next.
__device__ __forceinline__ void known(int value) { asm volatile("" ::"r"(value)); }

// cp.async: 16 bytes from global to shared memory, past L1. Reads only `bytes` (0 or 16) and fills the rest with zeros.
__device__ __forceinline__ void copy_async_16(uint32_t shared, const void* global, uint32_t bytes) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(shared), "l"(global), "r"(bytes));
}

__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;\n" ::); }

// Waits until at most `PENDING` of this thread's newest groups are unfinished.
template <int PENDING>
__device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(PENDING) : "memory");
}

// Four 8×8 matrices of 16-bit elements; lane l supplies the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrix_x4(uint32_t (&r)[4], uint32_t shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared));
}

// The same, each matrix transposed on the way.
__device__ __forceinline__ void load_matrix_x4_transposed(uint32_t (&r)[4], uint32_t shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared));
}

// d += a·b on one warp: a is 16×16 row-major, b 16×8 column-major, d fp32.
__device__ __forceinline__ void mma_16x8x16_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma_16x8x16_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// `wanted ? a : b` with both computed: a branch around a long `a` would end the interleaving of neighbouring elements.
__device__ __forceinline__ float select(float a, float b, bool wanted) {
    float y;
    asm("{\n.reg .pred wanted;\nsetp.ne.u32 wanted, %3, 0;\nselp.f32 %0, %1, %2, wanted;\n}\n"
        : "=f"(y)
        : "f"(a), "f"(b), "r"(static_cast<uint32_t>(wanted)));
    return y;
}

// 2^x, relative error at most 2^-22; 2^-inf = 0.
__device__ __forceinline__ float exp2_approximate(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}

// Nanoseconds of a clock that all multiprocessors share.
__device__ __forceinline__ uint64_t global_timer_ns() {
    uint64_t now;
    asm volatile("mov.u64 %0, %globaltimer;\n" : "=l"(now));
    return now;
}

// ---- Hopper (compute_90a): barriers in shared memory, bulk tensor copies, clusters, warpgroup products ---------------

// A CUtensorMap: shape, strides, box and swizzle of a matrix, encoded by the host (src/gpu/launch.rs).
struct alignas(64) TensorMap {
    uint64_t opaque[16];
};

__device__ __forceinline__ void tensor_map_prefetch(const TensorMap* map) {
    asm volatile("prefetch.tensormap [%0];\n" ::"l"(map) : "memory");
}

__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to the cluster and to bulk copies.
__device__ __forceinline__ void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}

// Arrives, and announces `bytes` that bulk copies will bring.
__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes) : "memory");
}

// Arrives at a barrier of this block.
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}

// Arrives at a barrier anywhere in the cluster (an address from `cluster_address`). Releases at block scope: what it tells
// is that finished products have read a stage. An explicit cluster scope would cost a fence of the whole device each time.
__device__ __forceinline__ void barrier_arrive_cluster(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}

// Waits until the phase of this parity has completed.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}\n" ::"r"(barrier),
        "r"(parity)
        : "memory");
}

// Block-local barrier number `id` of `threads` threads.
__device__ __forceinline__ void named_barrier(int id, int threads) {
    asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

// The same for threads that need not wait for the others.
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ uint32_t clock_low() {
    uint32_t clocks;
    asm volatile("mov.u32 %0, %clock;\n" : "=r"(clocks)::"memory");
    return clocks;
}

__device__ __forceinline__ void pause(uint32_t clocks) {
    for (const uint32_t start = clock_low(); clock_low() - start < clocks;) {
    }
}

// True in one lane of a converged warp, of which the compiler knows that it is one.
__device__ __forceinline__ bool elect_one() {
    uint32_t elected;
    asm volatile(
        "{\n.reg .pred elected;\nelect.sync _|elected, 0xffffffff;\nselp.u32 %0, 1, 0, elected;\n}\n" : "=r"(elected));
    return elected != 0;
}

__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t rank;
    asm volatile("mov.u32 %0, %cluster_ctarank;\n" : "=r"(rank));
    return rank;
}

// Barrier of all threads of all blocks of the cluster. It orders no memory accesses: that would cost a fence of the whole
// device.
__device__ __forceinline__ void cluster_arrive_relaxed() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\n" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.aligned;\n" ::: "memory"); }

// Where `shared`, an address of this block, lies in the block of that rank.
__device__ __forceinline__ uint32_t cluster_address(uint32_t shared, uint32_t rank) {
    uint32_t address;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;\n" : "=r"(address) : "r"(shared), "r"(rank));
    return address;
}

// Stores to a block of the cluster, and counts 16 bytes at a barrier of that block: no other signal is needed.
__device__ __forceinline__ void cluster_store_async(uint32_t address, float x, float y, float z, float w, uint32_t barrier) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];\n" ::"r"(
                     address),
                 "f"(x), "f"(y), "f"(z), "f"(w), "r"(barrier)
                 : "memory");
}

__device__ __forceinline__ float4 shared_load(uint32_t address) {
    float4 v;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];\n"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(address)
                 : "memory");
    return v;
}

__device__ __forceinline__ uint4 shared_load_16(uint32_t address) {
    uint4 x;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "r"(address)
                 : "memory");
    return x;
}

__device__ __forceinline__ uint2 shared_load_8(uint32_t address) {
    uint2 x;
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];\n" : "=r"(x.x), "=r"(x.y) : "r"(address) : "memory");
    return x;
}
__device__ __forceinline__ void shared_store_8(uint32_t address, uint2 x) {
    asm volatile("st.shared.v2.b32 [%0], {%1, %2};\n" ::"r"(address), "r"(x.x), "r"(x.y) : "memory");
}

__device__ __forceinline__ float shared_load_1(uint32_t address) {
    float x;
    asm volatile("ld.shared.f32 %0, [%1];\n" : "=f"(x) : "r"(address) : "memory");
    return x;
}
__device__ __forceinline__ void shared_store(uint32_t address, float x) {
    asm volatile("st.shared.f32 [%0], %1;\n" ::"r"(address), "f"(x) : "memory");
}
__device__ __forceinline__ void shared_clear_16(uint32_t address) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};\n" ::"r"(address), "r"(0) : "memory");
}

// A box at (column, row) of a matrix into shared memory; what lies outside the matrix becomes zero, and counts.
__device__ __forceinline__ void tensor_load(uint32_t shared, const TensorMap* map, int column, int row, uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];\n" ::"r"(
            shared),
        "l"(map), "r"(column), "r"(row), "r"(barrier)
        : "memory");
}

// The same to the same place in every block of the cluster whose bit is set; each block's own barrier counts its bytes.
__device__ __forceinline__ void tensor_load_multicast(uint32_t shared, const TensorMap* map, int column, int row,
                                                      uint32_t barrier, uint16_t blocks) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%2, %3}], [%4], %5;\n" ::"r"(shared),
        "l"(map), "r"(column), "r"(row), "r"(barrier), "h"(blocks)
        : "memory");
}

// A box from shared memory to (column, row) of a matrix; what lies outside is not written.
__device__ __forceinline__ void tensor_store(const TensorMap* map, int column, int row, uint32_t shared) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];\n" ::"l"(map), "r"(column),
                 "r"(row), "r"(shared)
                 : "memory");
}

__device__ __forceinline__ void bulk_commit() { asm volatile("cp.async.bulk.commit_group;\n" ::: "memory"); }

// Waits until at most `PENDING` of this thread's newest groups of stores still read shared memory.
template <int PENDING>
__device__ __forceinline__ void bulk_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;\n" ::"n"(PENDING) : "memory");
}

// Waits until all of this thread's bulk stores are in memory.
__device__ __forceinline__ void bulk_wait() { asm volatile("cp.async.bulk.wait_group 0;\n" ::: "memory"); }

// Counters in memory by which kernels that run at the same time tell each other how far they are. What a thread wrote before it
// counts is there for who has read the count; bulk copies must be ordered behind that by `async_proxy_fence_global`.
__device__ __forceinline__ void count_up(unsigned* counter) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;\n" ::"l"(counter) : "memory");
}
__device__ __forceinline__ unsigned count_of(const unsigned* counter) {
    unsigned value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];\n" : "=r"(value) : "l"(counter) : "memory");
    return value;
}
// Counts up; the count before.
__device__ __forceinline__ unsigned count_up_and_get(unsigned* counter) {
    unsigned before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;\n" : "=r"(before) : "l"(counter) : "memory");
    return before;
}
// Orders this thread's writes to memory before what it, or who meets it, does next, for the whole device.
__device__ __forceinline__ void memory_fence() { asm volatile("fence.acq_rel.gpu;\n" ::: "memory"); }
// Ends the kernel with an error.
__device__ __forceinline__ void trap() { asm volatile("trap;\n"); }
// Orders accesses to memory, by this thread or known to it, before its later bulk copies.
__device__ __forceinline__ void async_proxy_fence_global() { asm volatile("fence.proxy.async.global;\n" ::: "memory"); }

// Orders ordinary accesses to shared memory before later bulk copies' and products'.
__device__ __forceinline__ void async_proxy_fence() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }

// A warpgroup's registers a thread from here on: fewer, so that others can have more. Together they must be what the block has.
template <int REGISTERS>
__device__ __forceinline__ void registers_decrease() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(REGISTERS));
}
template <int REGISTERS>
__device__ __forceinline__ void registers_increase() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(REGISTERS));
}

// Programmatic dependent launch. `dependency_wait` returns when the kernels before have finished and their writes are
// visible; `dependents_launch` lets the next kernel's blocks begin where there is room, once every block has called it or
// ended. Nothing without the attribute, and before Hopper, which has no such instructions.
__device__ __forceinline__ void dependency_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}
__device__ __forceinline__ void dependents_launch() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}

// 8×8 matrices of 16-bit elements, some of them transposed on the way; lane l supplies the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void store_matrix_x4_transposed(uint32_t shared, const uint32_t (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(shared), "r"(r[0]),
                 "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
}
__device__ __forceinline__ void store_matrix_x4(uint32_t shared, const uint32_t (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(shared), "r"(r[0]), "r"(r[1]),
                 "r"(r[2]), "r"(r[3])
                 : "memory");
}
__device__ __forceinline__ void store_matrix_x2_transposed(uint32_t shared, const uint32_t (&r)[2]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};\n" ::"r"(shared), "r"(r[0]), "r"(r[1])
                 : "memory");
}
__device__ __forceinline__ void load_matrix_x2_transposed(uint32_t (&r)[2], uint32_t shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];\n"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared)
                 : "memory");
}

// Orders this warpgroup's accesses to accumulators and shared memory before its next products.
__device__ __forceinline__ void warpgroup_fence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
__device__ __forceinline__ void warpgroup_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
// Waits until at most `PENDING` of the warpgroup's newest groups of products are unfinished.
template <int PENDING>
__device__ __forceinline__ void warpgroup_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(PENDING) : "memory");
}
// Keeps the compiler from moving accesses to accumulators across this point.
template <int N>
__device__ __forceinline__ void accumulator_fence(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// wgmma: d (64×N, fp32) += a (64×16) · b (N×16)ᵀ, both K-major in shared memory, given by descriptors; d = a·bᵀ where
// `accumulate` is 0. Thread t of the warpgroup holds rows t/4%8 (d[4j], d[4j+1]) and t/4%8 + 8 (d[4j+2], d[4j+3]) of its
// warp's 16, columns 8j + t%4·2 and the next.
template <int N>
struct WarpgroupProduct;

#define PAF_REGISTERS_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define PAF_REGISTERS_16 PAF_REGISTERS_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define PAF_REGISTERS_32 PAF_REGISTERS_16 \
    ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define PAF_REGISTERS_40 PAF_REGISTERS_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define PAF_REGISTERS_48 PAF_REGISTERS_32 \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define PAF_REGISTERS_56 PAF_REGISTERS_48 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define PAF_REGISTERS_64 PAF_REGISTERS_48 \
    ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define PAF_REGISTERS_80 PAF_REGISTERS_64 \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define PAF_REGISTERS_88 PAF_REGISTERS_80 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define PAF_REGISTERS_96 PAF_REGISTERS_64 \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
    ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define PAF_REGISTERS_112 PAF_REGISTERS_96 \
    ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define PAF_REGISTERS_128 PAF_REGISTERS_112 \
    ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define PAF_OUT_8(i)                                                                                                     \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]),          \
        "+f"(d[i + 7])
#define PAF_OUT_16(i) PAF_OUT_8(i), PAF_OUT_8(i + 8)
#define PAF_OUT_32(i) PAF_OUT_16(i), PAF_OUT_16(i + 16)
#define PAF_OUT_64(i) PAF_OUT_32(i), PAF_OUT_32(i + 32)

#define PAF_WGMMA(N, TYPE, REGISTERS, A, B, ACCUMULATE, ...)                                                             \
    asm volatile("{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %" #ACCUMULATE                                      \
                 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" REGISTERS "}, %" #A ", %" #B \
                 ", accumulate, 1, 1, 0, 0;\n}\n"                                                                        \
                 : __VA_ARGS__                                                                                           \
                 : "l"(a), "l"(b), "r"(accumulate))

#define PAF_WARPGROUP_PRODUCT(N, REGISTERS, A, B, ACCUMULATE, ...)                                                       \
    template <>                                                                                                          \
    struct WarpgroupProduct<N> {                                                                                         \
        static __device__ __forceinline__ void bf16(float (&d)[N / 2], uint64_t a, uint64_t b, int accumulate) {         \
            PAF_WGMMA(N, "bf16", REGISTERS, A, B, ACCUMULATE, __VA_ARGS__);                                              \
        }                                                                                                                \
        static __device__ __forceinline__ void f16(float (&d)[N / 2], uint64_t a, uint64_t b, int accumulate) {          \
            PAF_WGMMA(N, "f16", REGISTERS, A, B, ACCUMULATE, __VA_ARGS__);                                               \
        }                                                                                                                \
    };

PAF_WARPGROUP_PRODUCT(16, PAF_REGISTERS_8, 8, 9, 10, PAF_OUT_8(0))
PAF_WARPGROUP_PRODUCT(32, PAF_REGISTERS_16, 16, 17, 18, PAF_OUT_16(0))
PAF_WARPGROUP_PRODUCT(64, PAF_REGISTERS_32, 32, 33, 34, PAF_OUT_32(0))
PAF_WARPGROUP_PRODUCT(80, PAF_REGISTERS_40, 40, 41, 42, PAF_OUT_32(0), PAF_OUT_8(32))
PAF_WARPGROUP_PRODUCT(96, PAF_REGISTERS_48, 48, 49, 50, PAF_OUT_32(0), PAF_OUT_16(32))
PAF_WARPGROUP_PRODUCT(112, PAF_REGISTERS_56, 56, 57, 58, PAF_OUT_32(0), PAF_OUT_16(32), PAF_OUT_8(48))
PAF_WARPGROUP_PRODUCT(128, PAF_REGISTERS_64, 64, 65, 66, PAF_OUT_64(0))
PAF_WARPGROUP_PRODUCT(160, PAF_REGISTERS_80, 80, 81, 82, PAF_OUT_64(0), PAF_OUT_16(64))
PAF_WARPGROUP_PRODUCT(176, PAF_REGISTERS_88, 88, 89, 90, PAF_OUT_64(0), PAF_OUT_16(64), PAF_OUT_8(80))
PAF_WARPGROUP_PRODUCT(192, PAF_REGISTERS_96, 96, 97, 98, PAF_OUT_64(0), PAF_OUT_32(64))
PAF_WARPGROUP_PRODUCT(224, PAF_REGISTERS_112, 112, 113, 114, PAF_OUT_64(0), PAF_OUT_32(64), PAF_OUT_16(96))
PAF_WARPGROUP_PRODUCT(256, PAF_REGISTERS_128, 128, 129, 130, PAF_OUT_64(0), PAF_OUT_64(64))

// The same with a (64×16) in registers, its rows as d's, columns t%4·2 and the next (a[0], a[1] for the second rows), then those
// 8 on; and b (16×N) with N along rows of shared memory. Accumulates always.
template <int N>
struct WarpgroupProductOfRows;

#define PAF_WGMMA_ROWS(N, TYPE, REGISTERS, A0, A1, A2, A3, B, ...)                                                        \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" REGISTERS "}, {%" #A0 ", %" #A1      \
                 ", %" #A2 ", %" #A3 "}, %" #B ", 1, 1, 1, 1;\n"                                                           \
                 : __VA_ARGS__                                                                                            \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

#define PAF_WARPGROUP_PRODUCT_OF_ROWS(N, REGISTERS, A0, A1, A2, A3, B, ...)                                               \
    template <>                                                                                                          \
    struct WarpgroupProductOfRows<N> {                                                                                   \
        static __device__ __forceinline__ void bf16(float (&d)[N / 2], const uint32_t* a, uint64_t b) {                   \
            PAF_WGMMA_ROWS(N, "bf16", REGISTERS, A0, A1, A2, A3, B, __VA_ARGS__);                                         \
        }                                                                                                                \
        static __device__ __forceinline__ void f16(float (&d)[N / 2], const uint32_t* a, uint64_t b) {                    \
            PAF_WGMMA_ROWS(N, "f16", REGISTERS, A0, A1, A2, A3, B, __VA_ARGS__);                                          \
        }                                                                                                                \
    };

PAF_WARPGROUP_PRODUCT_OF_ROWS(32, PAF_REGISTERS_16, 16, 17, 18, 19, 20, PAF_OUT_16(0))
PAF_WARPGROUP_PRODUCT_OF_ROWS(64, PAF_REGISTERS_32, 32, 33, 34, 35, 36, PAF_OUT_32(0))
PAF_WARPGROUP_PRODUCT_OF_ROWS(80, PAF_REGISTERS_40, 40, 41, 42, 43, 44, PAF_OUT_32(0), PAF_OUT_8(32))
PAF_WARPGROUP_PRODUCT_OF_ROWS(96, PAF_REGISTERS_48, 48, 49, 50, 51, 52, PAF_OUT_32(0), PAF_OUT_16(32))
PAF_WARPGROUP_PRODUCT_OF_ROWS(128, PAF_REGISTERS_64, 64, 65, 66, 67, 68, PAF_OUT_64(0))
PAF_WARPGROUP_PRODUCT_OF_ROWS(256, PAF_REGISTERS_128, 128, 129, 130, 131, 132, PAF_OUT_64(0), PAF_OUT_64(64))

}  // namespace ptx
