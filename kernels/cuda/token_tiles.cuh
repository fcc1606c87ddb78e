/* y = x ŵᵀ for up to 32 tokens in BF16 on tensor cores, straight from bit planes: all but the way from codes to
 * numbers, which is a decoder's (packed_tiles.cu). Operands are F16, as levels are; of x that is made here.
 *
 * A block takes 128 rows, a warp sixteen of them, and some of the units of sixteen words of every plane; blocks
 * that share rows leave their sums in scratch, and the one that comes last adds all of them up in order. Of the
 * words of a unit a lane (g = lane / 4, t = lane % 4) takes words 4t … 4t + 3 of rows g and g + 8, sixteen
 * bytes of every plane, and copies them ahead into a ring of its own. All warps share the x of a unit that is
 * in shared memory.
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
    LANE_WORDS = 4, /* of a unit */
    LANE_COLUMNS = LANE_WORDS * 32,
    STEPS = 2,         /* of a unit */
    STEP_COLUMNS = 64, /* of each lane */
    CHUNKS = 8,        /* of eight columns, in a step of a lane */
    STEP_CHUNKS = 32,  /* of a token in a step: those of four lanes */
    TILE_TOKENS = 8,   /* of one product */
    TOKENS_MAXIMUM = 32,
    VECTOR_BYTES = 16, /* of eight columns of x, and of four words of a plane */
    STAGES = 2,        /* units of codes that are there or under way */
    SHARES_MAXIMUM = 16,
    PARTS_AHEAD = 8, /* of different shares, that are read at once */
    /* of numbers: where their exponents begin, the one of 1, and the largest exponents of finite ones */
    BF16_EXPONENT_AT = 7,
    F32_EXPONENT_AT = 23,
    F32_BIAS = 127,
    F16_BIAS = 15,
    BF16_LARGEST_EXPONENT = 254,
    F16_LARGEST_EXPONENT = 30,
};

/* Powers of two that the compiler does not know, to shift by multiplying: bytes are permuted where shifts are
 * done, and multiplications have a place of their own. */
typedef struct shift_factors {
    uint32_t one, two, sixteen;    /* to the right: 2^(32 − shift) */
    uint32_t two_left, three_left; /* 2^shift */
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
template <int BITS> static __device__ __forceinline__ uint2 levels_at(const tiles_call &call, int row, int i)
{
    return *(const uint2 *)(call.packed.levels + ((int64_t)row << BITS) + i);
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

/* Where a lane finds its words of the first unit, in its two rows. */
typedef struct lane_planes {
    const uint32_t *rows[HALVES];
} lane_planes;

static __device__ __forceinline__ lane_planes planes_of_lane(const decant_packed_view &packed, int first_row)
{
    const int lane = threadIdx.x % DECANT_WARP;
    lane_planes own;
#pragma unroll
    for (int half = 0; half < HALVES; half++)
        own.rows[half] = decant_row_planes(packed, min(first_row + half * 8 + lane / 4, packed.rows - 1)) +
                         lane % 4 * LANE_WORDS;
    return own;
}

/* Starts copying a lane's words of one unit; planes beyond the last are zeros. WHOLE: rows of planes can be
 * read sixteen bytes at a time. */
template <int PLANES, bool WHOLE>
static __device__ __forceinline__ void fetch_unit(const decant_packed_view &packed, const lane_planes &own,
                                                  int unit, uint32_t slot)
{
    static_assert((int)UNIT_WORDS == (int)DECANT_PIECE_WORDS, "units are as far apart as pieces");
    const int lane = threadIdx.x % DECANT_WARP, word = unit * UNIT_WORDS + lane % 4 * LANE_WORDS;
#pragma unroll
    for (int half = 0; half < HALVES; half++) {
        const uint32_t *source = own.rows[half] + (int64_t)unit * packed.order.piece;
#pragma unroll
        for (int bit = 0; bit < PLANES; bit++, source += packed.order.plane) {
            const uint32_t target = slot + ((half * PLANES + bit) * DECANT_WARP + lane) * VECTOR_BYTES;
            if constexpr (WHOLE) {
                decant_copy_line_16(target, source, word < packed.words);
            } else {
#pragma unroll
                for (int i = 0; i < LANE_WORDS; i++) {
                    const bool valid = word + i < packed.words;
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

/* ---- activations ----
 *
 * Of a unit, a token's x is multiplied by a power of two that brings its largest magnitude to 2¹⁵ … 2¹⁶, as far
 * as the exponent has room, and its sums by the inverse. In BF16 and F16, magnitudes are exponents and then
 * seven and ten bits: to make the one the other is to take something from the exponent and to shift. That is
 * exact but for entries less than 2⁻²⁹ times the largest of the unit, which are off by 2⁻³⁰ of it at most;
 * infinite and undefined entries stay so. */

/* A thread's share of x of one unit, in registers: vectors [·][i] of token tile i. */
template <int TILES> struct unit_vectors {
    uint4 vectors[STEPS][TILES];
};

/* Thread i has chunk i % 32 of each step and of token i / 32 of every tile: eight columns, those of lane
 * i % 32 / 8 of the four of a row. */
static __device__ __forceinline__ int own_chunk(void)
{
    return threadIdx.x % CHUNKS;
}

static __device__ __forceinline__ int own_taker(void)
{
    return (int)threadIdx.x % STEP_CHUNKS / CHUNKS;
}

static __device__ __forceinline__ int own_token(void)
{
    return (int)threadIdx.x / STEP_CHUNKS;
}

/* Zeros beyond the last token or column. */
template <int TILES>
static __device__ __forceinline__ void load_x(unit_vectors<TILES> &own, const tiles_call &call, int unit)
{
    const int columns = call.packed.columns;
    const int column = (unit * 4 + own_taker()) * LANE_COLUMNS + own_chunk() * 8;
    const __nv_bfloat16 *source = call.x + (int64_t)own_token() * columns + column;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++, source += (int64_t)TILE_TOKENS * columns)
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            own.vectors[step][tile] = make_uint4(0, 0, 0, 0);
            if (tile * TILE_TOKENS + own_token() < call.tokens && column + step * STEP_COLUMNS < columns)
                own.vectors[step][tile] = *(const uint4 *)(source + step * STEP_COLUMNS);
        }
}

/* A step of x lies as [chunk][tile][lane] vectors; behind each chunk one is left free, so that those of a token
 * that threads store together fall into different banks. */
template <int TILES> constexpr int CHUNK_BYTES = (TILES * DECANT_WARP + 1) * VECTOR_BYTES;
template <int TILES> constexpr int STEP_BYTES = CHUNKS *CHUNK_BYTES<TILES>;

static __device__ __forceinline__ uint32_t magnitudes(uint32_t pair)
{
    return pair & 0x7fff7fffu;
}

/* What a warp takes from the exponents of the token that it has of this tile. */
template <int TILES>
static __device__ __forceinline__ int exponents_apart(const unit_vectors<TILES> &own, int tile)
{
    uint32_t most = 0;
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        const uint4 four = own.vectors[step][tile];
        most = __vimax3_u16x2(most, magnitudes(four.x), magnitudes(four.y));
        most = __vimax3_u16x2(most, magnitudes(four.z), magnitudes(four.w));
    }
    most = __vmaxu2(most, __byte_perm(most, 0, 0x1032)); /* both halves alike, in the order of numbers */
    const int largest = (int)(__reduce_max_sync(DECANT_ALL_LANES, most) >> (16 + BF16_EXPONENT_AT));
    return max(min(largest, BF16_LARGEST_EXPONENT) - F16_LARGEST_EXPONENT, 0);
}

/* Two BF16 as F16. apart: their exponents' difference. */
static __device__ __forceinline__ uint32_t halves_of(uint32_t pair, int apart, const shift_factors &shifts)
{
    const uint32_t one = 0x00010001u << BF16_EXPONENT_AT, left = 0u - (one << 3); /* of both halves */
    return (__vmaxu2(magnitudes(pair), (uint32_t)apart * one) * shifts.three_left + (uint32_t)apart * left) |
           (pair & 0x80008000u);
}

/* Makes F16 of a unit, in pairs of columns n and n + 4. inverses: [TILES · TILE_TOKENS]. */
template <int TILES>
static __device__ __forceinline__ void store_x(const unit_vectors<TILES> &own, const tiles_call &call,
                                               unsigned char *x, float *inverses)
{
    unsigned char *place =
        x + own_chunk() * CHUNK_BYTES<TILES> + (own_token() * 4 + own_taker()) * VECTOR_BYTES;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        const int apart = exponents_apart<TILES>(own, tile);
        inverses[tile * TILE_TOKENS + own_token()] =
            __uint_as_float((uint32_t)(apart + F16_BIAS) << F32_EXPONENT_AT);
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            const uint4 four = own.vectors[step][tile];
            const uint32_t first = halves_of(four.x, apart, call.shifts),
                           second = halves_of(four.y, apart, call.shifts),
                           third = halves_of(four.z, apart, call.shifts),
                           fourth = halves_of(four.w, apart, call.shifts);
            *(uint4 *)(place + step * STEP_BYTES<TILES> + tile * DECANT_WARP * VECTOR_BYTES) =
                make_uint4(__byte_perm(first, third, 0x5410), __byte_perm(first, third, 0x7632),
                           __byte_perm(second, fourth, 0x5410), __byte_perm(second, fourth, 0x7632));
        }
    }
}

/* sums += both products of one chunk. first, second: the operands of the rows (tensor_core.cuh). */
template <int TILES>
static __device__ __forceinline__ void multiply_chunk(float (&sums)[TILES][4], const uint32_t (&first)[4],
                                                      const uint32_t (&second)[4], int chunk,
                                                      const unsigned char *x)
{
    const unsigned char *place = x + chunk * CHUNK_BYTES<TILES> + threadIdx.x % DECANT_WARP * VECTOR_BYTES;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        const uint4 four = *(const uint4 *)(place + tile * DECANT_WARP * VECTOR_BYTES);
        decant_mma_halves(sums[tile], first, four.x, four.y);
        decant_mma_halves(sums[tile], second, four.z, four.w);
    }
}

/* sums += those of a unit, times what its tokens' are to be multiplied by. */
template <int TILES>
static __device__ __forceinline__ void add_unit(float (&sums)[TILES][4], const float (&unit)[TILES][4],
                                                const float *inverses)
{
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        const float2 two = *(const float2 *)(inverses + tile * TILE_TOKENS + threadIdx.x % 4 * 2);
#pragma unroll
        for (int c = 0; c < 4; c++)
            sums[tile][c] = fmaf(unit[tile][c], c % 2 ? two.y : two.x, sums[tile][c]);
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

/* The last block of those that share rows adds up what all left. A thread asks for all that it adds at once, as
 * far as registers suffice. */
template <int TILES> static __device__ __forceinline__ void add_parts(const tiles_call &call, int row_block)
{
    constexpr int TOKENS = TILES * TILE_TOKENS, FOURS = ROWS * TOKENS / 4, AT_ONCE = FOURS > THREADS ? 2 : 1;
    const int count = call.shares;
    if (!decant_comes_last(call.arrivals + row_block, count))
        return;
    const float4 *parts = (const float4 *)part_of<TOKENS>(call, row_block, 0);
#pragma unroll
    for (int begin = 0; begin < FOURS; begin += AT_ONCE * THREADS) {
        float sums[AT_ONCE][4] = {};
        for (int first = 0; first < count; first += PARTS_AHEAD) {
            float4 ahead[PARTS_AHEAD][AT_ONCE];
#pragma unroll
            for (int j = 0; j < PARTS_AHEAD; j++)
                if (first + j < count)
#pragma unroll
                    for (int k = 0; k < AT_ONCE; k++)
                        ahead[j][k] =
                            __ldcg(parts + (first + j) * FOURS + begin + k * THREADS + (int)threadIdx.x);
#pragma unroll
            for (int j = 0; j < PARTS_AHEAD; j++)
                if (first + j < count)
#pragma unroll
                    for (int k = 0; k < AT_ONCE; k++) {
                        sums[k][0] += ahead[j][k].x;
                        sums[k][1] += ahead[j][k].y;
                        sums[k][2] += ahead[j][k].z;
                        sums[k][3] += ahead[j][k].w;
                    }
        }
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            const int i = (begin + k * THREADS + (int)threadIdx.x) * 4;
#pragma unroll
            for (int j = 0; j < 4; j++)
                store(call, row_block * ROWS + i % ROWS + j, i / ROWS, sums[k][j]);
        }
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

/* Whether the next unit of x is stored while one is multiplied, and one more asked for. With 32 tokens there
 * are too few registers for that. */
template <int TILES> constexpr bool STORES_AHEAD = TILES <= 2;
template <int TILES> constexpr int BUFFERS = STORES_AHEAD<TILES> ? 2 : 1;
/* For x, and before it for entries. */
template <int TILES, bool SPARSE>
constexpr int X_BYTES = SPARSE &&ENTRY_BYTES<TILES> > BUFFERS<TILES> *STEPS *STEP_BYTES<TILES>
                            ? ENTRY_BYTES<TILES>
                            : BUFFERS<TILES> *STEPS *STEP_BYTES<TILES>;
template <typename Decoder, int TILES, bool SPARSE>
constexpr int SHARED_BYTES = WARPS *STAGES *UNIT_BYTES<Decoder::PLANES> + X_BYTES<TILES, SPARSE>;
/* With what is not asked for at a launch. */
template <typename Decoder, int TILES>
constexpr int BLOCK_BYTES = SHARED_BYTES<Decoder, TILES, true> +
                            BUFFERS<TILES> *TILES *TILE_TOKENS *(int)sizeof(float);

/* A Decoder knows how codes become numbers:
 *     PLANES      of codes
 *     load        what it needs of the weights
 *     add_step    sums += the products of one step */
template <typename Decoder, int TILES, bool WHOLE, bool SPARSE>
__global__ void __launch_bounds__(THREADS, 2) tiles_kernel(const __grid_constant__ tiles_call call)
{
    constexpr int PLANES = Decoder::PLANES, UNIT_X_BYTES = STEPS * STEP_BYTES<TILES>;
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ float inverses[BUFFERS<TILES>][TILES * TILE_TOKENS]; /* of the units of x that are there */
    const decant_packed_view &packed = call.packed;
    const int warp = threadIdx.x / DECANT_WARP;
    const int row_block = (int)blockIdx.x / call.shares, share = (int)blockIdx.x % call.shares;
    const int units = (packed.words + UNIT_WORDS - 1) / UNIT_WORDS;
    const int begin = units * share / call.shares, end = units * (share + 1) / call.shares;
    const int first_row = row_block * ROWS + warp * WARP_ROWS;
    unsigned char *x_places = shared,
                  *ring = shared + X_BYTES<TILES, SPARSE> + warp * STAGES * UNIT_BYTES<PLANES>;
    const uint32_t ring_address = decant_shared_address(ring);
    const lane_planes own_planes = planes_of_lane(packed, first_row);
    Decoder decoder;

    decant_let_next_kernel_begin();
#pragma unroll
    for (int i = 0; i < STAGES; i++) {
        if (begin + i < end)
            fetch_unit<PLANES, WHOLE>(packed, own_planes, begin + i, ring_address + i * UNIT_BYTES<PLANES>);
        decant_copy_commit();
    }
    decoder.load(call, first_row);
    own_entries<TILES> entries;
    if (SPARSE)
        entries.open(call, row_block, share, (float *)shared);
    decant_wait_for_earlier_kernels();
    float sums[TILES][4] = {};
    unit_vectors<TILES> x, second;
    load_x<TILES>(x, call, begin);
    if (SPARSE)
        entries.multiply(call);
    if (STORES_AHEAD<TILES> && begin + 1 < end)
        load_x<TILES>(second, call, begin + 1);
    store_x<TILES>(x, call, x_places, inverses[0]);
    if (STORES_AHEAD<TILES>)
        x = second;
    __syncthreads();
    for (int unit = begin; unit < end; unit++) {
        const int slot = (unsigned)(unit - begin) % STAGES * UNIT_BYTES<PLANES>;
        const unsigned now = (unsigned)(unit - begin) % BUFFERS<TILES>,
                       next = (unsigned)(unit + 1 - begin) % BUFFERS<TILES>;
        const bool more = unit + 1 < end;
        unit_planes<PLANES> planes;
        decant_copy_wait<STAGES - 1>(); /* a lane reads what it copied itself */
        load_planes<PLANES>(planes, ring + slot);
        if (STORES_AHEAD<TILES> && more) {
            store_x<TILES>(x, call, x_places + next * UNIT_X_BYTES, inverses[next]);
            if (unit + 2 < end)
                load_x<TILES>(x, call, unit + 2);
        }
        float of_unit[TILES][4] = {};
#pragma unroll
        for (int step = 0; step < STEPS; step++)
            decoder.template add_step<TILES>(of_unit, planes, call, step,
                                             x_places + now * UNIT_X_BYTES + step * STEP_BYTES<TILES>);
        add_unit<TILES>(sums, of_unit, inverses[now]);
        if (unit + STAGES < end)
            fetch_unit<PLANES, WHOLE>(packed, own_planes, unit + STAGES, ring_address + slot);
        if (!STORES_AHEAD<TILES> && more) {
            load_x<TILES>(x, call, unit + 1);
            __syncthreads();
            store_x<TILES>(x, call, x_places, inverses[0]);
        }
        __syncthreads();
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
    call->shifts = {1u << 31, 1u << 30, 1u << 16, 1u << 2, 1u << 3};
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
