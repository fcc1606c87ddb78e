/* Follows the warps that take the sparse entries of a tile of rows (kernels/cuda/entry_products.h) on the host:
 * every entry meets its own x once, in the sum of its own row, whatever blocks share the tile. No device is
 * needed. */
#include "kernels/cuda/entry_products.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h> /* needs those above */

enum { ROWS = 64, FIRST_ENTRY = 1000003, ENTRIES_MAXIMUM = 1 << 16, LANES = 32 };

static uint32_t next_number(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*seed >> 33);
}

/* A unit for one row, as lanes hold it: counts what is multiplied. */
static void follow_unit(const uint32_t *offsets, int row, uint32_t unit_first, uint8_t *taken)
{
    const uint32_t own = decant_entries_of_row(offsets[row], offsets[row + 1], unit_first);
    for (int lane = 0; lane < LANES; lane++) {
        const int t = lane % 4; /* the lane of the row's column that has these terms */
        if (lane / 4 != row % 8)
            continue;
        const uint32_t terms = decant_terms_of_lane(own, t);
        for (int step = 0; step < DECANT_ENTRY_STEPS; step++) {
            const uint32_t mask = decant_mask_of_step(terms, step);
            for (int second = 0; second < 2; second++) {
                const uint32_t half = mask >> 16 * second & 0xffffu;
                const int term = 2 * t + second;
                /* of the lane's eight values, and of the four columns of the lanes 4 · term … */
                const int value_of = 8 * t + 4 * second + step, x_of = 4 * term + step;
                const uint32_t entry = unit_first + (uint32_t)value_of;
                assert_int_equal(value_of, x_of);
                assert_true(half == 0 || half == 0xffffu);
                assert_true((half != 0) == (offsets[row] <= entry && entry < offsets[row + 1]));
                if (half)
                    taken[entry - FIRST_ENTRY]++;
            }
        }
    }
}

/* The stages of a tile, cut into runs for blocks. */
static void check_tile(const uint32_t *counts, int stages, int run, int warps)
{
    static uint8_t taken[ENTRIES_MAXIMUM];
    uint32_t offsets[ROWS + 1] = {FIRST_ENTRY};
    for (int row = 0; row < ROWS; row++)
        offsets[row + 1] = offsets[row] + counts[row];
    const uint32_t entries = offsets[ROWS] - FIRST_ENTRY;
    assert_true(entries < ENTRIES_MAXIMUM);
    for (uint32_t i = 0; i < entries; i++)
        taken[i] = 0;
    for (int begin = 0; begin < stages; begin += run) {
        const int end = begin + run < stages ? begin + run : stages;
        const decant_entry_units units = decant_entry_units_of(offsets[0], offsets[ROWS], begin, end, stages);
        for (int warp = 0; warp < warps; warp++)
            for (int unit = units.begin + warp; unit < units.end; unit += warps)
                for (int row = 0; row < ROWS; row++)
                    follow_unit(offsets, row, units.base + (uint32_t)unit * DECANT_ENTRY_UNIT, taken);
    }
    for (uint32_t i = 0; i < entries; i++)
        assert_int_equal(taken[i], 1);
}

static void warps_share_tiles_of_all_kinds(void **state)
{
    (void)state;
    static const int stages[] = {1, 4, 8, 22}, runs[] = {1, 2, 6, 22};
    uint64_t seed = 3;
    for (size_t s = 0; s < sizeof stages / sizeof *stages; s++)
        for (size_t r = 0; r < sizeof runs / sizeof *runs; r++)
            for (uint32_t most = 0; most <= 100; most += 25)
                for (int warps = 2; warps <= 4; warps += 2) {
                    uint32_t counts[ROWS];
                    for (int row = 0; row < ROWS; row++) /* a third are empty */
                        counts[row] = next_number(&seed) % 3 == 0 ? 0 : next_number(&seed) % (most + 1);
                    check_tile(counts, stages[s], runs[r], warps);
                    counts[next_number(&seed) % ROWS] = 5000;
                    check_tile(counts, stages[s], runs[r], warps);
                    counts[0] = counts[ROWS - 1] = 0;
                    check_tile(counts, stages[s], runs[r], warps);
                }
}

static void tokens_have_one_place_each(void **state)
{
    (void)state;
    for (int products = 1; products <= 2; products++) {
        int seen[16] = {0};
        for (int g = 0; g < 8; g++)
            for (int n = 0; n < products; n++)
                seen[decant_token_of_product(g, n, products)]++;
        for (int token = 0; token < 8 * products; token++)
            assert_int_equal(seen[token], 1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(warps_share_tiles_of_all_kinds),
        cmocka_unit_test(tokens_have_one_place_each),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
