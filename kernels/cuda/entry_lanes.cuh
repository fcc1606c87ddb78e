/* What a lane does on its way through its run of sparse entries (entry_runs.h): it reads four at a time, a
 * while before their products are due, and adds these up by row. */
#ifndef DECANT_KERNELS_CUDA_ENTRY_LANES_CUH
#define DECANT_KERNELS_CUDA_ENTRY_LANES_CUH

#include "kernels/cuda/entry_runs.h"
#include "kernels/cuda/packed.cuh"

/* Four entries, a word each: joined_entries.cu. */
static __device__ __forceinline__ uint4 read_four(const decant_packed_view &packed, uint32_t first)
{
    return *(const uint4 *)(packed.sparse_entries + first);
}

/* Entries [begin, end) of them become column 0 times nothing. */
static __device__ __forceinline__ void drop_entries(uint4 &four, int begin, int end)
{
    asm volatile(""); /* rare: to be jumped over, not carried through by predicates */
    uint32_t *words = &four.x;
#pragma unroll
    for (int i = 0; i < DECANT_FOUR; i++)
        if (i >= begin && i < end)
            words[i] = 0;
}

/* x(entry), bits of a BF16, for each of them. */
template <typename X> static __device__ __forceinline__ uint4 gather_x(const uint4 &four, const X &x)
{
    return {x(four.x), x(four.y), x(four.z), x(four.w)};
}

static __device__ __forceinline__ float value_of(uint32_t entry)
{
    return __half2float(__ushort_as_half((unsigned short)(entry >> 16)));
}

/* The products of four entries with their x, of which `starts` says which begin a row. */
static __device__ __forceinline__ void add_four(decant_entry_walk &walk, const uint4 &four, const uint4 &x,
                                                uint32_t starts)
{
    decant_walk_on(&walk, starts & 1, value_of(four.x), __uint_as_float(x.x << 16));
    decant_walk_on(&walk, starts & 2, value_of(four.y), __uint_as_float(x.y << 16));
    decant_walk_on(&walk, starts & 4, value_of(four.z), __uint_as_float(x.z << 16));
    decant_walk_on(&walk, starts & 8, value_of(four.w), __uint_as_float(x.w << 16));
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
