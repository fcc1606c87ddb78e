/* The sparse part of a block's rows, where their dense part is multiplied too. All threads of the block share
 * the entries evenly, whatever rows they lie in: each entry's products with x go to shared memory, a window of
 * entries at a time, and eight lanes a row add up those of the row, in an order that depends on the entries
 * alone. A few rows often hold many of the entries, and a row must not wait for one lane. */
#ifndef DECANT_KERNELS_CUDA_SPARSE_ROWS_CUH
#define DECANT_KERNELS_CUDA_SPARSE_ROWS_CUH

#include "kernels/cuda/packed.cuh"
#include "kernels/cuda/tensor_core.cuh"

enum { DECANT_ROW_LANES = 8 }; /* that add up a row */

/* The CSR part of a block's rows; entries are counted from the first of them. */
typedef struct decant_sparse_rows {
    const uint32_t *columns; /* [count], device */
    const __half *values;    /* [count], device */
    int *offsets;            /* [rows + 1], shared like all below */
    float *sums;             /* [rows, TOKENS]: of the windows before the last */
    float *products;         /* [TOKENS, window] */
    int count, window;
} decant_sparse_rows;

/* Shared memory for so many rows, and for the products of so many entries in all, bytes; a multiple of 16. */
static __host__ __device__ __forceinline__ int decant_sparse_rows_bytes(int rows, int tokens, int products)
{
    return ((rows + 1) * 4 + rows * tokens * 4 + products * 4 + 15) / 16 * 16;
}

/* By all `threads` of the block; a barrier must follow. */
template <int TOKENS>
static __device__ __forceinline__ decant_sparse_rows decant_open_sparse_rows(const decant_packed_view &packed,
                                                                             int first_row, int rows,
                                                                             int products, int threads,
                                                                             unsigned char *shared)
{
    const uint32_t *offsets = packed.row_offsets + first_row;
    const uint32_t first = offsets[0];
    decant_sparse_rows own;
    own.columns = packed.sparse_columns + first;
    own.values = packed.sparse_values + first;
    own.count = (int)(offsets[rows] - first);
    own.window = products / TOKENS;
    own.products = (float *)shared;
    own.sums = own.products + products;
    own.offsets = (int *)(own.sums + rows * TOKENS);
    for (int i = threadIdx.x; i <= rows; i += threads)
        own.offsets[i] = (int)(offsets[i] - first);
    for (int i = threadIdx.x; i < rows * TOKENS; i += threads)
        own.sums[i] = 0;
    return own;
}

/* One entry in registers; a value of zero where there is none. */
typedef struct decant_sparse_entry {
    uint32_t column;
    __half value;
} decant_sparse_entry;

static __device__ __forceinline__ decant_sparse_entry decant_sparse_entry_at(const decant_sparse_rows &own,
                                                                             int entry, int end)
{
    decant_sparse_entry found = {0, __ushort_as_half(0)};
    if (entry < end) {
        found.column = own.columns[entry];
        found.value = own.values[entry];
    }
    return found;
}

/* The products of the entries first, first + threads, … before `end`, in the window that begins at `begin`.
 * x: of token 0; tokens beyond the last get the last one's. */
template <int TOKENS>
static __device__ __forceinline__ void
decant_multiply_entries(const decant_sparse_rows &own, int begin, int first, int end, int threads,
                        const __nv_bfloat16 *x, int64_t columns, int last_token)
{
#pragma unroll TOKENS> 4 ? 1 : TOKENS> 1 ? 2 : 4
    for (int entry = first; entry < end; entry += threads) {
        const __nv_bfloat16 *of_column = x + own.columns[entry];
        const float value = __half2float(own.values[entry]);
#pragma unroll
        for (int t = 0; t < TOKENS; t++)
            own.products[t * own.window + entry - begin] =
                value * decant_to_float(of_column[min(t, last_token) * columns]);
    }
}

/* sums[t] += this lane's share of the products of row `row` that lie in the window [begin, end). lane: 0 …
 * DECANT_ROW_LANES − 1. */
template <int TOKENS>
static __device__ __forceinline__ void decant_add_products(float (&sums)[TOKENS], const decant_sparse_rows &own,
                                                           int row, int lane, int begin, int end)
{
    const int from = max(own.offsets[row], begin), to = min(own.offsets[row + 1], end);
#pragma unroll 4
    for (int entry = from + lane; entry < to; entry += DECANT_ROW_LANES)
#pragma unroll
        for (int t = 0; t < TOKENS; t++)
            sums[t] += own.products[t * own.window + entry - begin];
}

/* Adds the products of the window to the sums of the block's rows; by all `threads` of the block, whole warps.
 * A row's sums are always the same lanes'. */
template <int TOKENS>
static __device__ __forceinline__ void decant_keep_products(const decant_sparse_rows &own, int rows, int begin,
                                                            int end, int threads)
{
    const int lane = threadIdx.x % DECANT_ROW_LANES;
    for (int base = 0; base < rows; base += threads / DECANT_ROW_LANES) {
        const int row = base + (int)threadIdx.x / DECANT_ROW_LANES;
        float sums[TOKENS] = {};
        decant_add_products<TOKENS>(sums, own, min(row, rows - 1), lane, begin, end);
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
#pragma unroll
            for (int offset = 1; offset < DECANT_ROW_LANES; offset *= 2)
                sums[t] += __shfl_xor_sync(DECANT_ALL_LANES, sums[t], offset);
            if (lane == t % DECANT_ROW_LANES && row < rows)
                own.sums[row * TOKENS + t] += sums[t];
        }
    }
}

#endif
