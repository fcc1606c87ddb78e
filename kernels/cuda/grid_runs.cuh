/* Tokens rotated by the blocks of the product that reads them: groups of four warps share the tokens' columns
 * by runs of 1024, and who reads a run waits until all its tokens are there. No more blocks are launched than
 * run at once, so that all of them come to rotate theirs. The product waits for all of this, and as each
 * scheduler has one warp or two at it, for every instruction: signs are drawn before x is there, and nothing is
 * divided. */
#ifndef DECANT_KERNELS_CUDA_GRID_RUNS_CUH
#define DECANT_KERNELS_CUDA_GRID_RUNS_CUH

#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/grid_arranged.cuh"
#include "kernels/cuda/grid_rotation.cuh"

enum {
    RUN_THREADS = 128, /* that rotate together, an octet of columns each */
    RUN_WARPS = RUN_THREADS / 32,
    RUN_BITS = 10, /* of the columns of a run */
    RUN_PARTS = 8, /* of a piece that is longer than a run, which are loaded at once */
    LANE_STEPS = 5,
    SCANNED = 11,       /* octets of a token that a thread loads at once to find the largest */
    RUN_MAXIMUM = 1024, /* of a token */
    RUN_COUNTERS = RUN_MAXIMUM + 1,
};

/* Who rotates what. */
typedef struct run_shares {
    uint32_t *rotated; /* [RUN_MAXIMUM] zeros, tokens of a run that are done, and zeros again in the end; behind
                          them readers that are done */
    uint64_t sign_key; /* of decant_random_keyed */
    uint32_t token_factor; /* so that quotient finds a task's share */
    int runs, shares;      /* of a token; share i has run i and every shares-th behind it */
} run_shares;

/* vector_of where lanes have octets in turn and tiles have all their places; shifts in place of divisions. */
static __device__ __forceinline__ int turn_vector_of(const operand_layout &layout, int octet, int token)
{
    const int chunk_bits = 31 - __clz(layout.chunks), beside_bits = 31 - __clz(layout.beside);
    const int unit = octet / ROW_LANES >> chunk_bits, chunk = octet / ROW_LANES & (layout.chunks - 1);
    const int step = ((unit >> beside_bits) << chunk_bits) + chunk;
    const int place =
        ((step << beside_bits) + (unit & (layout.beside - 1))) * layout.tiles + token / TILE_TOKENS;
    return (place * TILE_TOKENS + token % TILE_TOKENS) * ROW_LANES + octet % ROW_LANES;
}

/* What threads that rotate together exchange, in shared memory. */
typedef struct run_exchange {
    float4 values[2][RUN_THREADS];
    int4 largest;
} run_exchange;

static_assert(RUN_WARPS == 4 && RUN_THREADS * OCTET == 1 << RUN_BITS,
              "a run is an octet a thread, of four warps");

/* Signs of eight BF16 of every part, as they stand in their words. */
typedef struct run_signs {
    uint32_t words[RUN_PARTS][4];
} run_signs;

/* Those of parts next … of a piece, of which run `part` is made; first: this thread's octet of the first part.
 * A lane draws 64 columns' for others. */
static __device__ __forceinline__ void draw_run_signs(run_signs &signs, const token_rotation &call,
                                                      const run_shares &shares, int first, int next, int parts,
                                                      int part)
{
    const int lane = threadIdx.x % 32, own_part = next + lane / 4;
    const int octet = first - lane + own_part * RUN_THREADS;
    uint64_t drawn =
        call.rotation_bits > 0 ? decant_random_keyed(shares.sign_key, (uint64_t)(octet / OCTET + lane % 4)) : 0;
    if (__popc(own_part & part) & 1)
        drawn = ~drawn;
#pragma unroll
    for (int i = 0; i < RUN_PARTS; i++) {
        if (next + i >= parts)
            break;
        const uint32_t low = __shfl_sync(0xffffffffu, (uint32_t)drawn, i * 4 + lane / OCTET),
                       high = __shfl_sync(0xffffffffu, (uint32_t)(drawn >> 32), i * 4 + lane / OCTET);
        const uint32_t own = (lane & 4 ? high : low) >> lane % 4 * 8;
#pragma unroll
        for (int word = 0; word < 4; word++)
            signs.words[i][word] = (own << (15 - 2 * word) & 0x8000u) | (own << (30 - 2 * word) & 0x80000000u);
    }
}

/* The largest magnitudes of pairs of BF16, as bits. */
static __device__ __forceinline__ uint32_t larger_bits(uint32_t largest, const uint4 &vector)
{
    const uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
    for (int i = 0; i < 4; i++)
        largest = __vmaxu2(largest, words[i] & 0x7fff7fffu);
    return largest;
}

/* values += eight BF16 under their signs. */
static __device__ __forceinline__ void add_signed(float (&values)[OCTET], const uint4 &vector,
                                                  const uint32_t (&signs)[4])
{
    const uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint32_t own = words[i] ^ signs[i];
        values[2 * i] += __uint_as_float(own << 16);
        values[2 * i + 1] += __uint_as_float(own & 0xffff0000u);
    }
}

/* values = other + values, or, in the second half, other − values. */
static __device__ __forceinline__ void add_butterfly(float (&values)[OCTET], const float (&other)[OCTET],
                                                     bool second)
{
    const float sign = second ? -1.0f : 1.0f;
#pragma unroll
    for (int j = 0; j < OCTET; j++)
        values[j] = fmaf(values[j], sign, other[j]);
}

static __device__ __forceinline__ void read_exchanged(float (&values)[OCTET], const run_exchange &exchange,
                                                      int thread)
{
    const float4 a = exchange.values[0][thread], b = exchange.values[1][thread];
    const float own[OCTET] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (int j = 0; j < OCTET; j++)
        values[j] = own[j];
}

static __device__ __forceinline__ void meet_for_run(int barrier)
{
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"((int)RUN_THREADS) : "memory");
}

/* The steps of the transform of a run beyond the first three: by lanes, then by warps. A barrier is passed,
 * behind which the exchange has all that was written before. */
static __device__ __forceinline__ void finish_run(float (&values)[OCTET], int steps, run_exchange &exchange,
                                                  int barrier)
{
    const int thread = threadIdx.x % RUN_THREADS;
#pragma unroll
    for (int step = 0; step < LANE_STEPS; step++) {
        if (OCTET_BITS + step >= steps)
            break;
        float other[OCTET];
#pragma unroll
        for (int j = 0; j < OCTET; j++)
            other[j] = __shfl_xor_sync(0xffffffffu, values[j], 1 << step);
        add_butterfly(values, other, thread >> step & 1);
    }
    exchange.values[0][thread] = make_float4(values[0], values[1], values[2], values[3]);
    exchange.values[1][thread] = make_float4(values[4], values[5], values[6], values[7]);
    meet_for_run(barrier);
    if (steps <= OCTET_BITS + LANE_STEPS)
        return;
    float other[OCTET];
    read_exchanged(other, exchange, thread ^ 32);
    add_butterfly(values, other, thread & 32);
    if (steps > OCTET_BITS + LANE_STEPS + 1) {
        float more[OCTET];
        read_exchanged(other, exchange, thread ^ 64);
        read_exchanged(more, exchange, thread ^ 96);
        add_butterfly(other, more, thread & 32);
        add_butterfly(values, other, thread & 64);
    }
}

/* Run `run` of a token, by RUN_THREADS threads. largest: magnitudes that this thread has seen before; where the
 * token is of several pieces, together the threads have seen all of it. A longer piece's run is what the steps
 * by columns that are as far apart as runs leave of all of it. */
static __device__ __forceinline__ void rotate_run_of(const token_rotation &call, const run_shares &shares,
                                                     int token, int run, uint32_t &largest,
                                                     run_exchange &exchange, int barrier)
{
    const int thread = threadIdx.x % RUN_THREADS, steps = call.rotation_bits;
    const int octets = call.columns / OCTET, parts = 1 << max(steps - RUN_BITS, 0), part = run & (parts - 1);
    const int own = run * RUN_THREADS + thread, first = own - part * RUN_THREADS;
    const uint4 *x = (const uint4 *)(call.x + (int64_t)token * call.columns) + first;
    uint4 *target = call.operands + turn_vector_of(call.layout, own, token);
    float values[OCTET] = {};
#pragma unroll 1
    for (int next = 0; next < parts; next += RUN_PARTS) {
        run_signs signs;
        uint4 vectors[RUN_PARTS];
        draw_run_signs(signs, call, shares, first, next, parts, part);
        decant_wait_for_earlier_kernels();
#pragma unroll
        for (int i = 0; i < RUN_PARTS; i++)
            vectors[i] = next + i < parts && first < octets ? __ldcg(x + (next + i) * RUN_THREADS)
                                                            : make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int i = 0; i < RUN_PARTS; i++) {
            if (next + i >= parts)
                break;
            largest = larger_bits(largest, vectors[i]);
            add_signed(values, vectors[i], signs.words[i]);
        }
    }
    first_butterflies<0>(values, steps);
    const int of_warp = __reduce_max_sync(0xffffffffu, (int)max(largest & 0xffffu, largest >> 16));
    if (thread % 32 == 0)
        ((int *)&exchange.largest)[thread / 32] = of_warp;
    finish_run(values, steps, exchange, barrier);
    const int4 seen = exchange.largest;
    const int exponent = exponent_for(max(max(seen.x, seen.y), max(seen.z, seen.w)), steps);
    const float factor = power_of_two(exponent) * call.rotation_scale;
    if (own < octets_of(call.layout))
        *target = octet_of_halves(values, factor); /* zeros behind the last column */
    if (thread == 0)                               /* by every run the same: who waits for any has it */
        call.token_scales[token] = power_of_two(-exponent);
}

static __device__ __forceinline__ void release_add(uint32_t *counter)
{
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}

/* What the RUN_THREADS threads `own` of `all` such have to rotate. */
static __device__ __forceinline__ void rotate_shares(const token_rotation &call, const run_shares &shares,
                                                     int own, int all, run_exchange &exchange, int barrier)
{
    const int octets = call.columns / OCTET;
    for (int task = own; task < shares.shares * call.tokens; task += all) {
        const int share = quotient(task, shares.token_factor), token = task - share * call.tokens;
        uint32_t largest = 0;
        if (call.columns >> call.rotation_bits > 1) {
            const uint4 *x = (const uint4 *)(call.x + (int64_t)token * call.columns);
            decant_wait_for_earlier_kernels();
            for (int first = threadIdx.x % RUN_THREADS; first < octets; first += SCANNED * RUN_THREADS) {
                uint4 vectors[SCANNED];
#pragma unroll
                for (int i = 0; i < SCANNED; i++) /* all on the way at once; the last one again beyond it */
                    vectors[i] = __ldcg(x + min(first + i * RUN_THREADS, octets - 1));
#pragma unroll
                for (int i = 0; i < SCANNED; i++)
                    largest = larger_bits(largest, vectors[i]);
            }
        }
        for (int run = share; run < shares.runs; run += shares.shares) {
            rotate_run_of(call, shares, token, run, largest, exchange, barrier);
            meet_for_run(barrier);
            if (threadIdx.x % RUN_THREADS == 0)
                release_add(shares.rotated + run);
        }
    }
}

/* Waits until other blocks have brought a counter to `count`. */
static __device__ __forceinline__ void wait_for_count(const uint32_t *counter, uint32_t count)
{
    uint32_t now;
    do
        asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(now) : "l"(counter) : "memory");
    while (now != count);
}

/* By one thread of every block that reads runs, when it has read all of its: the last one sets the counters
 * back. */
static __device__ __forceinline__ void leave_rotated(const run_shares &shares)
{
    if (atomicInc(shares.rotated + RUN_MAXIMUM, gridDim.x - 1) == gridDim.x - 1)
        for (int run = 0; run < shares.runs; run++)
            shares.rotated[run] = 0;
}

/* How a product's blocks, with `members` times RUN_THREADS threads that rotate each, share the tokens.
 * counters: RUN_MAXIMUM + 1. */
static inline run_shares share_runs(const token_rotation &call, int blocks, int members, uint32_t *counters)
{
    run_shares shares;
    const int octets = call.layout.units * ROW_LANES * call.layout.lane_words * call.layout.chunks;
    shares.rotated = counters;
    shares.token_factor = quotient_factor(call.tokens);
    shares.sign_key = decant_random_key(call.seed, 0);
    shares.runs = (octets + RUN_THREADS - 1) / RUN_THREADS;
    shares.shares = blocks * members / call.tokens;
    shares.shares = shares.shares < 1 ? 1 : shares.shares < shares.runs ? shares.shares : shares.runs;
    return shares;
}

#endif
