/* Follows the groups of lanes that share the entries of a block's rows (kernels/cuda/token_entries.h) on the
 * host: every entry is taken once, by the row it lies in, no two segments share a place, and every row's sum is
 * made of its segments in their order. No device is needed. */
#include "kernels/cuda/token_entries.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h> /* needs those above */

enum { ROWS_MAXIMUM = 256, GROUPS_MAXIMUM = 256, FIRST_ENTRY = 1000003 };

static uint32_t next_number(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*seed >> 33);
}

/* A run as the kernel takes it. Each entry counts as its number, so that a row's sum tells which it is of. */
static void follow_group(const decant_block_entries *block, int group, int64_t *segments, int *written)
{
    decant_entry_run run = decant_entry_run_of(block, group);
    int64_t sum = 0;
    for (uint32_t entry = run.first; entry < run.end; entry++) {
        if (entry >= run.row_end) {
            segments[group + run.row] = sum;
            written[group + run.row]++;
            sum = 0;
            decant_enter_row(block, &run, entry);
        }
        assert_true(block->offsets[run.row] <= entry && entry < block->offsets[run.row + 1]);
        sum += entry;
    }
    if (run.first < run.end) {
        segments[group + run.row] = sum;
        written[group + run.row]++;
    }
}

static void check_block(const uint32_t *counts, int rows, int groups)
{
    uint32_t offsets[ROWS_MAXIMUM + 1] = {FIRST_ENTRY};
    int64_t segments[ROWS_MAXIMUM + GROUPS_MAXIMUM] = {0};
    int written[ROWS_MAXIMUM + GROUPS_MAXIMUM] = {0}, read[ROWS_MAXIMUM + GROUPS_MAXIMUM] = {0};
    for (int row = 0; row < rows; row++)
        offsets[row + 1] = offsets[row] + counts[row];
    const decant_block_entries block = decant_block_entries_of(offsets, rows, groups);
    const int places = decant_segment_places(rows, groups);
    assert_true(places <= ROWS_MAXIMUM + GROUPS_MAXIMUM);
    for (int group = 0; group < groups; group++)
        follow_group(&block, group, segments, written);
    for (int row = 0; row < rows; row++) {
        const decant_row_segments own = decant_segments_of_row(&block, row);
        int64_t sum = 0, expected = 0;
        for (int place = own.first; place < own.end; place++) {
            sum += segments[place];
            read[place]++;
        }
        for (uint32_t entry = offsets[row]; entry < offsets[row + 1]; entry++)
            expected += entry;
        assert_true(sum == expected);
    }
    for (int place = 0; place < places; place++) {
        assert_true(written[place] <= 1);
        assert_int_equal(read[place], written[place]);
    }
}

static void groups_share_rows_of_all_kinds(void **state)
{
    (void)state;
    static const int groups[] = {64, 128, 256}, rows[] = {1, 2, 8, 43, 86, 256};
    uint64_t seed = 3;
    for (size_t g = 0; g < sizeof groups / sizeof *groups; g++)
        for (size_t r = 0; r < sizeof rows / sizeof *rows; r++)
            for (uint32_t most = 0; most <= 100; most += 20) {
                uint32_t counts[ROWS_MAXIMUM];
                for (int row = 0; row < rows[r]; row++) /* a third are empty */
                    counts[row] = next_number(&seed) % 3 == 0 ? 0 : next_number(&seed) % (most + 1);
                check_block(counts, rows[r], groups[g]);
                counts[next_number(&seed) % (uint32_t)rows[r]] = 5000;
                check_block(counts, rows[r], groups[g]);
                counts[0] = counts[rows[r] - 1] = 0;
                check_block(counts, rows[r], groups[g]);
            }
}

static void all_entries_may_lie_in_one_row(void **state)
{
    (void)state;
    for (int row = 0; row < 9; row++)
        for (uint32_t count = 1; count < 1000; count += 37) {
            uint32_t counts[9] = {0};
            counts[row] = count;
            check_block(counts, 9, 64);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(groups_share_rows_of_all_kinds),
        cmocka_unit_test(all_entries_may_lie_in_one_row),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
