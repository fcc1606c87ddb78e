/* What a recipe offers and what it would store, from shapes alone. */
#include "stages/candidate.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static decant_recipe recipe_of(decant_method method, int widths, const double *width)
{
    decant_recipe recipe = {.widths = widths, .widths_asked = true, .dimensions = 1, .groups = 1};
    recipe.uses[method] = true;
    recipe.dimension[0] = 2;
    memcpy(recipe.width, width, (size_t)widths * sizeof *width);
    return recipe;
}

static void candidates_are_those_a_method_has(void **state)
{
    (void)state;
    const struct {
        decant_method method;
        int64_t dimension;
        double width;
        int code_bits; /* 0: it has none */
    } cases[] = {{DECANT_METHOD_KMEANS, 1, 3, 3},    {DECANT_METHOD_KMEANS, 1, 2.5, 0},
                 {DECANT_METHOD_RTN, 1, 8, 8},       {DECANT_METHOD_RTN, 1, 3.5, 0},
                 {DECANT_METHOD_NF4, 1, 4, 4},       {DECANT_METHOD_NF4, 1, 3, 0},
                 {DECANT_METHOD_HIGGS, 1, 8, 8},     {DECANT_METHOD_HIGGS, 1, 2.5, 0},
                 {DECANT_METHOD_HIGGS, 2, 2.5, 5},   {DECANT_METHOD_HIGGS, 2, 6, 12},
                 {DECANT_METHOD_HIGGS, 2, 6.5, 0},   {DECANT_METHOD_HIGGS, 3, 2.67, 8},
                 {DECANT_METHOD_HIGGS, 3, 4, 12},    {DECANT_METHOD_HIGGS, 3, 2.5, 0},
                 {DECANT_METHOD_HIGGS, 4, 2.75, 11}, {DECANT_METHOD_HIGGS, 4, 3.25, 0},
                 {DECANT_METHOD_GUIDED, 1, 2, 2},    {DECANT_METHOD_GUIDED, 1, 2.5, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        decant_recipe recipe = recipe_of(cases[i].method, 1, &cases[i].width);
        recipe.dimension[0] = cases[i].dimension;
        decant_candidate_list list;
        decant_error err;
        decant_status status = decant_recipe_offer(&recipe, 8, 96, &list, &err);
        assert_int_equal(status, cases[i].code_bits ? DECANT_OK : DECANT_ERROR_USAGE);
        assert_int_equal(list.count, cases[i].code_bits ? 1 : 0);
        if (cases[i].code_bits) {
            assert_int_equal(list.candidate[0].code_bits, cases[i].code_bits);
            assert_int_equal(list.candidate[0].dimension, cases[i].dimension);
            assert_int_equal(list.candidate[0].rotation, cases[i].method == DECANT_METHOD_HIGGS ? 32 : 1);
        }
    }
}

static void sizes_are_those_of_the_arrays(void **state)
{
    (void)state;
    /* 576 columns of 4 bits: 18 words a plane; 288 pairs: 9 words; 192 triples: 6; 577 columns: 19 words. */
    assert_int_equal(decant_grid_bytes(10, 576, 4, 1, 0, false), 10 * (4 * 18 * 4 + 2));
    assert_int_equal(decant_grid_bytes(10, 576, 8, 2, 0, false), 10 * (8 * 9 * 4 + 2));
    assert_int_equal(decant_grid_bytes(10, 576, 12, 3, 64, true), 10 * (12 * 6 * 4 + 9 * 4));
    assert_int_equal(decant_grid_bytes(10, 577, 4, 1, 64, false), 10 * (4 * 19 * 4 + 10 * 2));
    /* The stored bits of the reference: 4.250 for NF4 and for HIGGS with a scale per 64 columns, over matrices
     * of 576 and 1536 input columns. */
    assert_int_equal(decant_grid_bytes(64, 1536, 8, 2, 64, false) * 8 * 1000 / (64 * 1536), 4250);
    /* Levels, row offsets, and a column and a value for each weight kept apart: columns beyond 65535 are no
     * U16's. */
    assert_int_equal(decant_packed_bytes(10, 65536, 2, 7), 10 * (2 * 2048 * 4 + 4 * 2) + 11 * 4 + 7 * (2 + 2));
    assert_int_equal(decant_packed_bytes(10, 65537, 2, 7), 10 * (2 * 2049 * 4 + 4 * 2) + 11 * 4 + 7 * (4 + 2));
}

static void rotation_is_the_largest_power_of_two_that_divides(void **state)
{
    (void)state;
    const int64_t columns[] = {11008, 22016, 576, 4096, 13824, 6656, 1, 7};
    const int32_t rotations[] = {256, 512, 64, 1024, 512, 512, 1, 1};
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++)
        assert_int_equal(decant_rotation_of(columns[i]), rotations[i]);
}

static void mixtures_keep_one_order_for_all_shapes(void **state)
{
    (void)state;
    const double widths[] = {2.5, 3, 4};
    decant_recipe recipe = recipe_of(DECANT_METHOD_HIGGS, 3, widths);
    for (int i = 0; i < DECANT_METHODS; i++)
        recipe.uses[i] = true;
    recipe.groups = 2;
    recipe.group[1] = 64;
    decant_candidate_list narrow, wide;
    decant_error err;
    assert_int_equal(decant_recipe_offer(&recipe, 3, 7, &narrow, &err), DECANT_OK);
    assert_int_equal(decant_recipe_offer(&recipe, 4096, 11008, &wide, &err), DECANT_OK);
    assert_int_equal(narrow.count, 2 + 2 * 3 + 2 * 2 + 1 + 2);
    assert_int_equal(wide.count, narrow.count);
    for (int i = 0; i < wide.count; i++) {
        assert_int_equal(narrow.candidate[i].method, wide.candidate[i].method);
        assert_int_equal(narrow.candidate[i].code_bits, wide.candidate[i].code_bits);
        assert_int_equal(narrow.candidate[i].dimension, wide.candidate[i].dimension);
        assert_int_equal(narrow.candidate[i].group, wide.candidate[i].group);
        assert_true(wide.candidate[i].bytes > 4096 * 11008 / 4);
    }
    int64_t smallest = decant_candidate_list_smallest(&wide);
    assert_int_equal(smallest, decant_grid_bytes(4096, 11008, 5, 2, 0, false));
    char text[64];
    decant_candidate_describe(&wide.candidate[2], text, sizeof text);
    assert_string_equal(text, "higgs 2.5 p=2");
}

static void guided_fractions_are_candidates_of_every_width(void **state)
{
    (void)state;
    const double widths[] = {2, 3};
    const int64_t rows = 10, columns = 576;
    decant_recipe recipe = recipe_of(DECANT_METHOD_GUIDED, 2, widths);
    recipe.uses[DECANT_METHOD_KMEANS] = true;
    recipe.sensitive = recipe.outliers = 0.01;
    decant_candidate_list list;
    decant_error err;
    assert_int_equal(decant_recipe_offer(&recipe, rows, columns, &list, &err), DECANT_OK);
    assert_int_equal(list.count, 4); /* without fractions of its own guided takes those of k-means */
    for (int i = 0; i < list.count; i++) {
        assert_int_equal(list.candidate[i].sparse_count, 2 * 58);
        assert_false(decant_candidate_has_own_sparse(&recipe, &list.candidate[i]));
    }
    recipe.guided_sparse_count = 3;
    recipe.guided_sparse[1] = 0.0045;
    recipe.guided_sparse[2] = 0.1;
    const int64_t counts[] = {0, 26, 576};
    assert_int_equal(decant_recipe_offer(&recipe, rows, columns, &list, &err), DECANT_OK);
    assert_int_equal(list.count, 2 + 2 * 3);
    for (int i = 0; i < list.count; i++) {
        const decant_candidate *candidate = &list.candidate[i];
        bool own = candidate->method == DECANT_METHOD_GUIDED;
        assert_int_equal(candidate->code_bits, own ? 2 + (i - 2) / 3 : 2 + i);
        assert_int_equal(candidate->sparse_count, own ? counts[(i - 2) % 3] : 2 * 58);
        int64_t saved = own ? rows * ((1 << candidate->code_bits) - 1) : 0; /* a byte a level, one for all */
        assert_int_equal(candidate->bytes,
                         decant_packed_bytes(rows, columns, candidate->code_bits, candidate->sparse_count) -
                             saved);
        assert_true(decant_candidate_has_own_sparse(&recipe, candidate) == own);
    }
    assert_int_equal(decant_guided_bytes(rows, columns, 5, 7), decant_packed_bytes(rows, columns, 5, 7));
    char text[64];
    decant_candidate_describe(&list.candidate[6], text, sizeof text);
    assert_string_equal(text, "guided 3 + 0.45 %");
}

static void widths_that_nobody_has_are_refused_by_name(void **state)
{
    (void)state;
    const double widths[] = {3, 4};
    decant_recipe recipe = recipe_of(DECANT_METHOD_NF4, 2, widths);
    decant_candidate_list list;
    decant_error err;
    assert_int_equal(decant_recipe_offer(&recipe, 8, 64, &list, &err), DECANT_ERROR_USAGE);
    assert_non_null(strstr(err.message, "3 bits"));
    recipe.widths_asked = false; /* the default list: NF4 takes the one it has */
    assert_int_equal(decant_recipe_offer(&recipe, 8, 64, &list, &err), DECANT_OK);
    assert_int_equal(list.count, 1);
    recipe.uses[DECANT_METHOD_RTN] = recipe.widths_asked = true;
    assert_int_equal(decant_recipe_offer(&recipe, 8, 64, &list, &err), DECANT_OK);
    assert_int_equal(list.count, 3);
}

static void more_candidates_than_a_layer_may_have_are_refused(void **state)
{
    (void)state;
    double widths[DECANT_WIDTHS_MAXIMUM];
    for (int i = 0; i < DECANT_WIDTHS_MAXIMUM; i++)
        widths[i] = 2 + 0.25 * i;
    decant_recipe recipe = recipe_of(DECANT_METHOD_HIGGS, 17, widths); /* 2 … 6: nine of them at p = 2 */
    recipe.widths_asked = false;
    recipe.groups = 7;
    decant_candidate_list list;
    decant_error err;
    assert_int_equal(decant_recipe_offer(&recipe, 8, 64, &list, &err), DECANT_OK);
    assert_int_equal(list.count, 63);
    recipe.groups = 8;
    assert_int_equal(decant_recipe_offer(&recipe, 8, 64, &list, &err), DECANT_ERROR_USAGE);
    assert_non_null(strstr(err.message, "64 candidates"));
}

static void data_is_needed_by_methods_with_levels_and_by_no_other(void **state)
{
    (void)state;
    const double four = 4;
    for (int i = 0; i < DECANT_METHODS; i++) {
        decant_recipe recipe = recipe_of((decant_method)i, 1, &four);
        assert_int_equal(decant_recipe_needs_statistics(&recipe),
                         i == DECANT_METHOD_KMEANS || i == DECANT_METHOD_GUIDED);
        assert_true(decant_recipe_has_levels(&recipe) == decant_recipe_needs_statistics(&recipe));
        decant_method method;
        assert_true(decant_method_find(decant_method_name((decant_method)i), &method));
        assert_int_equal(method, i);
    }
    decant_method unused;
    assert_false(decant_method_find("gptq", &unused));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(candidates_are_those_a_method_has),
        cmocka_unit_test(sizes_are_those_of_the_arrays),
        cmocka_unit_test(rotation_is_the_largest_power_of_two_that_divides),
        cmocka_unit_test(mixtures_keep_one_order_for_all_shapes),
        cmocka_unit_test(guided_fractions_are_candidates_of_every_width),
        cmocka_unit_test(widths_that_nobody_has_are_refused_by_name),
        cmocka_unit_test(more_candidates_than_a_layer_may_have_are_refused),
        cmocka_unit_test(data_is_needed_by_methods_with_levels_and_by_no_other),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
