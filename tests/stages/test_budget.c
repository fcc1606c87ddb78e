/* Budgets by bits and by size: never broken over random tables, refused with what would do, and the warning. */
#include "stages/budget.h"
#include "stages/error_table.h"
#include "tests/stages/model_tables.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

enum { TABLES = 400, LAYERS = 12 };

/* Sizes and errors that have nothing to do with each other, and layers of very different weight. */
static decant_error_table random_table(uint64_t *seed, decant_table_row rows[LAYERS])
{
    decant_error_table table = {.layers = 1 + random_below(seed, LAYERS), .rows = rows};
    for (int64_t i = 0; i < table.layers; i++) {
        rows[i] = (decant_table_row){.candidates = 1 + (int)random_below(seed, DECANT_CANDIDATES),
                                     .weights = 1 + random_below(seed, 100000)};
        for (int j = 0; j < rows[i].candidates; j++)
            rows[i].candidate[j] = (decant_candidate){.bytes = 1 + random_below(seed, rows[i].weights),
                                                      .predicted = random_uniform(seed)};
    }
    return table;
}

static void budgets_are_kept_when_they_can_be(void **state)
{
    (void)state;
    uint64_t seed = 5;
    int kept = 0, refused = 0;
    for (int i = 0; i < TABLES; i++) {
        decant_table_row rows[LAYERS];
        decant_error_table table = random_table(&seed, rows);
        decant_budget asked = {.rest_bytes = random_below(&seed, 200000)};
        int64_t weights, smallest, bytes, largest = 0;
        decant_error_table_extent(&table, &weights, &smallest);
        for (int64_t l = 0; l < table.layers; l++)
            largest += rows[l].weights;
        if (i % 3 != 0)
            asked.bits = 8 * random_uniform(&seed);
        if (i % 3 != 1)
            asked.file_bytes = 1 + random_below(&seed, asked.rest_bytes + largest + 1);
        decant_error err;
        decant_status status = decant_budget_bytes(&asked, weights, smallest, &bytes, &err);
        bool possible = (asked.bits == 0 || 8.0 * (double)smallest <= asked.bits * (double)weights) &&
                        (asked.file_bytes == 0 || asked.rest_bytes + smallest <= asked.file_bytes);
        assert_int_equal(status, possible ? DECANT_OK : DECANT_ERROR_USAGE);
        refused += !possible;
        if (!possible)
            continue;
        int chosen[LAYERS];
        decant_plan_summary summary;
        assert_int_equal(decant_error_table_choose(&table, bytes, chosen, &summary, &err), DECANT_OK);
        int64_t total = 0;
        for (int64_t l = 0; l < table.layers; l++)
            total += rows[l].candidate[chosen[l]].bytes;
        assert_int_equal(total, summary.bytes);
        assert_true(asked.bits == 0 || summary.bits <= asked.bits);
        assert_true(asked.file_bytes == 0 || total + asked.rest_bytes <= asked.file_bytes);
        kept++;
    }
    assert_true(kept > TABLES / 5 && refused > TABLES / 20);
}

static void nothing_is_asked_when_there_is_no_wish(void **state)
{
    (void)state;
    int64_t bytes;
    decant_error err;
    assert_int_equal(decant_budget_bytes(&(decant_budget){0}, 100, 50, &bytes, &err), DECANT_OK);
    assert_int_equal(bytes, -1);
}

static void message_names_what_would_do(void **state)
{
    (void)state;
    int64_t bytes;
    decant_error err;
    decant_budget size = {.file_bytes = 1499, .rest_bytes = 1000}, bits = {.bits = 3.99};
    assert_int_equal(decant_budget_bytes(&size, 1000, 500, &bytes, &err), DECANT_ERROR_USAGE);
    assert_non_null(strstr(err.message, "--size"));
    assert_non_null(strstr(err.message, "1500 bytes"));
    assert_int_equal(decant_budget_bytes(&bits, 1000, 500, &bytes, &err), DECANT_ERROR_USAGE);
    assert_non_null(strstr(err.message, "--bits 3.99"));
    assert_non_null(strstr(err.message, "4.0000 bits"));
    size.file_bytes = 1500;
    assert_int_equal(decant_budget_bytes(&size, 1000, 500, &bytes, &err), DECANT_OK);
    assert_int_equal(bytes, 500);
}

static void plans_are_trusted_where_losses_add_up(void **state)
{
    (void)state;
    char warning[DECANT_BUDGET_WARNING_BYTES];
    assert_true(decant_budget_is_trusted(3.2, 0.19, warning));
    assert_false(decant_budget_is_trusted(3.19, 0.1, warning));
    assert_non_null(strstr(warning, "3.190 bits"));
    assert_false(decant_budget_is_trusted(4, 0.21, warning));
    assert_non_null(strstr(warning, "0.210"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(budgets_are_kept_when_they_can_be),
        cmocka_unit_test(nothing_is_asked_when_there_is_no_wish),
        cmocka_unit_test(message_names_what_would_do),
        cmocka_unit_test(plans_are_trusted_where_losses_add_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
