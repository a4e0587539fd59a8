// How kernels of one stream that run at the same time know how far each other are, where the end of a whole kernel would be too much
// to wait for: one counts what is in memory, another waits until there is all that it needs.
//
// A pair of counters: what is there, of this layer's and of those before it in the call, and how many of the last layer's waiting blocks
// have seen that it is all. The last of these makes both 0 again, so that they are 0 between calls; after one that failed midway the host
// makes them so. Counting on through the layers leaves nothing to be reset while kernels of several may run.
//
// Whoever waits is launched when all blocks of whoever counts have begun (programmatic dependent launch), so nobody waits for a block
// that has found no place.
#pragma once
#include "ptx.cuh"

// Waits until a pair's count has come so far, for bulk copies by this thread.
__device__ __forceinline__ void await_count(const unsigned* pair, unsigned count) {
    constexpr int LONG = 1 << 23;  // seconds, after which something must be wrong
    for (int i = 0; ptx::count_of(pair) < count; ++i)
        if (i == LONG) ptx::trap();
    ptx::async_proxy_fence_global();
}

// Afterwards, in the last layer, once in each of `blocks` blocks.
__device__ __forceinline__ void count_as_seen(unsigned* pair, unsigned blocks) {
    if (ptx::count_up_and_get(pair + 1) == blocks - 1) {
        pair[0] = 0, pair[1] = 0;
        ptx::memory_fence();
    }
}
