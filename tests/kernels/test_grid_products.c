/* What packed matrices on grids stand for: decode and linear against the definition in double. */
#include "tests/kernels/grid_case.h"

static void check_decode(const grid_case *test, const double *expected)
{
    decant_backend *backend = test->backend;
    static const double units[] = {[DECANT_F32] = 3e-7, [DECANT_F16] = 6e-4, [DECANT_BF16] = 5e-3};
    for (int element = DECANT_F32; element <= DECANT_BF16; element++) {
        decant_matrix decoded = {NULL, element, test->rows, test->columns};
        decoded.data = device_bytes(backend, decant_matrix_bytes(decoded));
        REQUIRE(backend->grid->decode(backend, &test->matrix, decoded, err));
        void *bytes = download_bytes(backend, decoded);
        double largest = 0;
        for (int64_t i = 0; i < element_count(decoded); i++)
            largest = fmax(largest, fabs(expected[i]));
        for (int64_t i = 0; i < element_count(decoded); i++)
            if (!(fabs(load_element(element, bytes, i) - expected[i]) <=
                  units[element] * fabs(expected[i]) + 1e-6 * largest))
                fail_msg("%s: element %lld is %.9g, expected %.9g", decant_element_name(element), (long long)i,
                         load_element(element, bytes, i), expected[i]);
        free(bytes);
        backend->memory->release(backend, &decoded.data);
    }
}

static void add_products(int64_t tokens, const grid_case *test, const double *weights, const double *x,
                         double *y)
{
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t row = 0; row < test->rows; row++)
            for (int64_t i = 0; i < test->columns; i++)
                y[t * test->rows + row] += x[t * test->columns + i] * weights[row * test->columns + i];
}

/* Another run leaves the same bits. */
static void check_repeat(const grid_case *test, decant_matrix x, decant_matrix y)
{
    decant_backend *backend = test->backend;
    void *first = download_bytes(backend, y);
    REQUIRE(backend->grid->linear(backend, x, &test->matrix, false, y, err));
    void *second = download_bytes(backend, y);
    assert_memory_equal(first, second, decant_matrix_bytes(y));
    free(first);
    free(second);
}

static void check_linear(const grid_case *test, const double *weights, int64_t tokens)
{
    decant_backend *backend = test->backend;
    device_array x = activation_array(backend, tokens, test->columns, 1, 1),
                 y = activation_array(backend, tokens, test->rows, 0.1, 2);
    const int64_t count = tokens * test->rows;
    double *products = doubles(count), *expected = doubles(count);
    add_products(tokens, test, weights, x.values, products);
    REQUIRE(backend->grid->linear(backend, x.matrix, &test->matrix, false, y.matrix, err));
    expect_close(backend, y.matrix, products, "grid linear");
    check_repeat(test, x.matrix, y.matrix);
    for (int64_t i = 0; i < count; i++)
        expected[i] = 2 * products[i];
    REQUIRE(backend->grid->linear(backend, x.matrix, &test->matrix, true, y.matrix, err));
    expect_close(backend, y.matrix, expected, "grid linear, accumulated");
    free(products);
    free(expected);
    drop(backend, &x);
    drop(backend, &y);
}

static void check_case(decant_backend *backend, int64_t rows, int64_t columns, decant_grid_form form,
                       decant_grid_scale scale)
{
    grid_case test = make_grid_case(backend, WEIGHTS_WITH_ZERO_GROUPS, DECANT_BF16, rows, columns, form);
    decant_matrix_error error;
    REQUIRE(backend->grid->encode(backend, test.weight, NULL, scale, &test.matrix, &error, err));
    fetch_packed(&test);
    double *expected = decode_by_definition(&test);
    check_decode(&test, expected);
    static const int64_t tokens[] = {1, 3, 8, 16, 17, 40};
    for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++)
        check_linear(&test, expected, tokens[i]);
    REQUIRE(backend->grid->prepare(backend, &test.matrix, err));
    if (test.matrix.arranged) {
        check_decode(&test, expected);
        for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++)
            check_linear(&test, expected, tokens[i]);
    }
    free(expected);
    drop_grid_case(&test);
}

static void products_match_for_every_grid(void **state)
{
    static const grid_shape cases[] = {
        {1, 2, 17, 64, 64, 64},       {1, 4, 33, 576, 64, 64},       {1, 5, 4, 96, 40, 32},
        {1, 8, 9, 256, 256, 256},     {2, 4, 7, 96, 32, 32},         {2, 8, 300, 576, 576, 64},
        {2, 8, 5, 1536, 64, 512},     {2, 12, 6, 128, 128, 128},     {2, 6, 5, 130, 48, 2},
        {2, 5, 3, 7, 3, 1},           {3, 6, 5, 64, 64, 64},         {3, 7, 9, 576, 64, 64},
        {3, 9, 3, 2048, 100, 64},     {3, 12, 4, 1088, 1088, 64},    {4, 8, 5, 256, 64, 32},
        {4, 12, 3, 66, 20, 1},        {4, 10, 4, 2048, 1024, 1024},  {2, 7, 3, 2048, 2048, 2048},
        {1, 3, 2, 1, 64, 1},          {1, 4, 2200, 1280, 1280, 32},  {2, 8, 300, 4096, 4096, 32},
        {2, 8, 70, 4096, 64, 64},     {2, 6, 50, 1056, 1056, 32},    {2, 7, 40, 2048, 2048, 32},
        {1, 3, 33, 1024, 64, 32},     {4, 10, 40, 4096, 4096, 32},   {3, 8, 40, 3072, 3072, 32},
        {2, 8, 33, 248, 248, 8},      {2, 4, 130, 1280, 1280, 256},  {2, 6, 257, 2816, 2816, 256},
        {2, 5, 40, 512, 512, 1},      {1, 4, 129, 1000, 1000, 8},    {1, 3, 200, 640, 640, 128},
        {2, 8, 1, 2304, 2304, 1},     {2, 4, 700, 5632, 5632, 32},   {2, 6, 20, 9216, 9216, 1024},
        {2, 6, 150, 2304, 128, 256},  {1, 4, 129, 34304, 34304, 32}, {2, 8, 304, 4096, 4096, 32},
        {2, 8, 72, 4096, 64, 64},     {2, 8, 8, 256, 256, 256},      {2, 8, 8, 4096, 4096, 4096},
        {2, 8, 24, 22016, 22016, 32}, {1, 2, 24, 1024, 64, 32},      {2, 6, 1064, 512, 512, 512},
        {2, 7, 2120, 768, 768, 256},  {2, 4, 56, 34304, 34304, 8},   {1, 4, 7688, 640, 640, 128},
        {2, 5, 1072, 1536, 64, 512},  {2, 8, 32, 1536, 192, 512},    {1, 4, 2200, 1280, 64, 256},
        {2, 8, 16, 12288, 64, 4096},  {2, 8, 8, 16384, 64, 16384},
    };
    const char *only = getenv("DECANT_TEST_GRID"); /* its number: all take too long under some tools */
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (only && i != strtoul(only, NULL, 10))
            continue;
        decant_grid_form form = random_grid(&cases[i], i);
        check_case(*state, cases[i].rows, cases[i].columns, form, DECANT_SCALE_LEAST_ERROR);
        drop_random_grid(&form);
    }
}

static void products_match_with_offsets(void **state)
{
    float points[256];
    for (int bits = 2; bits <= 8; bits += 2) {
        decant_grid_form form = even_grid(bits, points);
        check_case(*state, 37, 200, form, DECANT_SCALE_RANGE);
        check_case(*state, 137, 640, form, DECANT_SCALE_RANGE);
        check_case(*state, 136, 640, form, DECANT_SCALE_RANGE);
        form.group = 1000;
        check_case(*state, 5, 1000, form, DECANT_SCALE_RANGE);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_match_for_every_grid),
        cmocka_unit_test(products_match_with_offsets),
    };
    cmocka_set_test_filter(getenv("DECANT_TEST_ONLY")); /* one test at a time, under tools that are slow */
    return cmocka_run_group_tests_name("grid products", tests, open_backend, close_backend);
}
