/* What the products of one token have in common, whatever form their weights have (step_dense.cu,
 * step_parities.cu): several matrices of equal width in one launch, the norm of x inside it, and rows that end
 * where the next operation takes them.
 *
 * Every block owns a run of tiles, some rows each, of every matrix; a tile is cut along its columns into units,
 * and the block's warps share the units of all its tiles evenly, in order. A warp adds up its units of a tile
 * in `parts`; at the end the parts of the eight warps are added up row by row. So a sum's order depends on the
 * shapes and on the number of multiprocessors alone.
 *
 * A launch has a block for each multiprocessor. Beside it the next launch begins, and has its first weights
 * under way before the one ahead has ended (early_launch.cuh). That goes well only if every multiprocessor gets
 * one of its blocks: where one gets two and another none, the launch takes twice as long, and the launches
 * behind it inherit the uneven places. Attention leaves such places (tests/bench/bench_placement.cu). So there
 * are two kinds of blocks, of which a multiprocessor holds one each, but never two of a kind:
 *
 *     those of groups that add to y     take more than half of the shared memory
 *     all others                        take more than half of the registers
 *
 * In a decoder the two alternate: q, k, v; o; gate, up; down. */
#ifndef DECANT_KERNELS_CUDA_STEP_BLOCK_CUH
#define DECANT_KERNELS_CUDA_STEP_BLOCK_CUH

#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/fixed_point.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/sigmoid.cuh"
#include "kernels/cuda/step.h"
#include "kernels/cuda/tensor_core.cuh"

enum { STEP_MATRICES = 3, STEP_ROW_LANES = 8 /* that add up a row */ };

/* One matrix of a launch. */
typedef struct step_matrix {
    const void *weights;                          /* BF16 [rows, columns], or bit planes */
    const __half *levels;                         /* of bit planes */
    const uint32_t *row_offsets, *sparse_columns; /* of a sparse part; NULL: there is none */
    const __half *sparse_values;
    void *y; /* [rows] */
    int rows;
} step_matrix;

/* The arguments of a launch. */
typedef struct step_call {
    step_matrix matrices[STEP_MATRICES];
    int count;                 /* of matrices; those behind have no rows */
    int columns;               /* a multiple of 8 */
    int row_bytes;             /* of a row's weights */
    int plane_words, units;    /* of bit planes: words of one of a row; units of a tile */
    const __nv_bfloat16 *x;    /* [columns] */
    const float *norm;         /* [columns]; NULL: x as it is */
    float epsilon, of_columns; /* of_columns: 1 / columns */
    bool accumulate, float_y;
    bool gated; /* y of the first = silu(first) ∘ second, as many rows */
    int window; /* sparse entries that a block has room for */
} step_call;

/* ---- calls ---- */

enum {
    STEP_STATIC_BYTES = 512, /* of shared memory, at most, that the kernels have besides what they ask for */
    STEP_ROWS_MAXIMUM = 1 << 22, /* times the number of blocks fits 32 bits */
};

/* Whether x, its norm and every y are such as the kernels take; weights are for them to look at. */
static inline bool step_takes(decant_backend *backend, const decant_step_group *group)
{
    const decant_step_input *input = group->input;
    if (backend->activation != DECANT_BF16 || group->count > STEP_MATRICES || input->x.rows != 1 ||
        !decant_has_vectors<__nv_bfloat16>(input->x.columns, input->x.data))
        return false;
    if (group->accumulate && group->products[0].y.element != DECANT_BF16)
        return false;
    if (input->norm_weight.data &&
        (input->norm_weight.element != DECANT_F32 || (uintptr_t)input->norm_weight.data % 16 != 0))
        return false;
    for (int i = 0; i < group->count; i++)
        if (group->products[i].y.element != group->products[0].y.element ||
            group->products[i].y.columns > STEP_ROWS_MAXIMUM)
            return false;
    return true;
}

/* All but the weights. */
static inline step_call step_call_of(const decant_step_group *group)
{
    step_call call = {};
    const decant_step_input *input = group->input;
    call.count = group->count;
    call.columns = (int)input->x.columns;
    call.x = (const __nv_bfloat16 *)input->x.data;
    call.norm = (const float *)input->norm_weight.data;
    call.epsilon = input->epsilon;
    call.of_columns = 1.0f / (float)call.columns;
    call.accumulate = group->accumulate;
    call.gated = group->gated;
    call.float_y = group->products[0].y.element == DECANT_F32;
    for (int i = 0; i < group->count; i++) {
        call.matrices[i].y = group->products[i].y.data;
        call.matrices[i].rows = (int)group->products[i].y.columns;
    }
    return call;
}

/* ---- launches ---- */

/* Of a thread of the two kinds of kernels, 256 threads a block: together they are what a multiprocessor has,
 * and two blocks of the second kind do not fit. */
enum { STEP_MEMORY_REGISTERS = 120, STEP_REGISTERS = 136 };

/* At the beginning of kernels of the second kind: they take all the registers that __maxnreg__ allows them, be
 * they needed or not, because they might change their number. They never do: a group has columns. */
static __device__ __forceinline__ void step_take_registers(const step_call &call)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    if (call.columns == 0)
        decant_registers_lower<STEP_REGISTERS>();
#else
    (void)call;
#endif
}

/* Whether the group is one product of x as it is, added to y. */
static inline bool step_only_adds(const step_call &call)
{
    return call.accumulate && call.count == 1 && !call.norm;
}

/* A block for each multiprocessor, of the kernel that is right for the group. */
static inline cudaError_t step_launch(const decant_cuda_context *context, void (*kernel)(step_call),
                                      void (*adding_kernel)(step_call), unsigned threads, size_t shared_bytes,
                                      const step_call &call)
{
    const bool adds = step_only_adds(call);
    const size_t least = adds ? decant_more_than_half(&context->shared) : 0;
    const cudaError_t code = decant_keep_shared_memory(adds ? adding_kernel : kernel);
    if (code != cudaSuccess)
        return code;
    return decant_launch_early(context, adds ? adding_kernel : kernel,
                               (unsigned)context->shared.multiprocessors, threads,
                               shared_bytes > least ? shared_bytes : least, call);
}

/* ---- shares ---- */

enum { STEP_ALL_TILES = INT32_MAX }; /* as the end of the first matrix: there is no other */

/* The tiles of each matrix that a block owns, counted through. */
typedef struct step_share {
    int first[STEP_MATRICES], end[STEP_MATRICES]; /* in the matrix; in the block, behind its last */
    int tiles, units;                             /* of the block, of a tile */
} step_share;

/* Rows of a tile that are the matrix's. */
static __host__ __device__ __forceinline__ int step_own_rows(const step_call &call, int tile_rows)
{
    return call.gated ? tile_rows / 2 : tile_rows;
}

/* Tiles of a matrix; those of the second of a gated pair are the first's. */
static __host__ __device__ __forceinline__ int step_tiles(const step_call &call, int matrix, int tile_rows)
{
    const int own_rows = step_own_rows(call, tile_rows);
    return call.gated && matrix > 0 ? 0 : (call.matrices[matrix].rows + own_rows - 1) / own_rows;
}

static __device__ __forceinline__ step_share step_share_of(const step_call &call, int tile_rows, int units)
{
    step_share share;
    share.tiles = 0;
    share.units = units;
#pragma unroll
    for (int i = 0; i < STEP_MATRICES; i++) {
        const uint32_t tiles = (uint32_t)step_tiles(call, i, tile_rows);
        share.first[i] = (int)(tiles * blockIdx.x / gridDim.x);
        share.tiles += (int)(tiles * (blockIdx.x + 1) / gridDim.x) - share.first[i];
        share.end[i] = share.tiles;
    }
    return share;
}

/* The same of a group that is one matrix and not gated: a kernel that knows it has less to compute. */
static __device__ __forceinline__ step_share step_share_of_one(const step_call &call, int tile_rows, int units)
{
    const uint32_t tiles = (uint32_t)((call.matrices[0].rows + tile_rows - 1) / tile_rows);
    step_share share;
    share.units = units;
    share.first[0] = decant_kept((int)(tiles * blockIdx.x / gridDim.x));
    share.tiles = decant_kept((int)(tiles * (blockIdx.x + 1) / gridDim.x) - share.first[0]);
    share.first[1] = share.first[2] = 0;
    share.end[0] = share.end[1] = share.end[2] = STEP_ALL_TILES;
    return share;
}

/* A share that was kept in memory; ONE: it came from step_share_of_one. */
template <bool ONE> static __device__ __forceinline__ step_share step_share_again(const step_share &kept)
{
    step_share share = kept;
    if (ONE)
        share.end[0] = share.end[1] = share.end[2] = STEP_ALL_TILES;
    return share;
}

/* The most tiles that a block of so many owns. */
static inline int step_tiles_of_block(const step_call &call, int tile_rows, int blocks)
{
    int tiles = 0;
    for (int i = 0; i < STEP_MATRICES; i++)
        tiles += (step_tiles(call, i, tile_rows) + blocks - 1) / blocks;
    return tiles;
}

/* Where a row of the block's tiles lies; `row` may be beyond the matrix's last. */
typedef struct step_place {
    step_matrix matrix;
    int row;
} step_place;

static __device__ __forceinline__ step_place step_place_of(const step_call &call, const step_share &share,
                                                           int tile_rows, int row)
{
    const int tile = row / tile_rows, own = row % tile_rows, half = tile_rows / 2;
    if (share.end[0] == STEP_ALL_TILES)
        return {call.matrices[0], share.first[0] * tile_rows + row};
    if (call.gated) {
        if (own < half)
            return {call.matrices[0], (share.first[0] + tile) * half + own};
        return {call.matrices[1], (share.first[0] + tile) * half + own - half};
    }
    if (tile < share.end[0])
        return {call.matrices[0], share.first[0] * tile_rows + row};
    if (tile < share.end[1])
        return {call.matrices[1], (share.first[1] - share.end[0]) * tile_rows + row};
    return {call.matrices[2], (share.first[2] - share.end[1]) * tile_rows + row};
}

/* A warp's run of units. */
typedef struct step_run {
    int first, count;
} step_run;

static __device__ __forceinline__ step_run step_run_of(const step_share &share, int warps)
{
    const int warp = threadIdx.x / DECANT_WARP, units = share.tiles * share.units;
    const int first = units * warp / warps;
    return {first, units * (warp + 1) / warps - first};
}

/* ---- x ---- */

/* A norm's scale of so many vectors of eight columns; zeros where there is no norm. */
template <int VECTORS> struct step_scales {
    float4 fours[2 * VECTORS];
};

/* Of piece `piece` of x, which is cut into pieces of so many vectors. */
template <int VECTORS>
static __device__ __forceinline__ step_scales<VECTORS> step_load_scales(const step_call &call, int piece)
{
    step_scales<VECTORS> scales = {};
    const int first = piece * 2 * VECTORS;
    if (call.norm)
#pragma unroll
        for (int i = 0; i < 2 * VECTORS; i++)
            if ((first + i) * 4 < call.columns)
                scales.fours[i] = ((const float4 *)call.norm)[first + i];
    return scales;
}

/* Columns normed, rounded to BF16 as rms_norm does. */
template <int VECTORS>
static __device__ __forceinline__ void step_norm(uint4 (&vectors)[VECTORS], const step_scales<VECTORS> &scales,
                                                 float inverse)
{
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        uint32_t pairs[4] = {vectors[i].x, vectors[i].y, vectors[i].z, vectors[i].w};
        const float4 low = scales.fours[2 * i], high = scales.fours[2 * i + 1];
        const float own[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float2 values = decant_unpair(pairs[j]);
            pairs[j] = decant_pair(values.x * (inverse * own[2 * j]), values.y * (inverse * own[2 * j + 1]));
        }
        vectors[i] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
}

/* ---- the ends of rows ---- */

/* silu(gate) · up, within 2⁻²⁰, both rounded first, as they would be if each were stored. */
static __device__ __forceinline__ float step_gated(float gate, float up)
{
    const float2 rounded = decant_unpair(decant_pair(gate, up));
    return rounded.y * (rounded.x * decant_sigmoid_nearly(rounded.x));
}

/* Where y holds row `row` of the block if it is added to; NULL where nothing is. */
static __device__ __forceinline__ const uint16_t *
step_place_before(const step_call &call, const step_share &share, int tile_rows, int row)
{
    if (!call.accumulate || row >= share.tiles * tile_rows)
        return NULL;
    const step_place place = step_place_of(call, share, tile_rows, row);
    return place.row < place.matrix.rows ? (const uint16_t *)place.matrix.y + place.row : NULL;
}

/* A BF16 as it lies there, 0 where nothing is; and its value: apart, so that nobody waits for it to come. */
static __device__ __forceinline__ uint32_t step_load_before(const uint16_t *place)
{
    return place ? *place : 0;
}

static __device__ __forceinline__ float step_before(uint32_t loaded)
{
    return __uint_as_float(loaded << 16);
}

#endif
