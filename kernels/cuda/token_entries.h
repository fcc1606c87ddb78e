/* Which entries of a CSR matrix a group of lanes takes when it is multiplied by several tokens. The groups of a
 * block share the entries of its rows evenly, whatever rows they lie in, because a few rows often hold many of
 * them: a group takes a run of neighbours. It adds up those of a row in their order; where its run leaves the
 * row, or ends, it leaves the sum behind, a segment. The numbers of groups and rows ascend together along the
 * entries, so that group + row is a place of its own for each segment. In the end the segments of a row are
 * added in the order of groups. So every sum has an order that depends on the matrix alone.
 *
 * Runs are counted from the last multiple of four up to the block's first entry, so that four entries can be
 * read at a time; a few entries of the rows before may come first, which nobody takes.
 *
 * All of it runs on the host, too, where tests/kernels/test_token_entries.c follows the groups. */
#ifndef DECANT_KERNELS_CUDA_TOKEN_ENTRIES_H
#define DECANT_KERNELS_CUDA_TOKEN_ENTRIES_H

#include "kernels/on_both.h"

#include <stdint.h>

enum { DECANT_ENTRIES_AT_ONCE = 4 };

/* The rows of a block: entry offsets[row] is the first of row `row`, offsets[rows] the one behind the last. */
typedef struct decant_block_entries {
    const uint32_t *offsets; /* [rows + 1] */
    int rows;
    uint32_t base; /* where the first group's run begins */
    uint32_t run;  /* entries of each group, a multiple of DECANT_ENTRIES_AT_ONCE */
} decant_block_entries;

/* For so many groups. */
DECANT_ON_BOTH decant_block_entries decant_block_entries_of(const uint32_t *offsets, int rows, int groups)
{
    const uint32_t base = offsets[0] / DECANT_ENTRIES_AT_ONCE * DECANT_ENTRIES_AT_ONCE,
                   at_once = DECANT_ENTRIES_AT_ONCE * (uint32_t)groups;
    const uint32_t times = (offsets[rows] - base + at_once - 1) / at_once;
    const decant_block_entries made = {offsets, rows, base, (times == 0 ? 1 : times) * DECANT_ENTRIES_AT_ONCE};
    return made;
}

/* Places for segments that a block needs. */
DECANT_ON_BOTH int decant_segment_places(int rows, int groups)
{
    return groups + rows;
}

/* ---- a group on its way through its run ---- */

typedef struct decant_entry_run {
    uint32_t start;      /* a multiple of DECANT_ENTRIES_AT_ONCE, at or before the first */
    uint32_t first, end; /* entries */
    int row;             /* that the group is in */
    uint32_t row_end;
} decant_entry_run;

/* Of group `group`; one that has no entries gets an empty run. */
DECANT_ON_BOTH decant_entry_run decant_entry_run_of(const decant_block_entries *block, int group)
{
    const uint32_t begin = block->offsets[0], behind = block->offsets[block->rows];
    decant_entry_run run;
    run.start = block->base + (uint32_t)group * block->run;
    run.start = run.start < behind ? run.start : behind;
    run.first = run.start < begin ? begin : run.start;
    run.end = behind - run.start < block->run ? behind : run.start + block->run;
    int low = 0, high = block->rows - 1; /* the first row that ends behind the entry */
    while (low < high) {
        const int middle = (low + high) / 2;
        if (block->offsets[middle + 1] <= run.first)
            low = middle + 1;
        else
            high = middle;
    }
    run.row = low;
    run.row_end = block->offsets[low + 1];
    return run;
}

/* Moves to the row of a later entry of the run. */
DECANT_ON_BOTH void decant_enter_row(const decant_block_entries *block, decant_entry_run *run, uint32_t entry)
{
    while (run->row_end <= entry)
        run->row_end = block->offsets[++run->row + 1];
}

/* ---- the segments of a row ---- */

/* Places first … end − 1. */
typedef struct decant_row_segments {
    int first, end;
} decant_row_segments;

DECANT_ON_BOTH decant_row_segments decant_segments_of_row(const decant_block_entries *block, int row)
{
    const uint32_t begin = block->offsets[row] - block->base, end = block->offsets[row + 1] - block->base;
    decant_row_segments found = {0, 0};
    if (begin < end) {
        found.first = row + (int)(begin / block->run);
        found.end = row + (int)((end - 1) / block->run) + 1;
    }
    return found;
}

#endif
