/* The validate table of a backend: products straight from packed weights of every width, and the comparison of
 * two models' logits. */
#include "tests/kernels/packed_case.h"

static void add_products(int64_t tokens, const packed_case *made, const double *x, double *y)
{
    int64_t rows = made->packed.rows, columns = made->packed.columns;
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t row = 0; row < rows; row++)
            for (int64_t i = 0; i < columns; i++)
                y[t * rows + row] += x[t * columns + i] * made->weights[row * columns + i];
}

static void check_packed(decant_backend *backend, int bits, sparse_form sparse, int64_t tokens, int64_t in,
                         int64_t out)
{
    uint64_t seed = 7;
    packed_case made = {.packed = {.rows = out, .columns = in, .bits = bits}, .weights = doubles(out * in)};
    pack(backend, &made, sparse, &seed);
    device_array x = activation_array(backend, tokens, in, 1, 1),
                 y = activation_array(backend, tokens, out, 1, 2);
    double *expected = doubles(tokens * out);
    add_products(tokens, &made, x.values, expected);
    REQUIRE(backend->validate->packed_linear(backend, x.matrix, &made.packed, false, y.matrix, err));
    expect_close(backend, y.matrix, expected, sparse ? "packed linear with a sparse part" : "packed linear");
    add_products(tokens, &made, x.values, expected);
    REQUIRE(backend->validate->packed_linear(backend, x.matrix, &made.packed, true, y.matrix, err));
    expect_close(backend, y.matrix, expected, "packed linear, accumulated");
    if (made.packed.sparse_entries && tokens == 1) { /* as if nobody had prepared it */
        backend->memory->release(backend, (void **)&made.packed.sparse_entries);
        memset(expected, 0, (size_t)(tokens * out) * sizeof *expected);
        add_products(tokens, &made, x.values, expected);
        REQUIRE(backend->validate->packed_linear(backend, x.matrix, &made.packed, false, y.matrix, err));
        expect_close(backend, y.matrix, expected, "packed linear, not prepared");
    }
    free(expected);
    drop(backend, &x);
    drop(backend, &y);
    drop_packed(backend, &made);
}

static void packed_linear_matches_at_every_width(void **state)
{
    for (int bits = DECANT_BITS_MINIMUM; bits <= DECANT_BITS_MAXIMUM; bits++) {
        check_packed(*state, bits, NO_SPARSE, 3, 33, 17);
        check_packed(*state, bits, SOME_SPARSE, 37, 95, 61);
        check_packed(*state, bits, SOME_SPARSE, 1, 1, 1);
    }
    for (int bits = DECANT_BITS_MINIMUM; bits <= 4; bits++) /* two lots of tokens */
        check_packed(*state, bits, bits % 2 ? SOME_SPARSE : NO_SPARSE, 24 + 10 * bits, 264, 37);
    check_packed(*state, 3, SOME_SPARSE, 5, 2051, 261); /* more than one tile of rows and block of columns */
}

/* Few tokens have kernels of their own for each width, by how many tokens there are, by whether planes are
 * arranged (rows of 8, columns of 512) or their rows multiples of sixteen bytes (columns of 128), and for
 * columns that only x can be read by (multiples of 8). */
static void packed_linear_matches_for_few_tokens(void **state)
{
    static const int64_t tokens[] = {1, 2, 3, 4, 5, 8, 11, 16, 17, 31, 32, 33};
    for (int bits = DECANT_BITS_MINIMUM; bits <= DECANT_BITS_MAXIMUM; bits++)
        for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++) {
            check_packed(*state, bits, NO_SPARSE, tokens[i], 1024, 40);
            check_packed(*state, bits, SOME_SPARSE, tokens[i], 1536, 24);
            check_packed(*state, bits, NO_SPARSE, tokens[i], 640, 37);
            check_packed(*state, bits, SOME_SPARSE, tokens[i], 1096, 50);
            check_packed(*state, bits, HEAVY_SPARSE, tokens[i], 136, 19);
        }
}

/* So many rows that a block of a GPU has several tiles, so many columns that it takes them in turns, and more
 * sparse entries than it takes at once. */
static void packed_linear_matches_for_large_matrices(void **state)
{
    for (int bits = DECANT_BITS_MINIMUM; bits <= 4; bits++)
        for (int64_t tokens = 1; tokens <= 4; tokens *= 2) {
            check_packed(*state, bits, HEAVY_SPARSE, tokens, 9216, 61);
            check_packed(*state, bits, HEAVY_SPARSE, tokens, 9216, 64);
            check_packed(*state, bits, SOME_SPARSE, tokens, 264, 9001);
            check_packed(*state, bits, SOME_SPARSE, tokens, 512, 9000);
        }
    for (int bits = DECANT_BITS_MINIMUM; bits <= 4; bits++) { /* as many rows in a block as there can be */
        check_packed(*state, bits, SOME_SPARSE, 1, 136, 40001);
        check_packed(*state, bits, SOME_SPARSE, 1, 512, 40000);
    }
    for (int bits = DECANT_BITS_MINIMUM; bits <= 6; bits++) /* far more entries in one block than in others */
        check_packed(*state, bits, LONE_SPARSE, 1 + bits % 2, 4104, 1061);
    check_packed(*state, 4, SOME_SPARSE, 16, 4224, 261);
    check_packed(*state, 4, SOME_SPARSE, 16, 4608, 264);
    for (int64_t tokens = 7; tokens <= 28; tokens *= 2) { /* blocks of many rows, and of many runs of one row */
        check_packed(*state, 3, SOME_SPARSE, tokens, 72, 5003);
        check_packed(*state, 3, SOME_SPARSE, tokens, 512, 5000);
        check_packed(*state, 4, LONE_SPARSE, tokens, 4104, 523);
        check_packed(*state, 4, LONE_SPARSE, tokens, 4608, 520);
    }
    check_packed(*state, 3, SOME_SPARSE, 9, 2944, 4000); /* blocks that begin and end within a tile of rows */
    check_packed(*state, 4, NO_SPARSE, 32, 2944, 4000);
    check_packed(*state, 4, NO_SPARSE, 16, 5120, 2600); /* tiles that three blocks share */
    check_packed(*state, 2, NO_SPARSE, 32, 256, 9001);
}

static void check_small(decant_backend *backend)
{
    static const int64_t tokens[] = {2, 7, 13, 27};
    for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++)
        for (int bits = DECANT_BITS_MINIMUM; bits <= 4; bits++) {
            check_packed(backend, bits, NO_SPARSE, tokens[i], 640, 37);
            check_packed(backend, bits, HEAVY_SPARSE, tokens[i], 1152, 150);
        }
}

/* With and without a sparse part, of fewer and more tokens than the kernels' operands have. */
static void packed_linear_matches_whatever_the_way(void **state)
{
    (void)state;
    check_every_way(check_small);
}

/* Whatever prepare adds says the same as columns and values; a GPU wants it wherever columns fit half a word.
 */
static void prepared_entries_are_the_same(void **state)
{
    decant_backend *backend = *state;
    const int64_t shapes[][2] = {{37, 640}, {3, 65536}, {2, 65568}}; /* rows, columns */
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const int64_t rows = shapes[i][0], columns = shapes[i][1];
        uint64_t seed = 17;
        packed_case made = {.packed = {.rows = rows, .columns = columns, .bits = 2},
                            .weights = doubles(rows * columns)};
        pack_sparse(backend, &made, SOME_SPARSE, &seed);
        REQUIRE(backend->validate->prepare(backend, &made.packed, err));
        const decant_packed_matrix *packed = &made.packed;
        const size_t count = (size_t)packed->sparse.count;
        assert_true(count > 0);
        if (columns > 65536)
            assert_null(packed->sparse_entries);
        else if (strcmp(test_device(), "cpu") != 0)
            assert_non_null(packed->sparse_entries);
        if (packed->sparse_entries) {
            uint32_t *entries = calloc(count, 4), *own_columns = calloc(count, 4);
            uint16_t *values = calloc(count, 2);
            assert_true(entries && own_columns && values);
            REQUIRE(backend->memory->download(backend, entries, packed->sparse_entries, count * 4, err));
            REQUIRE(backend->memory->download(backend, own_columns, packed->sparse.columns, count * 4, err));
            REQUIRE(backend->memory->download(backend, values, packed->sparse_values, count * 2, err));
            for (size_t j = 0; j < count; j++)
                assert_int_equal(entries[j], own_columns[j] | (uint32_t)values[j] << 16);
            free(entries);
            free(own_columns);
            free(values);
        }
        drop_packed(backend, &made);
    }
}

/* The same call gives the same bits. */
static void packed_linear_repeats(void **state)
{
    decant_backend *backend = *state;
    for (int64_t tokens = 1; tokens <= 32; tokens *= 2) {
        uint64_t seed = 11;
        packed_case made = {.packed = {.rows = 520, .columns = 4608, .bits = 4},
                            .weights = doubles(520 * 4608)};
        pack(backend, &made, SOME_SPARSE, &seed);
        device_array x = activation_array(backend, tokens, 4608, 1, 1),
                     y = activation_array(backend, tokens, 520, 1, 2);
        void *bytes[2];
        for (int i = 0; i < 2; i++) {
            REQUIRE(backend->validate->packed_linear(backend, x.matrix, &made.packed, false, y.matrix, err));
            bytes[i] = download_bytes(backend, y.matrix);
        }
        assert_memory_equal(bytes[0], bytes[1], decant_matrix_bytes(y.matrix));
        free(bytes[0]);
        free(bytes[1]);
        drop(backend, &x);
        drop(backend, &y);
        drop_packed(backend, &made);
    }
}

/* Where levels are rounded to BF16, by 2⁻⁸ of themselves at most, a product is off by 1.3e-3 to 1.8e-3. Of so
 * few bits and tokens that happens only where lookups are asked for, which decode what they do not look up. */
static double precision(void)
{
    const char *way = getenv("DECANT_CUDA_PACKED");
    return way && strcmp(way, "lookups") == 0 ? 2e-3 : 1e-3;
}

/* What a product is off by, relative to the product, beside what storing it rounds away, whatever stands for
 * levels and x inside. dominating: how many times as large as the others one entry of each token is. */
static void check_precision(decant_backend *backend, int bits, int64_t tokens, int64_t columns,
                            double dominating)
{
    const int64_t rows = columns % 512 == 0 ? 152 : 150; /* 152: planes are arranged */
    uint64_t seed = 13;
    packed_case made = {.packed = {.rows = rows, .columns = columns, .bits = bits},
                        .weights = doubles(columns * rows)};
    pack(backend, &made, SOME_SPARSE, &seed);
    device_array x = activation_array(backend, tokens, columns, 1, 1),
                 y = activation_array(backend, tokens, rows, 1, 2);
    double *expected = doubles(tokens * rows);
    for (int64_t t = 0; t < tokens; t++) {
        const int64_t i = t * columns + (t * 389 + 17) % columns;
        store_element(backend->activation, x.values[i] * dominating, x.host, i);
        x.values[i] = load_element(backend->activation, x.host, i);
    }
    REQUIRE(backend->memory->upload(backend, x.matrix.data, x.host, decant_matrix_bytes(x.matrix), err));
    add_products(tokens, &made, x.values, expected);
    REQUIRE(backend->validate->packed_linear(backend, x.matrix, &made.packed, false, y.matrix, err));
    void *bytes = download_bytes(backend, y.matrix);
    double difference = 0, rounding = 0, norm = 0;
    for (int64_t i = 0; i < tokens * rows; i++) {
        const double actual = load_element(backend->activation, bytes, i);
        store_element(backend->activation, expected[i], bytes, i);
        const double rounded = load_element(backend->activation, bytes, i);
        difference += (actual - expected[i]) * (actual - expected[i]);
        rounding += (rounded - expected[i]) * (rounded - expected[i]);
        norm += expected[i] * expected[i];
    }
    if (!(difference <= rounding + precision() * precision() * norm))
        fail_msg("%d bits, %d tokens, an entry %g times as large: off by %.2e, rounding alone by %.2e", bits,
                 (int)tokens, dominating, sqrt(difference / norm), sqrt(rounding / norm));
    free(bytes);
    free(expected);
    drop(backend, &x);
    drop(backend, &y);
    drop_packed(backend, &made);
}

static void packed_linear_is_precise(void **state)
{
    static const int64_t tokens[] = {1, 2, 4, 8, 13, 16, 27, 32};
    for (int bits = DECANT_BITS_MINIMUM; bits <= 4; bits++)
        for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++)
            for (int64_t columns = 1536; columns <= 1544; columns += 8) {
                check_precision(*state, bits, tokens[i], columns, 1);
                check_precision(*state, bits, tokens[i], columns, 30);
                check_precision(*state, bits, tokens[i], columns, 1000);
            }
}

/* The scale of entry i of x, [tokens, columns]. */
typedef double (*scale_of)(int64_t i, int64_t columns);

static double scale_of_token(int64_t i, int64_t columns)
{
    static const double scales[] = {0, 1e-20, 1, 1e20};
    return scales[i / columns % 4];
}

/* Neighbouring columns differ, and those far apart differ otherwise. Each token has other columns that its
 * product is made of: only of these would an error be seen. */
static double scale_of_column(int64_t i, int64_t columns)
{
    static const double scales[] = {1e-12, 1, 0, 1e-6, 1e4};
    const int64_t token = i / columns, column = i % columns;
    return scales[(column / 96 + column / 1024 + token) % 5] * (column < 2048 ? 1 : token % 2 ? 1e-3 : 1e3);
}

static void check_scales(decant_backend *backend, int bits, int64_t tokens, int64_t columns, int64_t rows,
                         scale_of scale)
{
    uint64_t seed = 5;
    packed_case made = {.packed = {.rows = rows, .columns = columns, .bits = bits},
                        .weights = doubles(columns * rows)};
    pack(backend, &made, NO_SPARSE, &seed);
    device_array x = activation_array(backend, tokens, columns, 1, 1),
                 y = activation_array(backend, tokens, rows, 1, 2);
    double *expected = doubles(tokens * rows);
    for (int64_t i = 0; i < tokens * columns; i++) {
        store_element(backend->activation, x.values[i] * scale(i, columns), x.host, i);
        x.values[i] = load_element(backend->activation, x.host, i);
    }
    REQUIRE(backend->memory->upload(backend, x.matrix.data, x.host, decant_matrix_bytes(x.matrix), err));
    add_products(tokens, &made, x.values, expected);
    REQUIRE(backend->validate->packed_linear(backend, x.matrix, &made.packed, false, y.matrix, err));
    void *bytes = download_bytes(backend, y.matrix);
    for (int64_t t = 0; t < tokens; t++) {
        double largest = 0;
        for (int64_t row = 0; row < rows; row++)
            largest = fmax(largest, fabs(expected[t * rows + row]));
        for (int64_t row = 0; row < rows; row++) {
            double actual = load_element(backend->activation, bytes, t * rows + row);
            assert_true(fabs(actual - expected[t * rows + row]) <= tolerance(backend) * largest);
        }
    }
    free(bytes);
    free(expected);
    drop(backend, &x);
    drop(backend, &y);
    drop_packed(backend, &made);
}

/* A token of zeros, and one whose values lie far apart, do not disturb their neighbours. */
static void packed_linear_scales_each_token(void **state)
{
    for (int bits = DECANT_BITS_MINIMUM; bits <= 6; bits++) {
        check_scales(*state, bits, 4, 1024, 24, scale_of_token);
        check_scales(*state, bits, 8, 1024, 24, scale_of_token);
        check_scales(*state, bits, 20, 1024, 24, scale_of_token);
    }
}

/* Nor do columns whose values lie far apart, with so many rows that a block of a GPU takes several steps of
 * columns one after the other, in the last several units of them. Ways that scale x can fail here, of a GPU's
 * parities, pairs and tiles (DECANT_CUDA_PACKED). */
static void packed_linear_follows_scales_of_columns(void **state)
{
    for (int bits = 2; bits <= 4; bits++) {
        check_scales(*state, bits, 3 + bits, 1160, 37, scale_of_column);
        check_scales(*state, bits, 13, 1160, 37, scale_of_column);
    }
    check_scales(*state, 4, 8, 4096, 2200, scale_of_column);
    check_scales(*state, 4, 16, 4096, 2200, scale_of_column);
    check_scales(*state, 3, 18, 4096, 2200, scale_of_column);
    check_scales(*state, 2, 5, 1544, 17000, scale_of_column);
}

/* ---- comparison ---- */

/* log p of every token, from one row of logits. */
static void log_softmax(const double *logits, int64_t vocabulary, double *log_p)
{
    double largest = logits[0], sum = 0;
    for (int64_t i = 1; i < vocabulary; i++)
        largest = fmax(largest, logits[i]);
    for (int64_t i = 0; i < vocabulary; i++)
        sum += exp(logits[i] - largest);
    for (int64_t i = 0; i < vocabulary; i++)
        log_p[i] = logits[i] - largest - log(sum);
}

static int64_t top(const double *logits, int64_t vocabulary)
{
    int64_t best = 0;
    for (int64_t i = 1; i < vocabulary; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

static decant_comparison reference_comparison(const double *original, const double *quantized,
                                              const int32_t *tokens, int64_t length, int64_t vocabulary)
{
    decant_comparison result = {.targets = length - 1};
    double *log_p = doubles(vocabulary), *log_q = doubles(vocabulary);
    for (int64_t t = 0; t < length - 1; t++) {
        log_softmax(original + t * vocabulary, vocabulary, log_p);
        log_softmax(quantized + t * vocabulary, vocabulary, log_q);
        result.loss_original -= log_p[tokens[t + 1]];
        result.loss_quantized -= log_q[tokens[t + 1]];
        for (int64_t i = 0; i < vocabulary; i++)
            result.divergence += exp(log_p[i]) * (log_p[i] - log_q[i]);
        result.same_top +=
            top(original + t * vocabulary, vocabulary) == top(quantized + t * vocabulary, vocabulary);
    }
    free(log_p);
    free(log_q);
    return result;
}

/* Logits of which every second row differs little, and whose rows often have their largest value twice. */
static void check_comparison(decant_backend *backend, int64_t length, int64_t vocabulary)
{
    device_array a = activation_array(backend, length, vocabulary, 4, 1);
    device_array b = activation_array(backend, length, vocabulary, 4, 2);
    int32_t *tokens = calloc((size_t)length, sizeof *tokens);
    assert_non_null(tokens);
    for (int64_t t = 0; t < length; t++) {
        tokens[t] = (int32_t)(t * 7 % vocabulary);
        for (int64_t i = 0; i < vocabulary && t % 2 == 0; i++)
            b.values[t * vocabulary + i] = a.values[t * vocabulary + i] * 1.0625;
        a.values[t * vocabulary + t % vocabulary] = a.values[t * vocabulary + vocabulary / 2] = 5;
        b.values[t * vocabulary + t * 3 % vocabulary] = b.values[t * vocabulary + vocabulary / 2] = 5;
    }
    a.values[vocabulary - 2] = b.values[vocabulary - 1] =
        6; /* tops that differ, at the very end of the first row */
    device_array *both[] = {&a, &b};
    for (int which = 0; which < 2; which++) {
        for (int64_t i = 0; i < length * vocabulary; i++) {
            store_element(backend->activation, both[which]->values[i], both[which]->host, i);
            both[which]->values[i] = load_element(backend->activation, both[which]->host, i);
        }
        REQUIRE(backend->memory->upload(backend, both[which]->matrix.data, both[which]->host,
                                        decant_matrix_bytes(both[which]->matrix), err));
    }
    decant_comparison expected = reference_comparison(a.values, b.values, tokens, length, vocabulary), actual;
    REQUIRE(backend->validate->compare(backend, a.matrix, b.matrix, tokens, &actual, err));
    expect_number_close(backend, actual.loss_original, expected.loss_original, "loss of the original");
    expect_number_close(backend, actual.loss_quantized, expected.loss_quantized, "loss of the quantized model");
    /* A small divergence is the difference of larger numbers, which floats carry to about 1e-7 a target. */
    double divergence_scale = expected.divergence + 1e-2 * (double)expected.targets;
    assert_true(fabs(actual.divergence - expected.divergence) <= tolerance(backend) * divergence_scale);
    assert_int_equal(actual.same_top, expected.same_top);
    assert_int_equal(actual.targets, expected.targets);
    REQUIRE(backend->validate->compare(backend, a.matrix, a.matrix, tokens, &actual, err));
    assert_true(fabs(actual.divergence) < 1e-9);
    assert_int_equal(actual.same_top, length - 1);
    free(tokens);
    drop(backend, &a);
    drop(backend, &b);
}

static void comparison_matches(void **state)
{
    check_comparison(*state, 2, 5);
    check_comparison(*state, 37, 113);
    check_comparison(*state, 9, 3001);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(packed_linear_matches_at_every_width),
        cmocka_unit_test(packed_linear_matches_for_few_tokens),
        cmocka_unit_test(packed_linear_matches_for_large_matrices),
        cmocka_unit_test(packed_linear_matches_whatever_the_way),
        cmocka_unit_test(prepared_entries_are_the_same),
        cmocka_unit_test(packed_linear_repeats),
        cmocka_unit_test(packed_linear_is_precise),
        cmocka_unit_test(packed_linear_scales_each_token),
        cmocka_unit_test(packed_linear_follows_scales_of_columns),
        cmocka_unit_test(comparison_matches),
    };
    cmocka_set_test_filter(getenv("DECANT_TEST_ONLY")); /* one test at a time, under tools that are slow */
    return cmocka_run_group_tests_name("validate kernels", tests, open_backend, close_backend);
}
