/* The curve of an error table: where its points lie, that it falls, and that no point breaks its budget. */
#include "pipeline/print_json.h"
#include "pipeline/sweep.h"
#include "tests/stages/model_tables.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

enum { BLOCKS = 32, POINTS = 64 };

/* The rows that a model of the given shape would have. Freed with free. */
static decant_error_table table_of_model(uint64_t seed)
{
    model_table model = model_table_make(TABLE_DENSE, BLOCKS, 4096, 11008, seed);
    decant_error_table table = {.layers = model.layers};
    table.rows = calloc((size_t)table.layers, sizeof *table.rows);
    for (int64_t l = 0; l < table.layers; l++) {
        decant_table_row *row = &table.rows[l];
        row->weights = model.weights / model.layers;
        row->candidates = (int)(model.offsets[l + 1] - model.offsets[l]);
        for (int i = 0; i < row->candidates; i++) {
            decant_choice choice = model.choices[model.offsets[l] + i];
            row->candidate[i] = (decant_candidate){.bytes = choice.bytes, .predicted = choice.error};
        }
    }
    model_table_free(&model);
    return table;
}

static void both_ends_are_points_when_steps_meet_them(void **state)
{
    (void)state;
    assert_int_equal(decant_sweep_count(&(decant_sweep){2.5, 5, 0.25}), 11);
    assert_int_equal(decant_sweep_count(&(decant_sweep){1, 1.7, 0.1}), 8);
    assert_int_equal(decant_sweep_count(&(decant_sweep){2, 3, 0.3}), 4);
    assert_int_equal(decant_sweep_count(&(decant_sweep){3, 3, 1}), 1);
}

static void curve_falls_within_its_budgets(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 3; seed++) {
        decant_error_table table = table_of_model(seed);
        decant_sweep sweep = {1.5, 8.5, 0.25};
        decant_sweep_point points[POINTS];
        decant_error err;
        int count = decant_sweep_count(&sweep), kept = 0;
        assert_int_equal(decant_sweep_solve(&sweep, &table, points, &err), DECANT_OK);
        for (int i = 0; i < count; i++) {
            const decant_plan_summary *summary = &points[i].summary;
            assert_true(points[i].budget_bits == sweep.first + i * sweep.step);
            if (!points[i].is_kept) {
                assert_int_equal(kept, 0);
                continue;
            }
            assert_true(summary->bits <= points[i].budget_bits);
            assert_true(summary->lower_bound <= summary->predicted);
            if (kept++ > 0) {
                assert_true(summary->predicted <= points[i - 1].summary.predicted);
                assert_true(summary->bytes >= points[i - 1].summary.bytes);
            }
        }
        assert_true(kept > 20 && kept < count);
        free(table.rows);
    }
}

static void results_that_memory_cannot_hold_are_told(void **state)
{
    (void)state;
    decant_error err;
    assert_int_equal(decant_print_json(NULL, stdout, &err), DECANT_ERROR_MEMORY);
    assert_non_null(strstr(err.message, "JSON"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_ends_are_points_when_steps_meet_them),
        cmocka_unit_test(curve_falls_within_its_budgets),
        cmocka_unit_test(results_that_memory_cannot_hold_are_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
