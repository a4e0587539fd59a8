// What the two kernels share that rotate queries and keys: rotary.cuh in place, Hopper's GEMM (gemm_sm90_finish.cuh) on their way to
// memory. Both round what they rotate first, and so agree to the bit.
#pragma once

struct Rotation {
    const float2* table;   // [positions, dim / 2]: (cos, sin), made by the host in f64, so that large angles lose nothing
    const int* lengths;    // of sequences, where rows after them are padding; null: no row is
    const int* positions;  // of each row in its sequence; null: row r is position r % seq_len of sequence r / seq_len
    int seq_len, heads, head_dim, dim, neighbours;  // the first dim columns of so many heads; pairs as rotary.cuh says

    __device__ __forceinline__ int position(int row) const { return positions == nullptr ? row % seq_len : positions[row]; }
};

// (a, b) by an angle of which `by` is cosine and sine.
__device__ __forceinline__ void rotate(float& a, float& b, float2 by) {
    const float rotated = a * by.x - b * by.y;
    b = a * by.y + b * by.x;
    a = rotated;
}
