/* The steps table of a backend against plain loops in double: products of one token with several weights at
 * once, normed, gated and added, whatever form the weights have; attention that rotates and keeps; the row of a
 * table and the most likely token. */
#include "tests/kernels/device_arrays.h"

enum { MATRICES = 3, WEIGHT_BITS = 16 /* "bits" of a weight that is not packed */ };

/* ---- products ---- */

typedef struct step_weight {
    decant_step_product product;
    device_array weight; /* as it is placed; values: what it stands for */
    device_array y;
    void *planes, *levels, *row_offsets, *sparse_columns, *sparse_values, *sparse_entries;
} step_weight;

static void *to_device(decant_backend *backend, const void *host, size_t size_bytes)
{
    void *device = NULL;
    REQUIRE(backend->memory->allocate(backend, size_bytes, "packed weights", &device, err));
    REQUIRE(backend->memory->upload(backend, device, host, size_bytes, err));
    REQUIRE(backend->memory->synchronize(backend, err));
    return device;
}

/* Random codes and levels; values become what they stand for. */
static void pack(decant_backend *backend, int bits, int64_t rows, int64_t columns, step_weight *made,
                 decant_packed_matrix *packed, uint64_t seed)
{
    int64_t words = (columns + 31) / 32, levels = (int64_t)1 << bits;
    uint32_t *planes = calloc((size_t)(rows * bits * words), sizeof *planes);
    uint16_t *table = calloc((size_t)(rows * levels), sizeof *table);
    assert_true(planes && table);
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t i = 0; i < levels; i++)
            table[row * levels + i] = decant_f32_to_f16(
                (float)((2.0 * (double)(i + 1) / (double)levels - 1 + random_value(&seed) / 8)));
        for (int64_t column = 0; column < columns; column++) {
            int64_t code = (int64_t)((random_value(&seed) + 1) / 2 * (double)levels);
            made->weight.values[row * columns + column] = decant_f16_to_f32(table[row * levels + code]);
            for (int bit = 0; bit < bits; bit++)
                planes[(row * bits + bit) * words + column / 32] |= (uint32_t)(code >> bit & 1) << column % 32;
        }
    }
    made->planes = to_device(backend, planes, (size_t)(rows * bits * words) * sizeof *planes);
    made->levels = to_device(backend, table, (size_t)(rows * levels) * sizeof *table);
    *packed = (decant_packed_matrix){
        .rows = rows, .columns = columns, .bits = bits, .planes = made->planes, .levels = made->levels};
    made->product.packed = packed;
    free(planes);
    free(table);
}

/* Adds a sparse part: about one entry in a hundred, none in some rows, and full rows if they are to be so many
 * that no room holds them all at once. */
static void add_sparse(decant_backend *backend, bool full_rows, step_weight *made, decant_packed_matrix *packed,
                       uint64_t seed)
{
    uint32_t *offsets = calloc((size_t)packed->rows + 1, sizeof *offsets);
    uint32_t *columns = calloc((size_t)(packed->rows * packed->columns), sizeof *columns);
    uint16_t *values = calloc((size_t)(packed->rows * packed->columns), sizeof *values);
    uint32_t count = 0;
    assert_true(offsets && columns && values);
    for (int64_t row = 0; row < packed->rows; row++) {
        for (int64_t column = 0; column < packed->columns && row % 5 != 1; column++) {
            bool edge = row % 3 == 0 && (column == 0 || column == packed->columns - 1);
            if (!edge && !(full_rows && row % 7 == 3) && random_value(&seed) < 0.98)
                continue;
            columns[count] = (uint32_t)column;
            values[count] = decant_f32_to_f16((float)(3 * random_value(&seed)));
            made->weight.values[row * packed->columns + column] += decant_f16_to_f32(values[count++]);
        }
        offsets[row + 1] = count;
    }
    made->row_offsets = to_device(backend, offsets, ((size_t)packed->rows + 1) * sizeof *offsets);
    made->sparse_columns = to_device(backend, columns, count * sizeof *columns);
    made->sparse_values = to_device(backend, values, count * sizeof *values);
    packed->sparse = (decant_sparse_pattern){count, made->row_offsets, made->sparse_columns};
    packed->sparse_values = made->sparse_values;
    free(offsets);
    free(columns);
    free(values);
}

typedef enum sparse_form {
    NO_SPARSE,
    SOME_SPARSE,
    FULL_ROWS,
    FIRST_ALONE /* the other matrices have none */
} sparse_form;

static void make_weight(decant_backend *backend, int bits, sparse_form sparse, int64_t rows, int64_t columns,
                        bool float_y, step_weight *made, decant_packed_matrix *packed, uint64_t seed)
{
    *made = (step_weight){.y = float_y ? float_array(backend, 1, rows, 1, seed + 1)
                                       : activation_array(backend, 1, rows, 1, seed + 1)};
    made->weight = weight_array(backend, DECANT_PLACE_COMPUTE, DECANT_BF16, rows, columns, 1, seed + 2);
    made->product = (decant_step_product){.weight = made->weight.matrix, .y = made->y.matrix};
    if (bits < WEIGHT_BITS)
        pack(backend, bits, rows, columns, made, packed, seed + 3);
    if (sparse != NO_SPARSE)
        add_sparse(backend, sparse == FULL_ROWS, made, packed, seed + 4);
    if (bits == WEIGHT_BITS)
        return;
    REQUIRE(backend->validate->prepare(backend, packed, err));
    made->planes = packed->planes; /* maybe another array now */
    made->sparse_entries = packed->sparse_entries;
}

static void drop_weight(decant_backend *backend, step_weight *made)
{
    drop(backend, &made->weight);
    drop(backend, &made->y);
    void *arrays[] = {made->planes,         made->levels,        made->row_offsets,
                      made->sparse_columns, made->sparse_values, made->sparse_entries};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        backend->memory->release(backend, &arrays[i]);
}

typedef struct product_case {
    int bits[MATRICES];
    int64_t rows[MATRICES]; /* 0: no such matrix */
    int64_t columns;
    bool norm, accumulate, gated, float_y;
    sparse_form sparse;
} product_case;

/* What is multiplied: x, or its norm. */
static double *effective_x(const product_case *which, const device_array *x, const device_array *scale)
{
    const double epsilon = 1e-5;
    double *values = doubles(which->columns), square = 0;
    for (int64_t i = 0; i < which->columns; i++)
        square += x->values[i] * x->values[i];
    double inverse = 1 / sqrt(square / (double)which->columns + epsilon);
    for (int64_t i = 0; i < which->columns; i++)
        values[i] = which->norm ? x->values[i] * inverse * scale->values[i] : x->values[i];
    return values;
}

static double *products_of(const product_case *which, const double *x, const step_weight *weight)
{
    int64_t rows = weight->y.matrix.columns;
    double *sums = doubles(rows);
    for (int64_t row = 0; row < rows; row++) {
        sums[row] = which->accumulate ? weight->y.values[row] : 0;
        for (int64_t i = 0; i < which->columns; i++)
            sums[row] += weight->weight.values[row * which->columns + i] * x[i];
    }
    return sums;
}

static void check_products(decant_backend *backend, product_case which)
{
    step_weight weights[MATRICES];
    decant_packed_matrix packed[MATRICES];
    decant_step_product products[MATRICES];
    int count = 0;
    device_array x = activation_array(backend, 1, which.columns, 1, 31),
                 normed = activation_array(backend, 1, which.columns, 1, 32),
                 inverse = float_array(backend, 1, 1, 1, 33);
    device_array scale = weight_array(backend, DECANT_PLACE_COMPUTE, DECANT_BF16, 1, which.columns, 1, 34);
    for (; count < MATRICES && which.rows[count] > 0; count++) {
        make_weight(backend, which.bits[count],
                    which.sparse == FIRST_ALONE && count > 0 ? NO_SPARSE : which.sparse, which.rows[count],
                    which.columns, which.float_y, &weights[count], &packed[count], 100 * (uint64_t)(count + 1));
        products[count] = weights[count].product;
    }
    decant_step_input input = {
        .x = x.matrix, .epsilon = 1e-5f, .normed = normed.matrix, .inverse_rms = inverse.matrix.data};
    if (which.norm)
        input.norm_weight = scale.matrix;
    if (which.gated)
        REQUIRE(backend->steps->gated_products(backend, &input, &products[0], &products[1], err));
    else
        REQUIRE(backend->steps->products(backend, &input, products, count, which.accumulate, err));

    double *values = effective_x(&which, &x, &scale);
    char what[160];
    snprintf(what, sizeof what, "%d matrices of %d bits, %lld columns, sparse %d%s%s%s", count, which.bits[0],
             (long long)which.columns, (int)which.sparse, which.norm ? ", normed" : "",
             which.gated ? ", gated" : "", which.accumulate ? ", added" : "");
    double *first = NULL;
    for (int i = 0; i < count; i++) {
        double *sums = products_of(&which, values, &weights[i]);
        if (!which.gated)
            expect_close(backend, weights[i].y.matrix, sums, what);
        else if (i == 1)
            for (int64_t row = 0; row < which.rows[0]; row++)
                first[row] = first[row] / (1 + exp(-first[row])) * sums[row];
        if (i == 0)
            first = sums;
        else
            free(sums);
    }
    if (which.gated)
        expect_close(backend, weights[0].y.matrix, first, what);
    free(first);
    free(values);
    for (int i = 0; i < count; i++)
        drop_weight(backend, &weights[i]);
    device_array *arrays[] = {&x, &normed, &inverse, &scale};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        drop(backend, arrays[i]);
}

/* Few rows leave blocks without work, many give every block several tiles of each; rows end within a tile and
 * columns within a unit; more than 8192 columns are more than a thread's one word. Planes are arranged where
 * rows are a multiple of 8 and columns of 256. */
static void products_go_together(void **state)
{
    static const int64_t columns[] = {128, 104, 576, 1024, 1280, 9088, 9472};
    static const int64_t rows[][MATRICES] = {{5, 0, 0},        {96, 32, 32}, {1100, 0, 0},    {700, 700, 0},
                                             {2128, 530, 530}, {1104, 0, 0}, {2128, 528, 528}};
    static const int widths[] = {WEIGHT_BITS, 4, 3, 2, 5};
    for (size_t width = 0; width < sizeof widths / sizeof *widths; width++)
        for (size_t shape = 0; shape < sizeof rows / sizeof *rows; shape++)
            for (size_t i = 0; i < sizeof columns / sizeof *columns; i++) {
                int bits = widths[width];
                if (columns[i] > 8192 && shape != 2 && shape != 5)
                    continue;
                product_case which = {{bits, bits, bits},
                                      {rows[shape][0], rows[shape][1], rows[shape][2]},
                                      columns[i],
                                      .norm = shape % 2 == 1 || i == 5,
                                      .accumulate = (shape + i) % 2 == 0};
                check_products(*state, which);
            }
}

static void gate_and_up_go_together(void **state)
{
    static const int widths[] = {WEIGHT_BITS, 4, 3, 2, 6};
    for (size_t width = 0; width < sizeof widths / sizeof *widths; width++)
        for (int64_t rows = 7; rows < 3000; rows = rows * 9 + 1) {
            int bits = widths[width];
            check_products(*state,
                           (product_case){{bits, bits}, {rows, rows}, 256, .norm = true, .gated = true});
            check_products(
                *state, (product_case){{bits, bits}, {rows / 8 * 8 + 8, rows / 8 * 8 + 8}, 768, .gated = true});
        }
}

/* More rows than a block has threads, and longer rows than they keep. */
static void many_rows_and_long_ones(void **state)
{
    for (int bits = 2; bits <= 4; bits++) {
        check_products(*state, (product_case){{bits}, {36000}, 128, .norm = true});
        check_products(*state, (product_case){{bits, bits}, {18001, 18001}, 72, .norm = true, .gated = true});
        check_products(*state, (product_case){{bits}, {41}, 13312, .norm = true});
        check_products(*state, (product_case){{bits}, {41}, 13304, .accumulate = true});
    }
}

static void sparse_parts_go_along(void **state)
{
    for (int bits = 2; bits <= 5; bits++)
        for (sparse_form sparse = SOME_SPARSE; sparse <= FIRST_ALONE; sparse++) {
            check_products(
                *state,
                (product_case){{bits, bits, bits}, {2128, 530, 530}, 1024, .norm = true, .sparse = sparse});
            check_products(
                *state,
                (product_case){{bits, bits, bits}, {2128, 528, 528}, 1280, .norm = true, .sparse = sparse});
            check_products(*state, (product_case){{bits}, {1100}, 9088, .accumulate = true, .sparse = sparse});
            check_products(*state, (product_case){{bits}, {1104}, 9472, .accumulate = true, .sparse = sparse});
            check_products(
                *state,
                (product_case){{bits, bits}, {703, 703}, 512, .norm = true, .gated = true, .sparse = sparse});
            check_products(
                *state,
                (product_case){{bits, bits}, {1000, 1000}, 768, .norm = true, .gated = true, .sparse = sparse});
            check_products(*state, (product_case){{bits}, {5}, 144, .sparse = sparse});
        }
}

static void products_that_do_not_go_together(void **state)
{
    check_products(*state, (product_case){{4, 3, WEIGHT_BITS}, {96, 32, 32}, 256, .norm = true});
    check_products(*state, (product_case){{4, 3}, {96, 96}, 256, .norm = true, .gated = true});
    check_products(*state, (product_case){{4, 4}, {9, 9}, 100, .norm = true, .gated = true});
    check_products(*state, (product_case){{WEIGHT_BITS}, {9}, 43, .norm = true, .accumulate = true});
}

static void logits_are_floats(void **state)
{
    check_products(*state, (product_case){{WEIGHT_BITS}, {1003}, 256, .norm = true, .float_y = true});
    check_products(*state, (product_case){{WEIGHT_BITS}, {6}, 33, .float_y = true});
}

/* ---- attention ---- */

static void rotate(double *head, const double *cosines, const double *sines, int64_t half)
{
    for (int64_t i = 0; i < half; i++) {
        double a = head[i], b = head[i + half];
        head[i] = a * cosines[i] - b * sines[i];
        head[i + half] = b * cosines[i] + a * sines[i];
    }
}

/* One head over the keys that it sees, of which the last is the token's own. */
static void attend(const double *q, const double *keys, const double *values, int64_t count, int64_t stride,
                   int64_t dimension, double *y)
{
    double sum = 0;
    for (int64_t i = 0; i < dimension; i++)
        y[i] = 0;
    for (int64_t key = 0; key < count; key++) {
        double dot = 0;
        for (int64_t i = 0; i < dimension; i++)
            dot += q[i] * keys[key * stride + i];
        double weight = exp(dot / sqrt((double)dimension));
        sum += weight;
        for (int64_t i = 0; i < dimension; i++)
            y[i] += weight * values[key * stride + i];
    }
    for (int64_t i = 0; i < dimension; i++)
        y[i] /= sum;
}

static void check_attention(decant_backend *backend, decant_attention_shape shape, int32_t position)
{
    const int64_t dimension = shape.head_dimension, half = dimension / 2, room = position + 3;
    const int64_t width = shape.key_value_heads * dimension, group = shape.heads / shape.key_value_heads;
    const int64_t first = shape.window > 0 && position + 1 > shape.window ? position + 1 - shape.window : 0;
    device_array q = activation_array(backend, 1, shape.heads * dimension, 2, 1),
                 k = activation_array(backend, 1, width, 2, 2), v = activation_array(backend, 1, width, 1, 3),
                 y = activation_array(backend, 1, shape.heads * dimension, 1, 4),
                 keys = activation_array(backend, room, width, 2, 5),
                 values = activation_array(backend, room, width, 1, 6),
                 cosines = float_array(backend, room, half, 1, 7),
                 sines = float_array(backend, room, half, 1, 8);
    void *device_position = to_device(backend, &position, sizeof position);
    REQUIRE(backend->steps->attention(backend, &shape, cosines.matrix.data, sines.matrix.data, q.matrix,
                                      k.matrix, v.matrix, keys.matrix, values.matrix, device_position, y.matrix,
                                      err));
    const double *own_cosines = cosines.values + position * half, *own_sines = sines.values + position * half;
    double *row = keys.values + position * width;
    memcpy(row, k.values, (size_t)width * sizeof *row);
    memcpy(values.values + position * width, v.values, (size_t)width * sizeof *row);
    for (int64_t head = 0; head < shape.key_value_heads; head++)
        rotate(row + head * dimension, own_cosines, own_sines, half);
    for (int64_t head = 0; head < shape.heads; head++) {
        rotate(q.values + head * dimension, own_cosines, own_sines, half);
        attend(q.values + head * dimension, keys.values + first * width + head / group * dimension,
               values.values + first * width + head / group * dimension, position + 1 - first, width, dimension,
               y.values + head * dimension);
    }
    char what[120];
    snprintf(what, sizeof what, "attention of %d heads of %lld behind %d tokens, window %lld", shape.heads,
             (long long)dimension, (int)position, (long long)shape.window);
    expect_close(backend, y.matrix, y.values, what);
    expect_close(backend, keys.matrix, keys.values, "kept keys");
    expect_close(backend, values.matrix, values.values, "kept values");
    backend->memory->release(backend, &device_position);
    device_array *arrays[] = {&q, &k, &v, &y, &keys, &values, &cosines, &sines};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        drop(backend, arrays[i]);
}

static void attention_rotates_and_keeps(void **state)
{
    static const decant_attention_shape shapes[] = {
        {.tokens = 1, .heads = 4, .key_value_heads = 4, .head_dimension = 128},
        {.tokens = 1, .heads = 6, .key_value_heads = 2, .head_dimension = 64},
        {.tokens = 1, .heads = 24, .key_value_heads = 3, .head_dimension = 64, .window = 70},
        {.tokens = 1, .heads = 24, .key_value_heads = 24, .head_dimension = 128, .window = 300},
        {.tokens = 1, .heads = 3, .key_value_heads = 1, .head_dimension = 24},
    };
    static const int32_t positions[] = {0, 1, 3, 63, 64, 65, 300, 701, 1500};
    for (size_t shape = 0; shape < sizeof shapes / sizeof *shapes; shape++)
        for (size_t i = 0; i < sizeof positions / sizeof *positions; i++)
            check_attention(*state, shapes[shape], positions[i]);
}

/* ---- the ends ---- */

static void rows_are_taken(void **state)
{
    enum { ROWS = 7, COLUMNS = 300, ROW = 5 };
    static const decant_element elements[] = {DECANT_F32, DECANT_F16, DECANT_BF16};
    decant_backend *backend = *state;
    const int32_t index = ROW;
    void *device_index = to_device(backend, &index, sizeof index);
    for (int i = 0; i < 3; i++)
        for (int accumulate = 0; accumulate < 2; accumulate++) {
            device_array table =
                weight_array(backend, DECANT_PLACE_COMPUTE, elements[i], ROWS, COLUMNS, 1, 21 + (uint64_t)i);
            device_array y = activation_array(backend, 1, COLUMNS, 1, 22);
            for (int j = 0; j < COLUMNS; j++)
                y.values[j] = (accumulate ? y.values[j] : 0) + table.values[ROW * COLUMNS + j];
            REQUIRE(backend->steps->take_row(backend, table.matrix, device_index, accumulate, y.matrix, err));
            expect_close(backend, y.matrix, y.values, "a row");
            drop(backend, &table);
            drop(backend, &y);
        }
    backend->memory->release(backend, &device_index);
}

/* `kept` is what the history gets. */
static void check_choice(decant_backend *backend, const float *logits, int count, int32_t expected,
                         int32_t kept)
{
    enum { POSITION = 2, ROOM = 4 };
    const int32_t before[ROOM + 2] = {77, POSITION, -1, -2, -3, -4};
    int32_t after[ROOM + 2];
    void *device_logits = to_device(backend, logits, (size_t)count * sizeof *logits);
    int32_t *places = to_device(backend, before, sizeof before);
    decant_matrix matrix = {device_logits, DECANT_F32, 1, count};
    REQUIRE(backend->steps->choose(backend, matrix, places, places + 1, places + 2, err));
    REQUIRE(backend->memory->download(backend, after, places, sizeof after, err));
    const int32_t right[ROOM + 2] = {expected, POSITION + 1, -1, -2, kept, -4};
    assert_memory_equal(after, right, sizeof after);
    void *memory = places;
    backend->memory->release(backend, &memory);
    backend->memory->release(backend, &device_logits);
}

static void the_lowest_of_the_largest_is_chosen(void **state)
{
    enum { COUNT = 5000 };
    static const int places[][2] = {{0, 4999}, {1023, 1024}, {4998, 4999}, {31, 32}, {2500, 2501}};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        for (int sign = -1; sign <= 1; sign += 2) {
            float logits[COUNT];
            uint64_t seed = i;
            for (int j = 0; j < COUNT; j++)
                logits[j] = (float)random_value(&seed) + 2.0f * (float)sign;
            logits[places[i][0]] = logits[places[i][1]] = 2.0f * (float)sign + 1.5f;
            check_choice(*state, logits, COUNT, places[i][0], places[i][0]);
        }
    const float zeros[] = {-1.0f, -0.0f, 0.0f, -3.0f};
    check_choice(*state, zeros, 4, 1, 1);
}

static void logits_that_are_no_numbers_are_told(void **state)
{
    enum { COUNT = 5000 };
    const float undefined[] = {NAN, -2.0f, NAN, -1.0f, NAN, -1.0f, -INFINITY};
    for (int count = 4; count <= 7; count++) /* whole vectors and what follows them */
        check_choice(*state, undefined, count, 3, -1);
    check_choice(*state, undefined, 3, 1, -1);
    check_choice(*state, undefined, 1, 0, -1);
    const float none[] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY, -INFINITY};
    check_choice(*state, none, 5, 0, -1);
    const float some[] = {-INFINITY, -1.0f, -INFINITY, 3.0e38f, -INFINITY};
    check_choice(*state, some, 5, 3, 3);
    static const int places[] = {0, 1023, 2501, 4999};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        float logits[COUNT] = {0};
        logits[places[i]] = NAN;
        check_choice(*state, logits, COUNT, places[i] == 0, -1);
        logits[places[i]] = INFINITY;
        check_choice(*state, logits, COUNT, places[i], -1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_go_together),
        cmocka_unit_test(gate_and_up_go_together),
        cmocka_unit_test(many_rows_and_long_ones),
        cmocka_unit_test(sparse_parts_go_along),
        cmocka_unit_test(products_that_do_not_go_together),
        cmocka_unit_test(logits_are_floats),
        cmocka_unit_test(attention_rotates_and_keeps),
        cmocka_unit_test(rows_are_taken),
        cmocka_unit_test(the_lowest_of_the_largest_is_chosen),
        cmocka_unit_test(logits_that_are_no_numbers_are_told),
    };
    cmocka_set_test_filter(getenv("DECANT_TEST_ONLY")); /* one test at a time, under tools that are slow */
    return cmocka_run_group_tests_name("steps", tests, open_backend, close_backend);
}
