/* Packed matrices for the conformance tests of products: made by the book (docs of kernels/backend.h), beside
 * the weights that they stand for. */
#ifndef DECANT_TESTS_PACKED_CASE_H
#define DECANT_TESTS_PACKED_CASE_H

#include "tests/kernels/device_arrays.h"

typedef struct packed_case {
    decant_packed_matrix packed;
    double *weights; /* [rows, columns] */
} packed_case;

static inline void *to_device(decant_backend *backend, const void *host, size_t size_bytes)
{
    void *device = NULL;
    REQUIRE(backend->memory->allocate(backend, size_bytes, "packed weights", &device, err));
    REQUIRE(backend->memory->upload(backend, device, host, size_bytes, err));
    REQUIRE(backend->memory->synchronize(backend, err));
    return device;
}

static inline void pack_codes(decant_backend *backend, packed_case *made, uint64_t *seed)
{
    decant_packed_matrix *packed = &made->packed;
    int64_t words = (packed->columns + 31) / 32, levels = (int64_t)1 << packed->bits;
    size_t planes_bytes = (size_t)(packed->rows * packed->bits * words) * sizeof(uint32_t);
    size_t levels_bytes = (size_t)(packed->rows * levels) * sizeof(uint16_t);
    uint32_t *planes = calloc(1, planes_bytes);
    uint16_t *table = calloc(1, levels_bytes);
    assert_true(planes && table);
    for (int64_t row = 0; row < packed->rows; row++) {
        for (int64_t i = 0; i < levels; i++) /* ascending */
            table[row * levels + i] = decant_f32_to_f16(
                (float)(2.0 * (double)(i + 1) / (double)levels - 1 + random_value(seed) / 2 / (double)levels));
        for (int64_t column = 0; column < packed->columns; column++) {
            int64_t code = (int64_t)((random_value(seed) + 1) / 2 * (double)levels);
            made->weights[row * packed->columns + column] = decant_f16_to_f32(table[row * levels + code]);
            for (int bit = 0; bit < packed->bits; bit++)
                planes[(row * packed->bits + bit) * words + column / 32] |= (uint32_t)(code >> bit & 1)
                                                                            << column % 32;
        }
    }
    packed->planes = to_device(backend, planes, planes_bytes);
    packed->levels = to_device(backend, table, levels_bytes);
    free(planes);
    free(table);
}

/* Where the sparse entries are. */
typedef enum sparse_form {
    NO_SPARSE,
    SOME_SPARSE,  /* about one entry in sixteen; some rows stay empty, and first and last columns occur */
    HEAVY_SPARSE, /* the same, and every seventh row has an entry in every column */
    LONE_SPARSE,  /* the fourth row has an entry in every column, no other has any */
} sparse_form;

static inline void pack_sparse(decant_backend *backend, packed_case *made, sparse_form form, uint64_t *seed)
{
    decant_packed_matrix *packed = &made->packed;
    size_t most = (size_t)(packed->rows * packed->columns);
    uint32_t *offsets = calloc((size_t)packed->rows + 1, sizeof *offsets),
             *columns = calloc(most, sizeof *columns);
    uint16_t *values = calloc(most, sizeof *values);
    assert_true(offsets && columns && values);
    uint32_t count = 0;
    for (int64_t row = 0; row < packed->rows; row++) {
        for (int64_t column = 0; column < packed->columns && row % 5 != 1; column++) {
            if (form == LONE_SPARSE && row != 3)
                break;
            bool edge = row % 3 == 0 && (column == 0 || column == packed->columns - 1);
            bool heavy = form == LONE_SPARSE || (form == HEAVY_SPARSE && row % 7 == 3);
            if (!edge && !heavy && random_value(seed) < 0.875)
                continue;
            values[count] = decant_f32_to_f16((float)(3 * random_value(seed)));
            made->weights[row * packed->columns + column] += decant_f16_to_f32(values[count]);
            columns[count++] = (uint32_t)column;
        }
        offsets[row + 1] = count;
    }
    packed->sparse.count = count;
    packed->sparse.row_offsets = to_device(backend, offsets, ((size_t)packed->rows + 1) * sizeof *offsets);
    packed->sparse.columns = to_device(backend, columns, count * sizeof *columns);
    packed->sparse_values = to_device(backend, values, count * sizeof *values);
    free(offsets);
    free(columns);
    free(values);
}

/* A matrix of made->packed's rows, columns and bits as products take it. */
static inline void pack(decant_backend *backend, packed_case *made, sparse_form form, uint64_t *seed)
{
    pack_codes(backend, made, seed);
    if (form != NO_SPARSE)
        pack_sparse(backend, made, form, seed);
    REQUIRE(backend->validate->prepare(backend, &made->packed, err));
}

static inline void drop_packed(decant_backend *backend, packed_case *made)
{
    decant_packed_matrix *packed = &made->packed;
    void *arrays[] = {packed->planes,         packed->levels,        packed->sparse.row_offsets,
                      packed->sparse.columns, packed->sparse_values, packed->sparse_entries};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        backend->memory->release(backend, &arrays[i]);
    free(made->weights);
}

/* A GPU takes some ways for matrices alone that are too large for a test, here by asking for them: checks a
 * backend that takes one of them whatever the shape, then one that takes the next. */
static inline void check_every_way(void (*check)(decant_backend *backend))
{
    static const char *const ways[] = {"parities", "lookups", "tiles", "pairs", "pairs_before"};
    const char *const variable = "DECANT_CUDA_PACKED", *const given = getenv(variable);
    char *const before = given ? strdup(given) : NULL;
    for (size_t way = 0; way < sizeof ways / sizeof *ways; way++) {
        decant_backend *backend;
        assert_int_equal(setenv(variable, ways[way], 1), 0);
        REQUIRE(open_backend_named(test_device(), 2, &backend, err));
        check(backend);
        decant_backend_destroy(&backend);
    }
    assert_int_equal(before ? setenv(variable, before, 1) : unsetenv(variable), 0);
    free(before);
}

#endif
