// Queries and keys rotated by their positions as a consumer warpgroup of Hopper's GEMM (gemm_sm90.cu) finishes them: in its buffer,
// between the rounding and TMA's store.
#pragma once
#include "gemm_sm90_tile.cuh"

// Address of a 16-byte vector of a box; TMA swizzles rows of 128, 64 or 32 bytes alike by bits of the address.
template <typename Tile>
__device__ __forceinline__ uint32_t vector_of_box(uint32_t box, int row, int vector) {
    constexpr int VECTORS = Tile::BOX / VECTOR;
    const uint32_t in_box = row * (VECTORS * 16) + vector * 16;
    return box + (in_box ^ (in_box >> 3 & (VECTORS - 1) << 4));
}

// Whether some of the columns from that one on may be rotated.
__device__ __forceinline__ bool is_rotated(const GemmParams& p, int column) {
    return __builtin_expect(column < p.rotated, 0);
}

// A box of rows of C from `row` and columns from `column` on, where the warpgroup has met after it put all in place. Both of a pair
// are in the box, pieces in one head, and a box is of one head or of whole ones: Sm90GemmTile::rotates in src/gpu/tiles.rs.
template <typename Tile>
struct BoxRotation {
    using T = typename Tile::Element;
    // Columns that a thread rotates at once, 8 bytes: beside 112 accumulators there are no registers for more.
    static constexpr int PIECE = 4;
    const Rotation& by;
    uint32_t box;
    int column, row, rows;

    __device__ __forceinline__ void run(const GemmParams& p) const {
        const int half = by.dim / 2, in_head = column % by.head_dim;
        const int columns = min(by.dim - in_head, Tile::BOX);  // that are rotated, of each head
        if (columns <= 0) return;
        // Pieces of a head, each with its pairs, or each the first of two: a power of two, as are heads of a box.
        const int pieces = (by.neighbours ? columns : half) / PIECE, of_row = pieces * max(Tile::BOX / by.head_dim, 1);
        const int log2_of_row = __ffs(of_row) - 1, log2_pieces = __ffs(pieces) - 1;
#pragma unroll 1
        for (int i = threadIdx.x % 128; i < rows << log2_of_row; i += 128) {
            const int r = i >> log2_of_row, head = (i & (of_row - 1)) >> log2_pieces, piece = i & (pieces - 1);
            const int x = head * by.head_dim + piece * PIECE;
            if (!is_rotated(p, column + x)) continue;
            // Rows below C have no position.
            const float2* angles = by.table + static_cast<int64_t>(by.position(min(row + r, p.m - 1))) * half;
            if (by.neighbours) {
                neighbours(at(r, x), angles + (in_head + piece * PIECE) / 2);
            } else {
                halves(at(r, x), at(r, x + half), angles + piece * PIECE);
            }
        }
    }

    __device__ __forceinline__ uint32_t at(int r, int x) const {
        return vector_of_box<Tile>(box, r, x / VECTOR) + x % VECTOR * ELEMENT_BYTES;
    }

    static __device__ __forceinline__ void neighbours(uint32_t at, const float2* angles) {
        const float4 by = *reinterpret_cast<const float4*>(angles);
        const uint2 raw = ptx::shared_load_8(at);
        float2 low = T::unpack(raw.x), high = T::unpack(raw.y);
        rotate(low.x, low.y, make_float2(by.x, by.y));
        rotate(high.x, high.y, make_float2(by.z, by.w));
        ptx::shared_store_8(at, make_uint2(T::pack(low.x, low.y), T::pack(high.x, high.y)));
    }

    static __device__ __forceinline__ void halves(uint32_t a_at, uint32_t b_at, const float2* angles) {
        const float4 by_low = *reinterpret_cast<const float4*>(angles), by_high = *reinterpret_cast<const float4*>(angles + 2);
        const uint2 a = ptx::shared_load_8(a_at), b = ptx::shared_load_8(b_at);
        const uint2 low = both(a.x, b.x, by_low), high = both(a.y, b.y, by_high);
        ptx::shared_store_8(a_at, make_uint2(low.x, high.x));
        ptx::shared_store_8(b_at, make_uint2(low.y, high.y));
    }

    // Two neighbouring pairs, of which `a` has the first columns.
    static __device__ __forceinline__ uint2 both(uint32_t a, uint32_t b, float4 by) {
        float2 x = T::unpack(a), y = T::unpack(b);
        rotate(x.x, y.x, make_float2(by.x, by.y));
        rotate(x.y, y.y, make_float2(by.z, by.w));
        return make_uint2(T::pack(x.x, x.y), T::pack(y.x, y.y));
    }
};
