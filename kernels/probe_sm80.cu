// Kernels that measure or disturb, and compute nothing.
#include "ptx.cuh"

// Occupies its stream for `nanoseconds`: the race tests hold one branch back with it, `paf trace` a call until it is launched.
extern "C" __global__ void delay(unsigned long long nanoseconds) {
    const uint64_t end = ptx::global_timer_ns() + nanoseconds;
    while (ptx::global_timer_ns() < end) {
    }
}
