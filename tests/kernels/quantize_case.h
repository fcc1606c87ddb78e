/* A weight, its Fisher values and its sparse pattern, on the device and as plain arrays, for the conformance
 * tests of the quantize kernels. */
#ifndef DECANT_TESTS_QUANTIZE_CASE_H
#define DECANT_TESTS_QUANTIZE_CASE_H

#include "tests/kernels/kmeans_rows.h"

typedef struct quantize_case {
    decant_backend *backend;
    int64_t rows, columns, size;
    float *values; /* [rows, columns] exactly what the device holds */
    float *masses; /* Fisher values */
    bool *sparse;  /* [rows, columns] in the pattern */
    void *host;    /* the weight's bytes */
    decant_matrix weight;
    void *fisher;
    decant_sparse_pattern pattern; /* of device arrays */
} quantize_case;

static inline void *zeroed(size_t count, size_t size_bytes)
{
    void *memory = calloc(count + 1, size_bytes);
    assert_non_null(memory);
    return memory;
}

static inline void *on_device(decant_backend *backend, const void *host, size_t size_bytes)
{
    void *device;
    REQUIRE(backend->memory->allocate(backend, size_bytes, "a test's array", &device, err));
    if (host)
        REQUIRE(backend->memory->upload(backend, device, host, size_bytes, err));
    REQUIRE(backend->memory->synchronize(backend, err));
    return device;
}

/* free() it. */
static inline void *from_device(decant_backend *backend, const void *device, size_t size_bytes)
{
    void *host = zeroed(size_bytes, 1);
    REQUIRE(backend->memory->download(backend, host, device, size_bytes, err));
    return host;
}

/* Space for values and masses, which the caller fills; then place_case. */
static inline quantize_case empty_case(decant_backend *backend, int64_t rows, int64_t columns)
{
    quantize_case test = {.backend = backend, .rows = rows, .columns = columns, .size = rows * columns};
    size_t size = (size_t)test.size;
    test.values = zeroed(size, sizeof *test.values);
    test.masses = zeroed(size, sizeof *test.masses);
    test.sparse = zeroed(size, sizeof *test.sparse);
    test.host = zeroed(size, sizeof(float));
    return test;
}

/* Puts everything onto the device; values become what is left of them in this element type. */
static inline void place_case(quantize_case *test, decant_element element)
{
    for (int64_t i = 0; i < test->size; i++) {
        store_element(element, (double)test->values[i], test->host, i);
        test->values[i] = (float)load_element(element, test->host, i);
    }
    decant_matrix host = {test->host, element, test->rows, test->columns};
    decant_backend *backend = test->backend;
    REQUIRE(backend->weights->place(backend, host, DECANT_PLACE_EXACT, "a test's weight", &test->weight, err));
    test->fisher = on_device(backend, test->masses, (size_t)test->size * sizeof *test->masses);

    uint32_t *row_offsets = zeroed((size_t)test->rows + 1, sizeof *row_offsets);
    uint32_t *columns = zeroed((size_t)test->size, sizeof *columns), filled = 0;
    for (int64_t i = 0; i < test->size; i++) {
        if (test->sparse[i])
            columns[filled++] = (uint32_t)(i % test->columns);
        row_offsets[i / test->columns + 1] = filled;
    }
    test->pattern.count = filled;
    if (filled > 0) {
        size_t offset_bytes = ((size_t)test->rows + 1) * sizeof *row_offsets;
        test->pattern.row_offsets = on_device(backend, row_offsets, offset_bytes);
        test->pattern.columns = on_device(backend, columns, filled * sizeof *columns);
    }
    free(row_offsets);
    free(columns);
}

static inline quantize_case make_case(decant_backend *backend, row_kind kind, decant_element element,
                                      int64_t rows, int64_t columns)
{
    quantize_case test = empty_case(backend, rows, columns);
    for (int64_t row = 0; row < rows; row++)
        fill_row(kind, columns, (uint64_t)row + 77, test.values + row * columns, test.masses + row * columns);
    place_case(&test, element);
    return test;
}

static inline void drop_pattern(decant_backend *backend, decant_sparse_pattern *pattern)
{
    void *row_offsets = pattern->row_offsets, *columns = pattern->columns;
    backend->memory->release(backend, &row_offsets);
    backend->memory->release(backend, &columns);
}

static inline void drop_case(quantize_case *test)
{
    drop_pattern(test->backend, &test->pattern);
    if (test->weight.data)
        test->backend->weights->unplace(test->backend, &test->weight);
    test->backend->memory->release(test->backend, &test->fisher);
    free(test->values);
    free(test->masses);
    free(test->sparse);
    free(test->host);
}

#endif
