/* The end of a tile of rows of packed_pairs.cu: a block's warps add up their sums, blocks that share the tile
 * those of all of them, and y is stored. `Kind` is a pair_kind (pair_kind.cuh). Knows nothing of products. */
#ifndef DECANT_KERNELS_CUDA_PAIR_SUMS_CUH
#define DECANT_KERNELS_CUDA_PAIR_SUMS_CUH

#include "kernels/cuda/arrivals.cuh"
#include "kernels/cuda/pair_entries.cuh"
#include "kernels/cuda/pair_norm.cuh"
#include "kernels/cuda/pair_products.cuh"
#include "kernels/cuda/pair_runs.h"

enum { SHARED_TILES = 2 /* of a block with others: its first and its last */ };

/* Where the sums of a matrix go. */
typedef struct pair_y {
    __nv_bfloat16 *data; /* [tokens, rows], rows in multiples of four; on an address of a multiple of 8 bytes */
    const float *sparse; /* [tokens, rows] or NULL: a product that is added */
    int rows;
} pair_y;

/* Where the sums of a launch go. */
typedef struct pair_target {
    joined_matrices matrices;
    pair_y ys[DECANT_PAIRS_MATRICES];
    int tokens;
    bool accumulate;
    float4 *parts; /* [blocks, SHARED_TILES, tokens of the kernel, rows of a tile]: sums of blocks that share */
    uint32_t *arrivals; /* [row tiles] zeros, and zeros again in the end */
    decant_pair_runs runs;
} pair_target;

/* Groups of four rows of a token that a thread adds up. */
template <typename Kind> constexpr int THREAD_QUADS = (Kind::TOKENS * Kind::QUADS + THREADS - 1) / THREADS;

static __device__ __forceinline__ void add(float4 &sum, const float4 &more)
{
    sum.x += more.x;
    sum.y += more.y;
    sum.z += more.z;
    sum.w += more.w;
}

static __device__ __forceinline__ void scale(float4 &sum, float factor)
{
    sum.x *= factor;
    sum.y *= factor;
    sum.z *= factor;
    sum.w *= factor;
}

/* Four rows of a token, item `i` of a tile; a matrix has a multiple of these. */
template <typename Kind>
static __device__ __forceinline__ void store(const pair_target &target, const tile_place &tile, int i,
                                             const float4 &four)
{
    const pair_y &of_matrix = target.ys[tile.matrix];
    const int token = i / Kind::QUADS, row = tile.tile * Kind::ROWS + i % Kind::QUADS * 4;
    if (token >= target.tokens || row >= of_matrix.rows)
        return;
    const int64_t place = (int64_t)token * of_matrix.rows + row;
    union {
        uint2 whole;
        __nv_bfloat162 pairs[2];
    } y;
    float4 sum = four;
    if (of_matrix.sparse)
        add(sum, *(const float4 *)(of_matrix.sparse + place));
    if (target.accumulate) {
        y.whole = *(const uint2 *)(of_matrix.data + place);
        const float2 a = __bfloat1622float2(y.pairs[0]), b = __bfloat1622float2(y.pairs[1]);
        add(sum, make_float4(a.x, a.y, b.x, b.y));
    }
    y.pairs[0] = __floats2bfloat162_rn(sum.x, sum.y);
    y.pairs[1] = __floats2bfloat162_rn(sum.z, sum.w);
    *(uint2 *)(of_matrix.data + place) = y.whole;
}

/* A warp's sums to shared memory, [tokens][PART_STRIDE]: rows 4t … 4t + 3 of a tile are in one lane. */
template <typename Kind>
static __device__ __forceinline__ void leave_sums(const tile_sums<Kind> &sums, uint32_t units, float *parts)
{
    const int lane = threadIdx.x % DECANT_WARP, g = lane / 4, t = lane % 4;
    float *own = parts + (int)(threadIdx.x / DECANT_WARP) * Kind::TOKENS * Kind::PART_STRIDE + 4 * t;
#pragma unroll
    for (int tile = 0; tile < Kind::TILES; tile++)
#pragma unroll
        for (int operand = 0; operand < Kind::OPERANDS; operand++) {
            const auto &kinds = sums[tile][operand];
            const auto leave = [&](int token, float scale, float a, float b, float c, float d) {
                *(float4 *)(own + token * Kind::PART_STRIDE + tile * PAIR_TILE_ROWS) =
                    make_float4(a * scale, b * scale, c * scale, d * scale);
            };
            if constexpr (Kind::ROW_KINDS == 1) {
                leave(g, inverse_of_power(power_of(units, operand, 0)), kinds[0][0], kinds[0][2], kinds[0][1],
                      kinds[0][3]);
            } else {
#pragma unroll
                for (int second = 0; second < 2; second++) /* token g, then g + 8 */
                    leave(operand * 16 + second * 8 + g, inverse_of_power(power_of(units, operand, second)),
                          kinds[0][2 * second], kinds[Kind::ROW_KINDS - 1][2 * second],
                          kinds[0][2 * second + 1], kinds[Kind::ROW_KINDS - 1][2 * second + 1]);
            }
        }
}

/* ---- tiles that blocks share ---- */

/* Of a block with several tiles the first may be shared with blocks before it, the last with blocks behind it.
 * Those behind take that tile first, and mostly have left their sums long before; so nobody waits for anybody.
 */
typedef struct shared_tiles {
    bool first_left_last; /* this block was the last to leave its sums of the first */
    bool others_left;     /* all others have left theirs of the last */
} shared_tiles;

/* The blocks that share a tile. */
typedef struct tile_blocks {
    int first, last;
} tile_blocks;

static __device__ __forceinline__ tile_blocks blocks_of(const pair_target &target, int row_tile)
{
    const int begin = row_tile * target.runs.row_stages;
    return {decant_pair_block_of(&target.runs, begin),
            decant_pair_block_of(&target.runs, begin + target.runs.row_stages - 1)};
}

static __device__ __forceinline__ int block_count(const pair_target &target, int row_tile)
{
    const tile_blocks blocks = blocks_of(target, row_tile);
    return blocks.last - blocks.first + 1;
}

/* Sums [tokens of the kernel, rows of a tile] of a tile that a block shares with others. */
template <typename Kind>
static __device__ __forceinline__ float4 *part_of(const pair_target &target, int block, int row_tile)
{
    const int first = decant_pair_tile_of(&target.runs, decant_pair_first_stage(&target.runs, block));
    return target.parts + (int64_t)(block * SHARED_TILES + (row_tile > first)) * Kind::TOKENS * Kind::QUADS;
}

/* Four sums of all blocks that share a tile, added up in the order of the blocks. own: this block's, or NULL
 * where it has left them. */
template <typename Kind>
static __device__ __forceinline__ float4 sum_of_blocks(const pair_target &target, int row_tile, int i,
                                                       const float4 *own)
{
    const tile_blocks blocks = blocks_of(target, row_tile);
    float4 sum = make_float4(0, 0, 0, 0);
    for (int block = blocks.first; block <= blocks.last; block++)
        add(sum, own && block == (int)blockIdx.x ? *own : __ldcg(part_of<Kind>(target, block, row_tile) + i));
    return sum;
}

/* What all blocks left that share a tile. */
template <typename Kind>
static __device__ __forceinline__ void add_parts(const pair_target &target, int row_tile)
{
    const tile_place tile = place_of(target.matrices, row_tile);
    for (int i = threadIdx.x; i < Kind::TOKENS * Kind::QUADS; i += THREADS)
        store<Kind>(target, tile, i, sum_of_blocks<Kind>(target, row_tile, i, NULL));
}

/* ---- the end of a tile ---- */

/* The warps of the entries and those of the codes do not wait for each other but for these, tile after tile. */
typedef struct entry_barriers {
    uint64_t there; /* the sums of a tile's entries are there */
    uint64_t read;  /* and have been read */
} entry_barriers;

/* Where there are no entries, the warps that would take them add up the squares of a norm. */
typedef struct norm_room {
    uint64_t there; /* all of them are; then nothing changes any more */
    norm_squares squares;
} norm_room;

/* The entries of a tile, for a block that has warps for them. */
template <typename Kind> struct tile_end {
    const typename Kind::entries &entries;
    entry_barriers &met;
    uint32_t parity;       /* of the tile's number in the block */
    bool shared;           /* with other blocks */
    const pair_norm &norm; /* for a kernel with a norm */
    norm_room &normed;
    const bool &others_left; /* in shared memory, known behind a barrier */
};

/* What a thread has added up of a tile. */
template <typename Kind> using thread_sums = float4[THREAD_QUADS<Kind>];

/* Adds the warps' sums up, in `parts`, where the tables were, behind a barrier, and multiplies 1 / rms on. */
template <typename Kind>
static __device__ __forceinline__ void add_up(thread_sums<Kind> &own, tile_sums<Kind> &sums, uint32_t units,
                                              float *parts, const tile_end<Kind> &end)
{
    constexpr int ITEMS = Kind::TOKENS * Kind::QUADS;
#pragma unroll
    for (auto &tile : sums) /* what has been looked up for them, has been before the barrier */
#pragma unroll
        for (auto &operand : tile)
#pragma unroll
            for (auto &kind : operand)
                decant_settle(kind);
    codes_meet(); /* nobody looks up any more */
    leave_sums<Kind>(sums, units, parts);
    if constexpr (Kind::SPARSE) {
        decant_barrier_wait(decant_shared_address(&end.met.there), end.parity);
#pragma unroll
        for (int k = 0; k < THREAD_QUADS<Kind>; k++) {
            const int i = (int)threadIdx.x + k * THREADS;
            if (i < ITEMS)
                own[k] = entry_sums_of(end.entries, i / Kind::QUADS, i % Kind::QUADS * 4);
        }
        __syncwarp();
        if (threadIdx.x % DECANT_WARP == 0)
            decant_barrier_arrive(decant_shared_address(&end.met.read));
    } else if constexpr (Kind::NORMED) {
        decant_barrier_wait(decant_shared_address(&end.normed.there), 0);
    }
    codes_meet();
#pragma unroll
    for (int k = 0; k < THREAD_QUADS<Kind>; k++) {
        const int i = (int)threadIdx.x + k * THREADS, token = i / Kind::QUADS, quad = i % Kind::QUADS;
        if (i >= ITEMS)
            break;
        float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++)
            add(sum, *(const float4 *)(parts + (warp * Kind::TOKENS + token) * Kind::PART_STRIDE + 4 * quad));
        if constexpr (Kind::SPARSE)
            add(own[k], sum);
        else
            own[k] = sum;
        if constexpr (Kind::NORMED)
            scale(own[k], inverse_rms_of(end.norm, end.normed.squares, token));
    }
}

/* Stores what has been added up, or leaves it for the blocks that share the tile. */
template <typename Kind>
static __device__ __forceinline__ void finish_tile(const pair_target &target, const thread_sums<Kind> &own,
                                                   int row_tile, const tile_end<Kind> &end)
{
    constexpr int ITEMS = Kind::TOKENS * Kind::QUADS;
    const tile_place place = place_of(target.matrices, row_tile);
#pragma unroll
    for (int k = 0; k < THREAD_QUADS<Kind>; k++) {
        const int i = (int)threadIdx.x + k * THREADS;
        if (i >= ITEMS)
            break;
        if (end.shared && !end.others_left)
            part_of<Kind>(target, blockIdx.x, row_tile)[i] = own[k];
        else
            store<Kind>(target, place, i,
                        end.shared ? sum_of_blocks<Kind>(target, row_tile, i, &own[k]) : own[k]);
    }
    if (end.shared && end.others_left && threadIdx.x == 0)
        target.arrivals[row_tile] = 0;
}

#endif
