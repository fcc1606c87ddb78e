/* The product of some rows of a CSR matrix and several tokens, by a block. x is turned: a column's tokens lie
 * side by side, so that an entry's values are a few sixteen bytes. Groups of lanes, each lane with eight
 * tokens, share the entries evenly (token_entries.h), because a few rows often hold many of them. */
#ifndef DECANT_KERNELS_CUDA_TOKEN_ENTRIES_CUH
#define DECANT_KERNELS_CUDA_TOKEN_ENTRIES_CUH

#include "kernels/cuda/packed.cuh"
#include "kernels/cuda/token_entries.h"

#include <cuda_bf16.h>

enum {
    DECANT_VECTOR_TOKENS = 8,
    DECANT_STORED_ROWS = 8, /* of one token that threads store side by side */
};

/* Entries of a lane's group that are asked for at once. */
typedef struct decant_entries_ahead {
    uint4 columns;
    uint2 values; /* F16 */
} decant_entries_ahead;

/* From entry `first` on, a multiple of four; those from `behind` on, the block's end, are column 0 by nothing.
 */
static __device__ __forceinline__ decant_entries_ahead
decant_load_entries_ahead(const decant_packed_view &packed, uint32_t first, uint32_t behind)
{
    const uint32_t *columns = packed.sparse_columns + first;
    const uint16_t *values = (const uint16_t *)packed.sparse_values + first;
    const bool aligned = (uintptr_t)packed.sparse_columns % sizeof(uint4) == 0 &&
                         (uintptr_t)packed.sparse_values % sizeof(uint2) == 0;
    decant_entries_ahead ahead = {{0, 0, 0, 0}, {0, 0}};
    if (aligned && first + DECANT_ENTRIES_AT_ONCE <= behind)
        return {*(const uint4 *)columns, *(const uint2 *)values};
    if (first < behind) {
        ahead.columns.x = columns[0];
        ahead.values.x = values[0];
    }
    if (first + 1 < behind) {
        ahead.columns.y = columns[1];
        ahead.values.x |= (uint32_t)values[1] << 16;
    }
    if (first + 2 < behind) {
        ahead.columns.z = columns[2];
        ahead.values.y = values[2];
    }
    if (first + 3 < behind) {
        ahead.columns.w = columns[3];
        ahead.values.y |= (uint32_t)values[3] << 16;
    }
    return ahead;
}

/* sums += one entry of eight tokens. */
static __device__ __forceinline__ void decant_add_entry(float (&sums)[DECANT_VECTOR_TOKENS], uint4 four,
                                                        float value)
{
    const uint32_t words[DECANT_VECTOR_TOKENS / 2] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int i = 0; i < DECANT_VECTOR_TOKENS; i++) /* a BF16 is the upper half of an F32 */
        sums[i] =
            fmaf(value, __uint_as_float(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16), sums[i]);
}

/* Leaves the sums as a segment and clears them. */
static __device__ __forceinline__ void decant_leave_segment(float (&sums)[DECANT_VECTOR_TOKENS], float *segment)
{
    *(float4 *)segment = make_float4(sums[0], sums[1], sums[2], sums[3]);
    *(float4 *)(segment + 4) = make_float4(sums[4], sums[5], sums[6], sums[7]);
#pragma unroll
    for (int i = 0; i < DECANT_VECTOR_TOKENS; i++)
        sums[i] = 0;
}

/* THREADS threads and TOKENS tokens: 8, 16 or 32. */
template <int THREADS, int TOKENS> struct decant_row_entries {
    static constexpr int LANES = TOKENS / DECANT_VECTOR_TOKENS, GROUPS = THREADS / LANES;
    decant_block_entries block;
    decant_entry_run run;
    decant_entries_ahead ahead;
    uint32_t behind; /* the block's last entry */
    float *segments;
    int group, own_token;

    /* Shared memory that so many rows take, in bytes; to be aligned to sixteen. */
    static __host__ __device__ constexpr int bytes(int rows)
    {
        return (GROUPS + rows) * TOKENS * 4 + (rows + 1) * 4;
    }

    /* Asks for the first entries of rows first_row, …; which does not depend on x. A barrier inside. */
    __device__ __forceinline__ void open(const decant_packed_view &packed, int first_row, int rows,
                                         float *shared)
    {
        segments = shared;
        uint32_t *offsets = (uint32_t *)(shared + decant_segment_places(rows, GROUPS) * TOKENS);
        group = (int)threadIdx.x / LANES;
        own_token = (int)threadIdx.x % LANES * DECANT_VECTOR_TOKENS;
        for (int i = threadIdx.x; i <= rows; i += THREADS)
            offsets[i] = packed.row_offsets[first_row + i];
        __syncthreads();
        block = decant_block_entries_of(offsets, rows, GROUPS);
        run = decant_entry_run_of(&block, group);
        behind = offsets[rows];
        ahead = decant_load_entries_ahead(packed, run.start, behind);
    }

    /* products [tokens, packed.rows] of these rows. turned: x [columns, TOKENS]. A barrier inside. */
    __device__ __forceinline__ void multiply(const decant_packed_view &packed, int first_row,
                                             const __nv_bfloat16 *turned, int tokens, float *products)
    {
        float sums[DECANT_VECTOR_TOKENS] = {};
        turned += own_token;
        for (uint32_t entry = run.start; entry < run.end; entry += DECANT_ENTRIES_AT_ONCE) {
            const uint32_t columns[] = {ahead.columns.x, ahead.columns.y, ahead.columns.z, ahead.columns.w};
            const float2 low = __half22float2(*(const __half2 *)&ahead.values.x),
                         high = __half22float2(*(const __half2 *)&ahead.values.y);
            const float values[] = {low.x, low.y, high.x, high.y};
            uint4 vectors[DECANT_ENTRIES_AT_ONCE];
#pragma unroll
            for (int i = 0; i < DECANT_ENTRIES_AT_ONCE; i++)
                vectors[i] = __ldcg((const uint4 *)(turned + (int64_t)columns[i] * TOKENS));
            if (entry + DECANT_ENTRIES_AT_ONCE < run.end)
                ahead = decant_load_entries_ahead(packed, entry + DECANT_ENTRIES_AT_ONCE, behind);
#pragma unroll
            for (int i = 0; i < DECANT_ENTRIES_AT_ONCE; i++) {
                if (entry + i < run.first || entry + i >= run.end)
                    continue;
                if (entry + i >= run.row_end) {
                    decant_leave_segment(sums, segments + (group + run.row) * TOKENS + own_token);
                    decant_enter_row(&block, &run, entry + i);
                }
                decant_add_entry(sums, vectors[i], values[i]);
            }
        }
        if (run.first < run.end)
            decant_leave_segment(sums, segments + (group + run.row) * TOKENS + own_token);
        __syncthreads();
        const int rows = block.rows, padded = (rows + DECANT_STORED_ROWS - 1) / DECANT_STORED_ROWS;
        for (int i = threadIdx.x; i < padded * DECANT_STORED_ROWS * TOKENS; i += THREADS) {
            const int row = i / (DECANT_STORED_ROWS * TOKENS) * DECANT_STORED_ROWS + i % DECANT_STORED_ROWS,
                      token = i / DECANT_STORED_ROWS % TOKENS;
            if (row >= rows || token >= tokens)
                continue;
            const decant_row_segments own = decant_segments_of_row(&block, row);
            float sum = 0;
#pragma unroll 4
            for (int place = own.first; place < own.end; place++)
                sum += segments[place * TOKENS + token];
            products[(int64_t)token * packed.rows + first_row + row] = sum;
        }
    }
};

#endif
