/* How products by parities (packed_parities.cu) cut a matrix, and what of it falls to a block and to a warp:
 * tiles of rows, units of columns, the arguments of a launch, the places of a block's arrays in shared memory.
 * Knows nothing of what a block does with its share:
 *
 *     parity_codes.cuh     codes on their way to shared memory
 *     parity_levels.cuh    the transform of levels
 *     parity_operands.cuh  x as bit planes
 *     parity_counts.cuh    counts of units, and the parts of rows that they become
 *     parity_run.cuh       a warp's run through its units, the sparse part beside it, and the ends of rows
 *
 * step_parities.cu has the same tiles and units, and arguments and shares of its own (step_block.cuh). */
#ifndef DECANT_KERNELS_CUDA_PARITY_BLOCK_CUH
#define DECANT_KERNELS_CUDA_PARITY_BLOCK_CUH

#include "kernels/cuda/fixed_point.cuh"
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

template <int BITS, int TOKENS>
static __device__ __forceinline__ block_share share_of(const parities_call &call)
{
    block_share share;
    const int tiles = tiles_of(call.packed.rows), block = blockIdx.x / call.groups;
    share.first_tile = (int)((int64_t)block * tiles / call.blocks);
    share.tiles = (int)((int64_t)(block + 1) * tiles / call.blocks) - share.first_tile;
    share.units = units_of(call.packed.words);
    share.first_token = blockIdx.x % call.groups * TOKENS;
    share.layout = layout_of<BITS, TOKENS>(call, (tiles + call.blocks - 1) / call.blocks, share.units);
    return share;
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

/* Sixteen bytes, of a lane. */
static __device__ __forceinline__ uint4 load_shared(uint32_t address)
{
    uint4 value;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "r"(address)
                 : "memory");
    return value;
}

#endif
