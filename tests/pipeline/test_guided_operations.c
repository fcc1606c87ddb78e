/* What the plan counts of guided's search: against loops that go through the steps of the search and count, and
 * its rates against what was measured of a job and of a matrix (tests/gpu/RESULTS.md). */
#include "pipeline/guided_operations.h"
#include "pipeline/plan.h"
#include "pipeline/plan_request.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

/* ---- steps, counted one by one ---- */

/* gradient = δᵀ H */
static double count_product(int rows, int columns)
{
    double count = 0;
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < columns; j++)
            for (int i = 0; i < columns; i++)
                count += 2;
    return count;
}

/* Pᵀ H, P with a column a level */
static double count_level_sums(int rows, int columns, int bits)
{
    double count = 0;
    for (int level = 0; level < 1 << bits; level++)
        count += count_product(rows, columns);
    return count;
}

/* What the columns before each one hand to it. */
static double count_pass(int rows, int columns)
{
    double count = 0;
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < columns; j++)
            for (int i = 0; i < j; i++)
                count += 2;
    return count;
}

/* From the last column to the first: what it takes from all before it, both triangles. */
static double count_factorization(int columns)
{
    double count = 0;
    for (int pivot = columns - 1; pivot >= 0; pivot--)
        for (int i = 0; i < pivot; i++)
            for (int j = 0; j < pivot; j++)
                count += 2;
    return count;
}

static decant_guided_operations count_search(const decant_recipe *recipe, int rows, int columns, int bits)
{
    decant_guided_operations count = {.products = 2 * count_product(rows, columns)};
    const int passes = recipe->guided_rounds > 0 ? recipe->guided_passes : 0;
    for (int group = 0; group < recipe->hessian_groups && passes > 0; group++)
        count.feedback += count_factorization(columns);
    for (int pass = 0; pass < passes; pass++) {
        if (pass > 0)
            count.level_sums += count_level_sums(rows, columns, bits);
        count.feedback += count_pass(rows, columns);
    }
    if (passes > 0)
        count.products += count_product(rows, columns);
    for (int round = 0; round < recipe->guided_rounds; round++) {
        count.level_sums += count_level_sums(rows, columns, bits);
        for (int sweep = 0; sweep < 4; sweep++)
            count.products += count_product(rows, columns);
    }
    return count;
}

static void assert_near(double value, double expected, double share)
{
    if (value < expected * (1 - share) || value > expected * (1 + share))
        fail_msg("%g where %g was expected", value, expected);
}

/* The formulas leave out what is small beside a matrix: 1 / columns of a pass, 3/2 of that of a factorization.
 */
static void operations_are_those_of_the_steps(void **state)
{
    (void)state;
    enum { ROWS = 5, COLUMNS = 96 };
    for (int passes = 0; passes <= 3; passes++)
        for (int rounds = 0; rounds <= 2; rounds++)
            for (int bits = 2; bits <= 3; bits++) {
                decant_recipe recipe = {.hessian_groups = 2, .guided_passes = passes, .guided_rounds = rounds};
                decant_guided_operations counted = count_search(&recipe, ROWS, COLUMNS, bits);
                decant_guided_operations told = decant_guided_operations_of(&recipe, ROWS, COLUMNS, bits);
                assert_true(told.products == counted.products);
                assert_true(told.level_sums == counted.level_sums);
                assert_near(told.feedback, counted.feedback, 1.6 / COLUMNS);
            }
}

/* ---- what was measured ---- */

static decant_recipe measured_recipe(int passes)
{
    return (decant_recipe){.uses = {[DECANT_METHOD_GUIDED] = true},
                           .widths = 1,
                           .width = {3},
                           .hessian_groups = 4,
                           .guided_passes = passes,
                           .guided_rounds = 3};
}

static void a_matrix_takes_about_what_was_measured_of_it(void **state)
{
    (void)state;
    static const struct {
        int passes, bits;
        int64_t rows, columns;
        double seconds;
    } measured[] = {{0, 3, 4096, 4096, 0.0400}, {0, 4, 4096, 4096, 0.0513},  {0, 2, 4096, 4096, 0.0347},
                    {4, 3, 4096, 4096, 0.0770}, {0, 3, 11008, 4096, 0.0950}, {0, 3, 4096, 11008, 0.1960}};
    for (size_t i = 0; i < sizeof measured / sizeof *measured; i++) {
        decant_recipe recipe = measured_recipe(measured[i].passes);
        decant_rates rates = decant_rates_measured(&recipe);
        decant_guided_operations operations =
            decant_guided_operations_of(&recipe, measured[i].rows, measured[i].columns, measured[i].bits);
        assert_near(decant_guided_operations_seconds(&operations, &rates.guided), measured[i].seconds, 0.25);
    }
}

/* LLaMA-7B streamed on one H200, 128 sequences of 2048 tokens: search and statistics. */
static void a_job_takes_about_what_was_measured_of_it(void **state)
{
    (void)state;
    static const struct {
        int passes;
        double search_s;
    } measured[] = {{0, 20.8}, {4, 45.3}};
    decant_model_config config = {.architecture = "LlamaForCausalLM",
                                  .hidden_size = 4096,
                                  .intermediate_size = 11008,
                                  .vocabulary_size = 32000,
                                  .layers = 32,
                                  .heads = 32,
                                  .key_value_heads = 32,
                                  .head_dimension = 128,
                                  .element = DECANT_BF16};
    const decant_family *family;
    decant_error err;
    assert_int_equal(decant_family_find(&config, &family, &err), DECANT_OK);
    for (size_t i = 0; i < sizeof measured / sizeof *measured; i++) {
        decant_options options = {.command = DECANT_COMMAND_PLAN,
                                  .sequences = 128,
                                  .window = 2048,
                                  .fisher = DECANT_FISHER_TOKEN,
                                  .methods = 1u << DECANT_METHOD_GUIDED,
                                  .bit_widths = {.count = 1, .width = {3}},
                                  .guided_groups = 4,
                                  .guided_passes = measured[i].passes,
                                  .guided_rounds = 3,
                                  .sensitive = 0.0005,
                                  .outliers = 0.004,
                                  .memory = DECANT_MEMORY_STREAMED,
                                  .ranks = 1,
                                  .device_bytes = (int64_t)141 << 30};
        decant_plan_request request = decant_plan_request_of(&options, &config, family, true);
        decant_plan plan;
        assert_int_equal(decant_plan_choose(&request, &plan, &err), DECANT_OK);
        assert_near(plan.seconds[DECANT_STAGE_QUANTIZE], measured[i].search_s, 0.03);
        assert_near(plan.seconds[DECANT_STAGE_CALIBRATE], 107.4 - 45.3, 0.15);
        decant_plan_free(&plan);

        /* A rate that is given counts the search too; one for calibration its Hessians. */
        options.quantize_rate = 100;
        options.teraflops = 400;
        request = decant_plan_request_of(&options, &config, family, true);
        assert_int_equal(decant_plan_choose(&request, &plan, &err), DECANT_OK);
        assert_near(plan.seconds[DECANT_STAGE_QUANTIZE], 6.476e9 / 100e6, 0.001);
        assert_near(plan.seconds[DECANT_STAGE_CALIBRATE], plan.rank[0].flops / 400e12, 0.001);
        decant_plan_free(&plan);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(operations_are_those_of_the_steps),
        cmocka_unit_test(a_matrix_takes_about_what_was_measured_of_it),
        cmocka_unit_test(a_job_takes_about_what_was_measured_of_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
