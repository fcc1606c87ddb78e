/* y = x ŵᵀ for very few tokens, straight from the container's bit planes, without looking up a single level.
 *
 * A table of 2^b levels is a sum of parities of its code's bits (its Walsh transform):
 *
 *     f(code) = Σ_S c_S (−1)^parity(code & S),      c_S = 2^−b Σ_code f(code) (−1)^parity(code & S)
 *
 * over the 2^b subsets S of the bits. With (−1)^parity = 1 − 2 parity and Σ_S c_S = f(0), a row is
 *
 *     y = f(0) Σ_k x_k − 2 Σ_{S ≠ ∅} c_S T_S,       T_S = Σ_k x_k parity(code_k & S)
 *
 * The parities of 32 columns are one XOR of words of the planes. T_S comes from binary tensor cores, which
 * count the ones of and(x, parity): x is fixed point in sixteen bit planes (fixed_point.cuh), whose counts are
 * put together by their weights, ±2^plane. T_S is an exact integer, so that its parts add up the same in any
 * order; a row's levels enter once, at its end. What is left in the loop is reading the codes: the kernel is
 * bound by memory.
 *
 * A block owns a run of tiles of eight rows; its warps share the units of these tiles (eight rows, 512 columns)
 * evenly, in order, each through a ring of its own in shared memory. Nothing of the weights depends on earlier
 * work, so their copies, and the levels' transform, start before the kernel waits for its x.
 *
 * Shape of the product (PTX ISA, mma.m16n8k256): a lane (g = lane / 4, t = lane % 4) holds bits 32t … +31 and
 * 128 + 32t … +31 of plane g and g + 8 of x, the same of row g of the parities, and the counts of planes g and
 * g + 8 of rows 2t and 2t + 1. Which columns these bits are does not matter as long as both sides agree: of the
 * sixteen words of a unit a lane takes words 4t … 4t + 3, sixteen bytes of every plane, two words a product. */
#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/fixed_point.cuh"
#include "kernels/cuda/packed.cuh"
#include "kernels/cuda/tensor_core.cuh"

enum {
    TILE_ROWS = 8,
    UNIT_WORDS = 16,
    LANE_WORDS = 4,                   /* of a unit, in every plane */
    PRODUCTS = 2,                     /* of a unit: each takes two of a lane's words */
    OPERAND_BYTES = DECANT_WARP * 16, /* of x, of one product */
    WARPS = 8,
    THREADS = WARPS * DECANT_WARP,
    TILES_MAXIMUM = 32,          /* of a block */
    PLANES_MAXIMUM = 4,          /* of codes */
    ENTRIES = 8,                 /* of the sparse part, of one thread at a time */
    ROW_LANES = 8,               /* lanes that add up a row of the sparse part */
    COLUMNS_MAXIMUM = 65536,     /* the sum of a token's fixed-point values must fit an int */
    CAPABILITY_END = 100,        /* later devices have no binary tensor cores */
    BLOCK_RESERVED_BYTES = 1024, /* of shared memory, by the device */
};

/* Tokens that one block takes: their counts, 4 (2^bits − 1) registers a token, must fit. */
template <int BITS> constexpr int TOKENS_OF_WIDTH = BITS == 2 ? 8 : BITS == 3 ? 4 : 2;

/* Units in a warp's ring: 16 units of one plane in all. */
template <int BITS> constexpr int STAGES = 16 / BITS;
template <int BITS> constexpr int UNIT_BYTES = BITS *OPERAND_BYTES;

/* Whether two blocks share a multiprocessor: their registers must suffice for them. */
template <int BITS, int TOKENS> constexpr bool HAS_TWO_BLOCKS = TOKENS <= 2 && TOKENS *((1 << BITS) - 1) <= 15;

/* A row of coefficients is four longer than its levels, for the banks of shared memory. */
template <int BITS> constexpr int COEFFICIENT_STRIDE = (1 << BITS) + 4;

/* The arguments of a launch. */
typedef struct parities_call {
    decant_packed_view packed;
    const __nv_bfloat16 *x; /* [tokens, columns] */
    __nv_bfloat16 *y;       /* [tokens, rows] */
    int tokens, groups;     /* groups of tokens, each for other blocks */
    int blocks;             /* of one group */
    bool sparse, accumulate;
} parities_call;

/* Where a block's arrays lie in shared memory, in bytes. */
typedef struct shared_layout {
    int operands;     /* [TOKENS][units][PRODUCTS] operands of x */
    int coefficients; /* F32 [rows of the block, COEFFICIENT_STRIDE] */
    int parts;        /* F32 [tiles, WARPS, TILE_ROWS, TOKENS]: what each warp adds to each row */
    int sparse_sums;  /* F32 [rows of the block, TOKENS] */
    int entries;      /* F32 [THREADS · ENTRIES, TOKENS]: products of the sparse part */
    int rings;        /* [WARPS][STAGES] units */
    int total;
} shared_layout;

template <int BITS, int TOKENS>
static __host__ __device__ __forceinline__ shared_layout layout_of(int tiles, int units, bool sparse)
{
    shared_layout layout;
    layout.operands = 0;
    layout.coefficients = TOKENS * units * PRODUCTS * OPERAND_BYTES;
    layout.parts = layout.coefficients + tiles * TILE_ROWS * COEFFICIENT_STRIDE<BITS> * 4;
    layout.sparse_sums = layout.parts + tiles * WARPS * TILE_ROWS * TOKENS * 4;
    layout.entries = layout.sparse_sums + (sparse ? tiles * TILE_ROWS * TOKENS * 4 : 0);
    layout.rings = layout.entries + (sparse ? THREADS * ENTRIES * TOKENS * 4 : 0);
    layout.total = layout.rings + WARPS * STAGES<BITS> * UNIT_BYTES<BITS>;
    return layout;
}

/* What a block works on. */
typedef struct block_share {
    int first_tile, tiles; /* of the matrix */
    int units;             /* of a tile */
    int first_token;
    shared_layout layout;
} block_share;

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
            decant_copy_16(target, source, word < packed.words);
        } else {
#pragma unroll
            for (int i = 0; i < LANE_WORDS; i++)
                decant_copy_4(target + i * 4, word + i < packed.words ? source + i : packed.planes,
                              word + i < packed.words);
        }
    }
}

/* ---- levels ---- */

/* The transform of every row of the block: f(0), then −2 c_S for the other subsets. */
template <int BITS>
static __device__ __forceinline__ void transform_levels(const decant_packed_view &packed,
                                                        const block_share &share, float *coefficients)
{
    constexpr int LEVELS = 1 << BITS;
    const int row = share.first_tile * TILE_ROWS + threadIdx.x;
    if ((int)threadIdx.x >= share.tiles * TILE_ROWS)
        return;
    float values[LEVELS];
    const __half *levels = packed.levels + (int64_t)min(row, packed.rows - 1) * LEVELS;
#pragma unroll
    for (int i = 0; i < LEVELS; i += 4) {
        const uint2 four = *(const uint2 *)(levels + i);
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

/* A warp's run of units: `count` of them from `place` on, whose first copies are under way. */
template <int BITS, int TOKENS, bool WHOLE>
static __device__ __forceinline__ void add_units(const decant_packed_view &packed, const block_share &share,
                                                 unit_place place, unit_place fetched, int count, uint32_t ring,
                                                 const float *coefficients, float *parts, uint32_t operands)
{
    constexpr int TILE_PARTS = WARPS * TILE_ROWS * TOKENS, RING_BYTES = STAGES<BITS> * UNIT_BYTES<BITS>;
    const int lane = threadIdx.x % DECANT_WARP;
    const int token_bytes = share.units * PRODUCTS * OPERAND_BYTES;
    int counts[TOKENS][(1 << BITS) - 1][4] = {};
    int slot = 0, free_slot = (STAGES<BITS> - 1) * UNIT_BYTES<BITS>;
#pragma unroll 1
    for (int i = 0; i < count; i++) {
        decant_copy_wait<STAGES<BITS> - 2>();
        if (i + STAGES<BITS> - 1 < count) {
            fetch_unit<BITS, WHOLE>(packed, share.first_tile, fetched, ring + free_slot);
            step(fetched, share.units);
        }
        decant_copy_commit();
        free_slot = slot;
        add_unit<BITS, TOKENS>(counts, ring + slot + lane * 16,
                               operands + place.unit * PRODUCTS * OPERAND_BYTES + lane * 16, token_bytes);
        slot = slot + UNIT_BYTES<BITS> == RING_BYTES ? 0 : slot + UNIT_BYTES<BITS>;
        const int tile = place.tile;
        step(place, share.units);
        if (place.tile != tile || i + 1 == count)
            finish_tile<BITS, TOKENS>(counts, coefficients + tile * TILE_ROWS * COEFFICIENT_STRIDE<BITS>,
                                      parts + tile * TILE_PARTS);
    }
}

/* ---- the sparse part ---- */

/* A thread's entries of one turn: THREADS · ENTRIES of the block's, every THREADS-th of them. */
typedef struct sparse_turn {
    uint32_t columns[ENTRIES];
    __half values[ENTRIES];
} sparse_turn;

static __device__ __forceinline__ void load_entries(sparse_turn &turn, const decant_packed_view &packed,
                                                    uint32_t first, uint32_t end)
{
#pragma unroll
    for (int i = 0; i < ENTRIES; i++) {
        const uint32_t entry = first + i * THREADS + threadIdx.x;
        turn.columns[i] = entry < end ? packed.sparse_columns[entry] : 0;
        turn.values[i] = entry < end ? packed.sparse_values[entry] : __float2half_rn(0.0f);
    }
}

/* value · x of the turn's entries, into shared memory. */
template <int TOKENS>
static __device__ __forceinline__ void multiply_entries(const sparse_turn &turn, const parities_call &call,
                                                        int first_token, float *products)
{
#pragma unroll
    for (int token = 0; token < TOKENS; token++) {
        const __nv_bfloat16 *x =
            call.x + (int64_t)min(first_token + token, call.tokens - 1) * call.packed.columns;
#pragma unroll
        for (int i = 0; i < ENTRIES; i++)
            products[token * THREADS * ENTRIES + i * THREADS + threadIdx.x] =
                __half2float(turn.values[i]) * decant_to_float(x[turn.columns[i]]);
    }
}

/* Adds the turn's products up, row by row; ROW_LANES lanes a row, every one of its entries in order. */
template <int TOKENS>
static __device__ __forceinline__ void add_rows(const decant_packed_view &packed, const block_share &share,
                                                uint32_t first, const float *products, float *sums)
{
    const int rows = min(share.tiles * TILE_ROWS, packed.rows - share.first_tile * TILE_ROWS);
    const int own = threadIdx.x / ROW_LANES, lane = threadIdx.x % ROW_LANES;
    for (int base = 0; base < rows; base += THREADS / ROW_LANES) { /* whole warps: shuffles follow */
        const int row = base + own;
        const uint32_t *offsets = packed.row_offsets + share.first_tile * TILE_ROWS + min(row, rows - 1);
        const uint32_t last = first + THREADS * ENTRIES;
        const uint32_t from = min(max(offsets[0], first), last), to = min(max(offsets[1], first), last);
#pragma unroll
        for (int token = 0; token < TOKENS; token++) {
            float sum = 0;
            for (uint32_t entry = from + lane; entry < to; entry += ROW_LANES)
                sum += products[token * THREADS * ENTRIES + (entry - first)];
#pragma unroll
            for (int offset = 1; offset < ROW_LANES; offset *= 2)
                sum += __shfl_xor_sync(DECANT_ALL_LANES, sum, offset);
            if (lane == 0 && row < rows)
                sums[row * TOKENS + token] += sum;
        }
    }
}

/* ---- the kernel ---- */

/* y = scale (f(0) Σ q + the warps' parts, in their order) + the sparse part. */
template <int BITS, int TOKENS>
static __device__ __forceinline__ void
store_rows(const parities_call &call, const block_share &share, const token_figures<TOKENS> &figures,
           const float *coefficients, const float *parts, const float *sparse_sums)
{
    const int rows = min(share.tiles * TILE_ROWS, call.packed.rows - share.first_tile * TILE_ROWS);
    for (int i = threadIdx.x; i < rows * TOKENS; i += THREADS) {
        const int token = i / rows, row = i - token * rows;
        if (share.first_token + token >= call.tokens)
            break;
        int sum_of_x = 0;
        float sum = 0;
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) {
            sum_of_x += figures.sums[token][warp];
            sum += parts[((row / TILE_ROWS * WARPS + warp) * TILE_ROWS + row % TILE_ROWS) * TOKENS + token];
        }
        sum += coefficients[row * COEFFICIENT_STRIDE<BITS>] * (float)sum_of_x;
        sum *= largest_of(figures, token) / DECANT_FIXED_POINT_MAXIMUM;
        if (call.sparse)
            sum += sparse_sums[row * TOKENS + token];
        __nv_bfloat16 *target = call.y + (int64_t)(share.first_token + token) * call.packed.rows +
                                share.first_tile * TILE_ROWS + row;
        *target = __float2bfloat16_rn(call.accumulate ? __bfloat162float(*target) + sum : sum);
    }
}

template <int BITS, int TOKENS>
static __device__ __forceinline__ block_share share_of(const parities_call &call)
{
    block_share share;
    const int tiles = tiles_of(call.packed.rows), block = blockIdx.x / call.groups;
    share.first_tile = (int)((int64_t)block * tiles / call.blocks);
    share.tiles = (int)((int64_t)(block + 1) * tiles / call.blocks) - share.first_tile;
    share.units = units_of(call.packed.words);
    share.first_token = blockIdx.x % call.groups * TOKENS;
    share.layout = layout_of<BITS, TOKENS>((tiles + call.blocks - 1) / call.blocks, share.units, call.sparse);
    return share;
}

template <int BITS, int TOKENS, bool WHOLE>
__global__ void __launch_bounds__(THREADS, HAS_TWO_BLOCKS<BITS, TOKENS> ? 2 : 1)
    packed_parities_kernel(const __grid_constant__ parities_call call)
{
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ token_figures<TOKENS> figures;
    const decant_packed_view &packed = call.packed;
    const block_share share = share_of<BITS, TOKENS>(call);
    const shared_layout &layout = share.layout;
    const int warp = threadIdx.x / DECANT_WARP, all_units = share.tiles * share.units;
    const int first = all_units * warp / WARPS, count = all_units * (warp + 1) / WARPS - first;
    float *coefficients = (float *)(shared + layout.coefficients), *parts = (float *)(shared + layout.parts);
    float *sparse_sums = (float *)(shared + layout.sparse_sums), *products = (float *)(shared + layout.entries);
    const uint32_t base = decant_shared_address(shared);
    const uint32_t ring = base + layout.rings + warp * STAGES<BITS> * UNIT_BYTES<BITS>;

    const unit_place begin = {first / share.units, first % share.units};
    unit_place fetched = begin;
#pragma unroll
    for (int i = 0; i < STAGES<BITS> - 1; i++) {
        if (i < count) {
            fetch_unit<BITS, WHOLE>(packed, share.first_tile, fetched, ring + i * UNIT_BYTES<BITS>);
            step(fetched, share.units);
        }
        decant_copy_commit();
    }
    decant_let_next_kernel_begin();
    uint32_t first_entry = 0, end_entry = 0;
    sparse_turn turn;
    if (call.sparse) {
        const uint32_t *offsets = packed.row_offsets + share.first_tile * TILE_ROWS;
        first_entry = offsets[0];
        end_entry = offsets[min(share.tiles * TILE_ROWS, packed.rows - share.first_tile * TILE_ROWS)];
        load_entries(turn, packed, first_entry, end_entry);
    }
    transform_levels<BITS>(packed, share, coefficients);
    for (int i = threadIdx.x; i < share.tiles * WARPS * TILE_ROWS * TOKENS; i += THREADS)
        parts[i] = 0;
    for (int i = threadIdx.x; call.sparse && i < share.tiles * TILE_ROWS * TOKENS; i += THREADS)
        sparse_sums[i] = 0;

    decant_wait_for_earlier_kernels();
    if (call.sparse)
        multiply_entries<TOKENS>(turn, call, share.first_token, products);
    make_operands<TOKENS>(call, share, figures, base + layout.operands);
    __syncthreads(); /* operands, coefficients and the first products are there */
    add_units<BITS, TOKENS, WHOLE>(packed, share, begin, fetched, count, ring, coefficients,
                                   parts + warp * TILE_ROWS * TOKENS, base + layout.operands);
    while (call.sparse) {
        add_rows<TOKENS>(packed, share, first_entry, products, sparse_sums);
        first_entry += THREADS * ENTRIES;
        if (first_entry >= end_entry)
            break;
        load_entries(turn, packed, first_entry, end_entry);
        __syncthreads(); /* the products of the turn before are added up */
        multiply_entries<TOKENS>(turn, call, share.first_token, products);
        __syncthreads();
    }
    __syncthreads(); /* all parts are there */
    store_rows<BITS, TOKENS>(call, share, figures, coefficients, parts, sparse_sums);
}

/* ---- the choice of a launch ---- */

/* What a block of one group takes when the tiles are shared among so many. */
template <int BITS, int TOKENS>
static size_t shared_bytes(const decant_packed_view &packed, int blocks, bool sparse)
{
    const int tiles = (tiles_of(packed.rows) + blocks - 1) / blocks;
    return (size_t)layout_of<BITS, TOKENS>(tiles, units_of(packed.words), sparse).total +
           sizeof(token_figures<TOKENS>);
}

/* So many blocks to a multiprocessor, as far as there are tiles for them, and more where tiles are very many.
 */
static int blocks_of(const decant_cuda *cuda, int rows, int each)
{
    const int tiles = tiles_of(rows), least = (tiles + TILES_MAXIMUM - 1) / TILES_MAXIMUM;
    const int blocks = each * cuda->multiprocessors;
    return blocks < least ? least : blocks < tiles ? blocks : tiles;
}

template <int BITS, int TOKENS>
static bool fits(const decant_cuda *cuda, const decant_packed_view &packed, bool sparse)
{
    return shared_bytes<BITS, TOKENS>(packed, blocks_of(cuda, packed.rows, 1), sparse) <=
           cuda->shared_memory_bytes;
}

/* Two blocks to a multiprocessor where both fit, so that one reads codes while the other begins or ends. */
template <int BITS, int TOKENS>
static int blocks_for(const decant_cuda *cuda, const decant_packed_view &packed, bool sparse)
{
    const int two = blocks_of(cuda, packed.rows, 2);
    const size_t half = (cuda->shared_memory_bytes + BLOCK_RESERVED_BYTES) / 2 - BLOCK_RESERVED_BYTES;
    const bool both = HAS_TWO_BLOCKS<BITS, TOKENS> && shared_bytes<BITS, TOKENS>(packed, two, sparse) <= half;
    return both ? two : blocks_of(cuda, packed.rows, 1);
}

template <int BITS, int TOKENS, bool WHOLE>
static cudaError_t launch(decant_cuda_context *context, const parities_call &call)
{
    const size_t bytes =
        shared_bytes<BITS, TOKENS>(call.packed, call.blocks, call.sparse) - sizeof(token_figures<TOKENS>);
    return decant_launch_early(context, packed_parities_kernel<BITS, TOKENS, WHOLE>,
                               (unsigned)(call.blocks * call.groups), THREADS, bytes, call);
}

template <int BITS, int TOKENS>
static cudaError_t launch_tokens(decant_cuda_context *context, parities_call call)
{
    const decant_packed_view &packed = call.packed;
    call.groups = (call.tokens + TOKENS - 1) / TOKENS;
    call.blocks = blocks_for<BITS, TOKENS>(&context->shared, packed, call.sparse);
    const bool whole = packed.words % LANE_WORDS == 0 && (uintptr_t)packed.planes % 16 == 0;
    return whole ? launch<BITS, TOKENS, true>(context, call) : launch<BITS, TOKENS, false>(context, call);
}

/* The fewest tokens a block that take all in one group, or as many as fit. */
template <int BITS, int TOKENS = TOKENS_OF_WIDTH<BITS>>
static cudaError_t launch_width(decant_cuda_context *context, const parities_call &call)
{
    if constexpr (TOKENS > 1)
        if (call.tokens <= TOKENS / 2 || !fits<BITS, TOKENS>(&context->shared, call.packed, call.sparse))
            return launch_width<BITS, TOKENS / 2>(context, call);
    return launch_tokens<BITS, TOKENS>(context, call);
}

static bool fits_width(const decant_cuda *cuda, const decant_packed_view &packed, bool sparse)
{
    return packed.bits == 2   ? fits<2, 1>(cuda, packed, sparse)
           : packed.bits == 3 ? fits<3, 1>(cuda, packed, sparse)
                              : fits<4, 1>(cuda, packed, sparse);
}

bool decant_cuda_packed_has_parities(decant_backend *backend, decant_matrix x,
                                     const decant_packed_matrix *packed)
{
    const decant_cuda_context *context = decant_cuda_context_of(backend);
    return context->capability < CAPABILITY_END && packed->bits <= PLANES_MAXIMUM &&
           packed->columns <= COLUMNS_MAXIMUM && x.element == DECANT_BF16 &&
           decant_has_vectors<__nv_bfloat16>(x.columns, x.data) &&
           fits_width(&context->shared, decant_packed_view_of(packed), packed->sparse.count > 0);
}

decant_status decant_cuda_packed_parities(decant_backend *backend, decant_matrix x,
                                          const decant_packed_matrix *packed, bool sparse, bool accumulate,
                                          decant_matrix y, decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    parities_call call = {};
    call.packed = decant_packed_view_of(packed);
    call.x = (const __nv_bfloat16 *)x.data;
    call.y = (__nv_bfloat16 *)y.data;
    call.tokens = (int)x.rows;
    call.sparse = sparse;
    call.accumulate = accumulate;
    const cudaError_t code = packed->bits == 2   ? launch_width<2>(context, call)
                             : packed->bits == 3 ? launch_width<3>(context, call)
                                                 : launch_width<4>(context, call);
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(code, "packed_parities", err));
    return decant_cuda_launched(backend, "packed_parities", err);
}
