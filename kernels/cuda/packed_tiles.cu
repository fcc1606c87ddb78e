/* y = x ŵᵀ for 5 to 32 tokens in BF16 on tensor cores, codes of up to four bits: a lane keeps the levels of its
 * two rows in registers, as bytes, and byte permutations look four codes up at a time. Nothing of the weights
 * passes through shared memory but their bit planes, so that many rows can share the x that is there.
 *
 * A block takes 128 rows, a warp sixteen of them, and some of the units of 512 columns; blocks that share rows
 * leave their sums in scratch, and the one that comes last adds all of them up in order. Of the sixteen words
 * of a unit, a lane (g = lane / 4, t = lane % 4) takes words 4t … 4t + 3 of rows g and g + 8, sixteen bytes of
 * every plane, and copies them ahead into a ring of its own.
 *
 * From planes to operands: the planes of a word become four words of eight codes, four bits each; word n has
 * columns n, n + 4, n + 8, … of the 32. Four codes pick four lower and four upper bytes of their levels, which
 * are then joined to two pairs of BF16: columns 8c + n and 8c + 4 + n. Products do not care about the order of
 * their terms as long as both operands have the same one (the terms of a product are listed in
 * tensor_core.cuh), so x is stored in pairs of that kind: eight columns of a token, sixteen bytes, serve two
 * products.
 *
 * The sparse part is multiplied before, by token_sparse.cu, and added at the end. */
#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/packed.cuh"
#include "kernels/cuda/tensor_core.cuh"
#include "kernels/cuda/token_sparse.h"

enum {
    WARPS = 8,
    THREADS = WARPS * DECANT_WARP,
    WARP_ROWS = 16,
    ROWS = WARPS * WARP_ROWS, /* of a block */
    HALVES = 2,               /* of a warp's rows: g and g + 8 of a lane */
    UNIT_WORDS = 16,
    LANE_WORDS = 4, /* of a unit */
    WORD_COLUMNS = 32,
    STEP_WORDS = 2, /* of a lane's words: x is there for so many at a time */
    STEPS = LANE_WORDS / STEP_WORDS,
    CHUNKS = 4,         /* of eight columns, in a word */
    STEP_CHUNKS = 32,   /* of x, of a token in a step: those of four lanes */
    TILE_TOKENS = 8,    /* of one product */
    VECTOR_BYTES = 16,  /* of eight columns of x, and of four words of a plane */
    STAGES = 2,         /* units of codes that are there or under way */
    PLANES_MAXIMUM = 4, /* of codes */
    BLOCKS_EACH = 2,    /* to a multiprocessor */
    ARRIVALS = 4096,    /* row blocks that can share rows */
    SHARES_MAXIMUM = 16,
};

template <int BITS> constexpr int UNIT_BYTES = BITS *HALVES *DECANT_WARP *VECTOR_BYTES; /* of a warp's codes */

/* The arguments of a launch. */
typedef struct tiles_call {
    decant_packed_view packed;
    const __nv_bfloat16 *x; /* [tokens, columns] */
    __nv_bfloat16 *y;       /* [tokens, rows] */
    const float *sparse;    /* [tokens, rows], NULL: none */
    float *parts;       /* [row blocks, shares, ROWS, tokens of the kernel], when there are several shares */
    uint32_t *arrivals; /* [row blocks] zeros, and zeros again in the end */
    int tokens;
    int shares; /* of the units, each for a block */
    bool accumulate;
} tiles_call;

/* ---- levels in registers ---- */

/* The levels of one row: byte i % 4 of word i / 4 is the lower or upper byte of level i as BF16. */
template <int BITS> struct row_levels {
    static constexpr int WORDS = BITS == 4 ? 4 : 2;
    uint32_t lower[WORDS], upper[WORDS];
};

template <int BITS>
static __device__ __forceinline__ void load_levels(row_levels<BITS> &levels, const decant_packed_view &packed,
                                                   int row)
{
    constexpr int COUNT = 1 << BITS;
    const uint2 *source = (const uint2 *)(packed.levels + (int64_t)min(row, packed.rows - 1) * COUNT);
#pragma unroll
    for (int i = 0; i < row_levels<BITS>::WORDS; i++) {
        levels.lower[i] = levels.upper[i] = 0;
        if (i * 4 >= COUNT)
            continue;
        const uint2 four = source[i];
        const float2 first = __half22float2(*(const __half2 *)&four.x);
        const float2 second = __half22float2(*(const __half2 *)&four.y);
        const uint32_t low = decant_pair(first.x, first.y), high = decant_pair(second.x, second.y);
        levels.lower[i] = __byte_perm(low, high, 0x6420);
        levels.upper[i] = __byte_perm(low, high, 0x7531);
    }
}

/* Bytes of first and second as the lower four digits of `which` tell: 0 … 7, in digits of four bits. */
static __device__ __forceinline__ uint32_t permute(uint32_t first, uint32_t second, uint32_t which)
{
    uint32_t bytes;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(first), "r"(second), "r"(which));
    return bytes;
}

/* ---- codes ---- */

/* Eight codes of four bits each: those of columns n, n + 4, … of a word of every plane are codes[n]. */
template <int BITS>
static __device__ __forceinline__ void gather_codes(uint32_t (&codes)[4], const uint32_t (&planes)[BITS])
{
    const uint32_t ones = 0x55555555u, twos = 0x33333333u;
    const uint32_t even = (planes[0] & ones) | (planes[1] << 1 & ~ones);
    const uint32_t odd = (planes[0] >> 1 & ones) | (planes[1] & ~ones);
    if constexpr (BITS == 2) {
        codes[0] = even & twos;
        codes[1] = odd & twos;
        codes[2] = even >> 2 & twos;
        codes[3] = odd >> 2 & twos;
    } else {
        const uint32_t third = planes[2], fourth = BITS == 4 ? planes[BITS - 1] : 0;
        const uint32_t upper_even = (third & ones) | (fourth << 1 & ~ones);
        const uint32_t upper_odd = (third >> 1 & ones) | (fourth & ~ones);
        codes[0] = (even & twos) | (upper_even << 2 & ~twos);
        codes[1] = (odd & twos) | (upper_odd << 2 & ~twos);
        codes[2] = (even >> 2 & twos) | (upper_even & ~twos);
        codes[3] = (odd >> 2 & twos) | (upper_odd & ~twos);
    }
}

/* The levels of eight codes as pairs of BF16: pairs[c] is of codes 2c and 2c + 1. */
template <int BITS>
static __device__ __forceinline__ void look_up(uint32_t (&pairs)[4], uint32_t codes,
                                               const row_levels<BITS> &levels)
{
    /* a permutation takes three bits of a code, and the fourth for the sign of its byte */
    const uint32_t within = BITS == 4 ? codes & 0x77777777u : codes;
    /* of two words of bytes: byte i of the first, or of the second where the code has its fourth bit */
    const uint32_t which = BITS == 4 ? (codes >> 1 & 0x44444444u) | 0x32103210u : 0;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const uint32_t own = within >> 16 * half, own_which = which >> 16 * half;
        uint32_t lower = permute(levels.lower[0], levels.lower[1], own);
        uint32_t upper = permute(levels.upper[0], levels.upper[1], own);
        if constexpr (BITS == 4) {
            lower = permute(lower, permute(levels.lower[2], levels.lower[3], own), own_which);
            upper = permute(upper, permute(levels.upper[2], levels.upper[3], own), own_which);
        }
        pairs[2 * half] = __byte_perm(lower, upper, 0x5140);
        pairs[2 * half + 1] = __byte_perm(lower, upper, 0x7362);
    }
}

/* Starts copying a lane's words of one unit. WHOLE: rows of planes can be read sixteen bytes at a time. */
template <int BITS, bool WHOLE>
static __device__ __forceinline__ void fetch_unit(const decant_packed_view &packed, int first_row, int unit,
                                                  uint32_t slot)
{
    const int lane = threadIdx.x % DECANT_WARP, word = unit * UNIT_WORDS + lane % 4 * LANE_WORDS;
#pragma unroll
    for (int half = 0; half < HALVES; half++) {
        const int row = min(first_row + half * 8 + lane / 4, packed.rows - 1);
        const uint32_t *source = packed.planes + (int64_t)row * BITS * packed.words + word;
#pragma unroll
        for (int bit = 0; bit < BITS; bit++, source += packed.words) {
            const uint32_t target = slot + ((half * BITS + bit) * DECANT_WARP + lane) * VECTOR_BYTES;
            if constexpr (WHOLE) {
                decant_copy_16(target, word < packed.words ? source : packed.planes, word < packed.words);
            } else {
#pragma unroll
                for (int i = 0; i < LANE_WORDS; i++)
                    decant_copy_4(target + i * 4, word + i < packed.words ? source + i : packed.planes,
                                  word + i < packed.words);
            }
        }
    }
}

/* ---- activations ---- */

/* A thread's share of x of one step, in registers: vectors i of token tile i. */
template <int TILES> struct step_vectors {
    uint4 vectors[TILES];
};

/* Thread i has chunk i % 32 of token i / 32 of every tile: eight columns; zeros beyond the last token or
 * column. */
template <int TILES>
static __device__ __forceinline__ void load_step(step_vectors<TILES> &own, const tiles_call &call, int unit,
                                                 int step)
{
    const int chunk = threadIdx.x % STEP_CHUNKS, taker = chunk / (STEP_WORDS * CHUNKS);
    const int word = unit * UNIT_WORDS + taker * LANE_WORDS + step * STEP_WORDS + chunk / CHUNKS % STEP_WORDS;
    const int column = word * WORD_COLUMNS + chunk % CHUNKS * 8;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        const int token = tile * TILE_TOKENS + (int)threadIdx.x / STEP_CHUNKS;
        own.vectors[tile] = make_uint4(0, 0, 0, 0);
        if (token < call.tokens && column < call.packed.columns)
            own.vectors[tile] = *(const uint4 *)(call.x + (int64_t)token * call.packed.columns + column);
    }
}

/* Where the vector that lane `lane` takes of a chunk of a lane's word lies in the step, in bytes. Those of a
 * token that threads store together fall into different banks. */
template <int TILES> static __device__ __forceinline__ int vector_place(int word, int chunk, int tile, int lane)
{
    return (((word * CHUNKS + chunk) * TILES + tile) * DECANT_WARP + (lane ^ (word * CHUNKS + chunk))) *
           VECTOR_BYTES;
}

/* Stores them in pairs of columns n and n + 4. */
template <int TILES>
static __device__ __forceinline__ void store_step(const step_vectors<TILES> &own, unsigned char *step)
{
    const int chunk = threadIdx.x % STEP_CHUNKS, taker = chunk / (STEP_WORDS * CHUNKS);
    const int lane = (int)threadIdx.x / STEP_CHUNKS * 4 + taker;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        const uint4 four = own.vectors[tile];
        const uint4 pairs =
            make_uint4(__byte_perm(four.x, four.z, 0x5410), __byte_perm(four.x, four.z, 0x7632),
                       __byte_perm(four.y, four.w, 0x5410), __byte_perm(four.y, four.w, 0x7632));
        *(uint4 *)(step + vector_place<TILES>(chunk / CHUNKS % STEP_WORDS, chunk % CHUNKS, tile, lane)) = pairs;
    }
}

/* ---- products ---- */

static __device__ __forceinline__ uint32_t word_of(const uint4 &four, int word)
{
    return word == 0 ? four.x : word == 1 ? four.y : word == 2 ? four.z : four.w;
}

/* sums += the products of one step of a unit. */
template <int BITS, int TILES>
static __device__ __forceinline__ void add_step(float (&sums)[TILES][4], const uint4 (&planes)[HALVES][BITS],
                                                const row_levels<BITS> (&levels)[HALVES], int step,
                                                const unsigned char *x)
{
    const int lane = threadIdx.x % DECANT_WARP;
#pragma unroll
    for (int word = 0; word < STEP_WORDS; word++) {
        uint32_t pairs[HALVES][4][CHUNKS];
#pragma unroll
        for (int half = 0; half < HALVES; half++) {
            uint32_t own[BITS], codes[4];
#pragma unroll
            for (int bit = 0; bit < BITS; bit++)
                own[bit] = word_of(planes[half][bit], step * STEP_WORDS + word);
            gather_codes<BITS>(codes, own);
#pragma unroll
            for (int n = 0; n < 4; n++)
                look_up<BITS>(pairs[half][n], codes[n], levels[half]);
        }
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
            const uint32_t first[4] = {pairs[0][0][chunk], pairs[1][0][chunk], pairs[0][1][chunk],
                                       pairs[1][1][chunk]};
            const uint32_t second[4] = {pairs[0][2][chunk], pairs[1][2][chunk], pairs[0][3][chunk],
                                        pairs[1][3][chunk]};
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                const uint4 four = *(const uint4 *)(x + vector_place<TILES>(word, chunk, tile, lane));
                decant_mma(sums[tile], first, four.x, four.y);
                decant_mma(sums[tile], second, four.z, four.w);
            }
        }
    }
}

/* ---- the end ---- */

static __device__ __forceinline__ void store(const tiles_call &call, int row, int token, float sum)
{
    if (row >= call.packed.rows || token >= call.tokens)
        return;
    const int64_t place = (int64_t)token * call.packed.rows + row;
    if (call.sparse)
        sum += call.sparse[place];
    call.y[place] = __float2bfloat16_rn(call.accumulate ? __bfloat162float(call.y[place]) + sum : sum);
}

/* A lane's sum c is of row g, or g + 8 for the last two, and of token 2t or 2t + 1 of the tile. */
template <int TILES, typename Take>
static __device__ __forceinline__ void each_sum(const float (&sums)[TILES][4], Take take)
{
    const int lane = threadIdx.x % DECANT_WARP,
              first_row = (int)threadIdx.x / DECANT_WARP * WARP_ROWS + lane / 4;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int c = 0; c < 4; c++)
            take(first_row + c / 2 * 8, tile * TILE_TOKENS + lane % 4 * 2 + c % 2, sums[tile][c]);
}

/* Whether this block is the last of those that share its rows; what the others wrote is then visible. */
static __device__ __forceinline__ bool comes_last(uint32_t *arrivals, int shares)
{
    __shared__ uint32_t before;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) /* back to zero with the last one */
        before = atomicInc(arrivals, (uint32_t)shares - 1);
    __syncthreads();
    __threadfence();
    return before == (uint32_t)shares - 1;
}

template <int TILES>
static __device__ __forceinline__ void finish(const tiles_call &call, const float (&sums)[TILES][4],
                                              int row_block, int share)
{
    constexpr int TOKENS = TILES * TILE_TOKENS;
    const int first_row = row_block * ROWS;
    if (call.shares == 1) {
        each_sum<TILES>(sums, [&](int row, int token, float sum) { store(call, first_row + row, token, sum); });
        return;
    }
    float *parts = call.parts + (int64_t)row_block * call.shares * ROWS * TOKENS;
    float *own = parts + (int64_t)share * ROWS * TOKENS;
    each_sum<TILES>(sums, [&](int row, int token, float sum) { own[token * ROWS + row] = sum; });
    if (!comes_last(call.arrivals + row_block, call.shares))
        return;
    for (int i = threadIdx.x; i < ROWS * TOKENS; i += THREADS) {
        float sum = 0;
        for (int part = 0; part < call.shares; part++)
            sum += __ldcg(parts + (int64_t)part * ROWS * TOKENS + i);
        store(call, first_row + i % ROWS, i / ROWS, sum);
    }
}

/* ---- the kernel ---- */

template <int BITS, int TILES> constexpr int STEP_BYTES = STEP_WORDS *CHUNKS *TILES *DECANT_WARP *VECTOR_BYTES;
template <int BITS, int TILES>
constexpr int SHARED_BYTES = WARPS *STAGES *UNIT_BYTES<BITS> + 2 * STEP_BYTES<BITS, TILES>;

template <int BITS, int TILES, bool WHOLE>
__global__ void __launch_bounds__(THREADS, BLOCKS_EACH)
    packed_tiles_kernel(const __grid_constant__ tiles_call call)
{
    extern __shared__ __align__(128) unsigned char shared[];
    const decant_packed_view &packed = call.packed;
    const int lane = threadIdx.x % DECANT_WARP, warp = threadIdx.x / DECANT_WARP;
    const int row_block = (int)blockIdx.x / call.shares, share = (int)blockIdx.x % call.shares;
    const int units = (packed.words + UNIT_WORDS - 1) / UNIT_WORDS;
    const int begin = units * share / call.shares, end = units * (share + 1) / call.shares;
    const int first_row = row_block * ROWS + warp * WARP_ROWS;
    unsigned char *steps = shared + WARPS * STAGES * UNIT_BYTES<BITS>;
    unsigned char *ring = shared + warp * STAGES * UNIT_BYTES<BITS>;
    const uint32_t ring_address = decant_shared_address(ring);

#pragma unroll
    for (int i = 0; i < STAGES; i++) {
        if (begin + i < end)
            fetch_unit<BITS, WHOLE>(packed, first_row, begin + i, ring_address + i * UNIT_BYTES<BITS>);
        decant_copy_commit();
    }
    decant_let_next_kernel_begin();
    row_levels<BITS> levels[HALVES];
#pragma unroll
    for (int half = 0; half < HALVES; half++)
        load_levels<BITS>(levels[half], packed, first_row + half * 8 + lane / 4);
    float sums[TILES][4] = {};
    step_vectors<TILES> x;
    decant_wait_for_earlier_kernels();
    load_step<TILES>(x, call, begin, 0);
    store_step<TILES>(x, steps);
    __syncthreads();
    for (int unit = begin; unit < end; unit++) {
        const int slot = (unit - begin) % STAGES * UNIT_BYTES<BITS>;
        uint4 planes[HALVES][BITS];
        decant_copy_wait<STAGES - 1>(); /* a lane reads what it copied itself */
#pragma unroll
        for (int half = 0; half < HALVES; half++)
#pragma unroll
            for (int bit = 0; bit < BITS; bit++)
                planes[half][bit] =
                    *(const uint4 *)(ring + slot + ((half * BITS + bit) * DECANT_WARP + lane) * VECTOR_BYTES);
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            const bool is_last = step + 1 == STEPS;
            const bool more = !is_last || unit + 1 < end;
            if (more)
                load_step<TILES>(x, call, is_last ? unit + 1 : unit, is_last ? 0 : step + 1);
            add_step<BITS, TILES>(sums, planes, levels, step, steps + step % 2 * STEP_BYTES<BITS, TILES>);
            if (more)
                store_step<TILES>(x, steps + (step + 1) % 2 * STEP_BYTES<BITS, TILES>);
            if (is_last && unit + STAGES < end)
                fetch_unit<BITS, WHOLE>(packed, first_row, unit + STAGES, ring_address + slot);
            __syncthreads();
        }
        decant_copy_commit();
    }
    finish<TILES>(call, sums, row_block, share);
}

/* ---- the choice of a launch ---- */

static int row_blocks_of(int rows)
{
    return (rows + ROWS - 1) / ROWS;
}

/* In so many parts that no multiprocessor has much more to do than the others; two blocks there hide each
 * other's waiting, and each part costs its sums. */
static int shares_for(const decant_cuda *cuda, int rows, int words)
{
    const int row_blocks = row_blocks_of(rows), units = (words + UNIT_WORDS - 1) / UNIT_WORDS;
    int best = 1;
    double least = 0;
    for (int shares = 1; shares <= units && shares <= SHARES_MAXIMUM; shares++) {
        const int blocks = (row_blocks * shares + cuda->multiprocessors - 1) / cuda->multiprocessors;
        const double cost =
            (blocks + (blocks == 1 ? 0.2 : 0.0)) * ((units + shares - 1) / shares + 0.25) + 0.05 * shares;
        if (shares == 1 || cost < least) {
            best = shares;
            least = cost;
        }
    }
    return row_blocks <= ARRIVALS ? best : 1;
}

/* The context's counters of blocks that have left their sums: zeros between launches. */
static decant_status arrivals_of(decant_cuda_context *context, uint32_t **arrivals, decant_error *err)
{
    const size_t size_bytes = ARRIVALS * sizeof **arrivals;
    if (!context->arrivals) {
        const cudaStream_t stream = context->shared.stream;
        DECANT_RETURN_ON_FAILURE(
            decant_cuda_acquire(context, stream, size_bytes, "counters", &context->arrivals, err));
        DECANT_RETURN_ON_FAILURE(
            decant_cuda_check(cudaMemsetAsync(context->arrivals, 0, size_bytes, stream), "counters", err));
    }
    *arrivals = (uint32_t *)context->arrivals;
    return DECANT_OK;
}

template <int BITS, int TILES>
static cudaError_t launch_tokens(decant_cuda_context *context, const tiles_call &call)
{
    const decant_packed_view &packed = call.packed;
    const bool whole = packed.words % LANE_WORDS == 0 && (uintptr_t)packed.planes % VECTOR_BYTES == 0;
    const unsigned blocks = (unsigned)(row_blocks_of(packed.rows) * call.shares);
    return decant_launch_early(
        context, whole ? packed_tiles_kernel<BITS, TILES, true> : packed_tiles_kernel<BITS, TILES, false>,
        blocks, THREADS, SHARED_BYTES<BITS, TILES>, call);
}

template <int BITS> static cudaError_t launch_width(decant_cuda_context *context, const tiles_call &call)
{
    return call.tokens <= TILE_TOKENS       ? launch_tokens<BITS, 1>(context, call)
           : call.tokens <= 2 * TILE_TOKENS ? launch_tokens<BITS, 2>(context, call)
                                            : launch_tokens<BITS, 4>(context, call);
}

bool decant_cuda_packed_has_tiles(decant_backend *backend, decant_matrix x, const decant_packed_matrix *packed)
{
    return packed->bits <= PLANES_MAXIMUM && x.element == DECANT_BF16 && x.rows <= 4 * TILE_TOKENS &&
           decant_has_vectors<__nv_bfloat16>(x.columns, x.data) &&
           decant_cuda_of(backend)->shared_memory_bytes >= (size_t)SHARED_BYTES<PLANES_MAXIMUM, 4>;
}

decant_status decant_cuda_packed_tiles(decant_backend *backend, decant_matrix x,
                                       const decant_packed_matrix *packed, bool sparse, bool accumulate,
                                       decant_matrix y, decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    tiles_call call = {};
    call.packed = decant_packed_view_of(packed);
    call.x = (const __nv_bfloat16 *)x.data;
    call.y = (__nv_bfloat16 *)y.data;
    call.tokens = (int)x.rows;
    call.accumulate = accumulate;
    call.shares = shares_for(&context->shared, call.packed.rows, call.packed.words);
    size_t total = 0;
    const int tokens = call.tokens <= TILE_TOKENS       ? TILE_TOKENS
                       : call.tokens <= 2 * TILE_TOKENS ? 2 * TILE_TOKENS
                                                        : 4 * TILE_TOKENS;
    const size_t parts_at =
        decant_scratch_reserve(&total, (size_t)row_blocks_of(call.packed.rows) * (size_t)call.shares * ROWS *
                                           (size_t)tokens * sizeof(float));
    const size_t sparse_at = decant_scratch_reserve(&total, sparse ? decant_token_sparse_bytes(x, packed) : 0);
    void *scratch;
    DECANT_RETURN_ON_FAILURE(decant_cuda_scratch(backend, total, &scratch, err));
    DECANT_RETURN_ON_FAILURE(arrivals_of(context, &call.arrivals, err));
    call.parts = (float *)((char *)scratch + parts_at);
    if (sparse)
        DECANT_RETURN_ON_FAILURE(
            decant_cuda_token_sparse(backend, x, packed, (char *)scratch + sparse_at, &call.sparse, err));
    const cudaError_t code = packed->bits == 2   ? launch_width<2>(context, call)
                             : packed->bits == 3 ? launch_width<3>(context, call)
                                                 : launch_width<4>(context, call);
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(code, "packed_tiles", err));
    return decant_cuda_launched(backend, "packed_tiles", err);
}
