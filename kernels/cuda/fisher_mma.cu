/* fisher += (dYᵀ X)∘(dYᵀ X) in one kernel on mma.sync. A block forms a tile of G in registers, from tokens that
 * stream through shared memory, then adds its squares to the tile of F, which was called into the L2 cache at
 * the start. Two blocks share a multiprocessor, so that one's reading and writing of F goes beside the other's
 * product.
 *
 * Each element of F belongs to one thread, and the sum over tokens runs in their order: the same bits every
 * time. */
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/tensor_core.cuh"

enum {
    TILE = 128,     /* rows and columns of G in a block */
    WARP_TILE = 64, /* rows and columns of a warp */
    TOKENS = 32,    /* tokens of a stage */
    STAGES = 4,
    THREADS = 128,
    TILE_BYTES = TOKENS * TILE * 2, /* of one operand in one stage */
    STAGE_BYTES = 2 * TILE_BYTES,
    SHARED_BYTES = STAGES * STAGE_BYTES,
};

typedef struct fisher_task {
    const __nv_bfloat16 *dy; /* [tokens, rows] */
    const __nv_bfloat16 *x;  /* [tokens, columns] */
    float *fisher;           /* [rows, columns] */
    int tokens, rows, columns;
} fisher_task;

/* Tokens first_token … +31, columns first … +127 of a matrix; zeros beyond its ends. */
static __device__ __forceinline__ void load_tile(uint32_t tile, const __nv_bfloat16 *matrix, int tokens,
                                                 int width, int first_token, int first)
{
    const int chunks = TILE / 8;
#pragma unroll
    for (int i = 0; i < TOKENS * chunks / THREADS; i++) {
        int place = i * THREADS + threadIdx.x, row = place / chunks, chunk = place % chunks;
        int token = first_token + row, column = first + 8 * chunk;
        bool valid = token < tokens && column < width;
        const __nv_bfloat16 *source = valid ? matrix + (int64_t)token * width + column : matrix;
        decant_copy_16(tile + decant_tile_offset<TILE>(row, chunk), source, valid);
    }
}

static __device__ __forceinline__ void load_stage(uint32_t shared, const fisher_task &task, int stage,
                                                  int first_row, int first_column)
{
    uint32_t at = shared + (uint32_t)(stage % STAGES) * STAGE_BYTES;
    load_tile(at, task.dy, task.tokens, task.rows, stage * TOKENS, first_row);
    load_tile(at + TILE_BYTES, task.x, task.tokens, task.columns, stage * TOKENS, first_column);
}

/* Calls the block's tile of F into the L2 cache. */
static __device__ __forceinline__ void prefetch_tile(const fisher_task &task, int first_row, int first_column)
{
    const int line = 32; /* floats */
    for (int i = threadIdx.x; i < TILE * TILE / line; i += THREADS) {
        int row = first_row + i / (TILE / line), column = first_column + i % (TILE / line) * line;
        if (row < task.rows && column < task.columns)
            decant_prefetch(task.fisher + (int64_t)row * task.columns + column);
    }
}

/* The sums of a warp: 4 × 8 products of 16×8. */
typedef float warp_sums[WARP_TILE / 16][WARP_TILE / 8][4];

static __device__ __forceinline__ void multiply_stage(warp_sums &sums, uint32_t stage, int warp_row,
                                                      int warp_column)
{
#pragma unroll
    for (int k = 0; k < TOKENS / 16; k++) {
        uint32_t a[WARP_TILE / 16][4];
#pragma unroll
        for (int i = 0; i < WARP_TILE / 16; i++)
            decant_operand_a_transposed<TILE>(a[i], stage, warp_row + 16 * i, k);
#pragma unroll
        for (int j = 0; j < WARP_TILE / 16; j++) {
            uint32_t b[4];
            decant_operand_b_rows<TILE>(b, stage + TILE_BYTES, warp_column + 16 * j, k);
#pragma unroll
            for (int i = 0; i < WARP_TILE / 16; i++) {
                decant_mma(sums[i][2 * j], a[i], b[0], b[1]);
                decant_mma(sums[i][2 * j + 1], a[i], b[2], b[3]);
            }
        }
    }
}

/* Rows first_row + lane / 4 (+ 8 · half) of F gain the squares of one row of products. All reads come before
 * the first write, so that they are under way together. */
static __device__ __forceinline__ void add_squares(const fisher_task &task,
                                                   const float (&sums)[WARP_TILE / 8][4], int half,
                                                   int first_row, int first_column)
{
    const int lane = threadIdx.x % DECANT_WARP;
    int row = first_row + lane / 4 + 8 * half, column = first_column + 2 * (lane % 4);
    if (row >= task.rows)
        return;
    float2 *target = (float2 *)(task.fisher + (int64_t)row * task.columns + column);
    float2 values[WARP_TILE / 8];
#pragma unroll
    for (int j = 0; j < WARP_TILE / 8; j++)
        if (column + 8 * j < task.columns)
            values[j] = __ldcs(target + 4 * j);
#pragma unroll
    for (int j = 0; j < WARP_TILE / 8; j++)
        if (column + 8 * j < task.columns) {
            float low = sums[j][2 * half], high = sums[j][2 * half + 1];
            __stcs(target + 4 * j, make_float2(values[j].x + low * low, values[j].y + high * high));
        }
}

__global__ void __launch_bounds__(THREADS, 2) fisher_mma_kernel(const fisher_task task)
{
    extern __shared__ __align__(256) char shared_memory[];
    const uint32_t shared = decant_shared_address(shared_memory);
    const int warp = threadIdx.x / DECANT_WARP;
    const int warp_row = warp / 2 * WARP_TILE, warp_column = warp % 2 * WARP_TILE;
    const int first_row = blockIdx.x * TILE, first_column = blockIdx.y * TILE;
    const int stages = (task.tokens + TOKENS - 1) / TOKENS;
    prefetch_tile(task, first_row, first_column);
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; stage++) {
        if (stage < stages)
            load_stage(shared, task, stage, first_row, first_column);
        decant_copy_commit();
    }
    warp_sums sums = {};
    for (int stage = 0; stage < stages; stage++) {
        decant_copy_wait<STAGES - 2>();
        __syncthreads(); /* the stage has arrived, and everybody is done with the one that the next load
                            replaces */
        if (stage + STAGES - 1 < stages)
            load_stage(shared, task, stage + STAGES - 1, first_row, first_column);
        decant_copy_commit();
        multiply_stage(sums, shared + (uint32_t)(stage % STAGES) * STAGE_BYTES, warp_row, warp_column);
    }
#pragma unroll
    for (int i = 0; i < WARP_TILE / 16; i++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            add_squares(task, sums[i], half, first_row + warp_row + 16 * i, first_column + warp_column);
}

decant_status decant_cuda_fisher_mma(decant_backend *backend, decant_matrix dy, decant_matrix x, float *fisher,
                                     decant_error *err)
{
    fisher_task task = {(const __nv_bfloat16 *)dy.data,
                        (const __nv_bfloat16 *)x.data,
                        fisher,
                        (int)x.rows,
                        (int)dy.columns,
                        (int)x.columns};
    dim3 blocks((unsigned)((task.rows + TILE - 1) / TILE), (unsigned)((task.columns + TILE - 1) / TILE));
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(
        cudaFuncSetAttribute(fisher_mma_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_BYTES),
        "shared memory of fisher_mma", err));
    fisher_mma_kernel<<<blocks, THREADS, SHARED_BYTES, decant_cuda_of(backend)->stream>>>(task);
    return decant_cuda_launched(backend, "fisher_mma", err);
}
