/* Products of the same x with several packed matrices at once: what each matrix alone gives, whatever the
 * others are. */
#include "tests/kernels/packed_case.h"

enum { MATRICES = 5 };

typedef struct products_case {
    int64_t columns;
    int64_t rows[MATRICES]; /* 0: no such matrix, nor any behind it */
    int bits[MATRICES];
    sparse_form sparse[MATRICES];
} products_case;

static int matrices_of(const products_case *which)
{
    int count = 0;
    while (count < MATRICES && which->rows[count] > 0)
        count++;
    return count;
}

/* A product's y with a row of others' memory behind it, all of it far from any product. */
static device_array y_array(decant_backend *backend, int64_t tokens, int64_t rows)
{
    return activation_array(backend, tokens + 1, rows, 1e6, 3);
}

/* y = x ŵᵀ by the matrix alone. */
static double *alone(decant_backend *backend, decant_matrix x, const decant_packed_matrix *packed)
{
    device_array array = y_array(backend, x.rows, packed->rows);
    const decant_matrix y = decant_matrix_rows(array.matrix, 0, x.rows);
    double *values = doubles(element_count(y));
    REQUIRE(backend->validate->packed_linear(backend, x, packed, false, y, err));
    void *bytes = download_bytes(backend, y);
    for (int64_t i = 0; i < element_count(y); i++)
        values[i] = load_element(y.element, bytes, i);
    free(bytes);
    drop(backend, &array);
    return values;
}

/* Multiplies twice, each time into ys of other content; the second time gives the same bits. */
static void check_tokens(decant_backend *backend, const packed_case *made, int count, int64_t tokens)
{
    device_array x = activation_array(backend, tokens, made[0].packed.columns, 1, 1), ys[MATRICES];
    decant_packed_product products[MATRICES];
    void *first[MATRICES];
    for (int i = 0; i < count; i++) {
        ys[i] = y_array(backend, tokens, made[i].packed.rows);
        products[i] = (decant_packed_product){.packed = &made[i].packed,
                                              .y = decant_matrix_rows(ys[i].matrix, 0, tokens)};
    }
    REQUIRE(backend->validate->packed_products(backend, x.matrix, products, count, err));
    for (int i = 0; i < count; i++) {
        double *expected = alone(backend, x.matrix, products[i].packed);
        expect_close(backend, products[i].y, expected, "one of several packed products");
        free(expected);
        const size_t y_bytes = decant_matrix_bytes(products[i].y),
                     all_bytes = decant_matrix_bytes(ys[i].matrix);
        first[i] = download_bytes(backend, ys[i].matrix);
        assert_memory_equal((char *)first[i] + y_bytes, (char *)ys[i].host + y_bytes, all_bytes - y_bytes);
        REQUIRE(backend->memory->upload(backend, ys[i].matrix.data, ys[i].host, all_bytes, err));
    }
    REQUIRE(backend->validate->packed_products(backend, x.matrix, products, count, err));
    for (int i = 0; i < count; i++) {
        void *second = download_bytes(backend, ys[i].matrix);
        assert_memory_equal(first[i], second, decant_matrix_bytes(ys[i].matrix));
        free(first[i]);
        free(second);
        drop(backend, &ys[i]);
    }
    drop(backend, &x);
}

static void check_products(decant_backend *backend, const products_case *which)
{
    static const int64_t tokens[] = {1, 2, 3, 16, 40};
    const int count = matrices_of(which);
    packed_case made[MATRICES];
    uint64_t seed = 19;
    for (int i = 0; i < count; i++) {
        made[i] =
            (packed_case){.packed = {.rows = which->rows[i], .columns = which->columns, .bits = which->bits[i]},
                          .weights = doubles(which->rows[i] * which->columns)};
        pack(backend, &made[i], which->sparse[i], &seed);
    }
    for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++)
        check_tokens(backend, made, count, tokens[i]);
    for (int i = 0; i < count; i++)
        drop_packed(backend, &made[i]);
}

/* Matrices whose planes are arranged (rows of 8, columns of 512), matrices that are read otherwise, and both
 * beside each other. */
static void check_small(decant_backend *backend)
{
    static const products_case cases[] = {
        {1024, {128, 64, 64}, {4, 4, 4}, {NO_SPARSE}},
        {1024, {192, 64, 64}, {3, 3, 3}, {SOME_SPARSE, SOME_SPARSE, SOME_SPARSE}},
        {1024, {128, 64, 64}, {4, 4, 3}, {SOME_SPARSE, NO_SPARSE, HEAVY_SPARSE}},
        {1536, {200, 40, 72}, {4, 4, 3}, {NO_SPARSE}},
        {1536, {200, 40, 40}, {2, 2, 2}, {HEAVY_SPARSE, NO_SPARSE, LONE_SPARSE}},
        {512, {328, 328}, {3, 3}, {NO_SPARSE}},
        {512, {328, 328}, {4, 4}, {NO_SPARSE, SOME_SPARSE}},
        {1024, {136, 61, 64}, {4, 4, 3}, {NO_SPARSE, SOME_SPARSE, SOME_SPARSE}},
        {1152, {150, 61, 64}, {4, 4, 4}, {SOME_SPARSE, SOME_SPARSE, SOME_SPARSE}},
        {1096, {50, 24, 19}, {4, 3, 2}, {NO_SPARSE, LONE_SPARSE, SOME_SPARSE}},
        {264, {64, 61, 37}, {5, 8, 4}, {SOME_SPARSE, NO_SPARSE, NO_SPARSE}},
        {95, {61, 17, 1}, {4, 4, 3}, {SOME_SPARSE, NO_SPARSE, SOME_SPARSE}},
        {512, {64, 8, 72, 40, 64}, {4, 4, 4, 3, 4}, {NO_SPARSE, SOME_SPARSE}},
        {512, {72}, {4}, {SOME_SPARSE}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_products(backend, &cases[i]);
}

static void packed_products_match(void **state)
{
    check_small(*state);
}

static void packed_products_match_whatever_the_way(void **state)
{
    (void)state;
    check_every_way(check_small);
}

/* So large together that a GPU takes its way for large matrices, which none of them is alone. */
static void packed_products_match_for_large_matrices(void **state)
{
    static const products_case cases[] = {
        {4096, {2048, 1024, 1024}, {4, 4, 4}, {NO_SPARSE}},
        {4096, {2056, 1032, 1016}, {4, 4, 3}, {SOME_SPARSE, NO_SPARSE, SOME_SPARSE}},
        {4096, {2088, 2088}, {3, 3}, {SOME_SPARSE, SOME_SPARSE}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_products(*state, &cases[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(packed_products_match),
        cmocka_unit_test(packed_products_match_whatever_the_way),
        cmocka_unit_test(packed_products_match_for_large_matrices),
    };
    cmocka_set_test_filter(getenv("DECANT_TEST_ONLY")); /* one test at a time, under tools that are slow */
    return cmocka_run_group_tests_name("packed products", tests, open_backend, close_backend);
}
