/* The bit allocator at the edges of what it takes: odd tables, extreme numbers, wrong input, and the search's
 * limit. */
#include "base/memory.h"
#include "stages/allocate.h"
#include "tests/stages/model_tables.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <string.h>

static decant_status allocate_three(const decant_choice choices[6], int64_t budget, int chosen[3],
                                    decant_allocation *allocation, decant_error *err)
{
    static const int64_t offsets[] = {0, 2, 4, 6}; /* three layers of two candidates */
    return decant_allocate(choices, offsets, 3, budget, chosen, allocation, err);
}

static void is_empty_when_there_are_no_layers(void **state)
{
    (void)state;
    const int64_t offsets[] = {0};
    decant_allocation allocation;
    decant_error err;
    assert_int_equal(decant_allocate(NULL, offsets, 0, 0, NULL, &allocation, &err), DECANT_OK);
    assert_int_equal(allocation.bytes, 0);
    assert_true(allocation.error == 0);
    assert_int_equal(decant_allocate(NULL, offsets, 0, -1, NULL, &allocation, &err), DECANT_ERROR_USAGE);
}

static void takes_everything_when_the_budget_is_unbounded(void **state)
{
    (void)state;
    const decant_choice choices[] = {{10, 3}, {20, 1}, {10, 1}, {20, 3}, {10, 0}, {20, 0}};
    int chosen[3];
    decant_allocation allocation;
    decant_error err;
    assert_int_equal(allocate_three(choices, INT64_MAX, chosen, &allocation, &err), DECANT_OK);
    assert_int_equal(chosen[0], 1);
    assert_int_equal(chosen[1], 0);
    assert_int_equal(chosen[2], 0);
    assert_int_equal(allocation.bytes, 40);
    assert_true(allocation.lower_bound == allocation.error);
}

static void takes_the_smallest_when_nothing_else_fits(void **state)
{
    (void)state;
    const decant_choice choices[] = {{20, 1}, {10, 3}, {10, 3}, {20, 1}, {11, 3}, {11, 2}};
    int chosen[3];
    decant_allocation allocation;
    decant_error err;
    assert_int_equal(allocate_three(choices, 31, chosen, &allocation, &err), DECANT_OK);
    assert_int_equal(chosen[0], 1);
    assert_int_equal(chosen[1], 0);
    assert_int_equal(chosen[2], 1);
    assert_int_equal(allocate_three(choices, 30, chosen, &allocation, &err), DECANT_ERROR_USAGE);
    assert_non_null(strstr(err.message, "31"));
}

static void takes_fewest_bytes_when_all_errors_are_zero(void **state)
{
    (void)state;
    const decant_choice choices[] = {{20, 0}, {10, 0}, {10, 0}, {10, 0}, {11, 0}, {12, 0}};
    int chosen[3];
    decant_allocation allocation;
    decant_error err;
    assert_int_equal(allocate_three(choices, 100, chosen, &allocation, &err), DECANT_OK);
    assert_int_equal(allocation.bytes, 31);
    assert_int_equal(chosen[1], 0);
}

/* The smallest candidates' errors are no measure of the optimum's: units must follow the optimum. */
static void keeps_small_errors_apart_when_others_are_huge(void **state)
{
    (void)state;
    const decant_choice choices[] = {{1, 1e300},   {10, 3e-300}, {1, 1e299},
                                     {10, 2e-300}, {1, 4e-300},  {2, 1e-300}};
    int chosen[3];
    decant_allocation allocation;
    decant_error err;
    assert_int_equal(allocate_three(choices, 22, chosen, &allocation, &err), DECANT_OK);
    assert_true(allocation.error == 3e-300 + 2e-300 + 1e-300);
    assert_int_equal(allocate_three(choices, 21, chosen, &allocation, &err), DECANT_OK);
    assert_true(allocation.error == 3e-300 + 2e-300 + 4e-300);
    assert_int_equal(allocate_three(choices, 13, chosen, &allocation, &err), DECANT_OK);
    assert_int_equal(chosen[0], 1);
}

static void reaches_zero_error_when_the_rest_is_huge(void **state)
{
    (void)state;
    const decant_choice choices[] = {{1, 1e300}, {10, 0}, {1, 1e-300}, {10, 0}, {1, 5e-324}, {2, 0}};
    int chosen[3];
    decant_allocation allocation;
    decant_error err;
    assert_int_equal(allocate_three(choices, 22, chosen, &allocation, &err), DECANT_OK);
    assert_true(allocation.error == 0);
    assert_int_equal(allocate_three(choices, 21, chosen, &allocation, &err), DECANT_OK);
    assert_true(allocation.error == 5e-324);
}

static void counts_when_bytes_are_large(void **state)
{
    (void)state;
    const int64_t large = INT64_C(1) << 58;
    const decant_choice choices[] = {{large, 3},     {large + 1, 2}, {large, 1.5},
                                     {large + 2, 0}, {large, 7},     {large + (large >> 1), 6.5}};
    int chosen[3];
    decant_allocation allocation;
    decant_error err;
    assert_int_equal(allocate_three(choices, 3 * large + 2, chosen, &allocation, &err), DECANT_OK);
    assert_true(allocation.error == 3 + 7);
    assert_int_equal(allocate_three(choices, 3 * large + 3, chosen, &allocation, &err), DECANT_OK);
    assert_true(allocation.error == 2 + 7);
}

static void refuses_what_cannot_be_counted(void **state)
{
    (void)state;
    const decant_choice good[] = {{20, 1}, {10, 3}, {10, 3}, {20, 1}, {11, 3}, {11, 2}};
    const decant_choice bad[] = {{10, NAN}, {10, INFINITY}, {10, -1}, {0, 1}, {-5, 1}, {INT64_MAX, 1}};
    const int64_t no_candidates[] = {0, 2, 2, 6};
    int chosen[3];
    decant_allocation allocation;
    decant_error err;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        decant_choice choices[6];
        memcpy(choices, good, sizeof good);
        choices[3] = bad[i];
        assert_int_equal(allocate_three(choices, 100, chosen, &allocation, &err), DECANT_ERROR_INPUT);
    }
    assert_int_equal(decant_allocate(good, no_candidates, 3, 100, chosen, &allocation, &err),
                     DECANT_ERROR_INPUT);
    assert_int_equal(allocate_three(good, 100, chosen, &allocation, &err), DECANT_OK);
}

/* Errors that fall with bytes at exactly one rate tell nothing apart; uneven sizes then make every sum
 * distinct. */
static void stops_with_memory_error_when_the_search_is_too_large(void **state)
{
    (void)state;
    model_table table = model_table_make(TABLE_UNEVEN, 80, 8192, 22016, 7);
    int *chosen = calloc((size_t)table.layers, sizeof *chosen);
    uint64_t seed = 1;
    for (int64_t i = 0; i < table.offsets[table.layers]; i++) {
        double bytes = (double)table.choices[i].bytes;
        table.choices[i].error = (1e9 - bytes) * (1 + 1e-9 * random_uniform(&seed));
    }
    decant_allocation allocation;
    decant_error err;
    assert_int_equal(decant_allocate(table.choices, table.offsets, table.layers, table.weights * 3 / 8, chosen,
                                     &allocation, &err),
                     DECANT_ERROR_MEMORY);
    assert_non_null(strstr(err.message, "partial solutions"));
    assert_true(decant_memory_usage_now().peak_bytes < 2 * 16 * (int64_t)DECANT_ALLOCATION_STATES_MAXIMUM);
    free(chosen);
    model_table_free(&table);
}

/* The last test: what the others took is given back. */
static void no_memory_is_held(void **state)
{
    (void)state;
    assert_int_equal(decant_memory_usage_now().blocks, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(is_empty_when_there_are_no_layers),
        cmocka_unit_test(takes_everything_when_the_budget_is_unbounded),
        cmocka_unit_test(takes_the_smallest_when_nothing_else_fits),
        cmocka_unit_test(takes_fewest_bytes_when_all_errors_are_zero),
        cmocka_unit_test(keeps_small_errors_apart_when_others_are_huge),
        cmocka_unit_test(reaches_zero_error_when_the_rest_is_huge),
        cmocka_unit_test(counts_when_bytes_are_large),
        cmocka_unit_test(refuses_what_cannot_be_counted),
        cmocka_unit_test(stops_with_memory_error_when_the_search_is_too_large),
        cmocka_unit_test(no_memory_is_held),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
