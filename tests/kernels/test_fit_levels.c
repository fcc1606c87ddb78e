/* fit_levels of a backend: the levels are the means of the best clusters, whatever the width, and bad input is
 * named. */
#include "tests/kernels/quantize_case.h"

enum { WIDTHS = DECANT_BITS_MAXIMUM - DECANT_BITS_MINIMUM + 1 };

/* Relative to the cost of the best levels after rounding: a backend may round a mean to the other neighbour. */
static const double LEVELS_TOLERANCE = 2e-5;
/* Of a row's cost with one level: clusterings that differ by less cannot be told apart by sums in F64. */
static const double ROUNDING_TOLERANCE = 1e-13;

/* Device arrays for all widths; free_levels afterwards. */
typedef struct level_arrays {
    int bits[WIDTHS];
    uint16_t *device[WIDTHS];
    size_t size_bytes[WIDTHS];
} level_arrays;

static level_arrays make_levels(decant_backend *backend, int64_t rows)
{
    level_arrays levels;
    for (int i = 0; i < WIDTHS; i++) {
        levels.bits[i] = DECANT_BITS_MINIMUM + i;
        levels.size_bytes[i] = (size_t)rows * sizeof(uint16_t) << levels.bits[i];
        levels.device[i] = on_device(backend, NULL, levels.size_bytes[i]);
    }
    return levels;
}

static void free_levels(decant_backend *backend, level_arrays *levels)
{
    for (int i = 0; i < WIDTHS; i++) {
        void *device = levels->device[i];
        backend->memory->release(backend, &device);
    }
}

static decant_status fit(const quantize_case *test, decant_level_search search, uint64_t seed,
                         level_arrays *levels, decant_error *err)
{
    decant_backend *backend = test->backend;
    return backend->quantize->fit_levels(backend, test->weight, test->fisher, &test->pattern, search, seed,
                                         levels->bits, WIDTHS, levels->device, err);
}

/* Σ mass (value − nearest level)², as the row's points count. */
static double cost_of_levels(const sorted_row *row, const uint16_t *levels, int count)
{
    long double cost = 0;
    for (int i = 0; i < row->n; i++) {
        long double nearest = HUGE_VALL;
        for (int level = 0; level < count; level++) {
            long double distance = fabsl(row->value[i] - (long double)decant_f16_to_f32(levels[level]));
            nearest = distance < nearest ? distance : nearest;
        }
        cost += row->mass[i] * nearest * nearest;
    }
    return (double)cost;
}

/* Means of the best clusters; as many as there are different values, at most count. */
static int best_levels(const sorted_row *row, int count, uint16_t *levels)
{
    int distinct = row->n > 0;
    for (int i = 1; i < row->n; i++)
        distinct += row->value[i] != row->value[i - 1];
    int clusters = distinct < count ? distinct : count;
    int *first = zeroed((size_t)clusters + 1, sizeof *first);
    long double *best = zeroed((size_t)clusters + 1, sizeof *best);
    if (clusters > 0)
        slow_kmeans(row, clusters, best, first);
    first[clusters] = row->n;
    for (int c = 0; c < clusters; c++) {
        long double mass = 0, moment = 0;
        for (int i = first[c]; i < first[c + 1]; i++) {
            mass += row->mass[i];
            moment += row->mass[i] * row->value[i];
        }
        levels[c] = decant_f32_to_f16((float)(moment / mass));
    }
    free(first);
    free(best);
    return clusters;
}

static void check_row(const quantize_case *test, int64_t row, int bits, const uint16_t *levels)
{
    uint16_t expected[256];
    const int64_t at = row * test->columns;
    sorted_row sorted = sort_row(test->values + at, test->masses + at, test->sparse + at, test->columns);
    int distinct = best_levels(&sorted, 1 << bits, expected);
    for (int level = 1; level < 1 << bits; level++) {
        assert_true(decant_f16_to_f32(levels[level - 1]) <= decant_f16_to_f32(levels[level]));
        if (level >= distinct && distinct > 0)
            assert_int_equal(levels[level], levels[distinct - 1]);
    }
    if (distinct > 0) {
        double best = cost_of_levels(&sorted, expected, distinct);
        double cost = cost_of_levels(&sorted, levels, 1 << bits);
        uint16_t mean;
        best_levels(&sorted, 1, &mean);
        double rounding = ROUNDING_TOLERANCE * cost_of_levels(&sorted, &mean, 1);
        if (!(fabs(cost - best) <= LEVELS_TOLERANCE * best + rounding))
            fail_msg("row %lld of %lld columns, %d bits: levels cost %.9g, not %.9g", (long long)row,
                     (long long)test->columns, bits, cost, best);
    }
    free_sorted_row(&sorted);
}

static void check_case(quantize_case *test)
{
    level_arrays levels = make_levels(test->backend, test->rows);
    REQUIRE(fit(test, DECANT_LEVELS_EXACT, 0, &levels, err));
    for (int i = 0; i < WIDTHS; i++) {
        uint16_t *host = from_device(test->backend, levels.device[i], levels.size_bytes[i]);
        for (int64_t row = 0; row < test->rows; row++)
            check_row(test, row, levels.bits[i], host + (row << levels.bits[i]));
        free(host);
    }
    free_levels(test->backend, &levels);
}

static void levels_are_the_best_when_rows_are_of_every_kind_and_length(void **state)
{
    static const int64_t lengths[] = {1, 2, 31, 32, 33, 100, 301};
    for (int kind = 0; kind < ROW_KINDS; kind++)
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            quantize_case test = make_case(*state, (row_kind)kind, DECANT_F32, 3, lengths[i]);
            check_case(&test);
            drop_case(&test);
        }
}

static void levels_are_the_best_when_weights_are_of_16_bits(void **state)
{
    for (int element = DECANT_F16; element <= DECANT_BF16; element++) {
        quantize_case test = make_case(*state, ROW_NORMAL, (decant_element)element, 5, 257);
        check_case(&test);
        drop_case(&test);
    }
}

static void sparse_weights_do_not_count_when_levels_are_fitted(void **state)
{
    quantize_case test = empty_case(*state, 7, 100);
    for (int64_t row = 0; row < 7; row++)
        fill_row(ROW_NORMAL, 100, (uint64_t)row, test.values + row * 100, test.masses + row * 100);
    for (int64_t i = 0; i < test.size; i++) {
        int64_t row = i / 100;
        test.sparse[i] = row == 3 || (row == 5 && test.masses[i] > 0) || (row != 1 && i % 9 == 0);
        if (test.sparse[i])
            test.values[i] *= 50; /* would pull levels out */
        if (row == 5 && i % 2)
            test.masses[i] = 0; /* what is left of this row has no mass: all of it counts */
    }
    place_case(&test, DECANT_F16);
    check_case(&test);
    drop_case(&test);
}

static void every_weight_counts_when_there_is_no_fisher(void **state)
{
    decant_backend *backend = *state;
    quantize_case test = make_case(backend, ROW_ALL_ZERO, DECANT_F16, 4, 65);
    level_arrays levels = make_levels(backend, 4);
    REQUIRE(backend->quantize->fit_levels(backend, test.weight, NULL, &test.pattern, DECANT_LEVELS_EXACT, 0,
                                          levels.bits, WIDTHS, levels.device, err));
    for (int i = 0; i < WIDTHS; i++) {
        uint16_t *host = from_device(backend, levels.device[i], levels.size_bytes[i]);
        for (int64_t row = 0; row < 4; row++)
            check_row(&test, row, levels.bits[i], host + (row << levels.bits[i]));
        free(host);
    }
    free_levels(backend, &levels);
    drop_case(&test);
}

static void levels_stay_finite_when_weights_are_beyond_f16(void **state)
{
    quantize_case test = empty_case(*state, 1, 8);
    static const float values[] = {-3e9f, -70000, -1, 0, 1, 2, 65519, 1e30f};
    memcpy(test.values, values, sizeof values);
    for (int i = 0; i < 8; i++)
        test.masses[i] = 1;
    place_case(&test, DECANT_F32);
    level_arrays levels = make_levels(test.backend, 1);
    REQUIRE(fit(&test, DECANT_LEVELS_EXACT, 0, &levels, err));
    uint16_t *host = from_device(test.backend, levels.device[1], levels.size_bytes[1]);
    static const float expected[] = {-65504, -65504, -1, 0, 1, 2, 65504, 65504};
    for (int i = 0; i < 8; i++)
        assert_true(decant_f16_to_f32(host[i]) == expected[i]);
    free(host);
    free_levels(test.backend, &levels);
    drop_case(&test);
}

/* A case of 40 x 50 with one or two bad elements. */
static void expect_refused(void **state, int64_t weight_at, float weight, int64_t fisher_at, float fisher,
                           const char *message)
{
    quantize_case test = empty_case(*state, 40, 50);
    decant_error err = {0};
    for (int64_t row = 0; row < 40; row++)
        fill_row(ROW_NORMAL, 50, (uint64_t)row, test.values + row * 50, test.masses + row * 50);
    if (weight_at >= 0)
        test.values[weight_at] = weight;
    if (fisher_at >= 0)
        test.masses[fisher_at] = fisher;
    test.sparse[37 * 50 + 3] = true; /* what is taken out is looked at too */
    place_case(&test, DECANT_F32);
    level_arrays levels = make_levels(test.backend, 40);
    assert_int_equal(fit(&test, DECANT_LEVELS_EXACT, 0, &levels, &err), DECANT_ERROR_INPUT);
    assert_int_equal(err.status, DECANT_ERROR_INPUT);
    if (!strstr(err.message, message))
        fail_msg("\"%s\" does not say \"%s\"", err.message, message);
    free_levels(test.backend, &levels);
    drop_case(&test);
}

static void bad_input_is_named_when_it_is_not_finite_or_negative(void **state)
{
    expect_refused(state, 7 * 50 + 11, NAN, -1, 0, "weight at row 7, column 11");
    expect_refused(state, 39 * 50 + 49, -INFINITY, -1, 0, "weight at row 39, column 49");
    expect_refused(state, 37 * 50 + 3, INFINITY, -1, 0, "weight at row 37, column 3");
    expect_refused(state, -1, 0, 0, NAN, "Fisher value at row 0, column 0");
    expect_refused(state, -1, 0, 20 * 50 + 1, -1e-30f, "Fisher value at row 20, column 1");
    expect_refused(state, -1, 0, 21 * 50 + 1, INFINITY, "Fisher value at row 21, column 1");
    expect_refused(state, 30 * 50, NAN, 29 * 50 + 49, -1, "Fisher value at row 29, column 49");
    expect_refused(state, 30 * 50 + 7, NAN, 30 * 50 + 8, -1, "weight at row 30, column 7");
}

/* Rows that several threads find to be bad at about the same time. */
static void first_bad_row_is_named_when_all_are_bad(void **state)
{
    enum { ROWS = 60, COLUMNS = 20000, ATTEMPTS = 400 };
    decant_backend *backend;
    (void)state;
    REQUIRE(open_backend_named(test_device(), 5, &backend, err));
    quantize_case test = empty_case(backend, ROWS, COLUMNS);
    for (int64_t row = 0; row < ROWS; row++)
        test.values[row * COLUMNS + COLUMNS - 1] = NAN;
    place_case(&test, DECANT_F32);
    level_arrays levels = make_levels(backend, ROWS);
    for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
        decant_error problem = {0};
        assert_int_equal(fit(&test, DECANT_LEVELS_EXACT, 0, &levels, &problem), DECANT_ERROR_INPUT);
        assert_non_null(strstr(problem.message, "weight at row 0, column 19999"));
    }
    free_levels(backend, &levels);
    drop_case(&test);
    decant_backend_destroy(&backend);
}

static void widths_are_refused_when_they_do_not_ascend(void **state)
{
    decant_backend *backend = *state;
    static const int wrong[][2] = {{1, 4}, {4, 9}, {4, 4}, {5, 3}};
    quantize_case test = make_case(backend, ROW_NORMAL, DECANT_F16, 1, 8);
    level_arrays levels = make_levels(backend, 1);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        decant_error err = {0};
        assert_int_equal(backend->quantize->fit_levels(backend, test.weight, test.fisher, &test.pattern,
                                                       DECANT_LEVELS_EXACT, 0, wrong[i], 2, levels.device,
                                                       &err),
                         DECANT_ERROR_BUG);
    }
    free_levels(backend, &levels);
    drop_case(&test);
}

/* ---- the same bytes ---- */

/* Fits all rows, or `rows` of them from `first` on, into host arrays of all rows. */
static void fit_some(const quantize_case *test, decant_level_search search, int64_t first, int64_t rows,
                     uint16_t *const *host)
{
    decant_backend *backend = test->backend;
    level_arrays levels = make_levels(backend, rows);
    quantize_case part = *test;
    part.rows = rows;
    part.weight = decant_matrix_rows(test->weight, first, rows);
    part.fisher = (float *)test->fisher + first * test->columns;
    REQUIRE(fit(&part, search, 5, &levels, err));
    for (int i = 0; i < WIDTHS; i++)
        REQUIRE(backend->memory->download(backend, host[i] + (first << levels.bits[i]), levels.device[i],
                                          levels.size_bytes[i], err));
    free_levels(backend, &levels);
}

enum { SAME_ROWS = 67, SAME_COLUMNS = 300, LEVELS_OF_ALL_WIDTHS = 4 + 8 + 16 + 32 + 64 + 128 + 256 };

/* Both searches with one backend, in one call or in three; free() the bytes. */
static uint16_t *fit_all(decant_backend *backend, bool in_parts)
{
    uint16_t *bytes = zeroed(2 * SAME_ROWS * LEVELS_OF_ALL_WIDTHS, sizeof *bytes), *next = bytes;
    quantize_case test = make_case(backend, ROW_NORMAL, DECANT_F16, SAME_ROWS, SAME_COLUMNS);
    for (int search = DECANT_LEVELS_EXACT; search <= DECANT_LEVELS_LLOYD; search++) {
        uint16_t *host[WIDTHS];
        for (int i = 0; i < WIDTHS; i++) {
            host[i] = next;
            next += SAME_ROWS << (DECANT_BITS_MINIMUM + i);
        }
        if (in_parts) {
            fit_some(&test, (decant_level_search)search, 40, 27, host);
            fit_some(&test, (decant_level_search)search, 0, 1, host);
            fit_some(&test, (decant_level_search)search, 1, 39, host);
        } else {
            fit_some(&test, (decant_level_search)search, 0, SAME_ROWS, host);
        }
    }
    drop_case(&test);
    return bytes;
}

static void levels_are_the_same_bytes_when_rows_come_in_parts(void **state)
{
    uint16_t *together = fit_all(*state, false), *in_parts = fit_all(*state, true);
    assert_memory_equal(together, in_parts, 2 * SAME_ROWS * LEVELS_OF_ALL_WIDTHS * sizeof *together);
    free(together);
    free(in_parts);
}

/* On rows of equal spacings, where many partitions are as good. */
static void levels_are_the_same_bytes_when_widths_are_asked_alone(void **state)
{
    decant_backend *backend = *state;
    quantize_case test = make_case(backend, ROW_EQUAL_SPACING, DECANT_F32, 3, 300);
    level_arrays together = make_levels(backend, 3), alone = make_levels(backend, 3);
    REQUIRE(fit(&test, DECANT_LEVELS_EXACT, 0, &together, err));
    for (int i = 0; i < WIDTHS; i++) {
        REQUIRE(backend->quantize->fit_levels(backend, test.weight, test.fisher, &test.pattern,
                                              DECANT_LEVELS_EXACT, 0, &alone.bits[i], 1, &alone.device[i],
                                              err));
        uint16_t *expected = from_device(backend, together.device[i], together.size_bytes[i]);
        uint16_t *actual = from_device(backend, alone.device[i], alone.size_bytes[i]);
        assert_memory_equal(actual, expected, together.size_bytes[i]);
        free(expected);
        free(actual);
    }
    free_levels(backend, &together);
    free_levels(backend, &alone);
    drop_case(&test);
}

static void levels_are_the_same_bytes_when_threads_differ(void **state)
{
    uint16_t *expected = fit_all(*state, false);
    for (int threads = 1; threads <= 5; threads += 2) {
        decant_backend *backend;
        REQUIRE(open_backend_named(test_device(), threads, &backend, err));
        uint16_t *actual = fit_all(backend, false);
        assert_memory_equal(actual, expected, 2 * SAME_ROWS * LEVELS_OF_ALL_WIDTHS * sizeof *actual);
        free(actual);
        decant_backend_destroy(&backend);
    }
    free(expected);
}

static void lloyd_is_worse_than_exact_when_compared(void **state)
{
    quantize_case test = make_case(*state, ROW_NORMAL, DECANT_F16, 20, 500);
    level_arrays levels = make_levels(test.backend, test.rows), others = make_levels(test.backend, test.rows);
    REQUIRE(fit(&test, DECANT_LEVELS_EXACT, 0, &levels, err));
    REQUIRE(fit(&test, DECANT_LEVELS_LLOYD, 0, &others, err));
    for (int i = 0; i < WIDTHS; i++) {
        decant_matrix_error exact, lloyd;
        const decant_quantize_kernels *quantize = test.backend->quantize;
        REQUIRE(quantize->measure(test.backend, test.weight, test.fisher, &test.pattern, levels.bits[i],
                                  levels.device[i], &exact, err));
        REQUIRE(quantize->measure(test.backend, test.weight, test.fisher, &test.pattern, levels.bits[i],
                                  others.device[i], &lloyd, err));
        if (!(lloyd.weighted > exact.weighted && lloyd.weighted < 2 * exact.weighted))
            fail_msg("%d bits: Lloyd %g, exact %g", levels.bits[i], lloyd.weighted, exact.weighted);
    }
    free_levels(test.backend, &levels);
    free_levels(test.backend, &others);
    drop_case(&test);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(levels_are_the_best_when_rows_are_of_every_kind_and_length),
        cmocka_unit_test(levels_are_the_best_when_weights_are_of_16_bits),
        cmocka_unit_test(sparse_weights_do_not_count_when_levels_are_fitted),
        cmocka_unit_test(every_weight_counts_when_there_is_no_fisher),
        cmocka_unit_test(levels_stay_finite_when_weights_are_beyond_f16),
        cmocka_unit_test(bad_input_is_named_when_it_is_not_finite_or_negative),
        cmocka_unit_test(first_bad_row_is_named_when_all_are_bad),
        cmocka_unit_test(widths_are_refused_when_they_do_not_ascend),
        cmocka_unit_test(levels_are_the_same_bytes_when_rows_come_in_parts),
        cmocka_unit_test(levels_are_the_same_bytes_when_widths_are_asked_alone),
        cmocka_unit_test(levels_are_the_same_bytes_when_threads_differ),
        cmocka_unit_test(lloyd_is_worse_than_exact_when_compared),
    };
    cmocka_set_test_filter(getenv("DECANT_TEST_ONLY")); /* one test at a time, under tools that are slow */
    return cmocka_run_group_tests(tests, open_backend, close_backend);
}
