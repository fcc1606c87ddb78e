/* encode and measure of a backend: codes of the nearest levels in bit planes, sparse values that make up for
 * what is missing, and an error that is that of what was stored. Planes are read here by their definition, bit
 * by bit. */
#include "tests/kernels/quantize_case.h"

/* Sums of a few thousand terms in double, in another order. */
static const double ERROR_TOLERANCE = 1e-12;

/* A packed matrix on the device and what came back; free_packing afterwards. */
typedef struct packing {
    decant_packed_matrix device;
    uint16_t *levels; /* host, [rows, 2^bits] */
    uint32_t *planes;
    uint16_t *sparse_values;
    size_t plane_words, words; /* of all rows; of one plane of one row */
} packing;

/* Levels of all rows, ascending: multiples of `step` around 0, every fourth of them repeated. */
static uint16_t *make_levels(int64_t rows, int bits, double step)
{
    uint16_t *levels = zeroed((size_t)rows << bits, sizeof *levels);
    for (int64_t row = 0; row < rows; row++)
        for (int level = 0; level < 1 << bits; level++) {
            int repeated = level % 4 == 3 && bits > 2 ? level - 1 : level;
            double value = step * (repeated - (1 << bits) / 2) * (1 + 0.1 * (double)row);
            levels[(row << bits) + level] = decant_f32_to_f16((float)value);
        }
    return levels;
}

/* Encodes a case; takes the levels. */
static packing encode(const quantize_case *test, int bits, uint16_t *levels)
{
    decant_backend *backend = test->backend;
    packing result = {.levels = levels, .words = (size_t)(test->columns + 31) / 32};
    result.plane_words = (size_t)test->rows * (size_t)bits * result.words;
    decant_packed_matrix *device = &result.device;
    *device = (decant_packed_matrix){.rows = test->rows, .columns = test->columns, .bits = bits};
    uint32_t *garbage = zeroed(result.plane_words, sizeof *garbage);
    memset(garbage, 0xa5, result.plane_words * sizeof *garbage);
    device->planes = on_device(backend, garbage, result.plane_words * sizeof *garbage);
    free(garbage);
    device->levels = on_device(backend, levels, (size_t)test->rows * sizeof *levels << bits);
    device->sparse = test->pattern;
    size_t sparse_bytes = (size_t)test->pattern.count * sizeof *device->sparse_values;
    device->sparse_values = on_device(backend, NULL, sparse_bytes);
    REQUIRE(backend->quantize->encode(backend, test->weight, device, err));
    result.planes = from_device(backend, device->planes, result.plane_words * sizeof *result.planes);
    result.sparse_values = from_device(backend, device->sparse_values, sparse_bytes);
    return result;
}

static void free_packing(decant_backend *backend, packing *packed)
{
    void *arrays[] = {packed->device.planes, packed->device.levels, packed->device.sparse_values};
    for (int i = 0; i < 3; i++)
        backend->memory->release(backend, &arrays[i]);
    free(packed->levels);
    free(packed->planes);
    free(packed->sparse_values);
}

static int code_at(const packing *packed, int64_t row, int64_t column)
{
    int code = 0, bits = packed->device.bits;
    for (int b = 0; b < bits; b++) {
        uint32_t word = packed->planes[((size_t)(row * bits + b)) * packed->words + (size_t)column / 32];
        code |= (int)(word >> column % 32 & 1u) << b;
    }
    return code;
}

static int nearest_code(const uint16_t *levels, int bits, float value)
{
    int nearest = 0;
    for (int code = 1; code < 1 << bits; code++) {
        double distance = fabs((double)value - (double)decant_f16_to_f32(levels[code]));
        if (distance < fabs((double)value - (double)decant_f16_to_f32(levels[nearest])))
            nearest = code;
    }
    return nearest;
}

/* Every code is the nearest, every sparse value what it should be; returns the error of what is stored. */
static decant_matrix_error check_packing(const quantize_case *test, const packing *packed, bool with_fisher)
{
    decant_matrix_error error = {0, 0, 0};
    const int bits = packed->device.bits;
    int64_t sparse = 0;
    for (int64_t i = 0; i < test->size; i++) {
        const uint16_t *levels = packed->levels + (i / test->columns << bits);
        int code = code_at(packed, i / test->columns, i % test->columns);
        assert_int_equal(code, nearest_code(levels, bits, test->values[i]));
        double stored = (double)decant_f16_to_f32(levels[code]);
        if (test->sparse[i]) {
            uint16_t value = packed->sparse_values[sparse++];
            assert_int_equal(value, decant_f32_to_f16(test->values[i] - (float)stored));
            stored += (double)decant_f16_to_f32(value);
        }
        double miss = (double)test->values[i] - stored;
        error.weighted += (with_fisher ? (double)test->masses[i] : 1) * miss * miss;
        error.squared += miss * miss;
        error.norm += (double)test->values[i] * (double)test->values[i];
    }
    return error;
}

static void check_unused_bits(const quantize_case *test, const packing *packed)
{
    for (size_t word = 0; word < packed->plane_words; word++)
        if (word % packed->words == packed->words - 1 && test->columns % 32)
            assert_int_equal(packed->planes[word] >> test->columns % 32, 0);
}

static void expect_near(double actual, double expected, const char *what)
{
    if (!(fabs(actual - expected) <= ERROR_TOLERANCE * fabs(expected)))
        fail_msg("%s: %.17g, not %.17g", what, actual, expected);
}

static void check_case(const quantize_case *test, int bits, uint16_t *levels)
{
    decant_backend *backend = test->backend;
    packing packed = encode(test, bits, levels);
    check_unused_bits(test, &packed);
    for (int with_fisher = 0; with_fisher < 2; with_fisher++) {
        decant_matrix_error error, expected = check_packing(test, &packed, with_fisher);
        REQUIRE(backend->quantize->measure(backend, test->weight, with_fisher ? test->fisher : NULL,
                                           &test->pattern, bits, packed.device.levels, &error, err));
        expect_near(error.weighted, expected.weighted, "weighted error");
        expect_near(error.squared, expected.squared, "squared error");
        expect_near(error.norm, expected.norm, "norm");
    }
    free_packing(backend, &packed);
}

static void codes_are_the_nearest_when_columns_and_widths_vary(void **state)
{
    static const int64_t columns[] = {1, 31, 32, 33, 100, 255, 256, 257, 600};
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++)
        for (int bits = DECANT_BITS_MINIMUM; bits <= DECANT_BITS_MAXIMUM; bits++) {
            decant_element element = (decant_element)((int)i % 3);
            quantize_case test = make_case(*state, ROW_NORMAL, element, 5, columns[i]);
            check_case(&test, bits, make_levels(5, bits, 0.1 / (1 << bits)));
            drop_case(&test);
        }
}

static void sparse_values_make_up_for_levels_when_there_is_a_pattern(void **state)
{
    for (int bits = DECANT_BITS_MINIMUM; bits <= DECANT_BITS_MAXIMUM; bits++) {
        quantize_case test = empty_case(*state, 6, 530);
        for (int64_t row = 0; row < 6; row++)
            fill_row(ROW_NORMAL, 530, (uint64_t)row, test.values + row * 530, test.masses + row * 530);
        for (int64_t i = 0; i < test.size; i++) {
            /* One row without, one with all, columns at the ends of words and of the matrix. */
            test.sparse[i] = i / 530 == 4 || (i / 530 != 2 && (i % 530 % 32 == 31 || i % 530 >= 528));
            test.values[i] *= test.sparse[i] ? 30 : 1;
        }
        place_case(&test, bits % 2 ? DECANT_F16 : DECANT_F32);
        check_case(&test, bits, make_levels(6, bits, 0.1 / (1 << bits)));
        drop_case(&test);
    }
}

/* Weights halfway between levels, and a float to either side of it. */
static void lower_code_is_taken_when_two_levels_are_as_near(void **state)
{
    for (int bits = DECANT_BITS_MINIMUM; bits <= DECANT_BITS_MAXIMUM; bits++) {
        const int count = 1 << bits;
        uint16_t *levels = make_levels(1, bits, 0.37 / count);
        quantize_case test = empty_case(*state, 1, 4 * count + 3); /* whole vectors and some more */
        for (int code = 0; code < count; code++) {
            float level = decant_f16_to_f32(levels[code]);
            float next = code + 1 < count ? decant_f16_to_f32(levels[code + 1]) : level + 1;
            float middle = level / 2 + next / 2; /* exact: F16 values of like size */
            test.values[4 * code] = level;
            test.values[4 * code + 1] = nextafterf(middle, -1);
            test.values[4 * code + 2] = middle;
            test.values[4 * code + 3] = nextafterf(middle, 1);
        }
        for (int code = 0; code < 3; code++)
            test.values[4 * count + code] = test.values[4 * code + 2];
        place_case(&test, DECANT_F32);
        check_case(&test, bits, levels);
        drop_case(&test);
    }
}

/* The midpoint 32752 + 0.75 · 2^-9 lies between two floats. */
static void nearest_code_is_taken_when_no_float_is_halfway(void **state)
{
    for (int bits = DECANT_BITS_MINIMUM; bits <= DECANT_BITS_MAXIMUM; bits++) {
        uint16_t *levels = zeroed((size_t)1 << bits, sizeof *levels);
        for (int code = 0; code < 1 << bits; code++)
            levels[code] = decant_f32_to_f16(code == 0 ? 0x1.8p-9f : 65504.0f);
        quantize_case test = empty_case(*state, 1, 40);
        for (int i = 0; i < 40; i++)
            test.values[i] = 32752.0f + 0x1p-9f * (float)(i % 3 - 1);
        place_case(&test, DECANT_F32);
        check_case(&test, bits, levels);
        drop_case(&test);
    }
}

static void codes_are_zero_when_all_levels_are_equal(void **state)
{
    quantize_case test = empty_case(*state, 3, 70);
    uint16_t *levels = zeroed(3 << 4, sizeof *levels);
    for (int64_t i = 0; i < test.size; i++)
        test.values[i] = (float)(i - 100) * 1e30f; /* far beyond all levels, too */
    place_case(&test, DECANT_F32);
    packing packed = encode(&test, 4, levels);
    for (size_t word = 0; word < packed.plane_words; word++)
        assert_int_equal(packed.planes[word], 0);
    check_packing(&test, &packed, true);
    free_packing(*state, &packed);
    drop_case(&test);
}

/* A level far from the weight, whose difference F16 cannot hold. */
static void sparse_values_stay_finite_when_differences_are_beyond_f16(void **state)
{
    quantize_case test = empty_case(*state, 1, 2);
    test.values[0] = 1e6f;
    test.values[1] = -1e6f;
    test.sparse[0] = test.sparse[1] = true;
    place_case(&test, DECANT_F32);
    packing packed = encode(&test, 2, make_levels(1, 2, 1));
    assert_true(decant_f16_to_f32(packed.sparse_values[0]) == 65504);
    assert_true(decant_f16_to_f32(packed.sparse_values[1]) == -65504);
    free_packing(*state, &packed);
    drop_case(&test);
}

static void error_is_the_same_number_when_threads_differ(void **state)
{
    decant_matrix_error expected = {0, 0, 0};
    (void)state;
    for (int threads = 1; threads <= 5; threads++) {
        decant_backend *backend;
        REQUIRE(open_backend_named(test_device(), threads, &backend, err));
        quantize_case test = make_case(backend, ROW_NORMAL, DECANT_F16, 131, 300);
        uint16_t *levels = make_levels(131, 4, 0.005);
        uint16_t *device = on_device(backend, levels, 131 * sizeof *levels << 4);
        decant_matrix_error error;
        REQUIRE(backend->quantize->measure(backend, test.weight, test.fisher, &test.pattern, 4, device, &error,
                                           err));
        if (threads == 1)
            expected = error;
        assert_memory_equal(&error, &expected, sizeof error);
        void *released = device;
        backend->memory->release(backend, &released);
        free(levels);
        drop_case(&test);
        decant_backend_destroy(&backend);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(codes_are_the_nearest_when_columns_and_widths_vary),
        cmocka_unit_test(sparse_values_make_up_for_levels_when_there_is_a_pattern),
        cmocka_unit_test(lower_code_is_taken_when_two_levels_are_as_near),
        cmocka_unit_test(nearest_code_is_taken_when_no_float_is_halfway),
        cmocka_unit_test(codes_are_zero_when_all_levels_are_equal),
        cmocka_unit_test(sparse_values_stay_finite_when_differences_are_beyond_f16),
        cmocka_unit_test(error_is_the_same_number_when_threads_differ),
    };
    return cmocka_run_group_tests(tests, open_backend, close_backend);
}
