// GEMM for Hopper: C[M,N] = epilogue(A[M,K] · W[N,K]ᵀ), all row-major (W as PyTorch stores a Linear), fp32 accumulation.
//
//   C = act(A·Wᵀ + b) + R      act on the columns from a given one on, or on none; b, R optional
//   C = A₁·W₁ᵀ + A₂·W₂ᵀ …      K as the concatenation of two pairs of operands from anywhere, e.g. [ctx|h]·[Wo|W2]ᵀ
//   C = [A₁·W₁ᵀ | A₂·W₂ᵀ] …    another A from a given column on, where tiles begin anew: products side by side
//
// N, both Ks and the leading dimensions are multiples of 8, pointers 16-byte aligned (TMA's rules); M is free.
//
// Idea: one thread keeps a ring of stages, one or two panels of 64 elements along K each, full of W by TMA, another one of A; each
// consumer warpgroup multiplies 64 rows of one operand by all of the other. Which has the 64 rows is the tile's choice: W mostly, since
// then the tokens are wgmma's free width and few of them waste nothing; A where a width of N divides it into whole rounds.
// Accumulators go to shared memory by stmatrix (gemm_sm90_finish.cuh), from where TMA stores them. Blocks are persistent:
// while consumers finish a tile, the ring fills for the next one.
//
// By halves (128x128h) a block takes what one of attention by halves leaves of a multiprocessor, 96 registers a thread and five stages: in
// `fused` the second product's sum over the FFN's K, or its parts of K, pass under attention so, in the same multiprocessors. Alone it is as fast as 128x128
// with six stages (RoBERTa-large fused at 4 × 512 on an H100, attention not by halves: 103.5 and 103.9 µs a layer).
//
// Two consumers share each tile, or take turns with whole tiles: then one finishes its tile while the other's products keep
// the tensor cores busy, which is worth a tenth at K = 1024 (16384 × 4096: 195 → 183 µs).
//
// A cluster does one of two things, as the host sees fit:
//   share  cluster_n × cluster_m blocks work on neighbouring tiles; each loads a slice of what they have in common and
//          multicasts it, so that L2 delivers less.
//   split  its blocks share K of one tile. Each finishes a part of the tokens, to which the others send their sums through
//          distributed shared memory; they are added in a fixed order: no workspace, no second kernel, and results repeat
//          bitwise.
// Or parts of K are tiles of their own, which leave their sums, in fp32, to the kernel that joins the branches: where that follows
// anyway, it reads them faster than blocks meet, and there may be any number of them.
//
// Programmatic dependent launch: weights and bias are read before the wait for the kernels before this one, the rest after;
// of two pairs, A of the first too if the host knows that it is complete, or else as soon as a count says so. Tiles of the first
// columns, and the end of all, can be counted as they reach memory (counters.cuh), for a kernel that needs no others, or nothing else.
//
// It is compiled once for each way in which products end (`Ends` in gemm_sm90_tile.cuh), and what is not unrolled for speed is not
// unrolled at all: few tokens' blocks run all but the ring's loop once, and wait for instructions more than for anything else. One
// kernel that could end in every way had 90 KB of them for 128×128; apart they have 17 to 41. On an H100, schedules as estimated, ms,
// one kernel → one for each end → loops rolled, too: RoBERTa-large 1 × 128 SAF 0.755 → 0.690 → 0.679, fused PAF 0.505 → 0.484 → 0.479;
// 1 × 512 SAF 1.207 → 1.115 → 1.106, PAF 0.957 → 0.856 → 0.835; pythia-1.4b 1 × 128 SAF 1.530 → 1.380 → 1.371, PAF 1.301 → 1.269 → 1.264.
//
// Where products of a step take the tensor cores less time than what is around them takes the warps, it is those instructions that count:
// two panels a stage for the tiles of at most 64 rows, and descriptors from an address that the compiler cannot compute anew in each step
// (the chain before a step's first product was eight uniform instructions long, now three). On an H100, µs, before → after the second →
// after both: 64×64 at 128×3072×1024 6.1 → 6.0 → 5.6, 128×1024×4096 10.7 → 10.3 → 9.4, 512×1024×5120 16.2 → 16.4 → 14.4; 32×64 at
// 32×7168×1024 8.3 → 8.1, 128×1024×4096 10.2 → 8.8; 16×64 at 16×4096×1024 6.4 → 6.0. Both panels in one box of three dimensions: slower
// where K is long (128×1024×4096 10.0, 128×2048×10240 24.4 instead of 23.6). Two panels for 128×64, whose products take twice as long:
// 128×7168×1024 8.8 → 8.7, with a split in four 8.5 → 8.9.
//
// What stands between the end of the kernel before and the first load of A counts whole, in each kernel of a layer of few tokens: what
// that load needs is computed before the wait, the loop follows on it without a jump, the raster divides by multiplying, and a count is
// looked at by a consumer, not by who loads. On an H100, µs a layer, before → after: RoBERTa-large 1 × 128 SAF 27.1 → 26.2, two streams
// 24.6 → 24.0. With the look at a count between that wait and the loads, though not taken: SAF 28.4.
//
// What loads alone take, without products (a ring of the same boxes on an H100, µs a launch, one after the other by programmatic
// dependent launch; here the products that overlap so): 128×28672×4096 78.6 (86.7), 128×4096×20480 59 (65), 128×14336×2048 21.4 (26.1),
// 128×2048×10240 16.1 (22.9), 128×7168×1024 6.0 (7.4). Sharing A in clusters of two or four does not make loads faster (128×7168×1024
// 6.7 → 7.2, 7.3), 128 columns a tile a little (6.2): device memory sets the pace, and each launch begins and ends without it.
//
// Tried on an H200, and what came of it:
//   Barriers of cluster scope with release or acquire: a fence of the whole device each step, half the speed. Relaxed ones do.
//   One producer thread for both operands: 128×3072×1024 took 6.3 µs, not 5.4. Each step's instructions are what limits narrow
//     tiles: a barrier for each operand, or a loop that the compiler cannot keep in uniform registers (no elect.sync), cost a
//     quarter.
//   Sums of a split by cluster barriers and loads from the other blocks: 2 to 4 µs more than st.async into place.
//   L2 eviction hints (first, last, normal): nothing, or up to 1.5× slower. Promotion to 128 or 256 bytes: no difference.
//   Telling the loaders already while the next stage is not there yet that this one has been read, on an H100: 64×64 at 128×1024×4096
//     10.7 → 13.5 µs, RoBERTa-large 1 × 128 SAF 0.337 → 0.361 ms for twelve layers, fused PAF 0.245 → 0.254; 4 × 512 as before.
//   The first loads before the block has met: no difference. Pausing between the first stages: 3 % where they are large.
//   The second consumer a few steps behind the first, so that one finishes under the other's products: nothing, since the ring
//     is too short to hold that lead. Two blocks of 128×128 on a multiprocessor: slower than taking turns.
//   Clusters of 4 × 2 and 4: fewer of them find a place at once than multiprocessors / size; they lose more than they save.
//   One warpgroup with all of 128×128, whose block has the registers to run beside attention's with three stages in half the memory:
//     fused second product at 1 × 512 0.919 ms a stack, 128×64 in two parts with four stages 0.895. With six stages it is as fast as
//     two warpgroups are.
//   A branch for each element around GELU: half as much again; a selection costs a twelfth of GELU's instructions.
//   Runtime divisions before the first load: 0.6 µs.
//   What the next product reads first of its weights brought into L2 once this one has asked for all of its own, by bulk prefetches:
//     RoBERTa-large 1 × 128 0.414 → 0.421 ms with 4 MB, 0.488 with 16; pythia-1.4b 1 × 128 1.01 → 1.08 to 1.12; gpt-j-6b 3.57 → 3.64 to
//     3.74. By prefetches of single lines: up to twice as slow. Perhaps both hold up the block's own copies.
//   The same by the join, before it reads what the product has left, on an H100, µs a layer with none → 512 bytes → 2 KB of each of
//     16,896 rows of W: RoBERTa-large 1 × 128 17.3 → 17.9 → 19.9, pythia-1.4b fused 51.0 → 51.8 → 52.6, gpt-j-6b two-stream 161.2 →
//     162.8 → 163.9. Perhaps it delays what the join itself reads.
//   128×128 with GELU in 121 registers instead of 142, so that the next product's blocks find room beside a join of 2048 columns and
//     their first weights come under it: pythia-1.4b 1 × 128 fused 51.0 → 51.2, two-stream 50.6 → 50.8, SAF 58.7 → 59.0: perhaps the same.
//   128×128 with half of a multiprocessor's registers and memory (three stages), beside attention in tiles of 64 queries, one a
//     multiprocessor, on an H100: RoBERTa-large fused 4 × 512 104.0 → 106.8 µs a layer, 8 × 512 197 → 210. Three stages are too few for
//     what L2 takes to answer then: that product without attention beside it takes 18 µs longer than with six.
//   No pause between the first loads of tiles with two panels, on an H100: serial layers of few tokens 1 to 7 % faster, fused ones up to
//     3 % slower; only where there are more than 96 blocks: the same, half as much.
//   Counting a tile for attention after five steps of the next one, or three: at 1 × 512 attention begins 10.9 or 9.6 µs after the first
//     product.
#include "gemm_sm90_finish.cuh"

template <typename Tile>
struct Gemm {
    using T = typename Tile::Element;
    using Place = typename Tile::Place;
    using Ring = typename Tile::Ring;
    using Units = typename Tile::Units;
    static constexpr int BM = Tile::BM, BN = Tile::BN, BK = Tile::BK, ROW_BYTES = Tile::ROW_BYTES;
    static constexpr int CONSUMERS = Tile::CONSUMERS, W_WARP = Tile::W_WARP, A_WARP = Tile::A_WARP;
    static constexpr int TURN = 1 + CONSUMERS;  // named barriers: 0 the block's, then one a consumer, then one for its turn
    static constexpr int STAGE_W = Tile::STAGE_W, STAGE = Tile::STAGE;

    static __device__ __forceinline__ void run(const GemmParams& p) {
        extern __shared__ __align__(1024) unsigned char shared[];
        const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
        const int log2_cluster = p.log2_n + p.log2_m + log2_split_of(p);

        Place at;
        at.stages = ptx::shared_address(shared);
        at.output = at.stages + p.stages * STAGE;
        at.full = at.output + (LEAVES_SUMS ? 0 : CONSUMERS * Tile::BUFFERS * Tile::CHUNK_BYTES);
        at.empty = at.full + GEMM_MAX_STAGES * 8;
        at.residual = at.empty + GEMM_MAX_STAGES * 8;
        at.sums_full = at.residual + CONSUMERS * 2 * 8;
        at.begin = at.sums_full + 8;
        at.sums = at.begin + 8;
        at.rank = log2_cluster > 0 ? ptx::cluster_rank() : 0;
        at.rank_n = IS_SPLIT ? 0 : at.rank & ((1 << p.log2_n) - 1);
        at.rank_m = IS_SPLIT ? 0 : at.rank >> p.log2_n;

        if (warp == W_WARP) {
            if (ptx::elect_one()) {
                ptx::tensor_map_prefetch(&p.w[0]);
                const int sharers = (1 << p.log2_n) + (1 << p.log2_m) - 1;
#pragma unroll 1
                for (int s = 0; s < p.stages; ++s) {
                    ptx::barrier_init(at.full + s * 8, 2);  // both producers
                    ptx::barrier_init(at.empty + s * 8, Tile::READERS * sharers);
                }
                for (int i = 0; i < CONSUMERS * 2; ++i) ptx::barrier_init(at.residual + i * 8, 1);
                ptx::barrier_init(at.sums_full, 1);
                ptx::barrier_init(at.begin, 1);
                ptx::barrier_init_fence();
                if (IS_SPLIT) {
                    const auto units = Tile::own_units(p, at);
                    ptx::barrier_expect(at.sums_full, (units.end - units.first) * CONSUMERS * Tile::PART_BYTES << p.log2_split);
                }
            }
            __syncwarp();
        } else if (warp == A_WARP && ptx::elect_one()) {
            ptx::tensor_map_prefetch(&p.a[0]);
            ptx::tensor_map_prefetch(&p.c[0]);
        }
        if (log2_cluster > 0) {
            ptx::cluster_arrive_relaxed();
            ptx::cluster_wait();
        } else {
            __syncthreads();
        }

        // Who waits for tiles is not held up by others.
        if (p.ready != nullptr) ptx::dependents_launch();
        if (Tile::HALF && warp >= W_WARP) ptx::registers_decrease<Tile::PRODUCER_REGISTERS>();
        if (warp == W_WARP) {
            if (ptx::elect_one()) produce<true>(p, at, log2_cluster);
            __syncwarp();
        } else if (warp == A_WARP) {
            if (ptx::elect_one()) produce<false>(p, at, log2_cluster);
            __syncwarp();
        } else if (!Tile::HALF || warp < W_WARP) {
            if (Tile::HALF) ptx::registers_increase<Tile::REGISTERS>();
            consume(p, at, log2_cluster, warp);
        }
        if (log2_cluster > 0 && !IS_SPLIT) {
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
        constexpr uint32_t PANEL = IS_W ? Tile::PANEL_W : Tile::PANEL_A;
        // All blocks fill their rings at once. Where that is much, memory shall serve first what is needed first.
        constexpr int PAUSE = STAGE > 16 * 1024 ? 100 : 0;
        int unfilled = p.stages;
        const TensorMap* maps = IS_W ? p.w : p.a;
        const int log2_sharers = IS_W ? p.log2_m : p.log2_n;
        const int slice = IS_W ? at.rank_m * (BN >> p.log2_m) : at.rank_n * (BM >> p.log2_n);
        const uint32_t to = at.stages + (IS_W ? 0 : STAGE_W) + slice * ROW_BYTES;
        uint32_t blocks = 0;
#pragma unroll 1
        for (int i = 0; i < 1 << log2_sharers; ++i)
            blocks |= 1u << (IS_W ? at.rank_n + (i << p.log2_n) : i + (at.rank_m << p.log2_n));
        // All that the first load needs is there before the wait: in a kernel of few tokens, even a constant comes late.
        const First first = static_cast<First>(p.first);
        bool begins = !IS_W;

        Ring ring;
        typename Tile::Corner corner;
        for (int index = blockIdx.x >> log2_cluster; Tile::tile_at(p, at, index, corner); index += gridDim.x >> log2_cluster) {
            const int row = (IS_W ? corner.n0 : corner.m0) + slice;
            int column = p.first_step[0][corner.part] * BK, end = p.first_step[0][corner.part + 1] * BK;
            int second_column = p.first_step[1][corner.part] * BK, second_end = p.first_step[1][corner.part + 1] * BK;
            if (begins) {
                ptx::known(row), ptx::known(column), ptx::known(end), ptx::known(second_column), ptx::known(second_end);
                if (LEAVES_SUMS && first == COUNTED) {
                    ptx::barrier_wait(at.begin, 0);
                    ptx::async_proxy_fence_global();
                }
                // The loads follow on this without a jump: their instructions are there then, too.
                if (first == WAITS) ptx::dependency_wait();
            }
#pragma unroll 1
            for (int pair = 0; pair < 2; ++pair) {
                const TensorMap* map = maps + (!IS_W && corner.beside ? 1 : pair);
                if (begins && pair == 1) {
                    if (first != WAITS) ptx::dependency_wait();
                    begins = false;
                }
#pragma unroll 1
                for (; column < end; column += BK) {
                    const uint32_t full = at.full + ring.stage * 8, stage = to + ring.stage * STAGE;
                    ptx::barrier_wait(at.empty + ring.stage * 8, ring.parity ^ 1);
                    ptx::barrier_expect(full, Tile::PANELS * PANEL);
#pragma unroll
                    for (int panel = 0; panel < Tile::PANELS; ++panel) {
                        const uint32_t place = stage + panel * PANEL;
                        const int from = column + panel * GEMM_TILE_K;
                        if (log2_sharers == 0) {
                            ptx::tensor_load(place, map, from, row, full);
                        } else {
                            ptx::tensor_load_multicast(place, map, from, row, full, blocks);
                        }
                    }
                    ring.advance(p.stages);
                    if (PAUSE > 0 && --unfilled > 0) ptx::pause(PAUSE);
                }
                column = second_column, end = second_end;
            }
        }
        if (IS_W) ptx::dependents_launch();
    }

    static __device__ __forceinline__ void consume(const GemmParams& p, const Place& at, int log2_cluster, int warp) {
        const int group = warp / 4;
        const uint32_t output = at.output + group * Tile::BUFFERS * Tile::CHUNK_BYTES;
        const Consumer me = {group, warp, static_cast<int>(threadIdx.x % 32), threadIdx.x % 128 == 0, output};
        float d[Tile::OWN_PARTS][Tile::WIDTH / 2];
        Ring ring;
        std::conditional_t<Tile::FREE_IS_M, FinishTokens<Tile>, FinishColumns<Tile>> finish;
        typename Tile::Corner corner;
        int& edge = Tile::FREE_IS_M ? corner.n0 : corner.m0;  // of the 64 rows
        bool mine = !Tile::IN_TURN || group == 0;
        bool counts = false;  // whether the tile before is to be counted
        if (Tile::IN_TURN && group == 1) ptx::named_barrier_arrive(TURN, 256);
        // Whoever loads A has no instructions to spare for that; consumers have nothing to do yet.
        const bool looks = LEAVES_SUMS && p.first == COUNTED && threadIdx.x == 0;
        if (looks) {
            await_count(p.first_pair, p.first_count);
            ptx::barrier_arrive(at.begin);
            ptx::dependents_launch();
        }
        const int stride = gridDim.x >> log2_cluster;
        for (int index = blockIdx.x >> log2_cluster; Tile::tile_at(p, at, index, corner); index += stride) {
            if (mine) {
                const bool counted = p.ready != nullptr && corner.n0 < p.ready_columns;
                if (!Tile::IN_TURN) edge += group * 64;
                finish.begin(p, at, me, corner);
                // The parity of a stage's barrier tells two rounds apart, not three: who is not through with the tile before
                // must not be overtaken.
                if (Tile::IN_TURN) ptx::named_barrier(TURN + group, 256);
                multiply(p, at, log2_cluster, me, corner.steps(p), index + stride < p.rows * p.columns, d, ring,
                         counts);
                finish.end(p, at, me, corner, d[0]);
#pragma unroll
                for (int part = 1; part < Tile::OWN_PARTS; ++part) {
                    edge += 64;
                    finish.begin(p, at, me, corner);
                    finish.end(p, at, me, corner, d[part]);
                }
                counts = counted;
            } else {
                ring.skip(corner.steps(p), p.stages);
            }
            if (Tile::IN_TURN) mine = !mine;
        }
        count(p, me, counts);
        if (looks && p.first_is_last) count_as_seen(p.first_pair, gridDim.x);
        if (!me.leads) return;
        if (ACTIVATES && p.counts_end) {
            ptx::bulk_wait();
            ptx::count_up(p.end);
        } else {
            ptx::bulk_wait_read<0>();
        }
    }

    // Tells that the tile before is in memory, if somebody waits for it.
    static __device__ __forceinline__ void count(const GemmParams& p, const Consumer& me, bool& counts) {
        if (!LEAVES_SUMS && counts && me.leads) {
            ptx::bulk_wait();
            ptx::count_up(p.ready);
        }
        counts = false;
    }

    // Descriptor of a K-major operand in shared memory with 128-byte swizzle: rows of 128 bytes, atoms of eight rows.
    static __device__ __forceinline__ uint64_t descriptor(uint32_t address) {
        constexpr uint64_t SWIZZLE_128 = 1ull << 62, STRIDE = (1024ull >> 4) << 32, LEADING = 1ull << 16;
        return SWIZZLE_128 | STRIDE | LEADING | ((address & 0x3ffff) >> 4);
    }

    static __device__ __forceinline__ void multiply(const GemmParams& p, const Place& at, int log2_cluster, const Consumer& me,
                                                    int steps, bool others_turn,
                                                    float (&d)[Tile::OWN_PARTS][Tile::WIDTH / 2], Ring& ring, bool& counts) {
        constexpr int STORED = 2;  // steps after which the tile before is in memory, or nearly
        // A stage has been read when a warpgroup's products have finished; then a warp for each block that loads into this one's
        // stages tells that block. One lane of it: lanes with addresses of their own would take turns.
        const int block = me.warp % 4;
        const bool sharing = log2_cluster > 0 && !IS_SPLIT;
        const bool shares = (block & ((1 << p.log2_n) - 1)) == at.rank_n || block >> p.log2_n == at.rank_m;
        const bool tells = me.lane == 0 && (sharing ? block < 1 << log2_cluster && shares : block == 0);
        const uint32_t empty = sharing && tells ? ptx::cluster_address(at.empty, block) : at.empty;
        constexpr int PART = 64 * ROW_BYTES;
        constexpr int PANEL_ROWS = Tile::FREE_IS_M ? Tile::PANEL_W : Tile::PANEL_A;
        constexpr int PANEL_WIDTH = Tile::FREE_IS_M ? Tile::PANEL_A : Tile::PANEL_W;
        // Descriptors: their low halves move with the stage, without carry.
        const uint32_t stages = ptx::uniform(at.stages);
        const uint64_t rows_0 = descriptor(stages + (Tile::FREE_IS_M ? 0 : STAGE_W) +
                                           (Tile::IN_TURN ? 0 : me.group) * PART);
        const uint64_t width_0 = descriptor(stages + (Tile::FREE_IS_M ? STAGE_W : 0));
        int previous = -1;
#pragma unroll
        for (int part = 0; part < Tile::OWN_PARTS; ++part) ptx::accumulator_fence(d[part]);
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
            ptx::barrier_wait(at.full + ring.stage * 8, ring.parity);
            const uint64_t rows = rows_0 + ring.stage * (STAGE / 16), width = width_0 + ring.stage * (STAGE / 16);
            ptx::warpgroup_fence();
#pragma unroll
            for (int k = 0; k < BK / 16; ++k) {
                // 16 elements are 32 bytes, in units of 16.
                const int panel = k / (GEMM_TILE_K / 16), within = k % (GEMM_TILE_K / 16) * 2;
#pragma unroll
                for (int part = 0; part < Tile::OWN_PARTS; ++part)
                    T::template warpgroup_product<Tile::WIDTH>(d[part], rows + (panel * PANEL_ROWS + part * PART) / 16 + within,
                                                               width + panel * PANEL_WIDTH / 16 + within, k > 0 || step > 0);
            }
            ptx::warpgroup_commit();
            ptx::warpgroup_wait<1>();  // the stage before has been read
            if (previous >= 0 && tells) ptx::barrier_arrive_cluster(empty + previous * 8);
            previous = ring.stage;
            ring.advance(p.stages);
            if (step == STORED) count(p, me, counts);
        }
        count(p, me, counts);
        if (Tile::IN_TURN && others_turn) ptx::named_barrier_arrive(TURN + 1 - me.group, 256);
        ptx::warpgroup_wait<0>();
#pragma unroll
        for (int part = 0; part < Tile::OWN_PARTS; ++part) ptx::accumulator_fence(d[part]);
        if (tells) ptx::barrier_arrive_cluster(empty + previous * 8);
    }
};

// Nothing where the tile cannot end like this: the host does not load that kernel.
template <typename Tile>
__device__ __forceinline__ void run_gemm(const GemmParams& p) {
    if constexpr (Tile::EXISTS) Gemm<Tile>::run(p);
}

#define GEMM_KERNEL(NAME, M, N, FREE, WORK, PANELS, CHUNK, BUFFERS)                                             \
    using Tile_##NAME = GemmTile<PAF_ELEMENT, M, N, Free::FREE, Consumers::WORK, PANELS, CHUNK, BUFFERS>; \
    extern "C" __global__ void __launch_bounds__(Tile_##NAME::BOUND, Tile_##NAME::BLOCKS)         \
        gemm_##NAME(const __grid_constant__ GemmParams p) {                                       \
        run_gemm<Tile_##NAME>(p);                                                                 \
    }

GEMM_SM90_TILES(GEMM_KERNEL)
