/* What a lane does on its way through its run of sparse entries (entry_runs.h): it reads four at a time, a
 * while before their products are due, and adds these up by row. */
#ifndef DECANT_KERNELS_CUDA_ENTRY_LANES_CUH
#define DECANT_KERNELS_CUDA_ENTRY_LANES_CUH

#include "kernels/cuda/entry_runs.h"
#include "kernels/cuda/packed.cuh"

/* Four entries as they are read. */
typedef struct four_entries {
    uint4 columns;
    uint2 values; /* F16, two in a word */
} four_entries;

static __device__ __forceinline__ four_entries read_four(const decant_packed_view &packed, uint32_t first)
{
    return {*(const uint4 *)(packed.sparse_columns + first), *(const uint2 *)(packed.sparse_values + first)};
}

/* Entries [begin, end) of them become column 0 times nothing. */
static __device__ __forceinline__ void drop_entries(four_entries &four, int begin, int end)
{
    asm volatile(""); /* rare: to be jumped over, not carried through by predicates */
    uint32_t *columns = &four.columns.x, *values = &four.values.x;
#pragma unroll
    for (int i = 0; i < DECANT_FOUR; i++)
        if (i >= begin && i < end) {
            columns[i] = 0;
            values[i / 2] &= i % 2 ? 0x0000ffffu : 0xffff0000u;
        }
}

/* x(column), bits of a BF16, takes the place of the columns. */
template <typename X> static __device__ __forceinline__ void gather_x(four_entries &four, const X &x)
{
    const uint4 columns = four.columns;
    four.columns = {x(columns.x), x(columns.y), x(columns.z), x(columns.w)};
}

/* The products of four entries with the x that has been gathered, of which `starts` says which begin a row. */
static __device__ __forceinline__ void add_four(decant_entry_walk &walk, const four_entries &four,
                                                uint32_t starts)
{
    const float2 low = __half22float2(*(const __half2 *)&four.values.x);
    const float2 high = __half22float2(*(const __half2 *)&four.values.y);
    decant_walk_on(&walk, starts & 1, low.x, __uint_as_float(four.columns.x << 16));
    decant_walk_on(&walk, starts & 2, low.y, __uint_as_float(four.columns.y << 16));
    decant_walk_on(&walk, starts & 4, high.x, __uint_as_float(four.columns.z << 16));
    decant_walk_on(&walk, starts & 8, high.y, __uint_as_float(four.columns.w << 16));
}

/* A lane's run of entries, [begin, end). */
typedef struct lane_run {
    uint32_t base; /* of entry 0 */
    int begin, end;
} lane_run;

/* The entries of one row; none beyond the last row. */
typedef struct row_entries {
    uint32_t begin, end; /* counted from the matrix's first, as they are read */
} row_entries;

/* A load that is under way before those behind it in the program are used. */
static __device__ __forceinline__ uint32_t load_at_once(const uint32_t *address)
{
    uint32_t value;
    asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
    return value;
}

/* offsets: of the block's rows. */
static __device__ __forceinline__ row_entries load_row(const uint32_t *offsets, int row, int rows)
{
    return {load_at_once(offsets + min(row, rows)), load_at_once(offsets + min(row + 1, rows))};
}

/* How many rows of a warp's have entries, to where the warps' counts are gathered, and of which: a bit each. */
static __device__ __forceinline__ uint32_t count_rows(const row_entries &row, int *count)
{
    const uint32_t with = __ballot_sync(DECANT_ALL_LANES, row.end > row.begin);
    if (threadIdx.x % DECANT_WARP == 0)
        *count = __popc(with);
    return with;
}

/* The number of a lane's row among those that have entries; counts: [index] of the warps before. */
static __device__ __forceinline__ int number_of_row(uint32_t with, const int *counts, int index)
{
    int number = __popc(with & ((1u << threadIdx.x % DECANT_WARP) - 1));
#pragma unroll 1
    for (int i = 0; i < index; i++)
        number += counts[i];
    return number;
}

#endif
