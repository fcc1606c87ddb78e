/* Weights onto grids: what encode stores against the definition in double, with every rotation, nearest point
 * and scale found the slow way. */
#include "tests/kernels/grid_case.h"

/* ---- what was stored ---- */

/* Every code is the nearest point under the stored scale, the lowest among equals; places nearer to the border
 * of two points than floats can tell may go either way. */
static void check_codes(const grid_case *test)
{
    const decant_grid_form *form = &test->matrix.form;
    const int p = form->dimension, points = 1 << form->code_bits;
    double *rotated = doubles(test->columns + 4);
    for (int64_t row = 0; row < test->rows; row++) {
        rotate_by_definition(form, test->columns, false, test->weights + row * test->columns, rotated);
        for (int64_t j = 0; j < test->codes; j++) {
            const double scale = scale_at(test, row, group_of(test, j * p)),
                         offset = offset_at(test, row, group_of(test, j * p));
            const int64_t code = code_at(test, row, j);
            assert_in_range(code, 0, points - 1);
            if (scale == 0) {
                assert_int_equal(code, 0);
                continue;
            }
            double least = INFINITY, own = INFINITY, size = 0;
            for (int point = 0; point < points; point++) {
                double distance = 0;
                for (int i = 0; i < p; i++)
                    distance += pow((rotated[j * p + i] - offset) / scale - test->points[point * p + i], 2);
                least = fmin(least, distance);
                own = point == code ? distance : own;
            }
            for (int i = 0; i < p; i++)
                size += pow((rotated[j * p + i] - offset) / scale, 2);
            if (!(sqrt(own) <= sqrt(least) + 1e-6 * (1 + sqrt(size))))
                fail_msg("row %lld, code %lld: %lld is %.9g away, the nearest point %.9g", (long long)row,
                         (long long)j, (long long)code, sqrt(own), sqrt(least));
        }
    }
    free(rotated);
}

/* Each value stood for is off by a few units in the last place of a float. */
static void expect_error_close(double actual, double expected, double norm)
{
    double slack = 1e-5 * expected + 1e-6 * sqrt(expected * norm) + 1e-12 * norm;
    if (!(fabs(actual - expected) <= slack))
        fail_msg("the error is %.9g, expected %.9g of %.9g", actual, expected, norm);
}

static void check_error(const grid_case *test, const double *fisher, decant_matrix_error actual)
{
    decant_matrix_error expected = {0, 0, 0};
    double *decoded = decode_by_definition(test);
    for (int64_t i = 0; i < test->rows * test->columns; i++) {
        const double miss = test->weights[i] - decoded[i];
        expected.weighted += (fisher ? fisher[i] : 1) * miss * miss;
        expected.squared += miss * miss;
        expected.norm += test->weights[i] * test->weights[i];
    }
    free(decoded);
    expect_error_close(actual.weighted, expected.weighted, expected.norm);
    expect_error_close(actual.squared, expected.squared, expected.norm);
    assert_true(fabs(actual.norm - expected.norm) <= 1e-9 * expected.norm);
}

/* The columns of a group, as its codes cover them. */
static void group_columns(const grid_case *test, int64_t group, int64_t *first, int64_t *end)
{
    *first = *end = -1;
    for (int64_t j = 0; j < test->columns; j++)
        if (group_of(test, j) == group) {
            *first = *first < 0 ? j : *first;
            *end = j + 1;
        }
}

static double f16(double value)
{
    return decant_f16_to_f32(decant_f32_to_f16((float)value));
}

/* Σ |x − scale q|² over the nearest points q, and where a refit would put the scale: ⟨x, q⟩ / ⟨q, q⟩. A short
 * tuple is filled with zeros for the search, which are no part of the sums. */
static double distance_to_nearest(const grid_case *test, const double *x, int64_t columns, double scale,
                                  double *refit)
{
    const decant_grid_form *form = &test->matrix.form;
    const int p = form->dimension;
    double sum = 0, xq = 0, qq = 0;
    for (int64_t j = 0; j < columns; j += p) {
        const float *nearest = test->points;
        double least = INFINITY;
        for (int point = 0; point < 1 << form->code_bits; point++) {
            double distance = 0;
            for (int i = 0; i < p; i++)
                distance += pow((j + i < columns ? x[j + i] : 0) - scale * test->points[point * p + i], 2);
            if (distance < least) {
                least = distance;
                nearest = test->points + point * p;
            }
        }
        for (int i = 0; i < p && j + i < columns; i++) {
            sum += pow(x[j + i] - scale * nearest[i], 2);
            xq += x[j + i] * nearest[i];
            qq += (double)nearest[i] * nearest[i];
        }
    }
    *refit = xq / qq;
    return sum;
}

/* The stored scale does as well as the root mean square and two refits, each taken when it helps. */
static void check_least_error(const grid_case *test, const double *x, int64_t row, int64_t group, int64_t first,
                              int64_t end)
{
    double square = 0, refit, next;
    for (int64_t j = first; j < end; j++)
        square += x[j] * x[j];
    if (square == 0) {
        assert_true(scale_at(test, row, group) == 0);
        return;
    }
    x += first;
    const int64_t columns = end - first;
    double least = distance_to_nearest(test, x, columns, f16(sqrt(square / (double)columns)), &refit);
    for (int round = 0; round < 2 && refit > 0; round++) {
        double distance = distance_to_nearest(test, x, columns, f16(refit), &next);
        if (distance >= least)
            break;
        least = distance;
        refit = next;
    }
    double stored = distance_to_nearest(test, x, columns, scale_at(test, row, group), &next);
    if (!(stored <= least * (1 + 1e-4) + 1e-9 * square))
        fail_msg("row %lld, group %lld: the stored scale leaves an error of %.9g, refits come to %.9g",
                 (long long)row, (long long)group, stored, least);
}

static void check_range(const grid_case *test, const double *x, int64_t row, int64_t group, int64_t first,
                        int64_t end)
{
    double low = 0, high = 0;
    for (int64_t j = first; j < end; j++) {
        low = fmin(low, x[j]);
        high = fmax(high, x[j]);
    }
    const double scale = (high - low) / ((1 << test->matrix.form.code_bits) - 1);
    assert_true(fabs(scale_at(test, row, group) - scale) <= 6e-4 * scale + 1e-7);
    const double stored = scale_at(test, row, group), offset = offset_at(test, row, group);
    assert_true(fabs(offset - low) <= 0.501 * stored + 2e-3 * fabs(low) + 1e-7);
    const double points = stored > 0 ? offset / stored : 0; /* zero is one of them */
    assert_true(fabs(points - rint(points)) <= 1e-3 * fabs(points) + 1e-6);
}

static void check_largest(const grid_case *test, const double *x, int64_t row, int64_t group, int64_t first,
                          int64_t end)
{
    double largest = 0, largest_point = 0;
    for (int64_t j = first; j < end; j++)
        largest = fmax(largest, fabs(x[j]));
    for (int point = 0; point < 1 << test->matrix.form.code_bits; point++)
        largest_point = fmax(largest_point, fabs((double)test->points[point]));
    assert_true(fabs(scale_at(test, row, group) - largest / largest_point) <= 6e-4 * largest + 1e-7);
}

static void check_scales(const grid_case *test, decant_grid_scale kind)
{
    double *rotated = doubles(test->columns);
    for (int64_t row = 0; row < test->rows; row++) {
        rotate_by_definition(&test->matrix.form, test->columns, false, test->weights + row * test->columns,
                             rotated);
        for (int64_t group = 0; group < test->groups; group++) {
            int64_t first, end;
            group_columns(test, group, &first, &end);
            if (first < 0)
                continue;
            if (kind == DECANT_SCALE_LEAST_ERROR)
                check_least_error(test, rotated, row, group, first, end);
            else if (kind == DECANT_SCALE_RANGE)
                check_range(test, rotated, row, group, first, end);
            else
                check_largest(test, rotated, row, group, first, end);
        }
    }
    free(rotated);
}

/* ---- cases ---- */

static void check_case(decant_backend *backend, weight_kind kind, decant_element element, int64_t rows,
                       int64_t columns, decant_grid_form form, decant_grid_scale scale)
{
    grid_case test = make_grid_case(backend, kind, element, rows, columns, form);
    device_array fisher = float_array(backend, rows, columns, 1, 3);
    for (int64_t i = 0; i < rows * columns; i++)
        ((float *)fisher.host)[i] = (float)(fisher.values[i] = fabs(fisher.values[i]));
    REQUIRE(backend->memory->upload(backend, fisher.matrix.data, fisher.host,
                                    decant_matrix_bytes(fisher.matrix), err));
    decant_matrix_error plain, weighted;
    REQUIRE(backend->grid->encode(backend, test.weight, NULL, scale, &test.matrix, &plain, err));
    REQUIRE(
        backend->grid->encode(backend, test.weight, fisher.matrix.data, scale, &test.matrix, &weighted, err));
    fetch_packed(&test);
    check_codes(&test);
    check_error(&test, NULL, plain);
    check_error(&test, fisher.values, weighted);
    check_scales(&test, scale);
    drop(backend, &fisher);
    drop_grid_case(&test);
}

static void least_error_matches_its_definition(void **state)
{
    static const grid_shape cases[] = {
        {1, 2, 3, 64, 64, 64},        {1, 4, 5, 576, 64, 64},      {1, 8, 3, 256, 256, 256},
        {2, 4, 3, 96, 32, 32},        {2, 8, 4, 576, 64, 64},      {2, 8, 3, 576, 576, 64},
        {2, 12, 2, 128, 128, 128},    {3, 6, 3, 64, 64, 64},       {3, 9, 3, 128, 64, 128},
        {3, 7, 2, 576, 64, 64},       {3, 12, 2, 64, 64, 64},      {4, 8, 3, 256, 64, 32},
        {4, 10, 2, 1024, 1024, 1024}, {4, 12, 2, 64, 64, 64},      {2, 6, 3, 130, 48, 2},
        {4, 8, 3, 66, 20, 1},         {3, 6, 1, 2, 1, 2},          {1, 3, 2, 1, 64, 1},
        {2, 5, 2, 7, 3, 1},           {2, 8, 1, 2048, 2048, 2048},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        decant_grid_form form = random_grid(&cases[i], i);
        for (int kind = WEIGHTS_GAUSSIAN; kind <= WEIGHTS_WITH_ZERO_GROUPS; kind++)
            check_case(*state, kind, (decant_element)(kind % 3), cases[i].rows, cases[i].columns, form,
                       DECANT_SCALE_LEAST_ERROR);
        drop_random_grid(&form);
    }
}

static void range_matches_its_definition(void **state)
{
    float points[256];
    for (int bits = 2; bits <= 8; bits++) {
        decant_grid_form form = even_grid(bits, points);
        for (int kind = WEIGHTS_GAUSSIAN; kind <= WEIGHTS_WITH_ZERO_GROUPS; kind++)
            check_case(*state, kind, (decant_element)(kind % 3), 3, 200, form, DECANT_SCALE_RANGE);
    }
}

static void largest_matches_its_definition(void **state)
{
    float points[16]; /* uneven, with a 0, −1 to 1, as NF4's */
    for (int i = 0; i < 16; i++)
        points[i] = i < 8 ? -powf((float)(7 - i) / 7, 1.3f) : powf((float)(i - 7) / 8, 1.3f);
    decant_grid_form form = {.dimension = 1, .code_bits = 4, .points = points, .group = 64, .rotation = 1};
    for (int kind = WEIGHTS_GAUSSIAN; kind <= WEIGHTS_WITH_ZERO_GROUPS; kind++)
        check_case(*state, kind, (decant_element)(kind % 3), 3, 300, form, DECANT_SCALE_LARGEST);
}

/* Weights that are points of the grid come back as they are. */
static void points_of_the_grid_come_back(void **state)
{
    static const float points[] = {-1.5f, -0.5f, 0.5f, 1.5f};
    decant_grid_form form = {.dimension = 1, .code_bits = 2, .points = points, .group = 32, .rotation = 1};
    grid_case test = make_grid_case(*state, WEIGHTS_GAUSSIAN, DECANT_F32, 1, 32, form);
    decant_backend *backend = *state;
    backend->weights->unplace(backend, &test.weight);
    for (int i = 0; i < 32; i++)
        ((float *)test.host)[i] = 0.25f * points[i * 7 / 2 % 4];
    decant_matrix host = {test.host, DECANT_F32, 1, 32};
    REQUIRE(backend->weights->place(backend, host, DECANT_PLACE_EXACT, "a test's weight", &test.weight, err));
    decant_matrix_error error;
    REQUIRE(backend->grid->encode(backend, test.weight, NULL, DECANT_SCALE_LARGEST, &test.matrix, &error, err));
    fetch_packed(&test);
    assert_true(error.squared == 0);
    assert_true(scale_at(&test, 0, 0) == 0.25);
    for (int i = 0; i < 32; i++)
        assert_int_equal(code_at(&test, 0, i), i * 7 / 2 % 4);
    drop_grid_case(&test);
}

/* ---- what is refused ---- */

static void expect_refused(decant_backend *backend, grid_case *test, decant_grid_scale scale,
                           decant_status status, const char *message)
{
    decant_matrix_error error;
    decant_error record = {0};
    assert_int_equal(backend->grid->encode(backend, test->weight, NULL, scale, &test->matrix, &error, &record),
                     status);
    if (!strstr(record.message, message))
        fail_msg("\"%s\" does not say \"%s\"", record.message, message);
}

static void bad_weights_are_named(void **state)
{
    decant_backend *backend = *state;
    float *points = random_points(2, 4, 1);
    decant_grid_form form = {.dimension = 2, .code_bits = 4, .points = points, .group = 64, .rotation = 64};
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        grid_case test = make_grid_case(backend, WEIGHTS_GAUSSIAN, DECANT_F32, 9, 128, form);
        backend->weights->unplace(backend, &test.weight);
        ((float *)test.host)[5 * 128 + 77] = bad[i];
        ((float *)test.host)[5 * 128 + 90] = bad[i];
        ((float *)test.host)[7 * 128] = bad[i];
        decant_matrix host = {test.host, DECANT_F32, 9, 128};
        REQUIRE(
            backend->weights->place(backend, host, DECANT_PLACE_EXACT, "a test's weight", &test.weight, err));
        expect_refused(backend, &test, DECANT_SCALE_LEAST_ERROR, DECANT_ERROR_INPUT, "row 5, column 77");
        drop_grid_case(&test);
    }
    free(points);
}

static void impossible_forms_are_refused(void **state)
{
    decant_backend *backend = *state;
    float *points = random_points(2, 4, 1);
    decant_grid_form form = {.dimension = 2, .code_bits = 4, .points = points, .group = 64, .rotation = 64};
    grid_case test = make_grid_case(backend, WEIGHTS_GAUSSIAN, DECANT_F32, 2, 192, form);
    expect_refused(backend, &test, DECANT_SCALE_RANGE, DECANT_ERROR_BUG, "offsets");
    test.matrix.form.rotation = 128;
    expect_refused(backend, &test, DECANT_SCALE_LEAST_ERROR, DECANT_ERROR_BUG, "rotation");
    test.matrix.form.rotation = 96;
    expect_refused(backend, &test, DECANT_SCALE_LEAST_ERROR, DECANT_ERROR_BUG, "rotation");
    test.matrix.form.rotation = 64;
    test.matrix.form.dimension = 5;
    expect_refused(backend, &test, DECANT_SCALE_LEAST_ERROR, DECANT_ERROR_BUG, "dimension");
    test.matrix.form.dimension = 2;
    drop_grid_case(&test);
    free(points);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(least_error_matches_its_definition),
        cmocka_unit_test(range_matches_its_definition),
        cmocka_unit_test(largest_matches_its_definition),
        cmocka_unit_test(points_of_the_grid_come_back),
        cmocka_unit_test(bad_weights_are_named),
        cmocka_unit_test(impossible_forms_are_refused),
    };
    return cmocka_run_group_tests_name("grid encode", tests, open_backend, close_backend);
}
