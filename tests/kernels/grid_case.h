/* A weight, a grid and the packed matrix between them, on the device and as plain arrays, for the conformance
 * tests of the grid kernels; and what the packed form stands for, by its definition. */
#ifndef DECANT_TESTS_GRID_CASE_H
#define DECANT_TESTS_GRID_CASE_H

#include "kernels/counter_random.h"
#include "tests/kernels/device_arrays.h"

typedef enum weight_kind { WEIGHTS_GAUSSIAN, WEIGHTS_HEAVY_TAILED, WEIGHTS_WITH_ZERO_GROUPS } weight_kind;

typedef struct grid_case {
    decant_backend *backend;
    int64_t rows, columns, codes, words, groups;
    void *host;      /* the weight's bytes */
    double *weights; /* [rows, columns] exactly what the device holds */
    decant_matrix weight;
    float *points;
    decant_grid_matrix matrix; /* device arrays */
    uint32_t *planes;          /* what encode left, on the host */
    uint16_t *scales, *offsets;
} grid_case;

static inline double gaussian_value(uint64_t *seed)
{
    double open = (random_value(seed) + 1) / 2 + 1e-17, angle = random_value(seed);
    return sqrt(-2 * log(open)) * cos(3.14159265358979323846 * angle);
}

static inline double weight_value(weight_kind kind, int64_t row, int64_t column, uint64_t *seed)
{
    double value = 0.02 * gaussian_value(seed);
    if (kind == WEIGHTS_HEAVY_TAILED) /* Student's t with 3 degrees of freedom, about */
        value /= sqrt(
            (pow(gaussian_value(seed), 2) + pow(gaussian_value(seed), 2) + pow(gaussian_value(seed), 2)) / 3);
    if (kind == WEIGHTS_WITH_ZERO_GROUPS && (row + column / 64) % 3 == 0)
        value = 0;
    return value;
}

static inline void *device_bytes(decant_backend *backend, size_t size_bytes)
{
    void *device;
    REQUIRE(backend->memory->allocate(backend, size_bytes, "a test's array", &device, err));
    return device;
}

/* form.points is copied. */
static inline grid_case make_grid_case(decant_backend *backend, weight_kind kind, decant_element element,
                                       int64_t rows, int64_t columns, decant_grid_form form)
{
    const int p = form.dimension;
    grid_case test = {.backend = backend, .rows = rows, .columns = columns};
    test.codes = (columns + p - 1) / p;
    test.words = (test.codes + 31) / 32;
    test.groups = (columns + form.group - 1) / form.group;
    const size_t count = (size_t)(rows * columns), point_bytes = ((size_t)p << form.code_bits) * sizeof(float);
    test.host = calloc(count, sizeof(float));
    test.weights = doubles((int64_t)count);
    test.points = malloc(point_bytes);
    assert_true(test.host && test.points);
    memcpy(test.points, form.points, point_bytes);
    uint64_t seed = 11;
    for (size_t i = 0; i < count; i++) {
        const int64_t row = (int64_t)i / columns, column = (int64_t)i % columns;
        store_element(element, weight_value(kind, row, column, &seed), test.host, (int64_t)i);
        test.weights[i] = load_element(element, test.host, (int64_t)i);
    }
    decant_matrix host = {test.host, element, rows, columns};
    REQUIRE(backend->weights->place(backend, host, DECANT_PLACE_EXACT, "a test's weight", &test.weight, err));
    form.points = test.points;
    test.matrix = (decant_grid_matrix){.rows = rows, .columns = columns, .form = form};
    test.matrix.planes = device_bytes(backend, (size_t)(rows * form.code_bits * test.words) * 4);
    test.matrix.scales = device_bytes(backend, (size_t)(rows * test.groups) * 2);
    if (form.has_offsets)
        test.matrix.offsets = device_bytes(backend, (size_t)(rows * test.groups) * 2);
    return test;
}

static inline void *fetch(decant_backend *backend, const void *device, size_t size_bytes)
{
    void *host = calloc(size_bytes + 1, 1);
    assert_non_null(host);
    REQUIRE(backend->memory->download(backend, host, device, size_bytes, err));
    return host;
}

/* Brings what encode left to the host. */
static inline void fetch_packed(grid_case *test)
{
    const decant_grid_matrix *matrix = &test->matrix;
    free(test->planes);
    free(test->scales);
    free(test->offsets);
    test->planes = fetch(test->backend, matrix->planes,
                         (size_t)(test->rows * matrix->form.code_bits * test->words) * sizeof(uint32_t));
    test->scales = fetch(test->backend, matrix->scales, (size_t)(test->rows * test->groups) * 2);
    test->offsets =
        matrix->offsets ? fetch(test->backend, matrix->offsets, (size_t)(test->rows * test->groups) * 2) : NULL;
}

static inline int64_t code_at(const grid_case *test, int64_t row, int64_t j)
{
    const int bits = test->matrix.form.code_bits;
    int64_t code = 0;
    for (int b = 0; b < bits; b++)
        code |= (int64_t)(test->planes[(row * bits + b) * test->words + j / 32] >> j % 32 & 1) << b;
    return code;
}

static inline double scale_at(const grid_case *test, int64_t row, int64_t group)
{
    return decant_f16_to_f32(test->scales[row * test->groups + group]);
}

static inline double offset_at(const grid_case *test, int64_t row, int64_t group)
{
    return test->offsets ? decant_f16_to_f32(test->offsets[row * test->groups + group]) : 0;
}

/* The group whose scale a column is under: that of the first column of its tuple. */
static inline int64_t group_of(const grid_case *test, int64_t column)
{
    const int p = test->matrix.form.dimension;
    return column / p * p / test->matrix.form.group;
}

/* y = H diag(signs) x, or its transpose, by the definition of the Hadamard matrix: entry (i, j) of a piece of n
 * columns is (−1)^(bits that i and j share) / √n. */
static inline void rotate_by_definition(const decant_grid_form *form, int64_t columns, bool back,
                                        const double *x, double *y)
{
    const int64_t n = form->rotation;
    for (int64_t first = 0; first < columns; first += n)
        for (int64_t i = 0; i < n; i++) {
            double sum = 0;
            for (int64_t j = 0; j < n; j++) {
                const int64_t signed_column = first + (back ? i : j);
                const bool negative = n > 1 && decant_random_sign(form->seed, signed_column);
                const double entry = __builtin_popcountll((unsigned long long)(i & j)) % 2 ? -1 : 1;
                sum += (negative ? -entry : entry) / sqrt((double)n) * x[first + j];
            }
            y[first + i] = sum;
        }
}

/* What a row stands for, before it is rotated back. */
static inline void stands_for(const grid_case *test, int64_t row, double *values)
{
    const int p = test->matrix.form.dimension;
    for (int64_t j = 0; j < test->columns; j++) {
        const int64_t group = group_of(test, j);
        values[j] = scale_at(test, row, group) * test->points[code_at(test, row, j / p) * p + j % p] +
                    offset_at(test, row, group);
    }
}

/* The whole matrix by definition, rotated back; free() it. */
static inline double *decode_by_definition(const grid_case *test)
{
    double *decoded = doubles(test->rows * test->columns), *row_values = doubles(test->columns);
    for (int64_t row = 0; row < test->rows; row++) {
        stands_for(test, row, row_values);
        rotate_by_definition(&test->matrix.form, test->columns, true, row_values,
                             decoded + row * test->columns);
    }
    free(row_values);
    return decoded;
}

static inline void drop_grid_case(grid_case *test)
{
    decant_backend *backend = test->backend;
    void *arrays[] = {test->matrix.planes, test->matrix.scales, test->matrix.offsets};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        backend->memory->release(backend, &arrays[i]);
    backend->weights->unplace(backend, &test->weight);
    free(test->host);
    free(test->weights);
    free(test->points);
    free(test->planes);
    free(test->scales);
    free(test->offsets);
}

/* A grid of random normal points; free() it. */
static inline float *random_points(int dimension, int code_bits, uint64_t seed)
{
    const size_t count = (size_t)dimension << code_bits;
    float *points = malloc(count * sizeof *points);
    assert_non_null(points);
    for (size_t i = 0; i < count; i++)
        points[i] = (float)(1.2 * gaussian_value(&seed));
    return points;
}

/* What a test goes through a list of: a grid, and the matrix that is put onto it. */
typedef struct grid_shape {
    int dimension, code_bits;
    int64_t rows, columns, group, rotation;
} grid_shape;

/* The grid of a shape with random points, others for each place in the list. */
static inline decant_grid_form random_grid(const grid_shape *shape, size_t place)
{
    return (decant_grid_form){.dimension = shape->dimension,
                              .code_bits = shape->code_bits,
                              .points = random_points(shape->dimension, shape->code_bits, 5 + place),
                              .group = shape->group,
                              .rotation = shape->rotation,
                              .seed = 1000 + place};
}

static inline void drop_random_grid(decant_grid_form *form)
{
    free((float *)(uintptr_t)form->points);
    form->points = NULL;
}

/* Groups of 64 with a scale and an offset, as rtn has them; borrows `points`, which become 0, 1, 2 … */
static inline decant_grid_form even_grid(int bits, float points[256])
{
    for (int i = 0; i < 256; i++)
        points[i] = (float)i;
    return (decant_grid_form){
        .dimension = 1, .code_bits = bits, .points = points, .group = 64, .has_offsets = true, .rotation = 1};
}

#endif
