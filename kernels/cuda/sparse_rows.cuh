/* The sparse part of a block's rows, where their dense part is multiplied too: the entries are copied into
 * shared memory ahead of x, on which they do not depend, and meet it once the dense part is done. What does not
 * fit is read where it lies. */
#ifndef DECANT_KERNELS_CUDA_SPARSE_ROWS_CUH
#define DECANT_KERNELS_CUDA_SPARSE_ROWS_CUH

#include "kernels/cuda/packed.cuh"
#include "kernels/cuda/tensor_core.cuh"

enum { DECANT_ROW_LANES = 8 }; /* that add up a row */

/* A block's rows of the CSR part, in shared memory. */
typedef struct decant_sparse_rows {
    uint32_t *offsets; /* [rows + 1], of the matrix */
    uint32_t *columns; /* [capacity], from the entry `origin` on */
    __half *values;    /* [capacity] */
    uint32_t origin;   /* even, so that values are copied by twos */
    uint32_t capacity; /* even */
} decant_sparse_rows;

/* Shared memory for so many rows and entries, bytes; a multiple of 16. */
static __host__ __device__ __forceinline__ int decant_sparse_rows_bytes(int rows, int capacity)
{
    return ((rows + 1) * 4 + capacity * (4 + 2) + 15) / 16 * 16;
}

/* Starts the copies, by all `threads` of the block. They are there after each thread has waited for its copies
 * and a barrier. */
static __device__ __forceinline__ decant_sparse_rows decant_copy_sparse_rows(const decant_packed_view &packed,
                                                                             int first_row, int rows,
                                                                             int capacity, int threads,
                                                                             unsigned char *shared)
{
    const uint32_t *offsets = packed.row_offsets + first_row;
    const uint32_t origin = offsets[0] & ~1u, end = offsets[rows], all = packed.row_offsets[packed.rows];
    decant_sparse_rows own;
    own.columns = (uint32_t *)shared;
    own.offsets = own.columns + capacity;
    own.values = (__half *)(own.offsets + rows + 1);
    own.origin = origin;
    own.capacity = (uint32_t)capacity;
    for (int i = threadIdx.x; i <= rows; i += threads)
        own.offsets[i] = offsets[i];
    const uint32_t count = min(end - origin, own.capacity);
    for (uint32_t i = threadIdx.x; i < count; i += threads)
        decant_copy_4(decant_shared_address(own.columns + i), packed.sparse_columns + origin + i, true);
    for (uint32_t i = 2 * threadIdx.x; i < count; i += 2 * threads) {
        if (origin + i + 1 < all)
            decant_copy_4(decant_shared_address(own.values + i), packed.sparse_values + origin + i, true);
        else
            own.values[i] = packed.sparse_values[origin + i];
    }
    return own;
}

/* sums[t] += this lane's share of row `row` of the block times x of token first_token + t; tokens beyond the
 * last get the last one's. lane: 0 … DECANT_ROW_LANES − 1. */
template <int TOKENS>
static __device__ __forceinline__ void
decant_add_sparse_row(float (&sums)[TOKENS], const decant_sparse_rows &own, const decant_packed_view &packed,
                      int row, int lane, const __nv_bfloat16 *x, int first_token, int tokens)
{
    const uint32_t end = own.offsets[row + 1];
#pragma unroll 4
    for (uint32_t entry = own.offsets[row] + lane; entry < end; entry += DECANT_ROW_LANES) {
        const uint32_t place = entry - own.origin;
        const bool is_here = place < own.capacity;
        const uint32_t column = is_here ? own.columns[place] : packed.sparse_columns[entry];
        const float value = __half2float(is_here ? own.values[place] : packed.sparse_values[entry]);
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            const int64_t token = min(first_token + t, tokens - 1);
            sums[t] += value * decant_to_float(x[token * packed.columns + column]);
        }
    }
}

#endif
