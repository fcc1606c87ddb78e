/* What the kernels of attention for any tensor cores share: their arguments, tiles of a head's rows in shared
 * memory, the two kinds of products they are made of, and who sees whom.
 *
 * All of them run with four warps. A warp owns whole rows of the scores (queries forward and for dq, keys for
 * dk and dv), so a row's maximum and sum stay within four lanes, and the scores of one product become an
 * operand of the next without leaving the registers. */
#ifndef DECANT_KERNELS_CUDA_ATTENTION_CUH
#define DECANT_KERNELS_CUDA_ATTENTION_CUH

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/tensor_core.cuh"

enum { DECANT_ATTENTION_THREADS = 128 };

/* Both kinds of matrices hold a head's components side by side in each token's row. */
typedef struct decant_attention_task {
    const __nv_bfloat16 *q, *dy; /* [T, query_stride] */
    const __nv_bfloat16 *k, *v;  /* [T, key_stride] */
    __nv_bfloat16 *y, *dq;       /* [T, query_stride] */
    __nv_bfloat16 *dk, *dv;      /* [T, key_stride] */
    float *log_sum_exp;          /* [heads, T]; written forward, read backward */
    const float *delta;          /* [heads, T] */
    int64_t query_stride, key_stride;
    int tokens, group; /* query heads that share a key-value head */
    int window;        /* INT_MAX when there is none */
    float scale;       /* 1 / sqrt(head_dimension) */
} decant_attention_task;

static const float DECANT_LOG2_E = 1.44269504f;

/* A query sees a key that is not after it and less than `window` before it. */
static __device__ __forceinline__ bool decant_sees(const decant_attention_task &task, int query, int key)
{
    return key <= query && query - key < task.window;
}

/* Whether all queries first_query … last_query see all keys first_key … last_key. */
static __device__ __forceinline__ bool decant_all_see(const decant_attention_task &task, int first_query,
                                                      int last_query, int first_key, int last_key)
{
    return last_key <= first_query && last_query - first_key < task.window;
}

/* Tokens first … first + ROWS − 1 of one head into a tile; zeros beyond the last token. `head` points at the
 * head's components of token 0. */
template <int D, int ROWS>
static __device__ __forceinline__ void decant_load_head(uint32_t tile, const __nv_bfloat16 *head,
                                                        int64_t stride, int first, int tokens)
{
    constexpr int CHUNKS = D / 8, STEP = DECANT_ATTENTION_THREADS / CHUNKS; /* rows between a thread's chunks */
    const int own_row = (int)threadIdx.x / CHUNKS, chunk = (int)threadIdx.x % CHUNKS;
    const __nv_bfloat16 *source = head + (first + own_row) * stride + 8 * chunk;
    const uint32_t target = tile + decant_tile_offset<D>(own_row, chunk);
    static_assert(STEP % 8 == 0 && ROWS % STEP == 0, "a thread keeps its place in the pattern of banks");
#pragma unroll
    for (int i = 0; i < ROWS / STEP; i++) {
        bool valid = first + own_row + i * STEP < tokens;
        decant_copy_16(target + (uint32_t)(i * STEP * D * 2), valid ? source + i * STEP * stride : head, valid);
    }
}

/* A warp's 16·M rows of sums leave through the rows of a tile that only this warp uses, so that the stores to
 * device memory are whole rows. `tile` is the generic address; first is the token of its row 0. */
template <int D, int M>
static __device__ __forceinline__ void decant_store_head(char *tile, int warp_row,
                                                         const float (&sums)[M][D / 8][4], __nv_bfloat16 *head,
                                                         int64_t stride, int first, int tokens)
{
    constexpr int CHUNKS = D / 8;
    const int lane = threadIdx.x % DECANT_WARP;
    __syncwarp(); /* all lanes have read what the rows held before */
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < CHUNKS; n++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int row = warp_row + 16 * m + lane / 4 + 8 * half;
                uint32_t *place = (uint32_t *)(tile + decant_tile_offset<D>(row, n)) + lane % 4;
                *place = decant_pair(sums[m][n][2 * half], sums[m][n][2 * half + 1]);
            }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 16 * M * CHUNKS / DECANT_WARP; i++) {
        int place = i * DECANT_WARP + lane, row = warp_row + place / CHUNKS, chunk = place % CHUNKS;
        if (first + row < tokens)
            *(uint4 *)(head + (int64_t)(first + row) * stride + 8 * chunk) =
                *(const uint4 *)(tile + decant_tile_offset<D>(row, chunk));
    }
}

/* sums += a bᵀ: M·16 rows of tile a, beginning at a_row, by the N rows of tile b from b_row on; both tiles have
 * D columns. Element c of sums[m][n] is that of mma's c, for rows a_row + 16 m and columns 8 n. */
template <int D, int M, int N>
static __device__ __forceinline__ void decant_multiply_tiles(float (&sums)[M][N / 8][4], uint32_t a, int a_row,
                                                             uint32_t b)
{
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        uint32_t left[M][4];
#pragma unroll
        for (int m = 0; m < M; m++)
            decant_operand_a<D>(left[m], a, a_row + 16 * m, k);
#pragma unroll
        for (int n = 0; n < N / 16; n++) {
            uint32_t right[4];
            decant_operand_b_columns<D>(right, b, 16 * n, k);
#pragma unroll
            for (int m = 0; m < M; m++) {
                decant_mma(sums[m][2 * n], left[m], right[0], right[1]);
                decant_mma(sums[m][2 * n + 1], left[m], right[2], right[3]);
            }
        }
    }
}

/* sums += weights b: the weights [16·M, K] are in registers as an earlier product left them, b is a tile of K
 * rows and D columns. */
template <int D, int M, int K>
static __device__ __forceinline__ void decant_multiply_weights(float (&sums)[M][D / 8][4],
                                                               const float (&weights)[M][K / 8][4], uint32_t b)
{
#pragma unroll
    for (int k = 0; k < K / 16; k++) {
        uint32_t left[M][4];
#pragma unroll
        for (int m = 0; m < M; m++)
            decant_operand_of_sums(left[m], weights[m][2 * k], weights[m][2 * k + 1]);
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            uint32_t right[4];
            decant_operand_b_rows<D>(right, b, 16 * n, k);
#pragma unroll
            for (int m = 0; m < M; m++) {
                decant_mma(sums[m][2 * n], left[m], right[0], right[1]);
                decant_mma(sums[m][2 * n + 1], left[m], right[2], right[3]);
            }
        }
    }
}

/* The part of a task that both passes need. */
decant_attention_task decant_cuda_attention_task(const decant_attention_shape *shape, decant_matrix q,
                                                 decant_matrix k, decant_matrix v);

#endif
