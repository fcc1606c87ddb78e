/* What a block of packed_parities.cu does, piece by piece; the whole is explained there. */
#ifndef DECANT_KERNELS_CUDA_PARITY_BLOCK_CUH
#define DECANT_KERNELS_CUDA_PARITY_BLOCK_CUH

#include "kernels/cuda/fixed_point.cuh"
#include "kernels/cuda/named_barriers.cuh"
#include "kernels/cuda/packed.cuh"
#include "kernels/cuda/sparse_rows.cuh"

enum {
    TILE_ROWS = 8,
    UNIT_WORDS = 16,
    LANE_WORDS = 4,                   /* of a unit, in every plane */
    PRODUCTS = 2,                     /* of a unit: each takes two of a lane's words */
    OPERAND_BYTES = DECANT_WARP * 16, /* of x, of one product */
    WARPS = 8,
    THREADS = WARPS * DECANT_WARP,
};

/* Warps that share a ring, so that each takes half of the subsets of six bits: those of the five lowest bits,
 * with or without the sixth. */
template <int BITS> constexpr int TEAM = BITS <= 5 ? 1 : 2;
template <int BITS> constexpr int SUBSETS_OF_WARP = BITS <= 5 ? (1 << BITS) - 1 : 32;

/* Tokens that one block takes: their counts, 4 SUBSETS_OF_WARP registers a token, must fit. */
template <int BITS> constexpr int TOKENS_OF_WIDTH = BITS == 2 ? 8 : BITS == 3 ? 4 : BITS == 4 ? 2 : 1;

/* Units in a team's ring of so many planes a warp. */
template <int BITS, int RING> constexpr int STAGES = RING *TEAM<BITS> / BITS;
template <int BITS> constexpr int UNIT_BYTES = BITS *OPERAND_BYTES;

/* Whether the next kernel's block may share the multiprocessor: the registers must suffice for both. */
template <int BITS, int TOKENS>
constexpr bool HAS_ROOM_FOR_NEXT = TOKENS <= 2 && TOKENS *SUBSETS_OF_WARP<BITS> <= 15;

/* A row of coefficients is four longer than its levels, for the banks of shared memory. They are read four at a
 * time. */
template <int BITS> constexpr int COEFFICIENT_STRIDE = (1 << BITS) + 4;

/* Of a tile, in the parts that the warps add to its rows. */
template <int TOKENS> constexpr int TILE_PARTS = (WARPS + 1) * TILE_ROWS *TOKENS;

/* The arguments of a launch. */
typedef struct parities_call {
    decant_packed_view packed;
    const __nv_bfloat16 *x; /* [tokens, columns] */
    __nv_bfloat16 *y;       /* [tokens, rows] */
    int tokens, groups;     /* groups of tokens, each for other blocks */
    int blocks;             /* of one group */
    int tiles;              /* of a block, at most */
    int ring;               /* planes of units in a warp's ring */
    bool sparse;
    bool x_in_shared; /* for the sparse part */
    int window;       /* chunks of the sparse part that a block has room for */
    int64_t entries;  /* of the matrix */
    bool accumulate;
    int pairs; /* of units that a warp asks for beyond its ring before x is there */
} parities_call;

/* Where a block's arrays lie in shared memory, in bytes. */
typedef struct shared_layout {
    int operands;     /* [TOKENS][units][PRODUCTS] operands of x */
    int coefficients; /* F32 [rows of the block, COEFFICIENT_STRIDE] */
    int parts;        /* F32 [tiles, WARPS + 1, TILE_ROWS, TOKENS]: what each warp adds to each row, and a place
                       * that keeps the next tile out of the same banks */
    int sparse;       /* sparse_rows.cuh */
    int x;            /* BF16 [TOKENS, units of columns], for the sparse part, if at all */
    int chunks;       /* [WARPS][CHUNK_BUFFERS] of the sparse part */
    int rings;        /* [teams][stages] units */
    int total;
} shared_layout;

enum { CHUNK_BUFFERS = 2 };

template <int BITS, int TOKENS>
static __host__ __device__ __forceinline__ shared_layout layout_of(const parities_call &call, int tiles,
                                                                   int units)
{
    const int x_bytes = TOKENS * units * UNIT_WORDS * DECANT_PLANE_COLUMNS * 2;
    const int stages = call.ring * TEAM<BITS> / BITS;
    shared_layout layout;
    layout.operands = 0;
    layout.coefficients = TOKENS * units * PRODUCTS * OPERAND_BYTES;
    layout.parts = layout.coefficients + tiles * TILE_ROWS * COEFFICIENT_STRIDE<BITS> * 4;
    layout.sparse = layout.parts + tiles * TILE_PARTS<TOKENS> * 4;
    layout.x =
        layout.sparse + (call.sparse ? decant_sparse_rows_bytes(tiles * TILE_ROWS, TOKENS, call.window) : 0);
    layout.chunks = layout.x + (call.x_in_shared ? x_bytes : 0);
    layout.rings = layout.chunks + (call.sparse ? WARPS * CHUNK_BUFFERS * DECANT_CHUNK_BYTES : 0);
    layout.total = layout.rings + WARPS / TEAM<BITS> * stages * UNIT_BYTES<BITS>;
    return layout;
}

/* What a block works on. */
typedef struct block_share {
    int first_tile, tiles; /* of the matrix */
    int units;             /* of a tile */
    int first_token;
    shared_layout layout;
} block_share;

/* Rows of the block; its last tile may reach beyond the last row. */
static __device__ __forceinline__ int rows_of(const decant_packed_view &packed, const block_share &share)
{
    return min(share.tiles * TILE_ROWS, packed.rows - share.first_tile * TILE_ROWS);
}

static __host__ __device__ __forceinline__ int tiles_of(int rows)
{
    return (rows + TILE_ROWS - 1) / TILE_ROWS;
}

static __host__ __device__ __forceinline__ int units_of(int words)
{
    return (words + UNIT_WORDS - 1) / UNIT_WORDS;
}

/* A warp's units among those of its block, tile by tile: all teams share them evenly. */
typedef struct warp_run {
    int first, count;
} warp_run;

template <int BITS> static __device__ __forceinline__ warp_run run_of(const block_share &share, int warp)
{
    constexpr int TEAMS = WARPS / TEAM<BITS>;
    const int units = share.tiles * share.units, team = warp / TEAM<BITS>, first = units * team / TEAMS;
    return {first, units * (team + 1) / TEAMS - first};
}

/* ---- instructions ---- */

static __device__ __forceinline__ uint4 load_shared(uint32_t address)
{
    uint4 value;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "r"(address)
                 : "memory");
    return value;
}

static __device__ __forceinline__ void store_shared_pair(uint32_t address, uint32_t low, uint32_t high)
{
    asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(address), "r"(low), "r"(high) : "memory");
}

static __device__ __forceinline__ void store_shared(uint32_t address, const uint4 &value)
{
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(value.x), "r"(value.y),
                 "r"(value.z), "r"(value.w)
                 : "memory");
}

/* counts += the ones of and(planes of x, parities of rows). */
static __device__ __forceinline__ void count_ones(int (&counts)[4], const uint4 &planes, uint32_t low,
                                                  uint32_t high)
{
    asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(counts[0]), "+r"(counts[1]), "+r"(counts[2]), "+r"(counts[3])
        : "r"(planes.x), "r"(planes.y), "r"(planes.z), "r"(planes.w), "r"(low), "r"(high));
}

/* ---- codes: a ring of units for each team ---- */

/* How planes lie: rows of them, to be read by words or sixteen bytes at a time, or arranged (packed.cuh): then
 * a unit lies as it will in a slot, and the units of a tile follow each other. */
enum planes_form { PLANES_BY_WORDS, PLANES_BY_ROWS, PLANES_ARRANGED };

template <planes_form FORM> struct form_constant {
    static constexpr planes_form value = FORM;
};

/* For the host: launch(form_constant) of the kernel for planes that lie so. */
template <typename Launch> static cudaError_t by_form(planes_form form, const Launch &launch)
{
    switch (form) {
    case PLANES_BY_WORDS:
        return launch(form_constant<PLANES_BY_WORDS>());
    case PLANES_BY_ROWS:
        return launch(form_constant<PLANES_BY_ROWS>());
    default:
        return launch(form_constant<PLANES_ARRANGED>());
    }
}

static_assert((int)UNIT_WORDS == (int)DECANT_PIECE_WORDS && (int)TILE_ROWS == (int)DECANT_GROUP_ROWS,
              "a unit is a piece of a group of rows");

/* Where the next unit that a warp fetches is. */
typedef struct plane_source {
    const uint32_t *words; /* a lane's, of the first that the warp brings its team */
    int tile, unit;        /* of the block, of the tile */
} plane_source;

/* Words of an arranged unit, and between its planes. */
template <int BITS> constexpr int ARRANGED_WORDS = UNIT_BYTES<BITS> / 4;
enum { ARRANGED_PLANE_WORDS = OPERAND_BYTES / 4 };

template <int BITS, planes_form FORM>
static __device__ __forceinline__ plane_source source_of(const decant_packed_view &packed,
                                                         const block_share &share, int tile, int unit)
{
    const int lane = threadIdx.x % DECANT_WARP, member = threadIdx.x / DECANT_WARP % TEAM<BITS>;
    if constexpr (FORM == PLANES_ARRANGED)
        return {packed.planes + (int64_t)(share.first_tile + tile) * TILE_ROWS * BITS * packed.words +
                    unit * ARRANGED_WORDS<BITS> + member * ARRANGED_PLANE_WORDS + lane * LANE_WORDS,
                tile, unit};
    const int row = min((share.first_tile + tile) * TILE_ROWS + lane / 4, packed.rows - 1);
    const int word = unit * UNIT_WORDS + lane % 4 * LANE_WORDS;
    return {packed.planes + ((int64_t)row * BITS + member) * packed.words + word, tile, unit};
}

/* ONCE: what is copied is the first to make room in the L2 cache. */
template <bool ONCE>
static __device__ __forceinline__ void copy_codes(uint32_t target, const uint32_t *source, bool valid)
{
    if constexpr (ONCE)
        decant_copy_line_once_16(target, source, valid);
    else
        decant_copy_line_16(target, source, valid);
}

/* Starts copying a lane's words of one unit to its place in a slot and goes on to the next. */
template <int BITS, planes_form FORM, bool ONCE>
static __device__ __forceinline__ void fetch_unit(const decant_packed_view &packed, const block_share &share,
                                                  plane_source &source, uint32_t target)
{
    constexpr int STEP = TEAM<BITS>;
    const int member = threadIdx.x / DECANT_WARP % STEP;
    const int left = packed.words - (source.unit * UNIT_WORDS + (int)threadIdx.x % 4 * LANE_WORDS);
    const int plane_words = FORM == PLANES_ARRANGED ? (int)ARRANGED_PLANE_WORDS : packed.words;
    const uint32_t *words = source.words;
    target += member * OPERAND_BYTES;
#pragma unroll
    for (int bit = 0; bit < BITS; bit += STEP, words += STEP * plane_words) {
        if constexpr (FORM == PLANES_BY_WORDS) {
#pragma unroll
            for (int i = 0; i < LANE_WORDS; i++)
                decant_copy_4(target + bit * OPERAND_BYTES + i * 4, i < left ? words + i : packed.planes,
                              i < left);
        } else {
            copy_codes<ONCE>(target + bit * OPERAND_BYTES, words, FORM == PLANES_ARRANGED || left > 0);
        }
    }
    source.words += FORM == PLANES_ARRANGED ? ARRANGED_WORDS<BITS> : (int)UNIT_WORDS;
    if (++source.unit < share.units)
        return;
    if constexpr (FORM == PLANES_ARRANGED) { /* the next tile follows */
        source.unit = 0;
        source.tile++;
    } else {
        source = source_of<BITS, FORM>(packed, share, source.tile + 1, 0);
    }
}

/* ---- levels ---- */

/* The levels of the row of the block that a thread turns. */
template <int BITS> struct own_levels {
    uint2 fours[(1 << BITS) / 4];
};

template <int BITS>
static __device__ __forceinline__ own_levels<BITS> load_levels(const decant_packed_view &packed,
                                                               const block_share &share)
{
    const int row = min(share.first_tile * TILE_ROWS + (int)threadIdx.x, packed.rows - 1);
    const uint2 *levels = (const uint2 *)(packed.levels + ((int64_t)row << BITS));
    own_levels<BITS> own;
#pragma unroll
    for (int i = 0; i < (1 << BITS) / 4; i++)
        own.fours[i] = levels[i];
    return own;
}

/* The transform of one row: f(0), then −2 c_S for the other subsets. */
template <int BITS>
static __device__ __forceinline__ void transform_row(const own_levels<BITS> &own, float *target)
{
    constexpr int LEVELS = 1 << BITS;
    float values[LEVELS];
#pragma unroll
    for (int i = 0; i < LEVELS; i += 4) {
        const uint2 four = own.fours[i / 4];
        const float2 low = __half22float2(*(const __half2 *)&four.x);
        const float2 high = __half22float2(*(const __half2 *)&four.y);
        values[i] = low.x;
        values[i + 1] = low.y;
        values[i + 2] = high.x;
        values[i + 3] = high.y;
    }
    target[0] = values[0];
#pragma unroll
    for (int bit = 1; bit < LEVELS; bit *= 2)
#pragma unroll
        for (int i = 0; i < LEVELS; i++) {
            if (i & bit)
                continue;
            const float sum = values[i] + values[i + bit], difference = values[i] - values[i + bit];
            values[i] = sum;
            values[i + bit] = difference;
        }
#pragma unroll
    for (int i = 1; i < LEVELS; i++)
        target[i] = values[i] * (-2.0f / LEVELS);
}

/* The transform of every row of the block. */
template <int BITS>
static __device__ __forceinline__ void transform_levels(const own_levels<BITS> &own, const block_share &share,
                                                        float *coefficients)
{
    if ((int)threadIdx.x < share.tiles * TILE_ROWS)
        transform_row<BITS>(own, coefficients + threadIdx.x * COEFFICIENT_STRIDE<BITS>);
}

/* ---- activations ---- */

/* What the whole block must know of its tokens. */
template <int TOKENS> struct token_figures {
    uint32_t largest[TOKENS][WARPS]; /* magnitudes, as bits of BF16 */
    int sums[TOKENS][WARPS];         /* of the fixed-point values */
};

/* The largest magnitude of a token, once every warp has left its own. */
template <int TOKENS>
static __device__ __forceinline__ float largest_of(const token_figures<TOKENS> &figures, int token)
{
    uint32_t largest = 0;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++)
        largest = max(largest, figures.largest[token][warp]);
    return __uint_as_float(largest << 16);
}

/* Turns a word's columns into planes, stores them among a token's operands and adds their values to `sum`. */
static __device__ __forceinline__ int
store_planes(uint32_t operands, int word, const uint4 (&vectors)[DECANT_PLANE_VECTORS], float factor, int sum)
{
    uint32_t planes[DECANT_FIXED_POINT_PLANES];
    decant_columns_to_fixed_point(planes, vectors, factor);
    sum = decant_fixed_point_sum(sum, planes);
    decant_transpose_planes(planes);
    const int product = word / UNIT_WORDS * PRODUCTS + word / 2 % PRODUCTS;
    const int taker = word / LANE_WORDS % 4, half = word % 2;
    uint32_t address = operands + product * OPERAND_BYTES + taker * 16 + half * 8;
#pragma unroll
    for (int plane = 0; plane < DECANT_FIXED_POINT_PLANES / 2; plane++, address += 4 * 16)
        store_shared_pair(address, planes[plane], planes[plane + 8]);
    return sum;
}

/* Where the first plane of a half word goes among the operands. */
static __device__ __forceinline__ uint32_t address_of_half(uint32_t operands, uint32_t half)
{
    const uint32_t word = half / 2, product = word / UNIT_WORDS * PRODUCTS + word / 2 % PRODUCTS;
    return operands + product * OPERAND_BYTES + word / LANE_WORDS % 4 * 16 + word % 2 * 8 + half % 2 * 4;
}

/* Lane pairs put whole words together and store them, where `valid`: the even lane of a word planes 0 … 7, the
 * odd one the rest. By whole warps. */
static __device__ __forceinline__ void store_half(uint32_t address, const decant_half_planes &half, bool valid)
{
    const uint32_t selector = threadIdx.x % 2 ? 0x3175 : 0x6420;
#pragma unroll
    for (int plane = 0; plane < DECANT_HALF_COLUMNS / 2; plane++, address += 4 * 16) {
        const uint32_t other = __shfl_xor_sync(DECANT_ALL_LANES, half.words[plane], 1);
        if (valid)
            asm volatile("st.shared.u32 [%0], %1;" ::"r"(address),
                         "r"(__byte_perm(half.words[plane], other, selector))
                         : "memory");
    }
}

/* Where column `column` of a token's x lies in its copy in shared memory: the sixteen bytes that a thread takes
 * of its word's 64 at a time fall into other banks than its neighbours'. */
static __device__ __forceinline__ uint32_t x_offset(uint32_t column)
{
    return column * 2 ^ (column >> 6 & 3) << 4;
}

/* Columns of 32 words of a token, from first_word on, by a warp that reads whole cache lines: vectors[i] of a
 * lane are the eight columns of number 32 i + lane. Zeros beyond the last column. */
static __device__ __forceinline__ void load_lines(uint4 (&vectors)[DECANT_PLANE_VECTORS],
                                                  const __nv_bfloat16 *x, int first_word, int columns)
{
    const int first = first_word * DECANT_PLANE_COLUMNS + (int)threadIdx.x % DECANT_WARP * 8;
#pragma unroll
    for (int i = 0; i < DECANT_PLANE_VECTORS; i++) {
        const int column = first + i * DECANT_WARP * 8;
        vectors[i] = column < columns ? *(const uint4 *)(x + column) : make_uint4(0, 0, 0, 0);
    }
}

/* What load_lines has read, to the copy of x, which ends with `words`. */
static __device__ __forceinline__ void store_lines(uint32_t copy, int first_word, int words,
                                                   const uint4 (&vectors)[DECANT_PLANE_VECTORS])
{
    const int first = first_word * DECANT_PLANE_COLUMNS + (int)threadIdx.x % DECANT_WARP * 8;
#pragma unroll
    for (int i = 0; i < DECANT_PLANE_VECTORS; i++)
        if (first + i * DECANT_WARP * 8 < words * DECANT_PLANE_COLUMNS)
            store_shared(copy + x_offset(first + i * DECANT_WARP * 8), vectors[i]);
}

/* Turns the copy of x into planes, in steps of as many words as there are threads, and returns the sum of the
 * values of a thread's words. The copy may be the operands themselves: the 32 words that a warp takes at a time
 * lie in the same bytes as their planes. */
static __device__ __forceinline__ int turn_to_planes(uint32_t operands, uint32_t copy, int words, float factor)
{
    int sum = 0;
#pragma unroll 1
    for (int first = (int)threadIdx.x & -DECANT_WARP; first < words; first += THREADS) {
        const int word = first + (int)threadIdx.x % DECANT_WARP;
        uint4 vectors[DECANT_PLANE_VECTORS] = {};
        if (word < words)
#pragma unroll
            for (int i = 0; i < DECANT_PLANE_VECTORS; i++)
                vectors[i] = load_shared(copy + x_offset(word * DECANT_PLANE_COLUMNS + i * 8));
        __syncwarp();
        if (word < words)
            sum = store_planes(operands, word, vectors, factor, sum);
    }
    return sum;
}

/* The operands of x of the block's tokens, and x itself where the sparse part finds it in shared memory, by
 * THREADS threads together, which are the whole block or meet at barrier BARRIER; one inside, and one must
 * follow. READERS other threads wait at the barrier behind that for the copy of x. */
template <int TOKENS, bool SPARSE, int BARRIER = 0, int READERS = 0>
static __device__ __forceinline__ void make_operands(const parities_call &call, const block_share &share,
                                                     token_figures<TOKENS> &figures, uint32_t operands,
                                                     uint32_t x_copy)
{
    constexpr int AT_ONCE = TOKENS == 1 ? 3 : 1; /* loads of 32 words, of each token */
    const int lane = threadIdx.x % DECANT_WARP, warp = threadIdx.x / DECANT_WARP;
    const int columns = call.packed.columns, words = share.units * UNIT_WORDS;
    const int own = warp * DECANT_WARP; /* the warp's first word; the next come THREADS words later */
    const uint32_t token_bytes = words * DECANT_PLANE_COLUMNS * 2;
    const uint32_t copies = SPARSE && call.x_in_shared ? x_copy : operands;
    uint4 ahead[TOKENS][AT_ONCE][DECANT_PLANE_VECTORS];
#pragma unroll
    for (int token = 0; token < TOKENS; token++)
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            if (own + i * THREADS < words)
                load_lines(ahead[token][i],
                           call.x + (int64_t)min(share.first_token + token, call.tokens - 1) * columns,
                           own + i * THREADS, columns);
#pragma unroll
    for (int token = 0; token < TOKENS; token++) {
        const __nv_bfloat16 *x = call.x + (int64_t)min(share.first_token + token, call.tokens - 1) * columns;
        const uint32_t copy = copies + token * token_bytes;
        uint32_t largest = 0;
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            if (own + i * THREADS < words) {
                store_lines(copy, own + i * THREADS, words, ahead[token][i]);
                largest = decant_largest_bits(largest, ahead[token][i]);
            }
#pragma unroll 1
        for (int first = own + AT_ONCE * THREADS; first < words; first += THREADS) {
            uint4 vectors[DECANT_PLANE_VECTORS];
            load_lines(vectors, x, first, columns);
            store_lines(copy, first, words, vectors);
            largest = decant_largest_bits(largest, vectors);
        }
        largest = __reduce_max_sync(DECANT_ALL_LANES, max(largest & 0xffffu, largest >> 16));
        if (lane == 0)
            figures.largest[token][warp] = largest;
    }
    if constexpr (READERS > 0)
        arrive_at_barrier<BARRIER + 1, THREADS + READERS>();
    if constexpr (BARRIER == 0)
        __syncthreads();
    else
        wait_at_barrier<BARRIER, THREADS>();
#pragma unroll
    for (int token = 0; token < TOKENS; token++) {
        const float factor = decant_fixed_point_factor(largest_of(figures, token));
        int sum = turn_to_planes(operands + token * token_bytes, copies + token * token_bytes, words, factor);
        sum = __reduce_add_sync(DECANT_ALL_LANES, sum);
        if (lane == 0)
            figures.sums[token][warp] = sum;
    }
}

/* The operands of one token of a unit of columns to a warp or less, whose lanes take half a word each: whole
 * words would be work for half of them. Inside is a barrier of the block, and one must follow. */
static __device__ __forceinline__ void make_short_operands(const parities_call &call, const block_share &share,
                                                           token_figures<1> &figures, uint32_t operands)
{
    constexpr int UNIT_COLUMNS = UNIT_WORDS * DECANT_PLANE_COLUMNS;
    const int lane = threadIdx.x % DECANT_WARP, warp = threadIdx.x / DECANT_WARP;
    const bool has_unit = warp < share.units;
    const __nv_bfloat16 *x = call.x + (int64_t)share.first_token * call.packed.columns;
    uint4 vectors[DECANT_HALF_VECTORS] = {};
    if (has_unit) { /* by whole cache lines; lanes find their own columns in shared memory */
        const int first = warp * UNIT_COLUMNS + lane * 8;
#pragma unroll
        for (int i = 0; i < DECANT_HALF_VECTORS; i++) {
            const int column = first + i * DECANT_WARP * 8;
            if (column < call.packed.columns)
                vectors[i] = *(const uint4 *)(x + column);
        }
#pragma unroll
        for (int i = 0; i < DECANT_HALF_VECTORS; i++)
            store_shared(operands + x_offset(first + i * DECANT_WARP * 8), vectors[i]);
    }
    const uint32_t largest = decant_largest_bits(0, vectors);
    const uint32_t of_warp = __reduce_max_sync(DECANT_ALL_LANES, max(largest & 0xffffu, largest >> 16));
    if (lane == 0)
        figures.largest[0][warp] = of_warp;
    __syncwarp();
    if (has_unit)
#pragma unroll
        for (int i = 0; i < DECANT_HALF_VECTORS; i++)
            vectors[i] =
                load_shared(operands + x_offset(warp * UNIT_COLUMNS + lane * DECANT_HALF_COLUMNS + i * 8));
    __syncthreads();
    int sum = 0;
    if (has_unit) {
        const float factor = decant_fixed_point_factor(largest_of(figures, 0));
        const decant_half_planes half = decant_half_to_planes(vectors, factor, sum);
        store_half(address_of_half(operands, warp * UNIT_WORDS * 2 + lane), half, true);
    }
    sum = __reduce_add_sync(DECANT_ALL_LANES, sum);
    if (lane == 0)
        figures.sums[0][warp] = sum;
}

/* ---- the dense part ---- */

/* All warps of the team have come here. Barriers are named one by one: a block reserves those it may use. */
template <int BITS> static __device__ __forceinline__ void wait_for_team(void)
{
    constexpr int MEMBERS = TEAM<BITS> * DECANT_WARP;
    if constexpr (TEAM<BITS> == 1)
        return __syncwarp();
    switch (threadIdx.x / MEMBERS) {
    case 0:
        return wait_at_barrier<1, MEMBERS>();
    case 1:
        return wait_at_barrier<2, MEMBERS>();
    case 2:
        return wait_at_barrier<3, MEMBERS>();
    default:
        return wait_at_barrier<4, MEMBERS>();
    }
}

/* A lane's words of a unit: its planes, those above the fifth put together. */
template <int BITS> struct unit_words {
    uint4 planes[BITS <= 5 ? BITS : 5], above;
};

/* `member`: the warp's number in its team, of which it takes the subsets. */
template <int BITS> static __device__ __forceinline__ unit_words<BITS> load_unit(uint32_t slot, int member = 0)
{
    constexpr int LOW = BITS <= 5 ? BITS : 5;
    unit_words<BITS> words;
    words.above = {0, 0, 0, 0};
#pragma unroll
    for (int bit = 0; bit < LOW; bit++)
        words.planes[bit] = load_shared(slot + bit * OPERAND_BYTES);
#pragma unroll
    for (int bit = LOW; bit < BITS; bit++)
        if (member >> (bit - LOW) & 1) {
            const uint4 plane = load_shared(slot + bit * OPERAND_BYTES);
            words.above = {words.above.x ^ plane.x, words.above.y ^ plane.y, words.above.z ^ plane.z,
                           words.above.w ^ plane.w};
        }
    return words;
}

/* counts += one product of a unit; x: its planes. */
template <int BITS, int TOKENS>
static __device__ __forceinline__ void add_product(int (&counts)[TOKENS][SUBSETS_OF_WARP<BITS>][4],
                                                   const unit_words<BITS> &words, const uint4 (&x)[TOKENS],
                                                   int product)
{
    constexpr int LOW = BITS <= 5 ? BITS : 5, FIRST_SUBSET = BITS <= 5 ? 1 : 0;
#pragma unroll
    for (int i = 0; i < SUBSETS_OF_WARP<BITS>; i++) {
        uint32_t low = product == 0 ? words.above.x : words.above.z;
        uint32_t high = product == 0 ? words.above.y : words.above.w;
#pragma unroll
        for (int bit = 0; bit < LOW; bit++)
            if ((i + FIRST_SUBSET) >> bit & 1) {
                low ^= product == 0 ? words.planes[bit].x : words.planes[bit].z;
                high ^= product == 0 ? words.planes[bit].y : words.planes[bit].w;
            }
#pragma unroll
        for (int token = 0; token < TOKENS; token++)
            count_ones(counts[token][i], x[token], low, high);
    }
}

/* counts += one unit's, of the subsets of the warp that has number `member` of its team. */
template <int BITS, int TOKENS>
static __device__ __forceinline__ void add_unit(int (&counts)[TOKENS][SUBSETS_OF_WARP<BITS>][4], uint32_t slot,
                                                uint32_t operands, int token_bytes, int member = 0)
{
    const unit_words<BITS> words = load_unit<BITS>(slot, member);
#pragma unroll
    for (int product = 0; product < PRODUCTS; product++) {
        uint4 x[TOKENS];
#pragma unroll
        for (int token = 0; token < TOKENS; token++)
            x[token] = load_shared(operands + token * token_bytes + product * OPERAND_BYTES);
        add_product<BITS, TOKENS>(counts, words, x, product);
    }
}

/* Turns the counts of a tile into what this warp adds to its rows, and clears them. The lane's counts are of
 * plane g and of plane g + 8, whose weight is 2⁸ times that, of the last plane with the sign. */
template <int BITS, int TOKENS>
static __device__ __forceinline__ void finish_tile(int (&counts)[TOKENS][SUBSETS_OF_WARP<BITS>][4],
                                                   const float *coefficients, float *parts, int member = 0)
{
    constexpr int STRIDE = COEFFICIENT_STRIDE<BITS>, FIRST_SUBSET = BITS <= 5 ? 1 : 0;
    const int lane = threadIdx.x % DECANT_WARP, plane = lane / 4, first_row = lane % 4 * 2;
    const int upper_weight = plane == 7 ? -256 : 256;
    const float plane_weight = (float)(1 << plane);
    const float *of_first = coefficients + first_row * STRIDE + member * SUBSETS_OF_WARP<BITS>;
    float sums[TOKENS][2] = {};
#pragma unroll
    for (int four = 0; four < SUBSETS_OF_WARP<BITS> + FIRST_SUBSET; four += 4) {
        const float4 first = *(const float4 *)(of_first + four);
        const float4 second = *(const float4 *)(of_first + STRIDE + four);
        const float firsts[] = {first.x, first.y, first.z, first.w};
        const float seconds[] = {second.x, second.y, second.z, second.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (four + i < FIRST_SUBSET)
                continue;
#pragma unroll
            for (int token = 0; token < TOKENS; token++) {
                int(&own)[4] = counts[token][four + i - FIRST_SUBSET];
                sums[token][0] = fmaf(firsts[i], (float)(own[0] + upper_weight * own[2]), sums[token][0]);
                sums[token][1] = fmaf(seconds[i], (float)(own[1] + upper_weight * own[3]), sums[token][1]);
                own[0] = own[1] = own[2] = own[3] = 0;
            }
        }
    }
#pragma unroll
    for (int token = 0; token < TOKENS; token++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float sum = sums[token][i] * plane_weight;
#pragma unroll
            for (int offset = 4; offset < DECANT_WARP; offset *= 2)
                sum += __shfl_xor_sync(DECANT_ALL_LANES, sum, offset);
            if (plane == 0)
                parts[(first_row + i) * TOKENS + token] = sum;
        }
}

#endif
