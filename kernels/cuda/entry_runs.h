/* The sparse part of a block's rows times one token, by lanes that take runs of its entries: equally many each,
 * whatever rows they lie in, because a few rows often hold many of them. A lane adds up the products of a row
 * in their order; where its run leaves the row, or ends, it leaves the sum behind, a segment. The numbers of
 * the lanes and of the rows that have entries ascend together along the entries, so that lane + row is a place
 * of its own for each segment. In the end the segments of a row are added in the order of lanes. So every sum
 * has an order that depends on the matrix alone.
 *
 * Entries are counted from the last multiple of DECANT_RUN_UNIT up to the block's first one, so that runs begin
 * with a sector; a few entries of the rows before may come first, and of the rows behind at the end.
 *
 * All of it runs on the host, too, where tests/kernels/test_entry_runs.c follows the lanes. */
#ifndef DECANT_KERNELS_CUDA_ENTRY_RUNS_H
#define DECANT_KERNELS_CUDA_ENTRY_RUNS_H

#include "kernels/on_both.h"

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

enum {
    DECANT_FOUR = 4,     /* entries that are read at a time */
    DECANT_RUN_UNIT = 8, /* entries: whole sectors of memory, which the first cache may have no room to keep */
};

/* The segments of a row: `count` of them from `first` on. */
typedef struct decant_row_segments {
    uint16_t first, count;
} decant_row_segments;

/* Arrays in shared memory. "Row" is the number among the rows that have entries. */
typedef struct decant_entry_runs {
    int *ends;       /* [rows + 1]: of each row, the entry behind its last; behind the last row INT_MAX */
    float *segments; /* [lanes + rows] */
    union {          /* [rows], of all rows of the block: */
        decant_row_segments *segments_of_rows;
        float *sums; /* which may take their place */
    };
} decant_entry_runs;

/* Bytes of these arrays for a block of so many rows, a multiple of 16. */
DECANT_ON_BOTH int decant_entry_runs_bytes(int rows, int lanes)
{
    return (rows + 1 + lanes + rows + rows + 3) / 4 * 16;
}

/* The arrays from `shared` on. */
DECANT_ON_BOTH decant_entry_runs decant_entry_runs_at(void *shared, int rows, int lanes)
{
    decant_entry_runs runs;
    runs.ends = (int *)shared;
    runs.segments = (float *)(runs.ends + rows + 1);
    runs.sums = runs.segments + lanes + rows;
    return runs;
}

/* Entries of each lane that has any: a multiple of DECANT_RUN_UNIT. entries: those until the block's end. */
DECANT_ON_BOTH int decant_run_length(int entries, int lanes)
{
    const int at_once = DECANT_RUN_UNIT * lanes;
    return (entries + at_once - 1) / at_once * DECANT_RUN_UNIT;
}

/* ---- a lane on its way through its run ---- */

typedef struct decant_entry_walk {
    const int *end; /* of the row that the lane is in */
    int row_end;
    float *segment; /* of this row and lane */
    float sum;
} decant_entry_walk;

/* At entry `entry` of the block's; rows: that have entries. */
DECANT_ON_BOTH decant_entry_walk decant_walk_from(const decant_entry_runs *runs, int rows, int lane, int entry)
{
    int low = 0, high = rows; /* the first row that ends behind the entry */
    while (low < high) {
        const int middle = (low + high) / 2;
        if (runs->ends[middle] <= entry)
            low = middle + 1;
        else
            high = middle;
    }
    decant_entry_walk walk;
    walk.end = runs->ends + low;
    walk.row_end = *walk.end;
    walk.segment = runs->segments + lane + low;
    walk.sum = 0;
    return walk;
}

/* Which of the next `count` entries, up to 32 from entry `entry` on, begin a row: a bit each. */
DECANT_ON_BOTH unsigned decant_next_starts(decant_entry_walk *walk, int entry, int count)
{
    unsigned starts = 0;
    while (walk->row_end < entry + count) {
        starts |= 1u << (walk->row_end - entry);
        walk->row_end = *++walk->end;
    }
    return starts;
}

/* Adds the product of the next entry. Those of entries outside the block must be zero: they count for its first
 * row and, at its end, for a segment that no row has. */
DECANT_ON_BOTH void decant_walk_on(decant_entry_walk *walk, bool starts_row, float value, float x)
{
    if (starts_row) {
        *walk->segment++ = walk->sum;
        walk->sum = 0;
    }
    walk->sum += value * x;
}

/* At the end of the run. */
DECANT_ON_BOTH void decant_walk_to_end(const decant_entry_walk *walk)
{
    *walk->segment = walk->sum;
}

/* ---- the sums of rows ---- */

/* Of row number `row` of those that have entries, whose entries are [begin, end); none where there are none. */
DECANT_ON_BOTH decant_row_segments decant_segments_of_row(int row, int begin, int end, int length)
{
    decant_row_segments found = {0, 0};
    if (begin < end) {
        const int first_lane = begin / length;
        found.first = (uint16_t)(first_lane + row);
        found.count = (uint16_t)((end - 1) / length - first_lane + 1);
    }
    return found;
}

/* Their sum, in order. */
DECANT_ON_BOTH float decant_sum_segments_of_row(const decant_entry_runs *runs, decant_row_segments row)
{
    const float *segments = runs->segments + row.first;
    float sum = 0;
    int i = 0;
#ifdef __CUDACC__
#pragma unroll 1
#endif
    for (; i + 4 <= row.count; i += 4) { /* which are read before the first is needed */
        const float a = segments[i], b = segments[i + 1], c = segments[i + 2], d = segments[i + 3];
        sum = sum + a + b + c + d;
    }
#ifdef __CUDACC__
#pragma unroll 1
#endif
    for (; i < row.count; i++)
        sum += segments[i];
    return sum;
}

#endif
