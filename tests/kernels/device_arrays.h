/* Arrays for the kernels' conformance tests: random values on the device beside the same values as doubles, and
 * comparison of what the device computed with what plain loops in double say.
 *
 * The same tests run on every backend: the environment variable DECANT_TEST_DEVICE says which (cpu, the
 * default; cuda; cuda_full_floats), and data moves only through the backend's own tables. */
#ifndef DECANT_TESTS_DEVICE_ARRAYS_H
#define DECANT_TESTS_DEVICE_ARRAYS_H

#include "kernels/backend.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h> /* needs those above */

/* Largest error, relative to the largest value of the array. F32: sums of up to a thousand terms in float.
 * BF16: an input, a weight and a result each rounded to 8 bits. */
static const double F32_TOLERANCE = 1e-5;
static const double BF16_TOLERANCE = 3e-2;

enum { SKIPPED = 77 };

#define REQUIRE(call)                                                                                          \
    do {                                                                                                       \
        decant_error require_error = {0};                                                                      \
        decant_error *err = &require_error;                                                                    \
        if ((call) != DECANT_OK)                                                                               \
            fail_msg("%s", require_error.message);                                                             \
    } while (0)

static inline decant_status open_backend_named(const char *device, int threads, decant_backend **backend,
                                               decant_error *err)
{
    if (strcmp(device, "cpu") == 0)
        return decant_backend_create_cpu(threads, backend, err);
    return decant_backend_create_cuda(0, strcmp(device, "cuda_full_floats") == 0, backend, err);
}

static inline const char *test_device(void)
{
    const char *device = getenv("DECANT_TEST_DEVICE");
    return device && *device ? device : "cpu";
}

/* A group setup of cmocka: *state becomes the backend. */
static inline int open_backend(void **state)
{
    decant_error err = {0};
    decant_backend *backend;
    if (open_backend_named(test_device(), 2, &backend, &err) == DECANT_OK) {
        *state = backend;
        return 0;
    }
    fprintf(stderr, "no %s backend: %s\n", test_device(), err.message);
    exit(SKIPPED);
}

/* A group teardown: nothing that the tests made may be left. */
static inline int close_backend(void **state)
{
    decant_backend *backend = *state;
    int64_t bytes, peak_bytes, device_bytes;
    backend->memory->usage(backend, &bytes, &peak_bytes, &device_bytes);
    decant_backend_destroy(&backend);
    return strcmp(test_device(), "cpu") == 0 && bytes != 0;
}

static inline double tolerance(const decant_backend *backend)
{
    return backend->activation == DECANT_F32 ? F32_TOLERANCE : BF16_TOLERANCE;
}

/* splitmix64 (Steele, Lea, Flood 2014), as a number in [-1, 1). */
static inline double random_value(uint64_t *seed)
{
    uint64_t bits = *seed += 0x9e3779b97f4a7c15u;
    bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9u;
    bits = (bits ^ bits >> 27) * 0x94d049bb133111ebu;
    bits ^= bits >> 31;
    return (double)(bits >> 11) / 4503599627370496.0 - 1.0;
}

static inline void store_element(decant_element element, double value, void *array, int64_t index)
{
    float narrow = (float)value;
    uint32_t bits;
    memcpy(&bits, &narrow, sizeof bits);
    if (element == DECANT_F32)
        ((float *)array)[index] = narrow;
    else if (element == DECANT_F16)
        ((uint16_t *)array)[index] = decant_f32_to_f16(narrow);
    else
        ((uint16_t *)array)[index] = (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static inline double load_element(decant_element element, const void *array, int64_t index)
{
    size_t element_bytes = decant_element_bytes(element);
    float value;
    decant_elements_to_f32(element, (const char *)array + (size_t)index * element_bytes, 1, &value);
    return value;
}

/* A matrix on the device and the values it was made with; release with drop. */
typedef struct device_array {
    decant_matrix matrix;
    double *values; /* exactly what the device holds until a kernel writes there */
    void *host;     /* a weight's bytes, which must outlive it */
    bool placed;
} device_array;

static inline int64_t element_count(decant_matrix matrix)
{
    return matrix.rows * matrix.columns;
}

/* Fills host bytes and values with random numbers in [-scale, scale). */
static inline device_array random_host_array(decant_element element, int64_t rows, int64_t columns,
                                             double scale, uint64_t seed)
{
    device_array array = {.matrix = {NULL, element, rows, columns}};
    size_t count = (size_t)(rows * columns);
    array.values = calloc(count + 1, sizeof(double));
    array.host = calloc(count + 1, decant_element_bytes(element));
    assert_true(array.values && array.host);
    for (size_t i = 0; i < count; i++) {
        store_element(element, scale * random_value(&seed), array.host, (int64_t)i);
        array.values[i] = load_element(element, array.host, (int64_t)i);
    }
    return array;
}

/* An activation matrix of random numbers. */
static inline device_array activation_array(decant_backend *backend, int64_t rows, int64_t columns,
                                            double scale, uint64_t seed)
{
    device_array array = random_host_array(backend->activation, rows, columns, scale, seed);
    size_t size_bytes = decant_matrix_bytes(array.matrix);
    REQUIRE(backend->memory->allocate(backend, size_bytes, "a test's array", &array.matrix.data, err));
    REQUIRE(backend->memory->upload(backend, array.matrix.data, array.host, size_bytes, err));
    REQUIRE(backend->memory->synchronize(backend, err));
    return array;
}

/* A weight of random numbers, placed. */
static inline device_array weight_array(decant_backend *backend, decant_placement placement,
                                        decant_element element, int64_t rows, int64_t columns, double scale,
                                        uint64_t seed)
{
    device_array array = random_host_array(element, rows, columns, scale, seed);
    decant_matrix host = array.matrix;
    host.data = array.host;
    REQUIRE(backend->weights->place(backend, host, placement, "a test's weight", &array.matrix, err));
    array.placed = true;
    return array;
}

/* An F32 array of random numbers on the device, as statistics and rotary angles are. */
static inline device_array float_array(decant_backend *backend, int64_t rows, int64_t columns, double scale,
                                       uint64_t seed)
{
    device_array array = random_host_array(DECANT_F32, rows, columns, scale, seed);
    size_t size_bytes = decant_matrix_bytes(array.matrix);
    REQUIRE(backend->memory->allocate(backend, size_bytes, "a test's array", &array.matrix.data, err));
    REQUIRE(backend->memory->upload(backend, array.matrix.data, array.host, size_bytes, err));
    REQUIRE(backend->memory->synchronize(backend, err));
    return array;
}

static inline void drop(decant_backend *backend, device_array *array)
{
    if (array->placed)
        backend->weights->unplace(backend, &array->matrix);
    else
        backend->memory->release(backend, &array->matrix.data);
    free(array->values);
    free(array->host);
}

/* The bytes that the device holds now; free() them. */
static inline void *download_bytes(decant_backend *backend, decant_matrix matrix)
{
    void *bytes = calloc((size_t)element_count(matrix) + 1, decant_element_bytes(matrix.element));
    assert_non_null(bytes);
    REQUIRE(backend->memory->download(backend, bytes, matrix.data, decant_matrix_bytes(matrix), err));
    return bytes;
}

/* Compares what the device holds now with the expected values: errors are relative to the largest of them, or
 * to `scale` where that is larger (for values that may all come to nothing). */
static inline void expect_close_at_scale(decant_backend *backend, decant_matrix actual, const double *expected,
                                         double scale, const char *what)
{
    void *bytes = download_bytes(backend, actual);
    double largest = scale, worst = 0;
    int64_t worst_index = 0, count = element_count(actual);
    for (int64_t i = 0; i < count; i++) {
        double error = fabs(load_element(actual.element, bytes, i) - expected[i]);
        largest = fmax(largest, fabs(expected[i]));
        if (!(error <= worst)) { /* a NaN is the worst of all */
            worst = error;
            worst_index = i;
        }
    }
    double at_worst = count > 0 ? load_element(actual.element, bytes, worst_index) : 0;
    free(bytes);
    if (!(worst <= tolerance(backend) * largest))
        fail_msg("%s [%lld, %lld]: element %lld is %.9g, expected %.9g; error %.2e of the largest value", what,
                 (long long)actual.rows, (long long)actual.columns, (long long)worst_index, at_worst,
                 expected[worst_index], worst / largest);
}

static inline void expect_close(decant_backend *backend, decant_matrix actual, const double *expected,
                                const char *what)
{
    expect_close_at_scale(backend, actual, expected, 0, what);
}

static inline void expect_number_close(const decant_backend *backend, double actual, double expected,
                                       const char *what)
{
    if (!(fabs(actual - expected) <= tolerance(backend) * fabs(expected)))
        fail_msg("%s is %.9g, expected %.9g", what, actual, expected);
}

static inline double *doubles(int64_t count)
{
    double *values = calloc((size_t)count + 1, sizeof *values);
    assert_non_null(values);
    return values;
}

/* d objective / d parameter by central differences; the objective reads *parameter. */
static inline double slope(double (*objective)(void *context), void *context, double *parameter)
{
    const double step = 1e-4; /* in double: truncation about 1e-8, rounding about 1e-12 */
    double middle = *parameter;
    *parameter = middle + step;
    double above = objective(context);
    *parameter = middle - step;
    double below = objective(context);
    *parameter = middle;
    return (above - below) / (2 * step);
}

#endif
