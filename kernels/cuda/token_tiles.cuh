/* y = x ŵᵀ for up to 32 tokens in BF16 on tensor cores, straight from bit planes: all but the way from codes to
 * numbers, which is a decoder's (packed_tiles.cu).
 *
 * A block takes 128 rows, a warp sixteen of them, and some of the units of sixteen words of every plane; blocks
 * that share rows leave their sums in scratch, and the one that comes last adds all of them up in order. Of the
 * words of a unit a lane (g = lane / 4, t = lane % 4) takes words 4t … 4t + 3 of rows g and g + 8, sixteen
 * bytes of every plane, and copies them ahead into a ring of its own. All warps share the x that is in shared
 * memory, 64 columns of each of the four lanes at a time.
 *
 * Products do not care about the order of their terms as long as both operands have the same one (the terms of
 * a product are listed in tensor_core.cuh): eight columns of a token, sixteen bytes, serve two products.
 *
 * With a sparse part, blocks first take its entries (token_entries.cuh), each those of its part of the rows. */
#ifndef DECANT_KERNELS_CUDA_TOKEN_TILES_CUH
#define DECANT_KERNELS_CUDA_TOKEN_TILES_CUH

#include "kernels/cuda/arrivals.cuh"
#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/packed.cuh"
#include "kernels/cuda/tensor_core.cuh"
#include "kernels/cuda/token_entries.cuh"

enum {
    WARPS = 8,
    THREADS = WARPS * DECANT_WARP,
    WARP_ROWS = 16,
    ROWS = WARPS * WARP_ROWS, /* of a block */
    HALVES = 2,               /* of a warp's rows: g and g + 8 of a lane */
    UNIT_WORDS = 16,
    LANE_WORDS = 4,    /* of a unit */
    STEP_COLUMNS = 64, /* of each lane: x is there for so many at a time */
    CHUNKS = 8,        /* of eight columns, in a step of a lane */
    STEP_CHUNKS = 32,  /* of a token in a step: those of four lanes */
    TILE_TOKENS = 8,   /* of one product */
    TOKENS_MAXIMUM = 32,
    VECTOR_BYTES = 16, /* of eight columns of x, and of four words of a plane */
    STAGES = 2,        /* units of codes that are there or under way */
    SHARES_MAXIMUM = 16,
    PARTS_AHEAD = 8, /* of different shares, that are read at once */
};

/* Powers of two that the compiler does not know, to shift right by multiplying: bytes are permuted where shifts
 * are done, and multiplications have a place of their own. */
typedef struct shift_factors {
    uint32_t one, two, sixteen;         /* 2^(32 − shift) */
    uint32_t unit, two_left, four_left; /* 1, 2 and 4 */
} shift_factors;

/* The arguments of a launch. */
typedef struct tiles_call {
    decant_packed_view packed;
    const __nv_bfloat16 *x;      /* [tokens, columns] */
    const __nv_bfloat16 *turned; /* [columns, tokens of the kernel] x for the sparse part, NULL: none */
    float *products;             /* [tokens, rows] scratch for those of the sparse part */
    __nv_bfloat16 *y;            /* [tokens, rows] */
    float *parts;       /* [row blocks, shares, ROWS, tokens of the kernel], when there are several shares */
    uint32_t *arrivals; /* [row blocks] zeros, and zeros again in the end */
    int tokens;
    int shares; /* of the units, each for a block */
    bool accumulate;
    shift_factors shifts;
} tiles_call;

/* Levels i … i + 3 of a row. */
template <int BITS>
static __device__ __forceinline__ void levels_at(float (&four)[4], const tiles_call &call, int row, int i)
{
    const uint2 halves = *(const uint2 *)(call.packed.levels + ((int64_t)row << BITS) + i);
    const float2 first = __half22float2(*(const __half2 *)&halves.x);
    const float2 second = __half22float2(*(const __half2 *)&halves.y);
    four[0] = first.x;
    four[1] = first.y;
    four[2] = second.x;
    four[3] = second.y;
}

static __host__ __device__ __forceinline__ int row_blocks_of(int rows)
{
    return (rows + ROWS - 1) / ROWS;
}

static __device__ __forceinline__ uint32_t shift_right(uint32_t value, uint32_t factor)
{
    return __umulhi(value, factor);
}

static __device__ __forceinline__ uint32_t word_of(const uint4 &four, int word)
{
    return word == 0 ? four.x : word == 1 ? four.y : word == 2 ? four.z : four.w;
}

/* ---- codes ---- */

template <int PLANES> constexpr int UNIT_BYTES = PLANES *HALVES *DECANT_WARP *VECTOR_BYTES; /* of a warp */

/* Starts copying a lane's words of one unit; planes beyond the last are zeros. WHOLE: rows of planes can be
 * read sixteen bytes at a time. */
template <int PLANES, bool WHOLE>
static __device__ __forceinline__ void fetch_unit(const decant_packed_view &packed, int first_row, int unit,
                                                  uint32_t slot)
{
    const int lane = threadIdx.x % DECANT_WARP, word = unit * UNIT_WORDS + lane % 4 * LANE_WORDS;
#pragma unroll
    for (int half = 0; half < HALVES; half++) {
        const int row = min(first_row + half * 8 + lane / 4, packed.rows - 1);
        const uint32_t *source = packed.planes + (int64_t)row * packed.bits * packed.words + word;
#pragma unroll
        for (int bit = 0; bit < PLANES; bit++, source += packed.words) {
            const uint32_t target = slot + ((half * PLANES + bit) * DECANT_WARP + lane) * VECTOR_BYTES;
            if constexpr (WHOLE) {
                const bool valid = word < packed.words && bit < packed.bits;
                decant_copy_line_16(target, valid ? source : packed.planes, valid);
            } else {
#pragma unroll
                for (int i = 0; i < LANE_WORDS; i++) {
                    const bool valid = word + i < packed.words && bit < packed.bits;
                    decant_copy_4(target + i * 4, valid ? source + i : packed.planes, valid);
                }
            }
        }
    }
}

template <int PLANES> struct unit_planes {
    uint4 words[HALVES][PLANES];
};

template <int PLANES>
static __device__ __forceinline__ void load_planes(unit_planes<PLANES> &planes, const unsigned char *slot)
{
    const int lane = threadIdx.x % DECANT_WARP;
#pragma unroll
    for (int half = 0; half < HALVES; half++)
#pragma unroll
        for (int bit = 0; bit < PLANES; bit++)
            planes.words[half][bit] =
                *(const uint4 *)(slot + ((half * PLANES + bit) * DECANT_WARP + lane) * VECTOR_BYTES);
}

/* ---- activations ---- */

/* A thread's share of x of one step, in registers: vectors i of token tile i. */
template <int TILES> struct step_vectors {
    uint4 vectors[TILES];
};

/* Thread i has chunk i % 32 of token i / 32 of every tile: eight columns; zeros beyond the last token or
 * column. lane_columns: that a lane takes of a unit. */
template <int TILES>
static __device__ __forceinline__ void load_step(step_vectors<TILES> &own, const tiles_call &call,
                                                 int lane_columns, int unit, int step)
{
    const int chunk = threadIdx.x % STEP_CHUNKS, taker = chunk / CHUNKS;
    const int column = (unit * 4 + taker) * lane_columns + step * STEP_COLUMNS + chunk % CHUNKS * 8;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        const int token = tile * TILE_TOKENS + (int)threadIdx.x / STEP_CHUNKS;
        own.vectors[tile] = make_uint4(0, 0, 0, 0);
        if (token < call.tokens && column < call.packed.columns)
            own.vectors[tile] = *(const uint4 *)(call.x + (int64_t)token * call.packed.columns + column);
    }
}

/* Where the vector that lane `lane` takes of its chunk `chunk` lies in the step, in bytes. Those of a token
 * that threads store together fall into different banks. */
template <int TILES> static __device__ __forceinline__ int vector_place(int chunk, int tile, int lane)
{
    return ((chunk * TILES + tile) * DECANT_WARP + (lane ^ chunk)) * VECTOR_BYTES;
}

/* APART: in pairs of columns n and n + 4 instead of neighbours. */
template <int TILES, bool APART>
static __device__ __forceinline__ void store_step(const step_vectors<TILES> &own, unsigned char *step)
{
    const int chunk = threadIdx.x % STEP_CHUNKS;
    const int lane = (int)threadIdx.x / STEP_CHUNKS * 4 + chunk / CHUNKS;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        uint4 four = own.vectors[tile];
        if (APART)
            four = make_uint4(__byte_perm(four.x, four.z, 0x5410), __byte_perm(four.x, four.z, 0x7632),
                              __byte_perm(four.y, four.w, 0x5410), __byte_perm(four.y, four.w, 0x7632));
        *(uint4 *)(step + vector_place<TILES>(chunk % CHUNKS, tile, lane)) = four;
    }
}

/* sums += both products of one chunk. first, second: the operands of the rows (tensor_core.cuh). */
template <int TILES>
static __device__ __forceinline__ void multiply_chunk(float (&sums)[TILES][4], const uint32_t (&first)[4],
                                                      const uint32_t (&second)[4], int chunk,
                                                      const unsigned char *x)
{
    const int lane = threadIdx.x % DECANT_WARP;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        const uint4 four = *(const uint4 *)(x + vector_place<TILES>(chunk, tile, lane));
        decant_mma(sums[tile], first, four.x, four.y);
        decant_mma(sums[tile], second, four.z, four.w);
    }
}

/* ---- the sparse part ---- */

/* A block takes the entries of its part of the rows that it shares, in `shared` of ENTRY_BYTES, and leaves
 * their sums in call.products: of rows that it stores itself, or before it says that it has come. */
template <int TILES> struct own_entries {
    decant_row_entries<THREADS, TILES * TILE_TOKENS> entries;
    int first_row;

    /* What does not depend on x. A barrier inside. */
    __device__ __forceinline__ void open(const tiles_call &call, int row_block, int share, float *shared)
    {
        const int begin = row_block * ROWS + ROWS * share / call.shares,
                  end = row_block * ROWS + ROWS * (share + 1) / call.shares;
        first_row = min(begin, call.packed.rows);
        entries.open(call.packed, first_row, min(end, call.packed.rows) - first_row, shared);
    }

    /* Ends with a barrier. */
    __device__ __forceinline__ void multiply(const tiles_call &call)
    {
        entries.multiply(call.packed, first_row, call.turned, call.tokens, call.products);
        __syncthreads();
    }
};

template <int TILES>
constexpr int ENTRY_BYTES = (decant_row_entries<THREADS, TILES * TILE_TOKENS>::bytes(ROWS) + 127) / 128 * 128;

/* ---- the end ---- */

static __device__ __forceinline__ void store(const tiles_call &call, int row, int token, float sum)
{
    if (row >= call.packed.rows || token >= call.tokens)
        return;
    const int64_t place = (int64_t)token * call.packed.rows + row;
    if (call.turned)
        sum += call.products[place];
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

/* Sums of a row block [tokens of the kernel, ROWS] that one of its blocks leaves. */
template <int TOKENS>
static __device__ __forceinline__ float *part_of(const tiles_call &call, int row_block, int part)
{
    return call.parts + ((int64_t)row_block * call.shares + part) * ROWS * TOKENS;
}

/* The last block of those that share rows adds up what all left. */
template <int TILES> static __device__ __forceinline__ void add_parts(const tiles_call &call, int row_block)
{
    constexpr int TOKENS = TILES * TILE_TOKENS;
    const int count = call.shares;
    if (!decant_comes_last(call.arrivals + row_block, count))
        return;
    const float4 *parts = (const float4 *)part_of<TOKENS>(call, row_block, 0);
    for (int i = threadIdx.x; i < ROWS * TOKENS / 4; i += THREADS) {
        float sums[4] = {};
        for (int first = 0; first < count; first += PARTS_AHEAD) {
            float4 ahead[PARTS_AHEAD];
#pragma unroll
            for (int j = 0; j < PARTS_AHEAD; j++)
                if (first + j < count)
                    ahead[j] = __ldcg(parts + (first + j) * (ROWS * TOKENS / 4) + i);
#pragma unroll
            for (int j = 0; j < PARTS_AHEAD; j++)
                if (first + j < count) {
                    sums[0] += ahead[j].x;
                    sums[1] += ahead[j].y;
                    sums[2] += ahead[j].z;
                    sums[3] += ahead[j].w;
                }
        }
#pragma unroll
        for (int j = 0; j < 4; j++)
            store(call, row_block * ROWS + i * 4 % ROWS + j, i * 4 / ROWS, sums[j]);
    }
}

template <int TILES>
static __device__ __forceinline__ void finish(const tiles_call &call, const float (&sums)[TILES][4],
                                              int row_block, int share)
{
    constexpr int TOKENS = TILES * TILE_TOKENS;
    if (call.shares == 1) {
        each_sum<TILES>(
            sums, [&](int row, int token, float sum) { store(call, row_block * ROWS + row, token, sum); });
        return;
    }
    float *own = part_of<TOKENS>(call, row_block, share);
    each_sum<TILES>(sums, [&](int row, int token, float sum) { own[token * ROWS + row] = sum; });
    add_parts<TILES>(call, row_block);
}

/* ---- the kernel ---- */

template <int TILES> constexpr int STEP_BYTES = CHUNKS *TILES *DECANT_WARP *VECTOR_BYTES;
/* For x, and before it for entries. */
template <int TILES, bool SPARSE>
constexpr int X_BYTES =
    SPARSE &&ENTRY_BYTES<TILES> > 2 * STEP_BYTES<TILES> ? ENTRY_BYTES<TILES> : 2 * STEP_BYTES<TILES>;
template <typename Decoder, int TILES, bool SPARSE>
constexpr int SHARED_BYTES =
    Decoder::SHARED_BYTES + WARPS *STAGES *UNIT_BYTES<Decoder::PLANES> + X_BYTES<TILES, SPARSE>;

/* A Decoder knows how codes become numbers:
 *     PLANES, STEPS (of 64 columns of a lane, in a unit), BLOCKS (to a multiprocessor), SHARED_BYTES
 *     APART       pairs of columns are n and n + 4
 *     load        what it needs of the weights; a barrier follows
 *     add_step    sums += the products of one step */
template <typename Decoder, int TILES, bool WHOLE, bool SPARSE>
__global__ void __launch_bounds__(THREADS, Decoder::BLOCKS)
    tiles_kernel(const __grid_constant__ tiles_call call)
{
    constexpr int PLANES = Decoder::PLANES, STEPS = Decoder::STEPS, LANE_COLUMNS = STEPS * STEP_COLUMNS;
    static_assert(STEPS % 2 == 0, "a unit begins with the first of two places for x");
    extern __shared__ __align__(128) unsigned char shared[];
    const decant_packed_view &packed = call.packed;
    const int warp = threadIdx.x / DECANT_WARP;
    const int row_block = (int)blockIdx.x / call.shares, share = (int)blockIdx.x % call.shares;
    const int units = (packed.words + UNIT_WORDS - 1) / UNIT_WORDS;
    const int begin = units * share / call.shares, end = units * (share + 1) / call.shares;
    const int first_row = row_block * ROWS + warp * WARP_ROWS;
    unsigned char *steps = shared + Decoder::SHARED_BYTES;
    unsigned char *ring = steps + X_BYTES<TILES, SPARSE> + warp * STAGES * UNIT_BYTES<PLANES>;
    const uint32_t ring_address = decant_shared_address(ring);
    Decoder decoder;

    decant_let_next_kernel_begin();
#pragma unroll
    for (int i = 0; i < STAGES; i++) {
        if (begin + i < end)
            fetch_unit<PLANES, WHOLE>(packed, first_row, begin + i, ring_address + i * UNIT_BYTES<PLANES>);
        decant_copy_commit();
    }
    decoder.load(call, first_row, shared);
    own_entries<TILES> entries;
    if (SPARSE)
        entries.open(call, row_block, share, (float *)steps);
    decant_wait_for_earlier_kernels();
    if (SPARSE)
        entries.multiply(call);
    float sums[TILES][4] = {};
    step_vectors<TILES> x;
    load_step<TILES>(x, call, LANE_COLUMNS, begin, 0);
    store_step<TILES, Decoder::APART>(x, steps);
    __syncthreads();
    for (int unit = begin; unit < end; unit++) {
        const int slot = (unit - begin) % STAGES * UNIT_BYTES<PLANES>;
        unit_planes<PLANES> planes;
        decant_copy_wait<STAGES - 1>(); /* a lane reads what it copied itself */
        load_planes<PLANES>(planes, ring + slot);
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            const bool is_last = step + 1 == STEPS, more = !is_last || unit + 1 < end;
            if (more)
                load_step<TILES>(x, call, LANE_COLUMNS, is_last ? unit + 1 : unit, is_last ? 0 : step + 1);
            decoder.template add_step<TILES>(sums, planes, call, step, steps + step % 2 * STEP_BYTES<TILES>,
                                             shared);
            if (more)
                store_step<TILES, Decoder::APART>(x, steps + (step + 1) % 2 * STEP_BYTES<TILES>);
            if (is_last && unit + STAGES < end)
                fetch_unit<PLANES, WHOLE>(packed, first_row, unit + STAGES, ring_address + slot);
            __syncthreads();
        }
        decant_copy_commit();
    }
    finish<TILES>(call, sums, row_block, share);
}

/* ---- the choice of a launch ---- */

/* In so many parts that the multiprocessors are done at about the same time. One block alone on one takes four
 * fifths of the time of two, which hide each other's waiting; what begins and ends a block costs about half a
 * unit.
 */
static inline int shares_for(const decant_cuda *cuda, int rows, int words)
{
    const int row_blocks = row_blocks_of(rows), units = (words + UNIT_WORDS - 1) / UNIT_WORDS;
    int best = 1;
    double least = 0;
    for (int shares = 1; shares <= units && shares <= SHARES_MAXIMUM; shares++) {
        const int blocks = (row_blocks * shares + cuda->multiprocessors - 1) / cuda->multiprocessors;
        const double rounds = blocks / 2 + blocks % 2 * 0.8;
        const double cost = rounds * ((units + shares - 1) / shares + 0.5) + 0.02 * shares;
        if (shares == 1 || cost < least) {
            best = shares;
            least = cost;
        }
    }
    return row_blocks <= DECANT_ARRIVALS ? best : 1;
}

static inline int padded_tokens(int tokens)
{
    return tokens <= TILE_TOKENS ? TILE_TOKENS : tokens <= 2 * TILE_TOKENS ? 2 * TILE_TOKENS : TOKENS_MAXIMUM;
}

/* Fills what a call needs beyond the weights, x and y; call.packed and call.tokens are set. Returns the bytes
 * of scratch for call.parts. */
static inline decant_status prepare(decant_cuda_context *context, tiles_call *call, size_t *parts_bytes,
                                    decant_error *err)
{
    call->shares = shares_for(&context->shared, call->packed.rows, call->packed.words);
    call->shifts = {1u << 31, 1u << 30, 1u << 16, 1, 2, 4};
    const int parts = call->shares;
    *parts_bytes = parts == 1 ? 0
                              : (size_t)row_blocks_of(call->packed.rows) * (size_t)parts * ROWS *
                                    (size_t)padded_tokens(call->tokens) * sizeof(float);
    return decant_cuda_arrivals(context, &call->arrivals, err);
}

template <typename Decoder, int TILES, bool SPARSE>
static cudaError_t launch_sparse(decant_cuda_context *context, const tiles_call &call)
{
    const decant_packed_view &packed = call.packed;
    const bool whole = packed.words % LANE_WORDS == 0 && (uintptr_t)packed.planes % VECTOR_BYTES == 0;
    const unsigned blocks = (unsigned)(row_blocks_of(packed.rows) * call.shares);
    return decant_launch_early(context,
                               whole ? tiles_kernel<Decoder, TILES, true, SPARSE>
                                     : tiles_kernel<Decoder, TILES, false, SPARSE>,
                               blocks, THREADS, SHARED_BYTES<Decoder, TILES, SPARSE>, call);
}

template <typename Decoder, int TILES>
static cudaError_t launch_tokens(decant_cuda_context *context, const tiles_call &call)
{
    return call.turned ? launch_sparse<Decoder, TILES, true>(context, call)
                       : launch_sparse<Decoder, TILES, false>(context, call);
}

template <typename Decoder>
static cudaError_t launch_tiles(decant_cuda_context *context, const tiles_call &call)
{
    return call.tokens <= TILE_TOKENS       ? launch_tokens<Decoder, 1>(context, call)
           : call.tokens <= 2 * TILE_TOKENS ? launch_tokens<Decoder, 2>(context, call)
                                            : launch_tokens<Decoder, 4>(context, call);
}

#endif
