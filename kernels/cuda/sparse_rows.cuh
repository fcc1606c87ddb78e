/* The sparse part of a block's rows times a few tokens, beside their dense part. All threads of the block share
 * the entries evenly, whatever rows they lie in: each entry's products with x go to shared memory, a window of
 * entries at a time, and eight lanes a row add up those of the row, in an order that depends on the entries
 * alone. A few rows often hold many of the entries, and a row must not wait for one lane. */
#ifndef DECANT_KERNELS_CUDA_SPARSE_ROWS_CUH
#define DECANT_KERNELS_CUDA_SPARSE_ROWS_CUH

#include "kernels/cuda/packed.cuh"
#include "kernels/cuda/tensor_core.cuh"

enum { DECANT_ROW_LANES = 8 /* that add up a row */, DECANT_LINE_BYTES = 128 };

/* Starts bringing a block's share of an array into the L2 cache. */
static __device__ __forceinline__ void decant_prefetch_share(const void *array, int64_t size_bytes, int block,
                                                             int blocks, int threads)
{
    const int64_t lines = (size_bytes + DECANT_LINE_BYTES - 1) / DECANT_LINE_BYTES;
    const int64_t end = lines * (block + 1) / blocks;
    for (int64_t line = lines * block / blocks + threadIdx.x; line < end; line += threads)
        decant_prefetch((const char *)array + line * DECANT_LINE_BYTES);
}

/* What a thread knows of the rows of its block before their arrays in shared memory are there. */
typedef struct decant_sparse_offsets {
    uint32_t first, last; /* entries of the block */
    uint32_t end;         /* of the row of this thread's number */
} decant_sparse_offsets;

static __device__ __forceinline__ decant_sparse_offsets
decant_load_sparse_offsets(const decant_packed_view &packed, int first_row, int rows)
{
    const uint32_t *offsets = packed.row_offsets + first_row;
    return {offsets[0], offsets[rows], offsets[min((int)threadIdx.x + 1, rows)]};
}

/* The CSR part of a block's rows; entries are counted from the first of them. */
typedef struct decant_sparse_rows {
    const uint32_t *columns; /* [count], device */
    const __half *values;    /* [count], device */
    int *offsets;            /* [rows + 1], shared like all below */
    float *sums;             /* [rows, TOKENS]: of the windows before the last */
    float *products;         /* [TOKENS, window] */
    int count, window;
} decant_sparse_rows;

/* Shared memory for so many rows and products in all, bytes; a multiple of 16. */
static __host__ __device__ __forceinline__ int decant_sparse_rows_bytes(int rows, int tokens, int products)
{
    return ((rows + 1) * 4 + rows * tokens * 4 + products * 4 + 15) / 16 * 16;
}

/* By all threads of the block, which are as many as its rows or more; a barrier must follow. */
template <int TOKENS>
static __device__ __forceinline__ decant_sparse_rows
decant_open_sparse_rows(const decant_packed_view &packed, const decant_sparse_offsets &offsets, int rows,
                        int products, unsigned char *shared)
{
    decant_sparse_rows own;
    own.columns = packed.sparse_columns + offsets.first;
    own.values = packed.sparse_values + offsets.first;
    own.count = (int)(offsets.last - offsets.first);
    own.window = products / TOKENS;
    own.products = (float *)shared;
    own.sums = own.products + products;
    own.offsets = (int *)(own.sums + rows * TOKENS);
    if ((int)threadIdx.x < rows) {
        own.offsets[threadIdx.x + 1] = (int)(offsets.end - offsets.first);
#pragma unroll
        for (int t = 0; t < TOKENS; t++)
            own.sums[threadIdx.x * TOKENS + t] = 0;
    }
    if (threadIdx.x == 0)
        own.offsets[0] = 0;
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

/* x of one column for all tokens; those beyond the last get the last one's. */
template <int TOKENS>
static __device__ __forceinline__ void decant_load_column(__nv_bfloat16 (&values)[TOKENS],
                                                          const __nv_bfloat16 *x, uint32_t column, int columns,
                                                          int last_token)
{
#pragma unroll
    for (int t = 0; t < TOKENS; t++)
        values[t] = x[(int64_t)min(t, last_token) * columns + column];
}

/* Stores the products of the entry at `place` of the window. */
template <int TOKENS>
static __device__ __forceinline__ void decant_store_products(const decant_sparse_rows &own, int place,
                                                             __half value, const __nv_bfloat16 (&x)[TOKENS])
{
#pragma unroll
    for (int t = 0; t < TOKENS; t++)
        own.products[t * own.window + place] = __half2float(value) * decant_to_float(x[t]);
}

/* The products of the entries first, first + threads, … before `end`, in the window that begins at `begin`. */
template <int TOKENS>
static __device__ __forceinline__ void
decant_multiply_entries(const decant_sparse_rows &own, int begin, int first, int end, int threads,
                        const __nv_bfloat16 *x, int columns, int last_token)
{
#pragma unroll TOKENS> 4 ? 1 : TOKENS> 1 ? 2 : 4
    for (int entry = first; entry < end; entry += threads) {
        __nv_bfloat16 values[TOKENS];
        decant_load_column<TOKENS>(values, x, own.columns[entry], columns, last_token);
        decant_store_products<TOKENS>(own, entry - begin, own.values[entry], values);
    }
}

/* sums[t] += a lane's share of the products of row `row` that lie in the window [begin, end). lane: 0 …
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
    static_assert(TOKENS <= DECANT_ROW_LANES, "a lane for each token");
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
            if (lane == t && row < rows)
                own.sums[row * TOKENS + t] += sums[t];
        }
    }
}

#endif
