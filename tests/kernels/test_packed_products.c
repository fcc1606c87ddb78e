/* Products of the same input with several packed matrices at once: what each matrix alone gives, whatever the
 * others are; and what the norm of x and the gated activation give in double. */
#include "tests/kernels/packed_case.h"

#include <math.h>

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
    const decant_packed_input input = {.x = x.matrix};
    REQUIRE(backend->validate->packed_products(backend, &input, products, count, false, err));
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
    REQUIRE(backend->validate->packed_products(backend, &input, products, count, false, err));
    for (int i = 0; i < count; i++) {
        void *second = download_bytes(backend, ys[i].matrix);
        assert_memory_equal(first[i], second, decant_matrix_bytes(ys[i].matrix));
        free(first[i]);
        free(second);
        drop(backend, &ys[i]);
    }
    drop(backend, &x);
}

/* ---- what is made of x ---- */

/* The arrays of an input, of which one thing or the other is made. */
typedef struct made_case {
    device_array x, up, norm_weight, made, inverse_rms;
    double *expected; /* [tokens, columns] */
} made_case;

/* Tokens of such different magnitudes, and columns within one, that neither a scale of the whole nor one of a
 * token fits them. */
static void spread(decant_backend *backend, device_array *array)
{
    const decant_matrix matrix = array->matrix;
    for (int64_t i = 0; i < element_count(matrix); i++) {
        const int64_t row = i / matrix.columns, column = i % matrix.columns;
        const double scale = ldexp(1, (int)(row % 5) * 3 - 6) * (column % 300 == 7 ? 40 : 1);
        store_element(matrix.element, array->values[i] * scale, array->host, i);
        array->values[i] = load_element(matrix.element, array->host, i);
    }
    REQUIRE(backend->memory->upload(backend, matrix.data, array->host, decant_matrix_bytes(matrix), err));
}

static made_case make_case(decant_backend *backend, int64_t tokens, int64_t columns)
{
    made_case made = {.x = activation_array(backend, tokens, columns, 1, 31),
                      .up = activation_array(backend, tokens, columns, 1, 32),
                      .norm_weight = weight_array(backend, DECANT_PLACE_COMPUTE, DECANT_F32, 1, columns, 1, 33),
                      .made = activation_array(backend, tokens, columns, 1e6, 34),
                      .inverse_rms = float_array(backend, tokens, 1, 1e6, 35),
                      .expected = doubles(tokens * columns)};
    spread(backend, &made.x);
    return made;
}

static void drop_case(decant_backend *backend, made_case *made)
{
    device_array *const arrays[] = {&made->x, &made->up, &made->norm_weight, &made->made, &made->inverse_rms};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        drop(backend, arrays[i]);
    free(made->expected);
}

/* The norm of x in double, and the input that stands for it. */
static decant_packed_input norm_of(made_case *made)
{
    const decant_matrix x = made->x.matrix;
    const double epsilon = 1e-5;
    for (int64_t token = 0; token < x.rows; token++) {
        const int64_t first = token * x.columns;
        double square = 0;
        for (int64_t column = 0; column < x.columns; column++)
            square += pow(made->x.values[first + column], 2);
        for (int64_t column = 0; column < x.columns; column++)
            made->expected[first + column] = made->x.values[first + column] * made->norm_weight.values[column] /
                                             sqrt(square / (double)x.columns + epsilon);
    }
    return (decant_packed_input){.x = x,
                                 .norm_weight = made->norm_weight.matrix,
                                 .epsilon = (float)epsilon,
                                 .inverse_rms = made->inverse_rms.matrix.data,
                                 .made = made->made.matrix};
}

/* The same of the gated activation. */
static decant_packed_input gate_of(made_case *made)
{
    const decant_matrix x = made->x.matrix;
    for (int64_t i = 0; i < element_count(x); i++) {
        const double gate = made->x.values[i];
        made->expected[i] = gate / (1 + exp(-gate)) * made->up.values[i];
    }
    return (decant_packed_input){.x = x, .up = made->up.matrix, .made = made->made.matrix};
}

/* x ŵᵀ of the expected x. */
static double *expected_product(const made_case *made, const packed_case *weights)
{
    const int64_t tokens = made->x.matrix.rows, rows = weights->packed.rows, columns = weights->packed.columns;
    double *sums = doubles(tokens * rows);
    for (int64_t token = 0; token < tokens; token++)
        for (int64_t row = 0; row < rows; row++)
            for (int64_t column = 0; column < columns; column++)
                sums[token * rows + row] +=
                    made->expected[token * columns + column] * weights->weights[row * columns + column];
    return sums;
}

/* Multiplies into ys of this content, which the caller owns, or adds to it. */
static void multiply(decant_backend *backend, const decant_packed_input *input, const packed_case *matrices,
                     int count, bool accumulate, device_array *ys)
{
    decant_packed_product products[MATRICES];
    for (int i = 0; i < count; i++) {
        ys[i] = activation_array(backend, input->x.rows, matrices[i].packed.rows, accumulate ? 1 : 1e6, 41);
        products[i] = (decant_packed_product){.packed = &matrices[i].packed, .y = ys[i].matrix};
    }
    REQUIRE(backend->validate->packed_products(backend, input, products, count, accumulate, err));
}

/* Products of the input, alone and added to what is there; the same bits again. */
static void check_input(decant_backend *backend, const made_case *made, const decant_packed_input *input,
                        const packed_case *matrices, int count)
{
    double *expected[MATRICES];
    for (int i = 0; i < count; i++)
        expected[i] = expected_product(made, &matrices[i]);
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        device_array first[MATRICES], second[MATRICES];
        multiply(backend, input, matrices, count, accumulate, first);
        multiply(backend, input, matrices, count, accumulate, second);
        for (int i = 0; i < count; i++) {
            const decant_matrix y = first[i].matrix;
            for (int64_t j = 0; accumulate && j < element_count(y); j++)
                expected[i][j] += first[i].values[j];
            expect_close(backend, y, expected[i], "a product of what is made of x");
            void *bytes = download_bytes(backend, y), *again = download_bytes(backend, second[i].matrix);
            assert_memory_equal(bytes, again, decant_matrix_bytes(y));
            free(bytes);
            free(again);
            drop(backend, &first[i]);
            drop(backend, &second[i]);
        }
    }
    for (int i = 0; i < count; i++)
        free(expected[i]);
}

static void check_made(decant_backend *backend, const packed_case *matrices, int count, int64_t tokens)
{
    made_case made = make_case(backend, tokens, matrices[0].packed.columns);
    const decant_packed_input norm = norm_of(&made);
    check_input(backend, &made, &norm, matrices, count);
    const decant_packed_input gate = gate_of(&made);
    check_input(backend, &made, &gate, matrices, count);
    drop_case(backend, &made);
}

static void check_products(decant_backend *backend, const products_case *which)
{
    static const int64_t tokens[] = {1, 2, 3, 16, 27, 40};
    const int count = matrices_of(which);
    packed_case made[MATRICES];
    uint64_t seed = 19;
    for (int i = 0; i < count; i++) {
        made[i] =
            (packed_case){.packed = {.rows = which->rows[i], .columns = which->columns, .bits = which->bits[i]},
                          .weights = doubles(which->rows[i] * which->columns)};
        pack(backend, &made[i], which->sparse[i], &seed);
    }
    for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++) {
        check_tokens(backend, made, count, tokens[i]);
        check_made(backend, made, count, tokens[i]);
    }
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
