// Attention for Hopper: O = softmax(Q·Kᵀ/√d [causal, lengths])·V per sequence and head, never writing the scores
// (FlashAttention-3, arXiv 2407.08608: warp specialisation, products and softmax in turn).
//
//   qkv [rows, ld]: Q at column head·d, K at k_column + (head/group)·d, V at v_column + (head/group)·d; 16-bit
//   out [rows, ld_out]: column head·d
//   log_sum_exp [heads, rows], fp32, or null: ln Σ exp(q·k/√d)
//   A sequence's rows begin at first_rows[i], or at i·seq_len where that is null. It has lengths[i] tokens, or seq_len. Keys
//   at or past the length get no weight whatever they hold; without first_rows, rows at or past it up to seq_len are written
//   as zeros.
//
// Idea: one thread keeps a ring of stages full of K and V tiles by TMA, in the order in which they are read; each consumer
// warpgroup has 64 query rows. Scores come from wgmma into registers, and go as probabilities back into wgmma from
// registers. A warpgroup's scores of the next keys are computed while its softmax of these runs, and warpgroups take turns at
// the tensor cores, so that one's softmax runs under another's products. Keys go from the last to the first: the masked
// tiles come first. Blocks are persistent: the next tile's operands arrive while this one is finished. Where the product that makes
// qkv goes on to make other columns, attention begins beside it.
//
// By halves (64 queries, 64 keys a step) a block leaves a multiprocessor room for one of a product (128x128h of gemm_sm90.cu): 96 registers a
// thread, of which warps come in fours, beside that one's 96; 49 KB. It is launched when the kernel before has ended: then blocks go one to
// each multiprocessor, where else those that are free first would get two and have no room for the product. Attention alone takes twice as
// long so, but it passes under a product that takes longer. On an H100, µs a layer of RoBERTa-large fused, without → with, at 1975 MHz:
// 16 × 128 93.1 → 86.9, 8 × 256 95.2 → 87.9, 4 × 512 97.4 → 94.0; 8 × 512 177 → 191, 1 × 2048 122 → 142, where there is more attention than
// product. With the product in two parts of K, each the best of several: 8 × 128 54.8 → 49.8, 2 × 512 57.3 → 54.9 (not in parts 60.7).
// Clocks of a card under load for long: 8 × 128 56.5 → 52.3, 16 × 64 57.0 → 52.0, 4 × 256 56.7 → 54.2, 2 × 512 59.0 → 58.0, 4 × 128 33.0 → 32.5,
// pythia-410m 8 × 128 60.7 → 55.5, 2 × 512 62.6 → 57.8; at the power limit, about 1700 MHz, 4 × 512 101.0 → 100.3; 1 × 512 31.8 → 33.8, 1 × 1024
// 59.8 → 65.7. With 96 keys a step, and four stages of the product for the memory, 4 × 512 takes 96.2, with 128 99.5. In `hybrid`, where all
// of the FFN's product may pass under it, 8 × 512 takes 183.5 (fused without 177), 1 × 2048 145. Two warpgroups would need registers that the
// product does not leave.
//
// Tried on an H200 (TFLOP/s at head_dim 64, seq 8192, where this has 480 and cuDNN 478):
//   The assembler moves the wait for P·V above the softmax. Keeping it below, so that a warpgroup's own softmax runs under its
//     own P·V: 475, and 5 % less at head_dim 128, seq 4096.
//   No turns: 456. Two warpgroups of 64 queries: 460; with 176 keys a step 472, and 10 % less at seq 512.
//   Rescaling the output only where a maximum moved: 471. Every eighth exponential as a polynomial: 448.
//   Two warpgroups that share the queries and halve the keys, for few queries: no faster (seq 512, one sequence of 16 heads: 7.1
//     and 7.2 µs), and it failed at seq 4096; probably since who does not wait for every stage can take one of two rounds ago for
//     its own: a barrier's parity tells only neighbouring rounds apart. What probably limits there is what L2 delivers: each
//     block reads all keys of its head.
//   Four warpgroups with 64 keys a step, whose registers just suffice, in turns with the others' tiles: 4 sequences of 512 tokens
//     13.8 µs, with two warpgroups 14.8, with three 17.9; 32 of them 91.5, 99.4, 94.9; seq 8192 590 ± 28, 624 ± 35, 598 ± 26.
//   For head_dim 128: 176 keys a step: 3 % slower at 2048, 3 % faster at 16384.
//   The producer's loop unrolled, as the compiler likes it: on an H100 1x16x512x64 7.19 µs instead of 7.07, longer ones the same.
#include "counters.cuh"
#include "element.cuh"
#include "tiles.cuh"

using ptx::TensorMap;

// When the next kernel may begin: when this one has asked for all that it reads, when the kernel before it has ended, when all its blocks
// have begun.
enum Next { NEAR_END, WHEN_BEFORE_ENDED, AT_ONCE };

// As src/gpu/attention/sm90.rs lays it out.
struct AttentionParams {
    TensorMap q, kv;  // of qkv, in boxes of CHUNK columns and the rows of a tile
    void* out;
    float* log_sum_exp;
    const int* lengths;
    const int* first_rows;
    int rows, seq_len, ld_out;
    int batch, heads, group;  // heads that share a key head
    int k_column, v_column;
    float scale_log2;  // log2(e) / √head_dim
    int causal;
    int next;  // of Next above
    // Where the product that makes qkv counts what is there of it (counters.cuh), and how much it is: then this kernel begins while
    // that one still works on other columns. Null if the kernel before has to end first.
    unsigned* ready;
    unsigned ready_count;
    int ready_is_last;  // whether no later layer of the call waits there
};

template <typename T, int D, int WARPGROUPS, int BN, int STAGES, int BLOCKS>
struct Attention {
    using S = typename T::Storage;
    static constexpr int BM = WARPGROUPS * 64;
    static constexpr int PRODUCER = WARPGROUPS * 4, THREADS = PRODUCER * 32 + 128;  // warps; the last four, of which one works
    // A thread's registers: what the producer's warpgroup does not need goes to the consumers.
    static constexpr int PRODUCER_REGISTERS = WARPGROUPS >= 3 ? 32 : 40;
    static constexpr bool HALF = BLOCKS == 0;  // leaves a multiprocessor room for a block of a product
    static constexpr int REGISTERS = HALF ? 152 : WARPGROUPS == 4 ? 112 : WARPGROUPS == 3 ? 160 : WARPGROUPS == 2 ? 232 : BLOCKS == 2 ? 216 : 240;
    // Of those alone that the block was launched with, a multiple of 8 a thread: asking for more waits forever.
    static constexpr int RESIDENT = HALF ? 1 : BLOCKS, BOUND = HALF ? HALVES_THREADS : THREADS;  // that share its registers
    static constexpr int LAUNCHED = 65536 / RESIDENT / BOUND / 8 * 8;
    static_assert(PRODUCER_REGISTERS + WARPGROUPS * REGISTERS <= LAUNCHED * (WARPGROUPS + 1));
    // Operands lie in chunks of columns, swizzled as wide as a row of them is.
    static constexpr int CHUNK = D % 64 == 0 ? 64 : D % 32 == 0 ? 32 : 16, CHUNKS = D / CHUNK;
    static constexpr int ROW_BYTES = CHUNK * ELEMENT_BYTES;
    static constexpr int Q_BYTES = BM * D * ELEMENT_BYTES, STAGE = BN * D * ELEMENT_BYTES;
    static constexpr int MEET = 1, TURN = MEET + WARPGROUPS;  // named barriers: one a warpgroup, one for each one's turn
    static_assert(D % 16 == 0 && BN % 16 == 0 && BN <= 256 && STAGES >= 4 && STAGE % 1024 == 0 && Q_BYTES % 1024 == 0);

    // Where things lie in shared memory.
    struct Place {
        uint32_t q, stages, full, empty, q_full, q_empty, begin;
        explicit __device__ __forceinline__ Place(uint32_t shared) {
            q = shared, stages = q + Q_BYTES;
            full = stages + STAGES * STAGE, empty = full + STAGES * 8;
            q_full = empty + STAGES * 8, q_empty = q_full + 8, begin = q_empty + 8;
        }
    };

    // A position in the ring of stages; barriers of a round complete with alternating parity.
    struct Ring {
        int stage = 0;
        uint32_t parity = 0;
        __device__ __forceinline__ void advance() {
            if (++stage == STAGES) stage = 0, parity ^= 1;
        }
    };

    // The queries of one head that a block works on together.
    struct Tile {
        int head, q0, first_row, length, rows;  // rows: of the sequence, that are written
        int steps;                              // tiles of keys that some query sees
    };

    // Tiles of one head are neighbours, so that its keys stay in L2; under a causal mask all heads' last tiles, which see
    // the most keys, come first. Every other round goes backwards: who had the longest tile of one has the shortest of the next.
    static __device__ __forceinline__ bool tile_at(const AttentionParams& p, int round, Tile& tile) {
        const int tiles = (p.seq_len + BM - 1) / BM, columns = p.batch * p.heads;
        const int index = round * gridDim.x + (round % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x);
        if (round * static_cast<int>(gridDim.x) >= tiles * columns) return false;
        tile.steps = 0, tile.rows = 0, tile.length = 0;
        if (index >= tiles * columns) return true;
        const int column = p.causal ? index % columns : index / tiles;
        const int rank = p.causal ? tiles - 1 - index / columns : index % tiles;
        const int sequence = column / p.heads;
        tile.head = column - sequence * p.heads;
        tile.q0 = rank * BM;
        tile.length = p.lengths == nullptr ? p.seq_len : min(max(p.lengths[sequence], 0), p.seq_len);
        tile.first_row = p.first_rows == nullptr ? sequence * p.seq_len : p.first_rows[sequence];
        tile.rows = p.first_rows == nullptr ? p.seq_len : tile.length;
        const int end = tile.q0 >= tile.length ? 0 : p.causal ? min(tile.length, tile.q0 + BM) : tile.length;
        tile.steps = (end + BN - 1) / BN;
        return true;
    }

    static __device__ __forceinline__ void run(const AttentionParams& p) {
        extern __shared__ __align__(1024) unsigned char shared[];
        const Place at(ptx::shared_address(shared));
        const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
        if (warp == PRODUCER) {
            if (ptx::elect_one()) {
                ptx::tensor_map_prefetch(&p.q);
                ptx::tensor_map_prefetch(&p.kv);
#pragma unroll 1
                for (int s = 0; s < STAGES; ++s) {
                    ptx::barrier_init(at.full + s * 8, 1);
                    ptx::barrier_init(at.empty + s * 8, WARPGROUPS);
                }
                ptx::barrier_init(at.q_full, 1);
                ptx::barrier_init(at.q_empty, WARPGROUPS);
                ptx::barrier_init(at.begin, 1);
                ptx::barrier_init_fence();
            }
            __syncwarp();
        }
        __syncthreads();
        if (warp >= PRODUCER) {
            ptx::registers_decrease<PRODUCER_REGISTERS>();
            if (warp == PRODUCER && ptx::elect_one()) {
                if (p.next == AT_ONCE) ptx::dependents_launch();
                produce(p, at);
            } else if (warp == PRODUCER + 1) {
                // Whoever waits for this kernel's end relies on that of those before it.
                ptx::dependency_wait();
                if (p.next == WHEN_BEFORE_ENDED) ptx::dependents_launch();
            } else if (warp == PRODUCER + 2 && p.ready != nullptr && p.ready_is_last && ptx::elect_one()) {
                ptx::barrier_wait(at.begin, 0);
                count_as_seen(p.ready, gridDim.x);
            }
            __syncwarp();
        } else {
            ptx::registers_increase<REGISTERS>();
            consume(p, at, warp);
        }
    }

    template <int ROWS>
    static __device__ __forceinline__ void load(uint32_t to, const TensorMap& map, int column, int row, uint32_t barrier) {
        ptx::barrier_expect(barrier, ROWS * D * ELEMENT_BYTES);
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c)
            ptx::tensor_load(to + c * ROWS * ROW_BYTES, &map, column + c * CHUNK, row, barrier);
    }

    // Waits for qkv. The product that makes it has waited for all kernels before, so that the output may be written then.
    static __device__ __forceinline__ void await_operands(const AttentionParams& p, const Place& at) {
        if (p.ready == nullptr) {
            ptx::dependency_wait();
        } else {
            await_count(p.ready, p.ready_count);
        }
        ptx::barrier_arrive(at.begin);
    }

    static __device__ __forceinline__ void produce(const AttentionParams& p, const Place& at) {
        Ring ring;
        uint32_t q_parity = 1;
        Tile tile;
        for (int round = 0; tile_at(p, round, tile); ++round) {
            const int key_head = tile.head / p.group;
            if (round == 0) {
                // What the first loads need is computed before, lengths and first rows among it: no kernel of a call writes these.
                ptx::known(tile.steps), ptx::known(tile.first_row), ptx::known(tile.q0), ptx::known(key_head);
                await_operands(p, at);
            }
            if (tile.steps == 0) continue;
            const auto next = [&](int first_column, int step) {
                ptx::barrier_wait(at.empty + ring.stage * 8, ring.parity ^ 1);
                load<BN>(at.stages + ring.stage * STAGE, p.kv, first_column + key_head * D,
                         tile.first_row + (tile.steps - 1 - step) * BN, at.full + ring.stage * 8);
                ring.advance();
            };
            // What is read at a step: its K, and V of the step before.
#pragma unroll 1
            for (int step = 0; step <= tile.steps; ++step) {
                if (step < tile.steps) next(p.k_column, step);
                if (step == 0) {
                    ptx::barrier_wait(at.q_empty, q_parity);
                    q_parity ^= 1;
                    load<BM>(at.q, p.q, tile.head * D, tile.first_row + tile.q0, at.q_full);
                } else {
                    next(p.v_column, step - 1);
                }
            }
        }
        if (p.next == NEAR_END) ptx::dependents_launch();
    }

    // A consumer thread has two rows, `row` and 8 below, and two neighbouring columns in every eight of a tile of scores or
    // of the output.
    struct Consumer {
        int group, lane;
        bool leads;  // tells the producer
    };

    static __device__ __forceinline__ void consume(const AttentionParams& p, const Place& at, int warp) {
        const Consumer me = {warp / 4, static_cast<int>(threadIdx.x % 32), threadIdx.x % 128 == 0};
        const int warp_row = me.group * 64 + warp % 4 * 16;
        ptx::barrier_wait(at.begin, 0);  // before the first store: a tile without keys waits for no operand
        if (p.ready == nullptr) ptx::dependency_wait();
        Ring ring;
        uint32_t q_parity = 0;
        if (WARPGROUPS > 1 && me.group == WARPGROUPS - 1) ptx::named_barrier_arrive(TURN, 256);  // the first one's turn
        Tile tile;
        for (int round = 0; tile_at(p, round, tile); ++round) {
            const int row = tile.q0 + warp_row + me.lane / 4;
            float o[D / 2] = {};
            float row_max[2] = {-INFINITY, -INFINITY}, row_sum[2] = {0.f, 0.f};
            if (tile.steps > 0) {
                ptx::barrier_wait(at.q_full, q_parity);
                q_parity ^= 1;
                attend(p, at, me, tile, warp_row, ring, o, row_max, row_sum);
            }
            finish(p, me, tile, row, o, row_max, row_sum);
        }
        if (WARPGROUPS > 1 && me.group == 0) ptx::named_barrier(TURN, 256);  // the turn that nobody took
    }

    static __device__ __forceinline__ void attend(const AttentionParams& p, const Place& at, const Consumer& me, const Tile& tile,
                                                  int warp_row, Ring& ring, float (&o)[D / 2], float (&row_max)[2],
                                                  float (&row_sum)[2]) {
        float s[BN / 2];
        uint32_t probabilities[BN / 4];
        const uint64_t q = descriptor(at.q + me.group * 64 * ROW_BYTES, 0);
        const int row = tile.q0 + warp_row + me.lane / 4, group_row = tile.q0 + me.group * 64;
        const int last_key0 = (tile.steps - 1) * BN;

        // The last keys. What lies past the sequence in their V must count as zeros: 0·NaN is NaN.
        ptx::barrier_wait(at.full + ring.stage * 8, ring.parity);
        ptx::accumulator_fence(s);
        ptx::warpgroup_fence();
        scores(s, q, at.stages + ring.stage * STAGE);
        ptx::warpgroup_commit();
        ptx::warpgroup_wait<0>();
        ptx::accumulator_fence(s);
        release(at.empty + ring.stage * 8, me);
        if (tile.steps == 1) release(at.q_empty, me);
        ring.advance();
        mask(p, s, last_key0, tile.length, row, group_row, me);
        float rescale[2];
        soften(p, s, row_max, row_sum, rescale);
        pack(s, probabilities);
        if (last_key0 + BN > tile.length) {
            Ring of_v = ring;
            if (tile.steps > 1) of_v.advance();
            ptx::barrier_wait(at.full + of_v.stage * 8, of_v.parity);
            clear(at.stages + of_v.stage * STAGE, tile.length - last_key0, me);
        }

#pragma unroll 1
        for (int step = 1; step < tile.steps; ++step) {
            const Ring of_k = ring;
            ring.advance();
            const Ring of_v = ring;
            ring.advance();
            ptx::barrier_wait(at.full + of_k.stage * 8, of_k.parity);
            if (WARPGROUPS > 1) ptx::named_barrier(TURN + me.group, 256);
            ptx::accumulator_fence(s);
            ptx::accumulator_fence(o);
            ptx::warpgroup_fence();
            scores(s, q, at.stages + of_k.stage * STAGE);
            ptx::warpgroup_commit();
            ptx::barrier_wait(at.full + of_v.stage * 8, of_v.parity);
            ptx::warpgroup_fence();
            values(o, probabilities, at.stages + of_v.stage * STAGE);
            ptx::warpgroup_commit();
            if (WARPGROUPS > 1) ptx::named_barrier_arrive(TURN + (me.group + 1) % WARPGROUPS, 256);
            ptx::warpgroup_wait<1>();
            ptx::accumulator_fence(s);
            release(at.empty + of_k.stage * 8, me);
            if (step == tile.steps - 1) release(at.q_empty, me);
            mask(p, s, (tile.steps - 1 - step) * BN, tile.length, row, group_row, me);
            soften(p, s, row_max, row_sum, rescale);
            ptx::warpgroup_wait<0>();
            ptx::accumulator_fence(o);
            release(at.empty + of_v.stage * 8, me);
#pragma unroll
            for (int i = 0; i < D / 2; ++i) o[i] *= rescale[i / 2 % 2];
            pack(s, probabilities);
        }

        ptx::barrier_wait(at.full + ring.stage * 8, ring.parity);
        ptx::accumulator_fence(o);
        ptx::warpgroup_fence();
        values(o, probabilities, at.stages + ring.stage * STAGE);
        ptx::warpgroup_commit();
        ptx::warpgroup_wait<0>();
        ptx::accumulator_fence(o);
        release(at.empty + ring.stage * 8, me);
        ring.advance();
    }

    static __device__ __forceinline__ void release(uint32_t barrier, const Consumer& me) {
        if (me.leads) ptx::barrier_arrive(barrier);
    }

    // Descriptor of a swizzled operand: eight-row atoms follow each other; `leading` bytes lie between chunks, which matters
    // where the width of a product runs along rows (V).
    static __device__ __forceinline__ uint64_t descriptor(uint32_t address, uint32_t leading) {
        constexpr uint64_t SWIZZLE = (CHUNK == 64 ? 1ull : CHUNK == 32 ? 2ull : 3ull) << 62;
        constexpr uint64_t STRIDE = static_cast<uint64_t>(8 * ROW_BYTES >> 4) << 32;
        return SWIZZLE | STRIDE | static_cast<uint64_t>(leading >> 4) << 16 | ((address & 0x3ffff) >> 4);
    }

    // s = q·kᵀ
    static __device__ __forceinline__ void scores(float (&s)[BN / 2], uint64_t q, uint32_t k_tile) {
        const uint64_t k = descriptor(k_tile, 0);
#pragma unroll
        for (int i = 0; i < D / 16; ++i) {
            constexpr int IN_CHUNK = CHUNK / 16;
            const int chunk = i / IN_CHUNK, in_chunk = i % IN_CHUNK * 2;  // 32 bytes, in units of 16
            T::template warpgroup_product<BN>(s, q + chunk * (BM * ROW_BYTES / 16) + in_chunk,
                                              k + chunk * (BN * ROW_BYTES / 16) + in_chunk, i > 0);
        }
    }

    // o += probabilities · v
    static __device__ __forceinline__ void values(float (&o)[D / 2], const uint32_t (&probabilities)[BN / 4], uint32_t v_tile) {
        const uint64_t v = descriptor(v_tile, BN * ROW_BYTES);
#pragma unroll
        for (int i = 0; i < BN / 16; ++i)
            T::template warpgroup_product_rows<D>(o, &probabilities[i * 4], v + i * (16 * ROW_BYTES / 16));
    }

    // Accumulators as A operands of the next product: the layouts agree.
    static __device__ __forceinline__ void pack(const float (&s)[BN / 2], uint32_t (&probabilities)[BN / 4]) {
#pragma unroll
        for (int i = 0; i < BN / 4; ++i) probabilities[i] = T::pack(s[i * 2], s[i * 2 + 1]);
    }

    // −∞ for keys past the length or, causally, past the row.
    static __device__ __forceinline__ void mask(const AttentionParams& p, float (&s)[BN / 2], int key0, int length, int row,
                                                int group_row, const Consumer& me) {
        if (key0 + BN <= (p.causal ? min(length, group_row + 1) : length)) return;
        const int first = key0 + me.lane % 4 * 2;
        const int end[2] = {(p.causal ? min(length, row + 1) : length) - first, (p.causal ? min(length, row + 9) : length) - first};
#pragma unroll
        for (int i = 0; i < BN / 2; ++i)
            if (i / 4 * 8 + i % 2 >= end[i / 2 % 2]) s[i] = -INFINITY;
    }

    // Scores to probabilities over the maxima so far; `rescale` is what earlier sums are worth now.
    static __device__ __forceinline__ void soften(const AttentionParams& p, float (&s)[BN / 2], float (&row_max)[2],
                                                  float (&row_sum)[2], float (&rescale)[2]) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float m = row_max[h];
#pragma unroll
            for (int i = 0; i < BN / 2; ++i)
                if (i / 2 % 2 == h) m = fmaxf(m, s[i]);
            m = fmaxf(m, __shfl_xor_sync(0xffffffff, m, 1));
            m = fmaxf(m, __shfl_xor_sync(0xffffffff, m, 2));
            // A row that has seen no key yet keeps −∞; 0 in its place avoids −∞ − −∞.
            const float shift = m == -INFINITY ? 0.f : m * p.scale_log2;
            rescale[h] = ptx::exp2_approximate(row_max[h] * p.scale_log2 - shift);
            row_max[h] = m;
            float sum = 0.f;
#pragma unroll
            for (int i = 0; i < BN / 2; ++i)
                if (i / 2 % 2 == h) {
                    s[i] = ptx::exp2_approximate(s[i] * p.scale_log2 - shift);
                    sum += s[i];
                }
            row_sum[h] = row_sum[h] * rescale[h] + sum;
        }
    }

    // Zeros over the rows of a V tile from `from` on. Every warpgroup does it for itself, and waits for itself: others write
    // the same.
    static __device__ __forceinline__ void clear(uint32_t tile, int from, const Consumer& me) {
        constexpr int VECTORS = ROW_BYTES / 16;
#pragma unroll 1
        for (int i = from * VECTORS + threadIdx.x % 128; i < BN * VECTORS; i += 128)
#pragma unroll
            for (int c = 0; c < CHUNKS; ++c) ptx::shared_clear_16(tile + c * BN * ROW_BYTES + i * 16);
        ptx::async_proxy_fence();
        ptx::named_barrier(MEET + me.group, 128);
    }

    // Divides by the row sums and stores. The four lanes that share a row exchange pairs, so that each has whole vectors.
    static __device__ __forceinline__ void finish(const AttentionParams& p, const Consumer& me, const Tile& tile, int row,
                                                  float (&o)[D / 2], const float (&row_max)[2], const float (&row_sum)[2]) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float sum = row_sum[h];
            sum += __shfl_xor_sync(0xffffffff, sum, 1);
            sum += __shfl_xor_sync(0xffffffff, sum, 2);
            const int r = row + h * 8;
            const bool valid = r < tile.length, written = r < tile.rows;
            const float inverse = valid ? 1.f / sum : 0.f;
            const int64_t to = tile.first_row + r;
            if (p.log_sum_exp != nullptr && written && me.lane % 4 == 0)
                p.log_sum_exp[static_cast<int64_t>(tile.head) * p.rows + to] =
                    valid ? (row_max[h] * p.scale_log2 + log2f(sum)) * 0.6931471805599453f : -INFINITY;
            S* out = static_cast<S*>(p.out) + to * p.ld_out + tile.head * D;
#pragma unroll
            for (int j = 0; j < D / 8; j += 4) {
                uint32_t pair[4];
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    pair[i] = j + i < D / 8 && valid ? T::pack(o[(j + i) * 4 + h * 2] * inverse, o[(j + i) * 4 + h * 2 + 1] * inverse) : 0;
                if (j + 4 <= D / 8) {
                    transpose(pair, me.lane);
                    if (written)
                        *reinterpret_cast<uint4*>(out + (j + me.lane % 4) * 8) = make_uint4(pair[0], pair[1], pair[2], pair[3]);
                } else if (written) {
#pragma unroll
                    for (int i = 0; i < D / 8 - j; ++i)
                        *reinterpret_cast<uint32_t*>(out + (j + i) * 8 + me.lane % 4 * 2) = pair[i];
                }
            }
        }
    }

    // Among four neighbouring lanes: lane l's x[i] becomes lane i's x[l].
    static __device__ __forceinline__ void transpose(uint32_t (&x)[4], int lane) {
#pragma unroll
        for (int step = 1; step <= 2; step *= 2)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                if ((i & step) == 0) {
                    const bool upper = lane & step;
                    const uint32_t other = __shfl_xor_sync(0xffffffff, upper ? x[i] : x[i | step], step);
                    (upper ? x[i] : x[i | step]) = other;
                }
    }
};

#define ATTENTION_KERNEL(NAME, D, WARPGROUPS, KEYS, STAGES, BLOCKS)                                          \
    using Attention_##NAME = Attention<PAF_ELEMENT, D, WARPGROUPS, KEYS, STAGES, BLOCKS>;                            \
    extern "C" __global__ void __launch_bounds__(Attention_##NAME::BOUND, Attention_##NAME::RESIDENT)        \
        attention_##NAME(const __grid_constant__ AttentionParams p) {                                        \
        Attention_##NAME::run(p);                                                                            \
    }

ATTENTION_SM90_TILES(ATTENTION_KERNEL)
