// How kernels of one stream that run at the same time know how far each other are, where the end of a whole kernel would be too much
// to wait for: one counts what is in memory, another waits until there is all that it needs.
//
// A pair of counters: what is there, and how many of the waiting kernel's blocks have seen that it is all. The last of them makes
// both 0 again, for the next layer, whose kernels must not look before: a waiting block lets later kernels begin only when it has
// counted itself. They are 0 between calls; after one that failed midway the host makes them so.
//
// Whoever waits is launched when all blocks of whoever counts have begun (programmatic dependent launch), so nobody waits for a block
// that has found no place.
#pragma once
#include "ptx.cuh"

// Waits until a pair's count is complete, for bulk copies by this thread. Once in each of `blocks` blocks.
__device__ __forceinline__ void await_count(unsigned* pair, unsigned count, unsigned blocks) {
    constexpr int PAUSE = 20, LONG = 1 << 24;  // seconds, after which something must be wrong
    for (int i = 0; ptx::count_of(pair) < count; ++i) {
        ptx::pause(PAUSE);
        if (i == LONG) ptx::trap();
    }
    ptx::async_proxy_fence_global();
    if (ptx::count_up_and_get(pair + 1) == blocks - 1) {
        pair[0] = 0, pair[1] = 0;
        ptx::memory_fence();
    }
}
