/* The part of a sparse pattern that lies in a stretch of one row, as bits in shared memory. Knows nothing of
 * weights. */
#ifndef DECANT_KERNELS_CUDA_ROW_PATTERN_CUH
#define DECANT_KERNELS_CUDA_ROW_PATTERN_CUH

#include "kernels/cuda/quantize.cuh"

/* Sets bit c % 32 of marks[c / 32] for each column first + c of the row's pattern, c < 32 · words, and clears
 * the other bits. marks is shared memory; all threads of the block call it together, and may read marks when it
 * returns. */
static __device__ __forceinline__ void mark_pattern(const decant_cuda_rows &rows, int64_t row, uint32_t first,
                                                    uint32_t *marks, uint32_t words)
{
    __syncthreads(); /* earlier readers of marks are done */
    for (uint32_t i = threadIdx.x; i < words; i += blockDim.x)
        marks[i] = 0;
    __syncthreads();
    if (!rows.row_offsets)
        return;
    const uint32_t end = rows.row_offsets[row + 1];
    for (uint32_t i = rows.row_offsets[row] + threadIdx.x; i < end; i += blockDim.x) {
        const uint32_t c = rows.pattern_columns[i] - first; /* columns before `first` wrap to large numbers */
        if (c / 32 < words)
            atomicOr(&marks[c / 32], 1u << (c % 32));
    }
    __syncthreads();
}

static __device__ __forceinline__ bool is_marked(const uint32_t *marks, uint32_t c)
{
    return marks[c / 32] >> (c % 32) & 1;
}

#endif
