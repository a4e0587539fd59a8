// GEMM for Hopper: C[M,N] = epilogue(A[M,K] · W[N,K]ᵀ), all row-major (W as PyTorch stores a Linear), fp32 accumulation.
//
//   C = act(A·Wᵀ + b) + R      act on the columns from a given one on, or on none; b, R optional
//   C = A₁·W₁ᵀ + A₂·W₂ᵀ …      K as the concatenation of two pairs of operands from anywhere, e.g. [ctx|h]·[Wo|W2]ᵀ
//
// N, both Ks and the leading dimensions are multiples of 8, pointers 16-byte aligned (TMA's rules); M is free.
//
// Idea: operands are swapped. wgmma's 64 rows are rows of W and its free width are the tokens, so that few tokens waste
// nothing, and any number of them has a tile that fits. One producer thread keeps a ring of stages, 64 elements along K
// each, filled by TMA; each consumer warpgroup multiplies its 64 rows of W by all tokens of the tile. Accumulators are then
// transposed by stmatrix on their way to shared memory, and TMA stores them. Blocks are persistent: while consumers finish a
// tile, the ring fills for the next one.
//
// A cluster does one of two things, as the host sees fit:
//   share  cluster_n × cluster_m blocks work on neighbouring tiles; each loads a slice of what they have in common and
//          multicasts it, so that L2 delivers less.
//   split  its blocks share K of one tile. Each finishes a part of the tokens, to which the others send their sums through
//          distributed shared memory; they are added in a fixed order: no workspace, no second kernel, and results repeat
//          bitwise.
//
// Programmatic dependent launch: weights and bias are read before the wait for the kernels before this one, the rest after.
#include "activation.cuh"
#include "element.cuh"
#include "tiles.cuh"

using ptx::TensorMap;

// As src/gpu/gemm/sm90.rs lays it out.
struct GemmParams {
    TensorMap a[2], w[2];  // boxes of 64 columns and the rows of a block's slice, 128-byte swizzle; [1] if steps[1] > 0
    TensorMap c, r;        // boxes of 64 columns and CHUNK rows (8 under split); r if `residual`
    const void* bias;      // [N] or null
    int m, n;
    int steps[2];              // of 64 along the K of each pair
    int activation;            // of activation.cuh
    int activation_from;       // first column that gets it; n or more: none
    int residual;              // 0 or 1
    int log2_n, log2_m;        // blocks that share operands, 2^ of each
    int log2_split;            // blocks that share K, 2^
    int stages;
    int rows, columns;  // of tiles, or of clusters' tiles where they share
    int group_m;        // rows that share their W in L2 before the raster moves on
};

template <typename T, int BM, int BN, int CHUNK>
struct Gemm {
    static constexpr int BK = GEMM_TILE_K, ROW_BYTES = BK * ELEMENT_BYTES;
    static constexpr int CONSUMERS = BN / 64;                // warpgroups
    static constexpr int THREADS = CONSUMERS * 128 + 64;     // and the producers' warps
    static constexpr int BLOCKS = CONSUMERS == 1 ? 2 : 1;    // that a multiprocessor should hold
    static constexpr int STAGE_W = BN * ROW_BYTES, STAGE = (BM + BN) * ROW_BYTES;
    static constexpr int CHUNKS = BM / CHUNK, BUFFERS = CHUNKS > 1 ? 2 : 1;  // of the output on its way out
    static constexpr int CHUNK_BYTES = CHUNK * 64 * ELEMENT_BYTES;
    static constexpr int UNITS = BM / 8;  // groups of eight tokens
    static constexpr int UNIT_BYTES = 8 * 64 * ELEMENT_BYTES;
    static constexpr int PART_BYTES = 8 * 64 * 4;  // of a unit's sums, of one warpgroup

    static_assert(ROW_BYTES == 128 && CHUNK % 8 == 0, "swizzle atoms are eight rows of 128 bytes");
    static_assert(BM % CHUNK == 0 && BM % 16 == 0 && BM <= 256 && CHUNK <= 256, "wgmma's widths, TMA's boxes");
    static_assert(UNITS / 2 * UNIT_BYTES <= BUFFERS * CHUNK_BYTES, "a split tile's part must fit the output buffers");

    using S = typename T::Storage;

    // Descriptor of a K-major operand in shared memory with 128-byte swizzle: rows of 128 bytes, atoms of eight rows.
    static __device__ __forceinline__ uint64_t descriptor(uint32_t address) {
        constexpr uint64_t SWIZZLE_128 = 1ull << 62, STRIDE = (1024ull >> 4) << 32, LEADING = 1ull << 16;
        return SWIZZLE_128 | STRIDE | LEADING | ((address & 0x3ffff) >> 4);
    }

    // A position in the ring of stages; barriers of a round complete with alternating parity.
    struct Ring {
        int stage = 0;
        uint32_t parity = 0;
        __device__ __forceinline__ void advance(int stages) {
            if (++stage == stages) {
                stage = 0;
                parity ^= 1;
            }
        }
    };

    struct Place {
        uint32_t stages, output, sums, full, empty, residual, sums_full;  // shared memory
        int rank;                                        // in the cluster
        int rank_n, rank_m;                              // share: which of the neighbouring tiles
        int first_step, end_step;                        // split: which part of K
    };

    struct Tile {
        int m0, n0;
    };

    // Raster: column by column inside a group of rows, so that a wave shares A and W in L2. Divisions are slow, and the first
    // load waits for them: one row, which few tokens are, has none.
    static __device__ __forceinline__ bool tile_at(const GemmParams& p, const Place& at, int index, Tile& tile) {
        if (index >= p.rows * p.columns) return false;
        int row = 0, column = index;
        if (p.rows > 1) {
            const int group_tiles = p.group_m * p.columns;
            const int group = p.rows > p.group_m ? index / group_tiles : 0;
            const int first = group * p.group_m;
            const int rows_in_group = min(p.group_m, p.rows - first);
            const int in_group = index - group * group_tiles;
            column = in_group / rows_in_group;
            row = first + in_group - column * rows_in_group;
        }
        tile.m0 = ((row << p.log2_m) + at.rank_m) * BM;
        tile.n0 = ((column << p.log2_n) + at.rank_n) * BN;
        return true;
    }

    static __device__ __forceinline__ void run(const GemmParams& p) {
        extern __shared__ __align__(1024) unsigned char shared[];
        const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
        const int log2_cluster = p.log2_n + p.log2_m + p.log2_split;
        const bool split = p.log2_split > 0;

        Place at;
        at.stages = ptx::shared_address(shared);
        at.output = at.stages + p.stages * STAGE;
        at.full = at.output + CONSUMERS * BUFFERS * CHUNK_BYTES;
        at.empty = at.full + GEMM_MAX_STAGES * 8;
        at.residual = at.empty + GEMM_MAX_STAGES * 8;
        at.sums_full = at.residual + CONSUMERS * 2 * 8;
        at.sums = at.sums_full + 16;
        at.rank = log2_cluster > 0 ? ptx::cluster_rank() : 0;
        at.rank_n = split ? 0 : at.rank & ((1 << p.log2_n) - 1);
        at.rank_m = split ? 0 : at.rank >> p.log2_n;
        const int steps = p.steps[0] + p.steps[1], part = split ? at.rank : 0;
        at.first_step = part * steps >> p.log2_split;
        at.end_step = (part + 1) * steps >> p.log2_split;

        if (threadIdx.x == CONSUMERS * 128) {
            const int sharers = (1 << p.log2_n) + (1 << p.log2_m) - 1;
            for (int s = 0; s < p.stages; ++s) {
                ptx::barrier_init(at.full + s * 8, 2);  // both producers
                ptx::barrier_init(at.empty + s * 8, CONSUMERS * 4 * sharers);
            }
            for (int i = 0; i < CONSUMERS * 2; ++i) ptx::barrier_init(at.residual + i * 8, 1);
            ptx::barrier_init(at.sums_full, 1);
            ptx::barrier_init_fence();
            if (split) {
                const Units units = own_units(p, at);
                ptx::barrier_expect(at.sums_full, (units.end - units.first) * CONSUMERS * PART_BYTES << p.log2_split);
            }
        } else if (threadIdx.x == CONSUMERS * 128 + 32) {
            ptx::tensor_map_prefetch(&p.w[0]);
            ptx::tensor_map_prefetch(&p.a[0]);
            ptx::tensor_map_prefetch(&p.c);
        }
        if (log2_cluster > 0) {
            ptx::cluster_arrive_relaxed();
            ptx::cluster_wait();
        } else {
            __syncthreads();
        }

        if (warp >= CONSUMERS * 4) {
            if (warp == CONSUMERS * 4) {
                if (ptx::elect_one()) produce<true>(p, at, log2_cluster);
            } else {
                if (ptx::elect_one()) produce<false>(p, at, log2_cluster);
            }
            __syncwarp();
        } else {
            consume(p, at, log2_cluster, warp);
        }
        if (log2_cluster > 0 && !split) {
            // Nobody leaves while others still arrive at its barriers. Under split each has waited for all that comes.
            ptx::cluster_arrive_relaxed();
            ptx::cluster_wait();
        }
    }

    // One thread keeps the ring full of W, another of A, tile after tile. Weights do not wait for the kernels before. Every
    // block loads a slice of what it shares, for all who share it. A step has few instructions: they are what limits
    // narrow tiles.
    template <bool IS_W>
    static __device__ __forceinline__ void produce(const GemmParams& p, const Place& at, int log2_cluster) {
        constexpr uint32_t BYTES = (IS_W ? BN : BM) * ROW_BYTES;
        const TensorMap* maps = IS_W ? p.w : p.a;
        const int slice = IS_W ? at.rank_m * (BN >> p.log2_m) : at.rank_n * (BM >> p.log2_n);
        const uint32_t to = at.stages + (IS_W ? 0 : STAGE_W) + slice * ROW_BYTES;
        const bool alone = (IS_W ? p.log2_m : p.log2_n) == 0;
        uint32_t blocks = 0;
        if (IS_W) {
            for (int i = 0; i < 1 << p.log2_m; ++i) blocks |= 1u << ((i << p.log2_n) + at.rank_n);
        } else {
            blocks = ((1u << (1 << p.log2_n)) - 1) << (at.rank_m << p.log2_n);
        }
        if (!IS_W) ptx::dependency_wait();

        Ring ring;
        Tile tile;
        for (int index = blockIdx.x >> log2_cluster; tile_at(p, at, index, tile); index += gridDim.x >> log2_cluster) {
            const int row = (IS_W ? tile.n0 : tile.m0) + slice;
            for (int pair = 0; pair < 2; ++pair) {
                const TensorMap* map = maps + pair;
                const int before = pair * p.steps[0];
                const int end = min(at.end_step - before, p.steps[pair]) * BK;
                for (int column = max(at.first_step - before, 0) * BK; column < end; column += BK) {
                    const uint32_t full = at.full + ring.stage * 8, stage = to + ring.stage * STAGE;
                    ptx::barrier_wait(at.empty + ring.stage * 8, ring.parity ^ 1);
                    ptx::barrier_expect(full, BYTES);
                    if (alone) {
                        ptx::tensor_load(stage, map, column, row, full);
                    } else {
                        ptx::tensor_load_multicast(stage, map, column, row, full, blocks);
                    }
                    ring.advance(p.stages);
                }
            }
        }
        if (IS_W) ptx::dependents_launch();
    }

    // What the epilogue knows of a thread's two rows of W, which are columns of C.
    struct Columns {
        float bias[2];
        bool active[2];
        bool any_active;  // in the warp
    };

    static __device__ __forceinline__ void consume(const GemmParams& p, const Place& at, int log2_cluster, int warp) {
        const int group = warp / 4, lane = threadIdx.x % 32;
        const bool leads = threadIdx.x % 128 == 0;  // its warpgroup's stores and residual loads
        const uint32_t output = at.output + group * BUFFERS * CHUNK_BYTES;
        float d[BM / 2];
        Ring ring;
        uint32_t residual_parity = 0;
        Tile tile;
        for (int index = blockIdx.x >> log2_cluster; tile_at(p, at, index, tile); index += gridDim.x >> log2_cluster) {
            const int n0 = tile.n0 + group * 64;
            if (p.residual && leads) {
                ptx::dependency_wait();
                ptx::bulk_wait_read<0>();
                if (p.log2_split > 0) {
                    load_residual_units(p, at, tile.m0, n0, group, output);
                } else {
                    for (int c = 0; c < BUFFERS; ++c) load_residual(p, at, tile.m0, n0, group, c, output);
                }
            }
            Columns columns;
            columns.any_active = n0 + warp % 4 * 16 + 15 >= p.activation_from;
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int n = n0 + warp % 4 * 16 + lane / 4 + i * 8;
                columns.active[i] = n >= p.activation_from;
                columns.bias[i] = p.bias != nullptr && n < p.n ? static_cast<float>(static_cast<const S*>(p.bias)[n]) : 0.f;
            }

            multiply(p, at, log2_cluster, group, lane, d, ring);

            if (p.log2_split > 0) {
                switch (p.log2_split) {
                    case 1: add_parts<2>(p, at, tile.m0, n0, group, warp, lane, leads, output, columns, d); break;
                    case 2: add_parts<4>(p, at, tile.m0, n0, group, warp, lane, leads, output, columns, d); break;
                    default: add_parts<8>(p, at, tile.m0, n0, group, warp, lane, leads, output, columns, d);
                }
            } else {
                finish(p, at, tile.m0, n0, group, warp, lane, leads, output, columns, d, residual_parity);
            }
        }
        if (leads) ptx::bulk_wait_read<0>();
    }

    static __device__ __forceinline__ void multiply(const GemmParams& p, const Place& at, int log2_cluster, int group,
                                                    int lane, float (&d)[BM / 2], Ring& ring) {
        // Each warp tells every block that loads into this one's stages; the lane's number is the block's.
        const bool shares = (lane & ((1 << p.log2_n) - 1)) == at.rank_n || lane >> p.log2_n == at.rank_m;
        const bool tells = p.log2_split > 0 ? lane == 0 : lane < 1 << log2_cluster && shares;
        const bool elsewhere = log2_cluster > 0 && p.log2_split == 0 && tells;
        const uint32_t empty = elsewhere ? ptx::cluster_address(at.empty, lane) : at.empty;
        int previous = -1;
        ptx::accumulator_fence(d);
        for (int step = at.first_step; step < at.end_step; ++step) {
            ptx::barrier_wait(at.full + ring.stage * 8, ring.parity);
            const uint32_t stage = at.stages + ring.stage * STAGE;
            const uint64_t w = descriptor(stage + group * 64 * ROW_BYTES), a = descriptor(stage + STAGE_W);
            ptx::warpgroup_fence();
#pragma unroll
            for (int k = 0; k < BK / 16; ++k)  // 16 elements are 32 bytes, in units of 16
                T::template warpgroup_product<BM>(d, w + k * 2, a + k * 2, k > 0 || step > at.first_step);
            ptx::warpgroup_commit();
            ptx::warpgroup_wait<1>();  // the stage before has been read
            if (previous >= 0 && tells) ptx::barrier_arrive_cluster(empty + previous * 8);
            previous = ring.stage;
            ring.advance(p.stages);
        }
        ptx::warpgroup_wait<0>();
        ptx::accumulator_fence(d);
        if (tells) ptx::barrier_arrive_cluster(empty + previous * 8);
    }

    static __device__ __forceinline__ void load_residual(const GemmParams& p, const Place& at, int m0, int n0, int group,
                                                         int chunk, uint32_t output) {
        const uint32_t barrier = at.residual + (group * 2 + chunk % BUFFERS) * 8;
        ptx::barrier_expect(barrier, CHUNK_BYTES);
        ptx::tensor_load(output + chunk % BUFFERS * CHUNK_BYTES, &p.r, n0, m0 + chunk * CHUNK, barrier);
    }

    // Address of a 16-byte vector of an output buffer: `row` is a token, `vector` the columns 8·vector and on.
    static __device__ __forceinline__ uint32_t vector_at(uint32_t buffer, int row, int vector) {
        return buffer + row * ROW_BYTES + ((vector ^ (row % 8)) << 4);
    }

    // Bias and activation of accumulators; x[i] belongs to the thread's first row of W where i % 4 < 2.
    template <int N>
    static __device__ __forceinline__ void bias_and_activation(const GemmParams& p, const Columns& columns, float (&x)[N]) {
#pragma unroll
        for (int i = 0; i < N; ++i) x[i] += columns.bias[i / 2 % 2];
        if (columns.any_active) activate(x, p.activation, [&](int i) { return columns.active[i / 2 % 2]; });
    }

    // Eight tokens from accumulators to the output buffer, row 0 of which is `buffer`, on top of the residual that is there.
    static __device__ __forceinline__ void put_unit(const GemmParams& p, const float (&x)[4], uint32_t buffer, int unit, int warp,
                                                    int lane) {
        // Matrices: columns 0–7 and 8–15 of the warp's 16.
        const uint32_t address = vector_at(buffer, unit * 8 + lane % 8, warp % 4 * 2 + lane / 8 % 2);
        float y[4] = {x[0], x[1], x[2], x[3]};
        if (p.residual) {
            uint32_t r[2];
            ptx::load_matrix_x2_transposed(r, address);
            const float2 low = T::unpack(r[0]), high = T::unpack(r[1]);
            y[0] += low.x, y[1] += low.y, y[2] += high.x, y[3] += high.y;
        }
        const uint32_t packed[2] = {T::pack(y[0], y[1]), T::pack(y[2], y[3])};
        ptx::store_matrix_x2_transposed(address, packed);
    }

    static __device__ __forceinline__ void finish(const GemmParams& p, const Place& at, int m0, int n0, int group, int warp,
                                                  int lane, bool leads, uint32_t output, const Columns& columns,
                                                  float (&d)[BM / 2], uint32_t& residual_parity) {
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; ++chunk) {
            const uint32_t buffer = output + chunk % BUFFERS * CHUNK_BYTES;
            float(&x)[CHUNK / 2] = reinterpret_cast<float(&)[CHUNK / 2]>(d[chunk * CHUNK / 2]);
            bias_and_activation(p, columns, x);
            if (p.residual) {
                if (chunk > 0 && chunk + 1 >= BUFFERS && chunk + 1 < CHUNKS && leads) {
                    ptx::bulk_wait_read<0>();  // the next chunk's buffer has been stored
                    load_residual(p, at, m0, n0, group, chunk + 1, output);
                }
                ptx::barrier_wait(at.residual + (group * 2 + chunk % BUFFERS) * 8,
                                  residual_parity >> (chunk % BUFFERS) & 1);
                residual_parity ^= 1u << (chunk % BUFFERS);
            } else {
                if (leads) ptx::bulk_wait_read<BUFFERS - 1>();
                ptx::named_barrier(1 + group, 128);  // this buffer has been stored
            }
            if (p.residual) {
#pragma unroll
                for (int j = 0; j < CHUNK / 8; ++j)
                    put_unit(p, reinterpret_cast<float(&)[4]>(x[j * 4]), buffer, j, warp, lane);
            } else {
#pragma unroll
                for (int j = 0; j + 1 < CHUNK / 8; j += 2) {
                    const uint32_t packed[4] = {T::pack(x[j * 4], x[j * 4 + 1]), T::pack(x[j * 4 + 2], x[j * 4 + 3]),
                                                T::pack(x[j * 4 + 4], x[j * 4 + 5]), T::pack(x[j * 4 + 6], x[j * 4 + 7])};
                    ptx::store_matrix_x4_transposed(
                        vector_at(buffer, (j + lane / 16) * 8 + lane % 8, warp % 4 * 2 + lane / 8 % 2), packed);
                }
                if constexpr (CHUNK / 8 % 2 == 1)
                    put_unit(p, reinterpret_cast<float(&)[4]>(x[CHUNK / 2 - 4]), buffer, CHUNK / 8 - 1, warp, lane);
            }
            ptx::async_proxy_fence();
            ptx::named_barrier(1 + group, 128);
            if (leads) {
                ptx::tensor_store(&p.c, n0, m0 + chunk * CHUNK, buffer);
                ptx::bulk_commit();
            }
        }
    }

    // ---- split ----

    struct Units {
        int first, end;
    };

    // The units that this block finishes.
    static __device__ __forceinline__ Units own_units(const GemmParams& p, const Place& at) {
        return {at.rank * UNITS >> p.log2_split, (at.rank + 1) * UNITS >> p.log2_split};
    }

    static __device__ __forceinline__ void load_residual_units(const GemmParams& p, const Place& at, int m0, int n0, int group,
                                                               uint32_t output) {
        const Units units = own_units(p, at);
        const uint32_t barrier = at.residual + group * 16;
        ptx::barrier_expect(barrier, (units.end - units.first) * UNIT_BYTES);
        for (int unit = units.first; unit < units.end; ++unit)
            ptx::tensor_load(output + (unit - units.first) * UNIT_BYTES, &p.r, n0, m0 + unit * 8, barrier);
    }

    template <int SPLIT>
    static __device__ __forceinline__ void add_parts(const GemmParams& p, const Place& at, int m0, int n0, int group, int warp,
                                                     int lane, bool leads, uint32_t output, const Columns& columns,
                                                     const float (&d)[BM / 2]) {
        constexpr int MOST = (UNITS + SPLIT - 1) / SPLIT;  // units that a block finishes
        // Sums of `from`, the unit-th of those that the block at `sums` finishes: a warp's 512 bytes in a row.
        auto part_at = [&](uint32_t sums, int from, int unit) {
            return sums + ((from * MOST + unit) * CONSUMERS * 4 + warp) * (PART_BYTES / 4) + lane * 16;
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

        const Units units = own_units(p, at);
        if (p.residual) ptx::barrier_wait(at.residual + group * 16, 0);
        ptx::barrier_wait(at.sums_full, 0);
        for (int unit = 0; unit < units.end - units.first; ++unit) {
            float4 parts[SPLIT];
#pragma unroll
            for (int i = 0; i < SPLIT; ++i) parts[i] = ptx::shared_load(part_at(at.sums, i, unit));
            float x[4] = {parts[0].x, parts[0].y, parts[0].z, parts[0].w};
#pragma unroll
            for (int i = 1; i < SPLIT; ++i) x[0] += parts[i].x, x[1] += parts[i].y, x[2] += parts[i].z, x[3] += parts[i].w;
            bias_and_activation(p, columns, x);
            put_unit(p, x, output, unit, warp, lane);
        }
        ptx::async_proxy_fence();
        ptx::named_barrier(1 + group, 128);
        if (leads) {
            for (int unit = units.first; unit < units.end; ++unit)
                ptx::tensor_store(&p.c, n0, m0 + unit * 8, output + (unit - units.first) * UNIT_BYTES);
            ptx::bulk_commit();
        }
    }
};

#define GEMM_KERNEL(NAME, ...)                                                                         \
    extern "C" __global__ void __launch_bounds__(Gemm<PAF_ELEMENT, __VA_ARGS__>::THREADS,              \
                                                 Gemm<PAF_ELEMENT, __VA_ARGS__>::BLOCKS)               \
        gemm_##NAME(const __grid_constant__ GemmParams p) {                                            \
        Gemm<PAF_ELEMENT, __VA_ARGS__>::run(p);                                                        \
    }

GEMM_SM90_TILES(GEMM_KERNEL)
