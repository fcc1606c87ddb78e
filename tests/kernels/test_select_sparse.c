/* select_sparse of a backend: exactly as many weights as asked for, the ones that a full sort would give. */
#include "tests/kernels/quantize_case.h"

typedef struct candidate {
    float key;
    int64_t index;
} candidate;

static int compare_candidates(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    if (x->key != y->key)
        return x->key < y->key ? 1 : -1;
    return x->index < y->index ? -1 : 1;
}

/* Marks the first `count` weights, in the order of the keys, of those not marked yet. */
static void take_largest(const float *keys, bool magnitude, int64_t size, int64_t count, bool *chosen)
{
    candidate *candidates = zeroed((size_t)size, sizeof *candidates);
    int64_t n = 0;
    for (int64_t i = 0; i < size; i++)
        if (!chosen[i])
            candidates[n++] = (candidate){magnitude ? fabsf(keys[i]) : keys ? keys[i] : 1, i};
    qsort(candidates, (size_t)n, sizeof *candidates, compare_candidates);
    for (int64_t i = 0; i < count; i++)
        chosen[candidates[i].index] = true;
    free(candidates);
}

/* Selects on the device; free() the marks. */
static bool *select_on_device(const quantize_case *test, bool with_fisher, int64_t n_sensitive,
                              int64_t n_outliers)
{
    decant_backend *backend = test->backend;
    const int64_t count = n_sensitive + n_outliers;
    const size_t offset_bytes = ((size_t)test->rows + 1) * sizeof(uint32_t);
    const size_t column_bytes = (size_t)count * sizeof(uint32_t);
    decant_sparse_pattern pattern = {count, on_device(backend, NULL, offset_bytes),
                                     on_device(backend, NULL, column_bytes)};
    REQUIRE(backend->quantize->select_sparse(backend, test->weight, with_fisher ? test->fisher : NULL,
                                             n_sensitive, n_outliers, &pattern, err));
    uint32_t *row_offsets = from_device(backend, pattern.row_offsets, offset_bytes);
    uint32_t *columns = from_device(backend, pattern.columns, column_bytes);
    bool *chosen = zeroed((size_t)test->size, sizeof *chosen);
    if (count > 0) {
        assert_int_equal(row_offsets[0], 0);
        assert_int_equal(row_offsets[test->rows], count);
    }
    for (int64_t row = 0; row < test->rows; row++)
        for (uint32_t entry = row_offsets[row]; entry < row_offsets[row + 1]; entry++) {
            assert_true(columns[entry] < test->columns);
            assert_true(entry == row_offsets[row] || columns[entry - 1] < columns[entry]);
            chosen[row * test->columns + columns[entry]] = true;
        }
    free(row_offsets);
    free(columns);
    drop_pattern(backend, &pattern);
    return chosen;
}

static void check(const quantize_case *test, bool with_fisher, int64_t n_sensitive, int64_t n_outliers)
{
    bool *expected = zeroed((size_t)test->size, sizeof *expected);
    take_largest(with_fisher ? test->masses : NULL, false, test->size, n_sensitive, expected);
    take_largest(test->values, true, test->size, n_outliers, expected);
    bool *chosen = select_on_device(test, with_fisher, n_sensitive, n_outliers);
    for (int64_t i = 0; i < test->size; i++)
        if (chosen[i] != expected[i])
            fail_msg("%lld + %lld of %lld: element %lld is %s", (long long)n_sensitive, (long long)n_outliers,
                     (long long)test->size, (long long)i, chosen[i] ? "chosen" : "left out");
    free(expected);
    free(chosen);
}

static void largest_are_chosen_when_counts_vary(void **state)
{
    static const int64_t shapes[][2] = {{1, 1}, {1, 33}, {31, 1}, {7, 100}, {40, 257}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int element = DECANT_F32; element <= DECANT_BF16; element++) {
            quantize_case test =
                make_case(*state, ROW_NORMAL, (decant_element)element, shapes[i][0], shapes[i][1]);
            const int64_t size = test.size;
            check(&test, true, 0, 0);
            check(&test, true, size, 0);
            check(&test, true, 0, size);
            check(&test, true, size / 2, size - size / 2);
            check(&test, true, size / 20, 0);
            check(&test, true, 0, size / 20);
            check(&test, true, (size + 9) / 10, size / 7);
            drop_case(&test);
        }
}

/* Values and masses take few different values, both signs and both zeros: nearly everything is a tie. */
static void first_in_row_order_are_chosen_when_keys_are_equal(void **state)
{
    quantize_case test = empty_case(*state, 45, 37);
    for (int64_t i = 0; i < test.size; i++) {
        static const float values[] = {0.5f, -0.5f, 0.0f, -0.0f, 2, -2, 1e-7f};
        static const float masses[] = {0, 1e-20f, -0.0f, 3, 1e-20f};
        test.values[i] = values[i * i % 7];
        test.masses[i] = masses[i * 3 % 5];
    }
    place_case(&test, DECANT_F16);
    for (int64_t n = 1; n < test.size; n = n * 3 / 2 + 1) {
        check(&test, true, n, 0);
        check(&test, true, 0, n);
        check(&test, true, n / 2, n - n / 2);
        check(&test, false, n / 2, n - n / 2);
    }
    drop_case(&test);
}

static void nothing_is_touched_when_nothing_is_asked(void **state)
{
    decant_backend *backend = *state;
    quantize_case test = make_case(backend, ROW_NORMAL, DECANT_F16, 3, 5);
    decant_sparse_pattern pattern = {0, NULL, NULL};
    REQUIRE(backend->quantize->select_sparse(backend, test.weight, test.fisher, 0, 0, &pattern, err));
    assert_true(!pattern.row_offsets && !pattern.columns);
    drop_case(&test);
}

static void counts_are_refused_when_they_do_not_fit(void **state)
{
    decant_backend *backend = *state;
    quantize_case test = make_case(backend, ROW_NORMAL, DECANT_F16, 3, 5);
    static const int64_t counts[][3] = {{8, 8, 16}, {1, 1, 3}, {-1, 2, 1}, {2, -1, 1}};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        decant_error err = {0};
        decant_sparse_pattern pattern = {counts[i][2], NULL, NULL};
        assert_int_equal(backend->quantize->select_sparse(backend, test.weight, test.fisher, counts[i][0],
                                                          counts[i][1], &pattern, &err),
                         DECANT_ERROR_BUG);
    }
    drop_case(&test);
}

static void choice_is_the_same_when_threads_differ(void **state)
{
    (void)state;
    for (int threads = 1; threads <= 5; threads++) {
        decant_backend *backend;
        REQUIRE(open_backend_named(test_device(), threads, &backend, err));
        quantize_case test = make_case(backend, ROW_GRID, DECANT_F16, 150, 64);
        check(&test, true, 1000, 2000);
        check(&test, false, 1000, 2000);
        drop_case(&test);
        decant_backend_destroy(&backend);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(largest_are_chosen_when_counts_vary),
        cmocka_unit_test(first_in_row_order_are_chosen_when_keys_are_equal),
        cmocka_unit_test(nothing_is_touched_when_nothing_is_asked),
        cmocka_unit_test(counts_are_refused_when_they_do_not_fit),
        cmocka_unit_test(choice_is_the_same_when_threads_differ),
    };
    return cmocka_run_group_tests(tests, open_backend, close_backend);
}
