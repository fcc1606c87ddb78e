/* Follows the lanes that take runs of a block's sparse entries (kernels/cuda/entry_runs.h) on the host: every
 * entry is taken once, by the row it lies in, no two segments share a place, and every row's sum is made of its
 * segments in their order. No device is needed. */
#include "kernels/cuda/entry_runs.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h> /* needs those above */

enum { ROWS_MAXIMUM = 256 };

/* How blocks share their entries: parities_apart.cu. */
typedef struct sharing {
    int lanes, batch; /* batch: entries that a lane takes before it looks for the next rows */
} sharing;

static const sharing SHARINGS[] = {{128, 8}, {128, 32}, {256, 16}};
enum { SHARING_COUNT = sizeof SHARINGS / sizeof *SHARINGS };

static uint32_t next_number(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*seed >> 33);
}

/* What the lanes of a block did. */
typedef struct block_result {
    float *sums;     /* [rows] */
    int *times;      /* [entries] that each was taken */
    int *segment_of; /* [lanes + rows + 1] times that each place was written */
} block_result;

/* As the kernels do: four at a time, those outside the block times nothing. values, x: of entry i, from the
 * multiple of eight before the block's first. */
static void follow_lanes(sharing how, const decant_entry_runs *runs, int rows, const int *places,
                         const float *values, const float *x, block_result *result)
{
    const int first = places[0], end_of_block = places[rows];
    const int length = decant_run_length(end_of_block, how.lanes);
    int with_entries = 0;
    for (int row = 0; row < rows; row++)
        if (places[row] < places[row + 1])
            runs->ends[with_entries++] = places[row + 1];
    runs->ends[with_entries] = INT_MAX;
    for (int lane = 0; lane < how.lanes; lane++) {
        const int begin = lane * length;
        const int end = begin + length < end_of_block ? begin + length : end_of_block;
        decant_entry_walk walk = decant_walk_from(runs, with_entries, lane, begin > first ? begin : first);
        if (begin >= end)
            continue;
        for (int batch = begin; batch < end; batch += how.batch) {
            const int count = how.batch < end - batch ? how.batch : end - batch;
            const unsigned starts = decant_next_starts(&walk, batch, count);
            for (int i = 0; i < how.batch && batch + i / 4 * 4 < end; i++) {
                const int entry = batch + i;
                const bool inside = entry >= first && entry < end;
                const float *before = walk.segment;
                decant_walk_on(&walk, starts >> i & 1, inside ? values[entry] : 0, inside ? x[entry] : 1);
                if (walk.segment != before)
                    result->segment_of[before - runs->segments]++;
                if (inside)
                    result->times[entry]++;
            }
        }
        decant_walk_to_end(&walk);
        result->segment_of[walk.segment - runs->segments]++;
    }
    int number = 0;
    for (int row = 0; row < rows; row++) {
        result->sums[row] = decant_sum_segments_of_row(
            runs, decant_segments_of_row(number, places[row], places[row + 1], length));
        number += places[row] < places[row + 1];
    }
}

/* counts: entries of each row; before: entries of the rows before that come first. */
static void check_block(sharing how, int rows, const int *counts, int before, uint64_t *seed)
{
    int entries = before;
    for (int row = 0; row < rows; row++)
        entries += counts[row];
    const int bytes = decant_entry_runs_bytes(rows, how.lanes);
    assert_int_equal(bytes % 16, 0);
    void *shared = malloc((size_t)bytes);
    float *values = calloc((size_t)entries + 1, sizeof *values), *x = calloc((size_t)entries + 1, sizeof *x);
    block_result result = {calloc((size_t)rows, sizeof(float)), calloc((size_t)entries + 1, sizeof(int)),
                           calloc((size_t)(how.lanes + rows + 1), sizeof(int))};
    assert_true(shared && values && x && result.sums && result.times && result.segment_of);
    memset(shared, 0xff, (size_t)bytes); /* NaN where nothing is written */
    const decant_entry_runs runs = decant_entry_runs_at(shared, rows, how.lanes);
    assert_true((char *)(runs.sums + rows) <= (char *)shared + bytes);
    int places[ROWS_MAXIMUM + 1] = {before};
    for (int row = 0; row < rows; row++)
        places[row + 1] = places[row] + counts[row];
    for (int i = 0; i < entries; i++) { /* small whole numbers: sums are exact in any order */
        values[i] = (float)(1 + (int)(next_number(seed) % 7));
        x[i] = (float)(1 + (int)(next_number(seed) % 5));
    }
    follow_lanes(how, &runs, rows, places, values, x, &result);
    for (int i = 0; i < entries; i++)
        assert_int_equal(result.times[i], i >= before);
    for (int i = 0; i < how.lanes + rows; i++)
        assert_true(result.segment_of[i] <= 1);
    assert_int_equal(result.segment_of[how.lanes + rows], 0);
    for (int row = 0; row < rows; row++) {
        float expected = 0;
        for (int i = places[row]; i < places[row + 1]; i++)
            expected += values[i] * x[i];
        assert_true(result.sums[row] == expected);
    }
    free(shared);
    free(values);
    free(x);
    free(result.sums);
    free(result.times);
    free(result.segment_of);
}

static void every_entry_is_taken_once(void **state)
{
    (void)state;
    uint64_t seed = 3;
    int counts[ROWS_MAXIMUM];
    for (int trial = 0; trial < 3000; trial++) {
        const int rows = 1 + (int)(next_number(&seed) % ROWS_MAXIMUM), kind = trial / SHARING_COUNT % 6;
        for (int row = 0; row < rows; row++) {
            const int some = (int)(next_number(&seed) % 40);
            counts[row] = kind == 0   ? some
                          : kind == 1 ? (some < 30 ? 0 : some % 5) /* most rows are empty */
                          : kind == 2 ? (row % 128 == 7 ? 970 : some / 2)
                          : kind == 3 ? (row == rows / 2 ? 4104 : 0) /* all in one row */
                          : kind == 4 ? (row == 0 || row == rows - 1 ? some : 0)
                                      : 1 + some % 2;
        }
        check_block(SHARINGS[trial % SHARING_COUNT], rows, counts, (int)(next_number(&seed) % DECANT_RUN_UNIT),
                    &seed);
    }
}

static void blocks_without_entries_are_nothing(void **state)
{
    (void)state;
    uint64_t seed = 5;
    const int counts[ROWS_MAXIMUM] = {0};
    for (int rows = 1; rows <= ROWS_MAXIMUM; rows *= 2)
        for (int before = 0; before < DECANT_RUN_UNIT; before++)
            for (int i = 0; i < SHARING_COUNT; i++)
                check_block(SHARINGS[i], rows, counts, before, &seed);
}

/* Runs are as long as they must be, and no longer. */
static void runs_are_even(void **state)
{
    (void)state;
    for (int i = 0; i < SHARING_COUNT; i++)
        for (int entries = 0; entries < 5000; entries++) {
            const int lanes = SHARINGS[i].lanes, length = decant_run_length(entries, lanes);
            assert_int_equal(length % DECANT_RUN_UNIT, 0);
            assert_true(length * lanes >= entries);
            assert_true(entries == 0 || (length - DECANT_RUN_UNIT) * lanes < entries);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_entry_is_taken_once),
        cmocka_unit_test(blocks_without_entries_are_nothing),
        cmocka_unit_test(runs_are_even),
    };
    return cmocka_run_group_tests_name("runs of sparse entries", tests, NULL, NULL);
}
