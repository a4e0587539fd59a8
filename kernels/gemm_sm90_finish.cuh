// From a consumer warpgroup's accumulators to C, for Hopper's GEMM (gemm_sm90.cu): bias, activation, residual, then through
// shared memory, where stmatrix puts 16-byte vectors together and queries and keys are rotated, to TMA. One struct a kind of tile;
// `begin` before a tile's products, so that what it loads arrives meanwhile, and `end` after them.
#pragma once
#include "gemm_sm90_rotate.cuh"

// A thread's place in its warpgroup.
struct Consumer {
    int group, warp, lane;
    bool leads;       // its warpgroup's stores and residual loads
    uint32_t output;  // its warpgroup's buffers

    __device__ __forceinline__ void meet() const { ptx::named_barrier(1 + group, 128); }
};

// Boxes of C and of the residual between memory and a warpgroup's buffers, chunk by chunk.
template <typename Tile>
struct Chunks {
    static constexpr int COUNT = (Tile::WIDTH + Tile::CHUNK - 1) / Tile::CHUNK;
    uint32_t parity = 0;  // of each buffer's residual barrier

    static __device__ __forceinline__ uint32_t buffer(const Consumer& me, int chunk) {
        return me.output + chunk % Tile::BUFFERS * Tile::CHUNK_BYTES;
    }

    // Calls with each box of a chunk: where it lies, column, row.
    template <typename F>
    static __device__ __forceinline__ void boxes(const Consumer& me, typename Tile::Corner corner, int chunk, F&& f) {
        if constexpr (Tile::FREE_IS_M) {
            f(buffer(me, chunk), corner.n0, corner.m0 + chunk * Tile::CHUNK);
        } else {
            constexpr int BYTES = Tile::BOX * 64 * ELEMENT_BYTES;
            for (int i = 0; i < columns(chunk) / Tile::BOX; ++i)
                f(buffer(me, chunk) + i * BYTES, corner.n0 + chunk * Tile::CHUNK + i * Tile::BOX, corner.m0);
        }
    }

    // The last may be narrower.
    static constexpr __device__ __forceinline__ int columns(int chunk) {
        return Tile::WIDTH - chunk * Tile::CHUNK < Tile::CHUNK ? Tile::WIDTH - chunk * Tile::CHUNK : Tile::CHUNK;
    }

    static __device__ __forceinline__ void load_residual(const GemmParams& p, const typename Tile::Place& at, const Consumer& me,
                                                         typename Tile::Corner corner, int chunk) {
        const uint32_t barrier = at.residual + (me.group * 2 + chunk % Tile::BUFFERS) * 8;
        ptx::barrier_expect(barrier, columns(chunk) * 64 * ELEMENT_BYTES);
        boxes(me, corner, chunk, [&](uint32_t to, int column, int row) { ptx::tensor_load(to, &p.r, column, row, barrier); });
    }

    __device__ __forceinline__ void begin(const GemmParams& p, const typename Tile::Place& at, const Consumer& me,
                                          typename Tile::Corner corner) {
        if (has_residual(p) && me.leads) {
            if (p.first == WAITS) ptx::dependency_wait();
            ptx::bulk_wait_read<0>();
            for (int chunk = 0; chunk < Tile::BUFFERS && chunk < COUNT; ++chunk) load_residual(p, at, me, corner, chunk);
        }
    }

    // Waits until the chunk's buffer holds its residual, or is free.
    __device__ __forceinline__ void open(const GemmParams& p, const typename Tile::Place& at, const Consumer& me, int chunk) {
        if (has_residual(p)) {
            const int i = chunk % Tile::BUFFERS;
            ptx::barrier_wait(at.residual + (me.group * 2 + i) * 8, parity >> i & 1);
            parity ^= 1u << i;
        } else {
            if (me.leads) ptx::bulk_wait_read<Tile::BUFFERS - 1>();
            me.meet();
        }
    }

    // Sends the chunk off, and has the residual of the one that is to use its buffer come.
    __device__ __forceinline__ void close(const GemmParams& p, const typename Tile::Place& at, const Consumer& me,
                                          typename Tile::Corner corner, int chunk) {
        constexpr int ROWS = Tile::FREE_IS_M ? Tile::CHUNK : 64;
        if (is_rotated(p, corner.n0 + (Tile::FREE_IS_M ? 0 : chunk * Tile::CHUNK))) {
            me.meet();
            boxes(me, corner, chunk, [&](uint32_t box, int column, int row) {
                if (is_rotated(p, column)) BoxRotation<Tile>{p.rotation, box, column, row, ROWS}.run(p);
            });
        }
        ptx::async_proxy_fence();
        me.meet();
        if (!me.leads) return;
        const TensorMap* c = &p.c[corner.beside];
        boxes(me, corner, chunk, [&](uint32_t from, int column, int row) { ptx::tensor_store(c, column, row, from); });
        ptx::bulk_commit();
        if (has_residual(p) && chunk + Tile::BUFFERS < COUNT) {
            ptx::bulk_wait_read<0>();
            load_residual(p, at, me, corner, chunk + Tile::BUFFERS);
        }
    }
};

// A thread's sums of one part of K, to where the kernel that adds the parts finds them: 32 neighbouring bytes of four (eight) rows a
// store. A load of A has waited for the kernels before, so whoever read what was here has.
template <typename Tile>
__device__ __forceinline__ void store_sums(const GemmParams& p, const Consumer& me, typename Tile::Corner corner,
                                           const float (&d)[Tile::WIDTH / 2]) {
    const int warp_row = me.warp % 4 * 16 + me.lane / 4, pair = me.lane % 4 * 2;
    const int first_m = corner.m0 + (Tile::FREE_IS_M ? pair : warp_row);
    const int first_n = corner.n0 + (Tile::FREE_IS_M ? warp_row : pair);
    float* to = p.sums + (static_cast<int64_t>(corner.part) * p.m + first_m) * p.n + first_n;
    if constexpr (Tile::FREE_IS_M) {
        const bool low = first_n < p.n, high = first_n + 8 < p.n;
#pragma unroll
        for (int i = 0; i < Tile::WIDTH / 2; i += 4) {
            const int m = first_m + i * 2;
            if (m < p.m && low) to[0] = d[i];
            if (m + 1 < p.m && low) to[p.n] = d[i + 1];
            if (m < p.m && high) to[8] = d[i + 2];
            if (m + 1 < p.m && high) to[p.n + 8] = d[i + 3];
            to += 8 * p.n;
        }
    } else {
        float* const below = to + 8 * p.n;
        const bool low = first_m < p.m, high = first_m + 8 < p.m;
#pragma unroll
        for (int i = 0; i < Tile::WIDTH / 2; i += 4) {
            const bool inside = first_n + i * 2 < p.n;
            if (low && inside) *reinterpret_cast<float2*>(to + i * 2) = make_float2(d[i], d[i + 1]);
            if (high && inside) *reinterpret_cast<float2*>(below + i * 2) = make_float2(d[i + 2], d[i + 3]);
        }
    }
}

// N is free: a thread has two tokens, and two neighbouring columns in every eight.
template <typename Tile>
struct FinishColumns {
    using T = typename Tile::Element;
    static constexpr int EIGHTS = Tile::BN / 8;
    uint32_t bias[(EIGHTS + 7) / 8];  // pairs: those of eight columns are in four neighbouring lanes, of eight such eights in a warp
    Chunks<Tile> chunks;

    __device__ __forceinline__ void begin(const GemmParams& p, const typename Tile::Place& at, const Consumer& me,
                                          typename Tile::Corner corner) {
        if constexpr (!LEAVES_SUMS) {
            chunks.begin(p, at, me, corner);
            const uint32_t* from = static_cast<const uint32_t*>(p.bias) + (corner.n0 / 2 + me.lane);
#pragma unroll
            for (int j = 0; j < (EIGHTS + 7) / 8; ++j) {
                const int eighth = j * 8 + me.lane / 4;
                bias[j] = p.bias != nullptr && eighth < EIGHTS && corner.n0 + eighth * 8 < p.n ? from[j * 32] : 0;
            }
        }
    }

    __device__ __forceinline__ void end(const GemmParams& p, const typename Tile::Place& at, const Consumer& me,
                                        typename Tile::Corner corner, float (&d)[Tile::WIDTH / 2]) {
        if constexpr (LEAVES_SUMS) {
            store_sums<Tile>(p, me, corner, d);
        } else {
            finish<0>(p, at, me, corner, d);
        }
    }

    template <int CHUNK>
    __device__ __forceinline__ void finish(const GemmParams& p, const typename Tile::Place& at, const Consumer& me,
                                           typename Tile::Corner corner, float (&d)[Tile::WIDTH / 2]) {
        constexpr int COLUMNS = Chunks<Tile>::columns(CHUNK), FIRST = CHUNK * Tile::CHUNK;
        float(&x)[COLUMNS / 2] = reinterpret_cast<float(&)[COLUMNS / 2]>(d[FIRST / 2]);
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; ++j) {
            const int eighth = FIRST / 8 + j;
            const float2 b = T::unpack(__shfl_sync(0xffffffff, bias[eighth / 8], eighth % 8 * 4 + me.lane % 4));
            x[j * 4] += b.x, x[j * 4 + 1] += b.y, x[j * 4 + 2] += b.x, x[j * 4 + 3] += b.y;
        }
        if (ACTIVATES && corner.n0 + Tile::BN > p.activation_from) {
            const int from = p.activation_from - corner.n0 - FIRST - me.lane % 4 * 2;
            activate(x, activation_of(p), [&](int i) { return i / 4 * 8 + i % 2 >= from; });
        }
        chunks.open(p, at, me, CHUNK);
        const uint32_t buffer = Chunks<Tile>::buffer(me, CHUNK);
        const int row = me.warp % 4 * 16 + me.lane % 16;
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; j += 2) {
            // Matrices: tokens 0–7 and 8–15 of the warp's 16, then the next eight columns.
            const uint32_t address = vector_at(buffer, row, j + me.lane / 16);
            float y[8];
#pragma unroll
            for (int i = 0; i < 8; ++i) y[i] = x[j * 4 + i];
            if (has_residual(p)) {
                uint32_t r[4];
                ptx::load_matrix_x4(r, address);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float2 v = T::unpack(r[i]);
                    y[i * 2] += v.x, y[i * 2 + 1] += v.y;
                }
            }
            const uint32_t packed[4] = {T::pack(y[0], y[1]), T::pack(y[2], y[3]), T::pack(y[4], y[5]), T::pack(y[6], y[7])};
            ptx::store_matrix_x4(address, packed);
        }
        chunks.close(p, at, me, corner, CHUNK);
        if constexpr (CHUNK + 1 < Chunks<Tile>::COUNT) finish<CHUNK + 1>(p, at, me, corner, d);
    }

    // Address of a 16-byte vector of a buffer of boxes.
    static __device__ __forceinline__ uint32_t vector_at(uint32_t buffer, int row, int vector) {
        constexpr int VECTORS = Tile::BOX / VECTOR;
        return vector_of_box<Tile>(buffer + vector / VECTORS * (64 * VECTORS * 16), row, vector % VECTORS);
    }
};

// M is free: a thread has two columns, and two neighbouring tokens in every eight. stmatrix transposes.
template <typename Tile>
struct FinishTokens {
    using T = typename Tile::Element;
    using S = typename T::Storage;
    float bias[2];
    bool active[2], any_active;  // columns that get the activation; in the warp
    Chunks<Tile> chunks;

    __device__ __forceinline__ void begin(const GemmParams& p, const typename Tile::Place& at, const Consumer& me,
                                          typename Tile::Corner corner) {
        if constexpr (IS_SPLIT) {
            if (has_residual(p) && me.leads) {
                if (p.first == WAITS) ptx::dependency_wait();
                load_residual_units(p, at, me, corner);
            }
        } else if constexpr (!LEAVES_SUMS) {
            chunks.begin(p, at, me, corner);
        }
        if constexpr (!LEAVES_SUMS) {
            const int first = corner.n0 + me.warp % 4 * 16;
            any_active = first + 15 >= p.activation_from;
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int n = first + me.lane / 4 + i * 8;
                active[i] = n >= p.activation_from;
                bias[i] = p.bias != nullptr && n < p.n ? static_cast<float>(static_cast<const S*>(p.bias)[n]) : 0.f;
            }
        }
    }

    __device__ __forceinline__ void end(const GemmParams& p, const typename Tile::Place& at, const Consumer& me,
                                        typename Tile::Corner corner, float (&d)[Tile::WIDTH / 2]) {
        if constexpr (LEAVES_SUMS) {
            store_sums<Tile>(p, me, corner, d);
        } else if constexpr (IS_SPLIT) {
            switch (p.log2_split) {
                case 1: add_parts<2>(p, at, me, corner, d); break;
                case 2: add_parts<4>(p, at, me, corner, d); break;
                default: add_parts<8>(p, at, me, corner, d);
            }
        } else {
            finish(p, at, me, corner, d);
        }
    }

    __device__ __forceinline__ void finish(const GemmParams& p, const typename Tile::Place& at, const Consumer& me,
                                           typename Tile::Corner corner, float (&d)[Tile::WIDTH / 2]) {
        constexpr int CHUNK = Tile::CHUNK, UNITS = CHUNK / 8;
#pragma unroll
        for (int chunk = 0; chunk < Chunks<Tile>::COUNT; ++chunk) {
            const uint32_t buffer = Chunks<Tile>::buffer(me, chunk);
            float(&x)[CHUNK / 2] = reinterpret_cast<float(&)[CHUNK / 2]>(d[chunk * CHUNK / 2]);
            bias_and_activation(p, x);
            chunks.open(p, at, me, chunk);
            if (has_residual(p)) {
#pragma unroll
                for (int j = 0; j < UNITS; ++j) put_unit(p, me, reinterpret_cast<float(&)[4]>(x[j * 4]), buffer, j);
            } else {
#pragma unroll
                for (int j = 0; j + 1 < UNITS; j += 2) {
                    const uint32_t packed[4] = {T::pack(x[j * 4], x[j * 4 + 1]), T::pack(x[j * 4 + 2], x[j * 4 + 3]),
                                                T::pack(x[j * 4 + 4], x[j * 4 + 5]), T::pack(x[j * 4 + 6], x[j * 4 + 7])};
                    ptx::store_matrix_x4_transposed(vector_at(me, buffer, j + me.lane / 16), packed);
                }
                if constexpr (UNITS % 2 == 1)
                    put_unit(p, me, reinterpret_cast<float(&)[4]>(x[CHUNK / 2 - 4]), buffer, UNITS - 1);
            }
            chunks.close(p, at, me, corner, chunk);
        }
    }

    // x[i] belongs to the thread's first column where i % 4 < 2.
    template <int N>
    __device__ __forceinline__ void bias_and_activation(const GemmParams& p, float (&x)[N]) const {
#pragma unroll
        for (int i = 0; i < N; ++i) x[i] += bias[i / 2 % 2];
        if (ACTIVATES && any_active) activate(x, activation_of(p), [&](int i) { return active[i / 2 % 2]; });
    }

    // Where a lane's row of a unit goes for stmatrix: a token, and 8 of the warp's 16 columns.
    static __device__ __forceinline__ uint32_t vector_at(const Consumer& me, uint32_t buffer, int unit) {
        const int vector = me.warp % 4 * 2 + me.lane / 8 % 2;
        return buffer + (unit * 8 + me.lane % 8) * Tile::ROW_BYTES + ((vector ^ (me.lane % 8)) << 4);
    }

    // Eight tokens to their place in a buffer, on top of the residual that is there.
    static __device__ __forceinline__ void put_unit(const GemmParams& p, const Consumer& me, const float (&x)[4], uint32_t buffer,
                                                    int unit) {
        const uint32_t address = vector_at(me, buffer, unit);
        float y[4] = {x[0], x[1], x[2], x[3]};
        if (has_residual(p)) {
            uint32_t r[2];
            ptx::load_matrix_x2_transposed(r, address);
            const float2 low = T::unpack(r[0]), high = T::unpack(r[1]);
            y[0] += low.x, y[1] += low.y, y[2] += high.x, y[3] += high.y;
        }
        const uint32_t packed[2] = {T::pack(y[0], y[1]), T::pack(y[2], y[3])};
        ptx::store_matrix_x2_transposed(address, packed);
    }

    // ---- split: a tile's sums meet in the blocks that finish them, eight tokens at a time ----

    static __device__ __forceinline__ void load_residual_units(const GemmParams& p, const typename Tile::Place& at,
                                                               const Consumer& me, typename Tile::Corner corner) {
        const auto units = Tile::own_units(p, at);
        const uint32_t barrier = at.residual + me.group * 16;
        ptx::barrier_expect(barrier, (units.end - units.first) * Tile::UNIT_BYTES);
        for (int unit = units.first; unit < units.end; ++unit)
            ptx::tensor_load(me.output + (unit - units.first) * Tile::UNIT_BYTES, &p.r, corner.n0, corner.m0 + unit * 8, barrier);
    }

    template <int SPLIT>
    __device__ __forceinline__ void add_parts(const GemmParams& p, const typename Tile::Place& at, const Consumer& me,
                                              typename Tile::Corner corner, const float (&d)[Tile::WIDTH / 2]) const {
        constexpr int UNITS = Tile::UNITS, MOST = (UNITS + SPLIT - 1) / SPLIT;  // units that a block finishes
        // Sums of `from`, the unit-th of those that the block at `sums` finishes: a warp's 512 bytes in a row.
        auto part_at = [&](uint32_t sums, int from, int unit) {
            return sums + ((from * MOST + unit) * Tile::CONSUMERS * 4 + me.warp) * (Tile::PART_BYTES / 4) + me.lane * 16;
        };
        uint32_t sums[SPLIT], full[SPLIT];
#pragma unroll
        for (int to = 0; to < SPLIT; ++to) {
            sums[to] = ptx::cluster_address(at.sums, to);
            full[to] = ptx::cluster_address(at.sums_full, to);
        }
#pragma unroll
        for (int unit = 0; unit < UNITS; ++unit) {
            const int to = ((unit + 1) * SPLIT - 1) / UNITS;  // the block in whose own_units it is
            ptx::cluster_store_async(part_at(sums[to], at.rank, unit - to * UNITS / SPLIT), d[unit * 4], d[unit * 4 + 1],
                                     d[unit * 4 + 2], d[unit * 4 + 3], full[to]);
        }

        const auto units = Tile::own_units(p, at);
        if (has_residual(p)) ptx::barrier_wait(at.residual + me.group * 16, 0);
        ptx::barrier_wait(at.sums_full, 0);
        for (int unit = 0; unit < units.end - units.first; ++unit) {
            float4 parts[SPLIT];
#pragma unroll
            for (int i = 0; i < SPLIT; ++i) parts[i] = ptx::shared_load(part_at(at.sums, i, unit));
            float x[4] = {parts[0].x, parts[0].y, parts[0].z, parts[0].w};
#pragma unroll
            for (int i = 1; i < SPLIT; ++i) x[0] += parts[i].x, x[1] += parts[i].y, x[2] += parts[i].z, x[3] += parts[i].w;
            bias_and_activation(p, x);
            put_unit(p, me, x, me.output, unit);
        }
        if (is_rotated(p, corner.n0)) {
            me.meet();
            BoxRotation<Tile>{p.rotation, me.output, corner.n0, corner.m0 + units.first * 8, (units.end - units.first) * 8}.run(p);
        }
        ptx::async_proxy_fence();
        me.meet();
        if (me.leads) {
            for (int unit = units.first; unit < units.end; ++unit)
                ptx::tensor_store(&p.c[corner.beside], corner.n0, corner.m0 + unit * 8, me.output + (unit - units.first) * Tile::UNIT_BYTES);
            ptx::bulk_commit();
        }
    }
};
