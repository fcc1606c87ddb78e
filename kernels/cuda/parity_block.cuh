/* What a block of packed_parities.cu does, piece by piece; the whole is explained there. */
#ifndef DECANT_KERNELS_CUDA_PARITY_BLOCK_CUH
#define DECANT_KERNELS_CUDA_PARITY_BLOCK_CUH

#include "kernels/cuda/fixed_point.cuh"
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

/* Tokens that one block takes: their counts, 4 (2^bits − 1) registers a token, must fit. */
template <int BITS> constexpr int TOKENS_OF_WIDTH = BITS == 2 ? 8 : BITS == 3 ? 4 : BITS == 4 ? 2 : 1;

/* Units in a warp's ring: 24 units of one plane in all; fewer where the operands of several tokens need the
 * room. */
template <int BITS, int TOKENS> constexpr int STAGES = (TOKENS == 1 ? 24 : 16) / BITS;
template <int BITS> constexpr int UNIT_BYTES = BITS *OPERAND_BYTES;

/* Whether the next kernel's block may share the multiprocessor: the registers must suffice for both. */
template <int BITS, int TOKENS>
constexpr bool HAS_ROOM_FOR_NEXT = TOKENS <= 2 && TOKENS *((1 << BITS) - 1) <= 15;

/* A row of coefficients is four longer than its levels, for the banks of shared memory. */
template <int BITS> constexpr int COEFFICIENT_STRIDE = (1 << BITS) + 4;

/* The arguments of a launch. */
typedef struct parities_call {
    decant_packed_view packed;
    const __nv_bfloat16 *x; /* [tokens, columns] */
    __nv_bfloat16 *y;       /* [tokens, rows] */
    int tokens, groups;     /* groups of tokens, each for other blocks */
    int blocks;             /* of one group */
    bool sparse;
    int products;    /* of sparse entries and tokens that a block has room for */
    int64_t entries; /* of the matrix */
    bool accumulate;
} parities_call;

/* Where a block's arrays lie in shared memory, in bytes. */
typedef struct shared_layout {
    int operands;     /* [TOKENS][units][PRODUCTS] operands of x */
    int coefficients; /* F32 [rows of the block, COEFFICIENT_STRIDE] */
    int parts;        /* F32 [tiles, WARPS, TILE_ROWS, TOKENS]: what each warp adds to each row */
    int sparse;       /* sparse_rows.cuh */
    int rings;        /* [WARPS][STAGES] units */
    int total;
} shared_layout;

template <int BITS, int TOKENS>
static __host__ __device__ __forceinline__ shared_layout layout_of(int tiles, int units, bool sparse,
                                                                   int products)
{
    shared_layout layout;
    layout.operands = 0;
    layout.coefficients = TOKENS * units * PRODUCTS * OPERAND_BYTES;
    layout.parts = layout.coefficients + tiles * TILE_ROWS * COEFFICIENT_STRIDE<BITS> * 4;
    layout.sparse = (layout.parts + tiles * WARPS * TILE_ROWS * TOKENS * 4 + 15) / 16 * 16;
    layout.rings = layout.sparse + (sparse ? decant_sparse_rows_bytes(tiles * TILE_ROWS, TOKENS, products) : 0);
    layout.total = layout.rings + WARPS * STAGES<BITS, TOKENS> * UNIT_BYTES<BITS>;
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

/* counts += the ones of and(planes of x, parities of rows). */
static __device__ __forceinline__ void count_ones(int (&counts)[4], const uint4 &planes, uint32_t low,
                                                  uint32_t high)
{
    asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(counts[0]), "+r"(counts[1]), "+r"(counts[2]), "+r"(counts[3])
        : "r"(planes.x), "r"(planes.y), "r"(planes.z), "r"(planes.w), "r"(low), "r"(high));
}

/* ---- codes: a ring of units for each warp ---- */

/* Where a warp is in its run of units. */
typedef struct unit_place {
    int tile, unit; /* of the block, of the tile */
} unit_place;

static __device__ __forceinline__ void step(unit_place &place, int units)
{
    if (++place.unit == units) {
        place.unit = 0;
        place.tile++;
    }
}

/* Starts copying a lane's words of one unit. WHOLE: rows of planes can be read sixteen bytes at a time. */
template <int BITS, bool WHOLE>
static __device__ __forceinline__ void fetch_unit(const decant_packed_view &packed, int first_tile,
                                                  unit_place place, uint32_t slot)
{
    const int lane = threadIdx.x % DECANT_WARP;
    const int row = min((first_tile + place.tile) * TILE_ROWS + lane / 4, packed.rows - 1);
    const int word = place.unit * UNIT_WORDS + lane % 4 * LANE_WORDS;
    const uint32_t *source = packed.planes + (int64_t)row * BITS * packed.words + word;
#pragma unroll
    for (int bit = 0; bit < BITS; bit++, source += packed.words) {
        const uint32_t target = slot + bit * OPERAND_BYTES + lane * 16;
        if constexpr (WHOLE) {
            decant_copy_line_16(target, source, word < packed.words);
        } else {
#pragma unroll
            for (int i = 0; i < LANE_WORDS; i++)
                decant_copy_4(target + i * 4, word + i < packed.words ? source + i : packed.planes,
                              word + i < packed.words);
        }
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

/* The transform of every row of the block: f(0), then −2 c_S for the other subsets. */
template <int BITS>
static __device__ __forceinline__ void transform_levels(const own_levels<BITS> &own, const block_share &share,
                                                        float *coefficients)
{
    constexpr int LEVELS = 1 << BITS;
    if ((int)threadIdx.x >= share.tiles * TILE_ROWS)
        return;
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
    const float first = values[0];
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
    float *target = coefficients + threadIdx.x * COEFFICIENT_STRIDE<BITS>;
#pragma unroll
    for (int i = 0; i < LEVELS; i++)
        target[i] = i == 0 ? first : values[i] * (-2.0f / LEVELS);
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

/* The operands of x of the block's tokens, by all its threads together; two barriers. A thread takes 32 columns
 * at a time and keeps the first ones between looking for the largest and turning them to planes. */
template <int TOKENS>
static __device__ __forceinline__ void make_operands(const parities_call &call, const block_share &share,
                                                     token_figures<TOKENS> &figures, uint32_t operands)
{
    const int lane = threadIdx.x % DECANT_WARP, warp = threadIdx.x / DECANT_WARP;
    const int columns = call.packed.columns, words = share.units * UNIT_WORDS;
    uint4 kept[TOKENS][DECANT_PLANE_VECTORS];
#pragma unroll
    for (int token = 0; token < TOKENS; token++) {
        const __nv_bfloat16 *x = call.x + (int64_t)min(share.first_token + token, call.tokens - 1) * columns;
        decant_load_columns(kept[token], x, threadIdx.x * DECANT_PLANE_COLUMNS, columns);
    }
#pragma unroll
    for (int token = 0; token < TOKENS; token++) {
        const __nv_bfloat16 *x = call.x + (int64_t)min(share.first_token + token, call.tokens - 1) * columns;
        uint32_t largest = decant_largest_bits(0, kept[token]);
        for (int word = threadIdx.x + THREADS; word < words; word += THREADS) {
            uint4 vectors[DECANT_PLANE_VECTORS];
            decant_load_columns(vectors, x, word * DECANT_PLANE_COLUMNS, columns);
            largest = decant_largest_bits(largest, vectors);
        }
        largest = __reduce_max_sync(DECANT_ALL_LANES, max(largest & 0xffffu, largest >> 16));
        if (lane == 0)
            figures.largest[token][warp] = largest;
    }
    __syncthreads();
#pragma unroll
    for (int token = 0; token < TOKENS; token++) {
        const __nv_bfloat16 *x = call.x + (int64_t)min(share.first_token + token, call.tokens - 1) * columns;
        const float largest = largest_of(figures, token);
        const float factor = decant_fixed_point_factor(largest);
        int sum = 0;
        for (int word = threadIdx.x; word < words; word += THREADS) {
            uint32_t planes[DECANT_FIXED_POINT_PLANES];
            if (word != (int)threadIdx.x)
                decant_load_columns(kept[token], x, word * DECANT_PLANE_COLUMNS, columns);
            decant_columns_to_fixed_point(planes, kept[token], factor);
            sum = decant_fixed_point_sum(sum, planes);
            decant_transpose_planes(planes);
            const int product = word / UNIT_WORDS * PRODUCTS + word / 2 % PRODUCTS;
            const int taker = word / LANE_WORDS % 4, half = word % 2;
            uint32_t address =
                operands + (token * share.units * PRODUCTS + product) * OPERAND_BYTES + taker * 16 + half * 8;
#pragma unroll
            for (int plane = 0; plane < DECANT_FIXED_POINT_PLANES / 2; plane++, address += 4 * 16)
                store_shared_pair(address, planes[plane], planes[plane + 8]);
        }
        sum = __reduce_add_sync(DECANT_ALL_LANES, sum);
        if (lane == 0)
            figures.sums[token][warp] = sum;
    }
}

/* ---- the dense part ---- */

/* counts += one unit's. */
template <int BITS, int TOKENS>
static __device__ __forceinline__ void add_unit(int (&counts)[TOKENS][(1 << BITS) - 1][4], uint32_t slot,
                                                uint32_t operands, int token_bytes)
{
    uint4 planes[BITS];
#pragma unroll
    for (int bit = 0; bit < BITS; bit++)
        planes[bit] = load_shared(slot + bit * OPERAND_BYTES);
#pragma unroll
    for (int product = 0; product < PRODUCTS; product++) {
        uint4 x[TOKENS];
#pragma unroll
        for (int token = 0; token < TOKENS; token++)
            x[token] = load_shared(operands + token * token_bytes + product * OPERAND_BYTES);
#pragma unroll
        for (int subset = 1; subset < 1 << BITS; subset++) {
            uint32_t low = 0, high = 0;
#pragma unroll
            for (int bit = 0; bit < BITS; bit++)
                if (subset >> bit & 1) {
                    low ^= product == 0 ? planes[bit].x : planes[bit].z;
                    high ^= product == 0 ? planes[bit].y : planes[bit].w;
                }
#pragma unroll
            for (int token = 0; token < TOKENS; token++)
                count_ones(counts[token][subset - 1], x[token], low, high);
        }
    }
}

/* Turns the counts of a tile into what this warp adds to its rows, and clears them. The lane's counts are of
 * plane g and of plane g + 8, whose weight is 2⁸ times that, of the last plane with the sign. */
template <int BITS, int TOKENS>
static __device__ __forceinline__ void finish_tile(int (&counts)[TOKENS][(1 << BITS) - 1][4],
                                                   const float *coefficients, float *parts)
{
    constexpr int SUBSETS = 1 << BITS, STRIDE = COEFFICIENT_STRIDE<BITS>;
    const int lane = threadIdx.x % DECANT_WARP, plane = lane / 4, first_row = lane % 4 * 2;
    const int upper_weight = plane == 7 ? -256 : 256;
    const float plane_weight = (float)(1 << plane);
    const float *of_first = coefficients + first_row * STRIDE, *of_second = of_first + STRIDE;
    float sums[TOKENS][2] = {};
#pragma unroll
    for (int subset = 1; subset < SUBSETS; subset++) {
        const float first = of_first[subset], second = of_second[subset];
#pragma unroll
        for (int token = 0; token < TOKENS; token++) {
            int(&own)[4] = counts[token][subset - 1];
            sums[token][0] = fmaf(first, (float)(own[0] + upper_weight * own[2]), sums[token][0]);
            sums[token][1] = fmaf(second, (float)(own[1] + upper_weight * own[3]), sums[token][1]);
            own[0] = own[1] = own[2] = own[3] = 0;
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

/* A warp's run of units: `count` of them from `place` on, whose first copies are under way. Beside every unit
 * each of its lanes has an entry of the first window of the sparse part: while one unit is counted, the next
 * entry and the x of this one are on their way, and the products of the one before are stored. `entry` is the
 * lane's first. */
template <int BITS, int TOKENS, bool WHOLE>
static __device__ __forceinline__ void add_units(const parities_call &call, const block_share &share,
                                                 unit_place place, unit_place fetched, int count, uint32_t ring,
                                                 const float *coefficients, float *parts, uint32_t operands,
                                                 const decant_sparse_rows &sparse, decant_sparse_entry entry)
{
    const decant_packed_view &packed = call.packed;
    const __nv_bfloat16 *x = call.x + (int64_t)share.first_token * packed.columns;
    const int entries = call.sparse ? min(sparse.count, sparse.window) : 0;
    const int last_token = call.tokens - 1 - share.first_token;
    __nv_bfloat16 x_before[TOKENS];
    __half value_before = entry.value;
    constexpr int TILE_PARTS = WARPS * TILE_ROWS * TOKENS, RING_BYTES = STAGES<BITS, TOKENS> * UNIT_BYTES<BITS>;
    const int lane = threadIdx.x % DECANT_WARP;
    const int token_bytes = share.units * PRODUCTS * OPERAND_BYTES;
    int counts[TOKENS][(1 << BITS) - 1][4] = {};
    int slot = 0, free_slot = (STAGES<BITS, TOKENS> - 1) * UNIT_BYTES<BITS>;
#pragma unroll 1
    for (int i = 0; i < count; i++) {
        decant_copy_wait<STAGES<BITS, TOKENS> - 2>();
        if (i + STAGES<BITS, TOKENS> - 1 < count) {
            fetch_unit<BITS, WHOLE>(packed, share.first_tile, fetched, ring + free_slot);
            step(fetched, share.units);
        }
        decant_copy_commit();
        free_slot = slot;
        const int own = i * THREADS + (int)threadIdx.x;
        if (i > 0 && own - THREADS < entries)
            decant_store_products<TOKENS>(sparse, own - THREADS, value_before, x_before);
        if (own < entries) {
            decant_load_column<TOKENS>(x_before, x, entry.column, packed.columns, last_token);
            value_before = entry.value;
            entry = decant_sparse_entry_at(sparse, own + THREADS, entries);
        }
        add_unit<BITS, TOKENS>(counts, ring + slot + lane * 16,
                               operands + place.unit * PRODUCTS * OPERAND_BYTES + lane * 16, token_bytes);
        slot = slot + UNIT_BYTES<BITS> == RING_BYTES ? 0 : slot + UNIT_BYTES<BITS>;
        const int tile = place.tile;
        step(place, share.units);
        if (place.tile != tile || i + 1 == count)
            finish_tile<BITS, TOKENS>(counts, coefficients + tile * TILE_ROWS * COEFFICIENT_STRIDE<BITS>,
                                      parts + tile * TILE_PARTS);
    }
    if (count > 0 && (count - 1) * THREADS + (int)threadIdx.x < entries)
        decant_store_products<TOKENS>(sparse, (count - 1) * THREADS + (int)threadIdx.x, value_before, x_before);
    decant_multiply_entries<TOKENS>(sparse, 0, count * THREADS + (int)threadIdx.x, entries, THREADS, x,
                                    packed.columns, last_token);
}

/* The products of the sparse part, window by window; those of the last one are left in [*begin, *end). The
 * first window has been made already. Ends with a barrier. */
template <int TOKENS>
static __device__ __forceinline__ void multiply_sparse(const parities_call &call, const block_share &share,
                                                       const decant_sparse_rows &sparse, int *begin, int *end)
{
    const __nv_bfloat16 *x = call.x + (int64_t)share.first_token * call.packed.columns;
    for (*begin = 0;; *begin = *end) {
        *end = min(*begin + sparse.window, sparse.count);
        if (*begin > 0)
            decant_multiply_entries<TOKENS>(sparse, *begin, *begin + (int)threadIdx.x, *end, THREADS, x,
                                            call.packed.columns, call.tokens - 1 - share.first_token);
        __syncthreads();
        if (*end == sparse.count)
            return;
        decant_keep_products<TOKENS>(sparse, rows_of(call.packed, share), *begin, *end, THREADS);
        __syncthreads();
    }
}

#endif
