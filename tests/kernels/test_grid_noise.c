/* Random signs and Gaussian noise: golden numbers of tests/reference/make_grid_golden.py, and that the noise is
 * as large, as normal and as independent as it should be. */
#include "tests/kernels/grid_case.h"

static void signs_match_golden_numbers(void **state)
{
    (void)state;
    static const int64_t columns[] = {0, 1, 2, 3, 63, 64, 65, 100, 575, 11007};
    static const uint32_t signs[] = {1, 1, 1, 1, 0, 1, 1, 0, 1, 1};
    int ones = 0;
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++)
        assert_int_equal(decant_random_sign(12345, columns[i]), signs[i]);
    for (int64_t column = 0; column < 100000; column++)
        ones += (int)decant_random_sign(99, column);
    assert_in_range(ones, 49200, 50800); /* five standard deviations */
}

/* ---- noise ---- */

typedef struct noise_case {
    decant_backend *backend;
    device_array weight;
    decant_matrix noisy;
} noise_case;

static noise_case make_noise_case(decant_backend *backend, int64_t rows, int64_t columns, double t,
                                  uint64_t seed)
{
    noise_case test = {.backend = backend};
    test.weight = weight_array(backend, DECANT_PLACE_COMPUTE, DECANT_F32, rows, columns, 0.05, 3);
    test.noisy = test.weight.matrix;
    test.noisy.data = device_bytes(backend, decant_matrix_bytes(test.noisy));
    REQUIRE(backend->grid->add_noise(backend, test.weight.matrix, t, seed, test.noisy, err));
    return test;
}

static void drop_noise_case(noise_case *test)
{
    test->backend->memory->release(test->backend, &test->noisy.data);
    drop(test->backend, &test->weight);
}

/* (noisy − weight) / size, where the noise has standard deviation 1; free() it. */
static double *noise_of(const noise_case *test, double t)
{
    const decant_matrix matrix = test->weight.matrix;
    void *before = download_bytes(test->backend, matrix), *after = download_bytes(test->backend, test->noisy);
    double *noise = doubles(element_count(matrix)), norm = 0;
    for (int64_t i = 0; i < element_count(matrix); i++)
        norm += pow(load_element(matrix.element, before, i), 2);
    for (int64_t i = 0; i < element_count(matrix); i++)
        noise[i] = (load_element(matrix.element, after, i) - load_element(matrix.element, before, i)) /
                   (t * sqrt(norm / (double)element_count(matrix)));
    free(before);
    free(after);
    return noise;
}

static void noise_matches_golden_numbers(void **state)
{
    static const struct {
        uint64_t seed;
        int64_t row, column;
        double value;
    } golden[] = {
        {7u, 0, 0, 1.533897706},
        {7u, 0, 1, -0.651655801},
        {7u, 0, 2, 0.140874983},
        {7u, 3, 4, 0.327633162},
        {7u, 3, 5, 0.404832441},
        {8u, 0, 0, -0.136863472},
        {9223372036854775813u, 1000, 6, -0.572253133},
        {7u, 2, 4, -1.045865503},
    };
    for (size_t i = 0; i < sizeof golden / sizeof *golden; i++) {
        const int64_t rows = golden[i].row + 2, columns = golden[i].column + 2;
        noise_case test = make_noise_case(*state, rows, columns, 4, golden[i].seed);
        double *noise = noise_of(&test, 4), actual = noise[golden[i].row * columns + golden[i].column];
        /* A BF16 weight of up to about 5 · t · its root mean square has 8 bits. */
        double allowed = test.weight.matrix.element == DECANT_F32 ? 1e-5 : 2e-2;
        if (!(fabs(actual - golden[i].value) <= allowed))
            fail_msg("noise %zu is %.9g, expected %.9g", i, actual, golden[i].value);
        free(noise);
        drop_noise_case(&test);
    }
}

static double correlation(const double *x, const double *y, int64_t count)
{
    double sum = 0;
    for (int64_t i = 0; i < count; i++)
        sum += x[i] * y[i];
    return sum / (double)count;
}

static void noise_is_normal_and_independent(void **state)
{
    const int64_t rows = 512, columns = 513, count = rows * columns;
    const double t = 0.5, deviation = 1 / sqrt((double)count);
    noise_case test = make_noise_case(*state, rows, columns, t, 21),
               other = make_noise_case(*state, rows, columns, t, 22);
    double *noise = noise_of(&test, t), *others = noise_of(&other, t), *squares = doubles(count);
    double mean = 0, fourth = 0, beyond = 0;
    for (int64_t i = 0; i < count; i++) {
        mean += noise[i] / (double)count;
        fourth += pow(noise[i], 4) / (double)count;
        beyond += fabs(noise[i]) > 3 ? 1.0 / (double)count : 0;
        squares[i] = noise[i] * noise[i] - 1;
    }
    /* Five standard deviations of each figure. */
    assert_true(fabs(mean) < 5 * deviation);
    assert_true(fabs(correlation(noise, noise, count) - 1) < 5 * sqrt(2) * deviation);
    assert_true(fabs(fourth - 3) < 5 * sqrt(96) * deviation);
    assert_true(fabs(beyond - 0.0026998) < 5 * sqrt(0.0027) * deviation);
    assert_true(fabs(correlation(noise, others, count)) < 5 * deviation);
    assert_true(fabs(correlation(noise, noise + 1, count - 1)) < 5 * deviation);
    assert_true(fabs(correlation(noise, noise + 2, count - 2)) < 5 * deviation);
    assert_true(fabs(correlation(noise, noise + columns, count - columns)) < 5 * deviation);
    assert_true(fabs(correlation(squares, squares + 1, count - 1)) < 5 * 2 * deviation);
    assert_true(fabs(correlation(squares, squares + columns, count - columns)) < 5 * 2 * deviation);
    free(noise);
    free(others);
    free(squares);
    drop_noise_case(&test);
    drop_noise_case(&other);
}

/* Rows and columns alone decide: a larger matrix has the same noise in its corner, up to its size. */
static void noise_depends_on_the_place_alone(void **state)
{
    noise_case small = make_noise_case(*state, 5, 9, 3, 4), large = make_noise_case(*state, 50, 90, 3, 4);
    double *a = noise_of(&small, 3), *b = noise_of(&large, 3);
    double allowed = small.weight.matrix.element == DECANT_F32 ? 1e-5 : 4e-2;
    for (int64_t row = 0; row < 5; row++)
        for (int64_t column = 0; column < 9; column++)
            assert_true(fabs(a[row * 9 + column] - b[row * 90 + column]) < allowed);
    free(a);
    free(b);
    drop_noise_case(&small);
    drop_noise_case(&large);
}

static void noise_of_zero_weights_is_none(void **state)
{
    decant_backend *backend = *state;
    device_array weight = weight_array(backend, DECANT_PLACE_COMPUTE, DECANT_F16, 3, 7, 0, 3);
    decant_matrix noisy = weight.matrix;
    noisy.data = device_bytes(backend, decant_matrix_bytes(noisy));
    REQUIRE(backend->grid->add_noise(backend, weight.matrix, 0.5, 1, noisy, err));
    void *bytes = download_bytes(backend, noisy);
    for (int64_t i = 0; i < 21; i++)
        assert_true(load_element(noisy.element, bytes, i) == 0);
    free(bytes);
    backend->memory->release(backend, &noisy.data);
    drop(backend, &weight);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(signs_match_golden_numbers),      cmocka_unit_test(noise_matches_golden_numbers),
        cmocka_unit_test(noise_is_normal_and_independent), cmocka_unit_test(noise_depends_on_the_place_alone),
        cmocka_unit_test(noise_of_zero_weights_is_none),
    };
    return cmocka_run_group_tests_name("grid noise", tests, open_backend, close_backend);
}
