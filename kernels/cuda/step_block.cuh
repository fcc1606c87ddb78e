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
    int count;              /* of matrices; those behind have no rows */
    int columns;            /* a multiple of 8 */
    int row_bytes;          /* of a row's weights */
    const __nv_bfloat16 *x; /* [columns] */
    const float *norm;      /* [columns]; NULL: x as it is */
    float epsilon;
    bool accumulate, float_y;
    bool gated; /* y of the first = silu(first) ∘ second, as many rows */
    bool whole; /* rows of planes may be read sixteen bytes at a time */
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
    share.first[0] = (int)(tiles * blockIdx.x / gridDim.x);
    share.tiles = (int)(tiles * (blockIdx.x + 1) / gridDim.x) - share.first[0];
    share.first[1] = share.first[2] = 0;
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
    if (call.gated)
        return {call.matrices[own < half ? 0 : 1], (share.first[0] + tile) * half + own % half};
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

/* Thirty-two columns of a norm's scale. */
typedef struct step_scales {
    float4 fours[DECANT_PLANE_COLUMNS / 4];
} step_scales;

static __device__ __forceinline__ step_scales step_load_scales(const step_call &call, int word)
{
    step_scales scales = {};
    if (call.norm)
#pragma unroll
        for (int i = 0; i < DECANT_PLANE_COLUMNS / 4; i++)
            if (word * DECANT_PLANE_COLUMNS + i * 4 < call.columns)
                scales.fours[i] = ((const float4 *)call.norm)[word * (DECANT_PLANE_COLUMNS / 4) + i];
    return scales;
}

static __device__ __forceinline__ float2 step_floats(uint32_t pair)
{
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

static __device__ __forceinline__ float step_add_squares(float sum,
                                                         const uint4 (&vectors)[DECANT_PLANE_VECTORS])
{
#pragma unroll
    for (int i = 0; i < DECANT_PLANE_VECTORS; i++) {
        const uint32_t pairs[4] = {vectors[i].x, vectors[i].y, vectors[i].z, vectors[i].w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float2 values = step_floats(pairs[j]);
            sum += values.x * values.x;
            sum += values.y * values.y;
        }
    }
    return sum;
}

/* The same columns normed, rounded to BF16 as rms_norm does. */
static __device__ __forceinline__ void step_norm(uint4 (&vectors)[DECANT_PLANE_VECTORS],
                                                 const step_scales &scales, float inverse)
{
#pragma unroll
    for (int i = 0; i < DECANT_PLANE_VECTORS; i++) {
        uint32_t pairs[4] = {vectors[i].x, vectors[i].y, vectors[i].z, vectors[i].w};
        const float4 low = scales.fours[2 * i], high = scales.fours[2 * i + 1];
        const float own[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float2 values = step_floats(pairs[j]);
            pairs[j] = decant_pair(values.x * (inverse * own[2 * j]), values.y * (inverse * own[2 * j + 1]));
        }
        vectors[i] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
}

/* 1 / root mean square of x, where there is a norm. `own` are the columns of this thread's word. `parts`
 * [warps] is shared; barriers inside. */
static __device__ __forceinline__ float step_inverse_rms(const step_call &call,
                                                         const uint4 (&own)[DECANT_PLANE_VECTORS], float *parts)
{
    if (!call.norm)
        return 1.0f;
    float sum = step_add_squares(0.0f, own);
    for (int word = threadIdx.x + blockDim.x; word * DECANT_PLANE_COLUMNS < call.columns; word += blockDim.x) {
        uint4 vectors[DECANT_PLANE_VECTORS];
        decant_load_columns(vectors, call.x, word * DECANT_PLANE_COLUMNS, call.columns);
        sum = step_add_squares(sum, vectors);
    }
    return 1.0f / sqrtf(decant_block_sum(sum, parts) / (float)call.columns + call.epsilon);
}

/* The columns of a word beyond this thread's own, as the products take them. */
static __device__ __forceinline__ void step_load_word(uint4 (&vectors)[DECANT_PLANE_VECTORS],
                                                      const step_call &call, int word, float inverse)
{
    decant_load_columns(vectors, call.x, word * DECANT_PLANE_COLUMNS, call.columns);
    if (call.norm)
        step_norm(vectors, step_load_scales(call, word), inverse);
}

/* ---- the ends of rows ---- */

/* parts [tiles, warps, tile_rows] */
static __device__ __forceinline__ float step_row_sum(const float *parts, int tile_rows, int warps, int row)
{
    float sum = 0;
#pragma unroll
    for (int warp = threadIdx.x % STEP_ROW_LANES; warp < warps; warp += STEP_ROW_LANES)
        sum += parts[(row / tile_rows * warps + warp) * tile_rows + row % tile_rows];
#pragma unroll
    for (int offset = 1; offset < STEP_ROW_LANES; offset *= 2)
        sum += __shfl_xor_sync(DECANT_ALL_LANES, sum, offset);
    return sum;
}

static __device__ __forceinline__ float step_rounded(float value)
{
    return __bfloat162float(__float2bfloat16_rn(value));
}

/* What y holds of row `row` of the block before it is added to; 0 where nothing is. */
static __device__ __forceinline__ float step_before(const step_call &call, const step_share &share,
                                                    int tile_rows, int row)
{
    if (!call.accumulate || row >= share.tiles * tile_rows)
        return 0;
    const step_place place = step_place_of(call, share, tile_rows, row);
    if (place.row >= place.matrix.rows)
        return 0;
    return call.float_y ? ((const float *)place.matrix.y)[place.row]
                        : __bfloat162float(((const __nv_bfloat16 *)place.matrix.y)[place.row]);
}

/* Stores all rows of the block. `before`: step_before of row threadIdx.x / STEP_ROW_LANES, asked for early.
 * finish(row, sum): y of a row of the block from the sum of its parts. All parts are there. */
template <typename Finish>
static __device__ __forceinline__ void step_store_rows(const step_call &call, const step_share &share,
                                                       int tile_rows, int warps, const float *parts,
                                                       float before, Finish finish)
{
    const int own_rows = step_own_rows(call, tile_rows), rows = share.tiles * own_rows;
    const int at_once = warps * DECANT_WARP / STEP_ROW_LANES;
    for (int base = 0; base < rows; base += at_once) { /* whole warps: shuffles follow */
        const int counted = base + (int)threadIdx.x / STEP_ROW_LANES, own = min(counted, rows - 1);
        const int row = own / own_rows * tile_rows + own % own_rows;
        float value = finish(row, step_row_sum(parts, tile_rows, warps, row));
        if (call.gated) {
            const int other = row + own_rows;
            const float gate = step_rounded(value);
            const float up = step_rounded(finish(other, step_row_sum(parts, tile_rows, warps, other)));
            value = up * (gate * (1.0f / (1.0f + expf(-gate))));
        }
        const step_place place = step_place_of(call, share, tile_rows, row);
        if (counted >= rows || place.row >= place.matrix.rows || threadIdx.x % STEP_ROW_LANES != 0)
            continue;
        value += base == 0 ? before : step_before(call, share, tile_rows, row);
        if (call.float_y)
            ((float *)place.matrix.y)[place.row] = value;
        else
            ((__nv_bfloat16 *)place.matrix.y)[place.row] = __float2bfloat16_rn(value);
    }
}

#endif
