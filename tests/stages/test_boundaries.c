/* What lies between blocks comes back as it was saved, from the device, from host memory and from a file, in
 * any order, and gives its room back. Runs on the backend that DECANT_TEST_DEVICE names. */
#include "stages/boundaries.h"
#include "stages/model.h"

#include "tests/kernels/device_arrays.h"

enum { RECORDS = 6, ROWS = 3, COLUMNS = 64, VALUES = ROWS * COLUMNS };

static void fill(int64_t record, int64_t turn, uint8_t values[VALUES])
{
    for (int i = 0; i < VALUES; i++)
        values[i] = (uint8_t)(31 * record + 7 * turn + i);
}

static void save(decant_backend *backend, decant_boundaries *boundaries, decant_matrix x, int64_t record,
                 int64_t turn)
{
    uint8_t values[VALUES];
    fill(record, turn, values);
    REQUIRE(backend->memory->upload(backend, x.data, values, decant_matrix_bytes(x), err));
    REQUIRE(decant_boundaries_begin_save(boundaries, record, x, err));
    REQUIRE(decant_boundaries_finish_saves(boundaries, err));
}

static void expect(decant_backend *backend, decant_boundaries *boundaries, decant_matrix x, int64_t record,
                   int64_t turn)
{
    uint8_t wanted[VALUES], got[VALUES];
    const size_t size_bytes = decant_matrix_bytes(x);
    fill(record, turn, wanted);
    REQUIRE(backend->memory->zero(backend, x.data, size_bytes, err));
    REQUIRE(decant_boundaries_load(boundaries, record, x, err));
    REQUIRE(backend->memory->download(backend, got, x.data, size_bytes, err));
    assert_memory_equal(got, wanted, size_bytes);
    memset(got, 0, sizeof got);
    REQUIRE(decant_boundaries_fetch(boundaries, record, got, size_bytes, err));
    assert_memory_equal(got, wanted, size_bytes);
}

/* The last record is shorter, as a last micro-batch is. */
static decant_matrix record_of(decant_matrix x, int64_t record)
{
    return decant_matrix_rows(x, 0, record == RECORDS - 1 ? ROWS - 1 : ROWS);
}

static void check(decant_backend *backend, int64_t on_device, const char *scratch)
{
    decant_boundaries *boundaries;
    decant_matrix x;
    uint8_t values[VALUES];
    int64_t held, now, peak, all;
    REQUIRE(decant_activation_create(backend, ROWS, COLUMNS / 4, "a test", &x, err));
    REQUIRE(decant_boundaries_create(backend, RECORDS, decant_matrix_bytes(x), on_device, scratch, &boundaries,
                                     err));
    backend->memory->usage(backend, &held, &peak, &all);
    for (int64_t record = 0; record < RECORDS; record++)
        save(backend, boundaries, record_of(x, record), record, 0);
    backend->memory->usage(backend, &now, &peak, &all);
    assert_int_equal(now - held, on_device * (int64_t)decant_matrix_bytes(x));
    for (int64_t record = RECORDS - 1; record >= 0; record--)
        expect(backend, boundaries, record_of(x, record), record, 0);
    for (int64_t record = 0; record < RECORDS; record += 2) /* gradients take the place */
        save(backend, boundaries, record_of(x, record), record, 1);
    fill(3, 2, values); /* and what an earlier job saved */
    REQUIRE(decant_boundaries_put(boundaries, 3, values, decant_matrix_bytes(x), err));
    for (int64_t record = 0; record < RECORDS; record++)
        expect(backend, boundaries, record_of(x, record), record, record == 3 ? 2 : record % 2 ? 0 : 1);
    for (int64_t record = 0; record < RECORDS; record++)
        decant_boundaries_discard(boundaries, record);
    backend->memory->usage(backend, &now, &peak, &all);
    assert_int_equal(now, held);
    REQUIRE(decant_boundaries_put(boundaries, 0, values, decant_matrix_bytes(x), err));
    decant_boundaries_destroy(&boundaries);
    backend->memory->release(backend, &x.data);
}

static void in_host_memory(void **state)
{
    check(*state, 0, NULL);
}

static void on_the_device_as_far_as_it_goes(void **state)
{
    check(*state, 2, NULL);
    check(*state, 5, NULL);
}

static void in_a_file_besides(void **state)
{
    check(*state, 0, ".");
    check(*state, 2, ".");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(in_host_memory),
        cmocka_unit_test(on_the_device_as_far_as_it_goes),
        cmocka_unit_test(in_a_file_besides),
    };
    return cmocka_run_group_tests(tests, open_backend, close_backend);
}
