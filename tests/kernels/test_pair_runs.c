/* How stages are cut into runs (kernels/cuda/pair_runs.h): every stage belongs to one block, which both ways of
 * asking agree on, runs take about equally long, and where blocks are enough none has stages of two tiles; and
 * quotients by inverses are those by division. No device is needed. */
#include "kernels/cuda/pair_runs.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h> /* needs those above */

static const int SHAPES[][2] = {{4096, 4096},  {11008, 4096}, {4096, 11008}, {8192, 8192}, {22016, 8192},
                                {8192, 22016}, {576, 1536},   {8, 512},      {49152, 576}, {1000, 40},
                                {3072, 4096},  {6144, 4096},  {2816, 22016}, {96, 46080}};
enum { SHAPE_COUNT = sizeof SHAPES / sizeof *SHAPES };

typedef void check(const decant_pair_runs *runs, int multiprocessors);

static void with_all_runs(check *check_runs)
{
    static const int multiprocessors[] = {1, 20, 114, 132};
    for (int shape = 0; shape < SHAPE_COUNT; shape++)
        for (int bits = 2; bits <= 4; bits++)
            for (int tile_rows = 32; tile_rows <= 64; tile_rows *= 2)
                for (int i = 0; i < 4; i++) {
                    const decant_pair_runs runs =
                        decant_pair_runs_of((SHAPES[shape][0] + tile_rows - 1) / tile_rows,
                                            (SHAPES[shape][1] + 31) / 32, bits, multiprocessors[i]);
                    check_runs(&runs, multiprocessors[i]);
                }
}

static void every_stage_has_one_block(const decant_pair_runs *runs, int multiprocessors)
{
    int next = 0;
    assert_in_range(runs->blocks, 1, multiprocessors);
    for (int block = 0; block < runs->blocks; block++) {
        const int begin = decant_pair_first_stage(runs, block), end = decant_pair_end_stage(runs, block);
        assert_int_equal(begin, next);
        assert_true(end > begin);
        for (int stage = begin; stage < end; stage++)
            assert_int_equal(decant_pair_block_of(runs, stage), block);
        next = end;
    }
    assert_int_equal(next, runs->row_tiles * runs->row_stages);
}

static void test_every_stage_has_one_block(void **state)
{
    (void)state;
    with_all_runs(every_stage_has_one_block);
}

/* What a block's run takes, in parts of a stage. */
static int cost_of(const decant_pair_runs *runs, int block)
{
    const int begin = decant_pair_first_stage(runs, block), end = decant_pair_end_stage(runs, block);
    const int changes = (end - 1) / runs->row_stages - begin / runs->row_stages;
    return (end - begin) * DECANT_STAGE_PARTS + changes * runs->change;
}

static void runs_take_equally_long(const decant_pair_runs *runs, int multiprocessors)
{
    (void)multiprocessors;
    for (int block = 0; block < runs->blocks; block++)
        assert_in_range(cost_of(runs, block), 1, runs->run.value + DECANT_STAGE_PARTS - 1);
}

static void test_runs_take_equally_long(void **state)
{
    (void)state;
    with_all_runs(runs_take_equally_long);
}

static void few_tiles_are_not_mixed(const decant_pair_runs *runs, int multiprocessors)
{
    (void)multiprocessors;
    for (int block = 0; runs->change == 0 && block < runs->blocks; block++) {
        const int begin = decant_pair_first_stage(runs, block), end = decant_pair_end_stage(runs, block);
        assert_int_equal(begin / runs->row_stages, (end - 1) / runs->row_stages);
        assert_true(begin % runs->row_stages < runs->column_stages);
    }
}

static void test_few_tiles_are_not_mixed(void **state)
{
    (void)state;
    with_all_runs(few_tiles_are_not_mixed);
    const decant_pair_runs few = decant_pair_runs_of(4096 / 32, 4096 / 32, 4, 132),
                           fewer = decant_pair_runs_of(6144 / 64, 4096 / 32, 4, 132),
                           long_rows = decant_pair_runs_of(2816 / 64, 22016 / 32, 4, 132),
                           many = decant_pair_runs_of(11008 / 64, 4096 / 32, 4, 132);
    assert_int_equal(few.change, 0);
    assert_int_equal(few.blocks, 128);
    assert_int_equal(fewer.change, 0);
    assert_int_equal(fewer.blocks, 96); /* four stages each, where an even cut would be of four and a half */
    assert_int_equal(long_rows.change, 0);
    assert_int_equal(long_rows.blocks, 132);
    assert_true(many.change > 0);
}

/* Around multiples of the divisor an inexact inverse would be one off. */
static void test_quotients_are_exact(void **state)
{
    (void)state;
    for (int value = 2; value < 70000; value = value < 300 ? value + 1 : value * 9 / 7) {
        const decant_divisor divisor = decant_divisor_of(value);
        for (int64_t multiple = 0; multiple <= INT32_MAX; multiple = multiple * 3 / 2 / value * value + value)
            for (int64_t dividend = multiple - 1; dividend <= multiple + 1; dividend++)
                if (dividend >= 0 && dividend <= INT32_MAX)
                    assert_int_equal(decant_quotient((int)dividend, divisor), (int)dividend / value);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_stage_has_one_block),
        cmocka_unit_test(test_runs_take_equally_long),
        cmocka_unit_test(test_few_tiles_are_not_mixed),
        cmocka_unit_test(test_quotients_are_exact),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
