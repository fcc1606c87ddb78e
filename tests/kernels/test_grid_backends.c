/* The grid kernels mean the same everywhere: the CPU backend stores the same bytes with one thread and with
 * five, and another backend stores the same codes wherever it rounds a scale alike, and decodes to the same
 * bits. */
#include "tests/kernels/grid_case.h"

/* Scales come of sums of doubles in another order, which seldom changes how they round to F16. */
static const double SCALES_THAT_MAY_DIFFER = 2e-3;

static int64_t count_other_scales(const grid_case *test, const grid_case *other)
{
    int64_t differing = 0;
    for (int64_t i = 0; i < test->rows * test->groups; i++)
        differing += test->scales[i] != other->scales[i];
    return differing;
}

static void expect_same_codes(const grid_case *test, const grid_case *other)
{
    for (int64_t row = 0; row < test->rows; row++)
        for (int64_t j = 0; j < test->codes; j++) {
            const int64_t group = group_of(test, j * test->matrix.form.dimension);
            if (scale_at(test, row, group) == scale_at(other, row, group) &&
                code_at(test, row, j) != code_at(other, row, j))
                fail_msg("row %lld, code %lld: %lld here, %lld on one CPU thread", (long long)row, (long long)j,
                         (long long)code_at(test, row, j), (long long)code_at(other, row, j));
        }
}

/* Both decode the same bytes to the same bits. */
static void expect_same_decoding(grid_case *test, const grid_case *other)
{
    decant_backend *backend = test->backend;
    const size_t plane_bytes = (size_t)(test->rows * test->matrix.form.code_bits * test->words) * 4;
    REQUIRE(backend->memory->upload(backend, test->matrix.planes, other->planes, plane_bytes, err));
    REQUIRE(backend->memory->upload(backend, test->matrix.scales, other->scales,
                                    (size_t)(test->rows * test->groups) * 2, err));
    const grid_case *both[] = {test, other};
    void *bytes[2];
    for (int i = 0; i < 2; i++) {
        decant_matrix decoded = {NULL, DECANT_F32, test->rows, test->columns};
        decoded.data = device_bytes(both[i]->backend, decant_matrix_bytes(decoded));
        REQUIRE(both[i]->backend->grid->decode(both[i]->backend, &both[i]->matrix, decoded, err));
        bytes[i] = download_bytes(both[i]->backend, decoded);
        both[i]->backend->memory->release(both[i]->backend, &decoded.data);
    }
    for (int64_t i = 0; i < test->rows * test->columns; i++)
        if (((float *)bytes[0])[i] != ((float *)bytes[1])[i])
            fail_msg("element %lld is %.9g here, %.9g on one CPU thread", (long long)i,
                     (double)((float *)bytes[0])[i], (double)((float *)bytes[1])[i]);
    free(bytes[0]);
    free(bytes[1]);
}

static void compare(decant_backend *backend, decant_backend *cpu, weight_kind kind, int64_t rows,
                    int64_t columns, decant_grid_form form)
{
    grid_case test = make_grid_case(backend, kind, DECANT_BF16, rows, columns, form),
              other = make_grid_case(cpu, kind, DECANT_BF16, rows, columns, form);
    decant_matrix_error error, other_error;
    REQUIRE(
        backend->grid->encode(backend, test.weight, NULL, DECANT_SCALE_LEAST_ERROR, &test.matrix, &error, err));
    REQUIRE(
        cpu->grid->encode(cpu, other.weight, NULL, DECANT_SCALE_LEAST_ERROR, &other.matrix, &other_error, err));
    fetch_packed(&test);
    fetch_packed(&other);
    const int64_t differing = count_other_scales(&test, &other);
    if (strcmp(backend->name, "cpu") == 0) {
        assert_int_equal(differing, 0);
        assert_memory_equal(&error, &other_error, sizeof error);
    }
    assert_true((double)differing <= SCALES_THAT_MAY_DIFFER * (double)(rows * test.groups));
    assert_true(fabs(error.squared - other_error.squared) <= 1e-6 * other_error.squared);
    assert_true(fabs(error.norm - other_error.norm) <= 1e-12 * other_error.norm);
    expect_same_codes(&test, &other);
    expect_same_decoding(&test, &other);
    drop_grid_case(&test);
    drop_grid_case(&other);
}

static void other_backends_store_the_same(void **state)
{
    static const grid_shape cases[] = {
        {1, 4, 96, 1024, 1024, 1024},  {2, 8, 512, 2048, 64, 512},  {2, 8, 128, 11008, 11008, 256},
        {3, 9, 100, 576, 64, 64},      {4, 12, 64, 1536, 256, 512}, {2, 12, 40, 4096, 128, 1024},
        {2, 6, 3, 59392, 59392, 2048}, /* a row is longer than shared memory */
    };
    decant_backend *cpu;
    REQUIRE(decant_backend_create_cpu(strcmp(test_device(), "cpu") == 0 ? 5 : 1, &cpu, err));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        decant_grid_form form = random_grid(&cases[i], i);
        for (int kind = WEIGHTS_GAUSSIAN; kind <= WEIGHTS_WITH_ZERO_GROUPS; kind++)
            compare(*state, cpu, kind, cases[i].rows, cases[i].columns, form);
        drop_random_grid(&form);
    }
    decant_backend_destroy(&cpu);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(other_backends_store_the_same),
    };
    return cmocka_run_group_tests_name("grid backends", tests, open_backend, close_backend);
}
