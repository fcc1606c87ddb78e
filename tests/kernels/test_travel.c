/* Weights that travel ahead of their use and downloads that are not waited for: whatever the order in which
 * they are begun and finished, every byte arrives, and the device's work sees it in the order in which it was
 * issued. */
#include "tests/kernels/device_arrays.h"

enum { WEIGHTS = 7 };

/* Short ones, and ones of many pieces; columns odd, so that pieces end inside rows. */
static const int64_t row_counts[WEIGHTS] = {1, 3000, 5, 1500, 40, 6001, 7};
static const int64_t column_count = 2047;

static void *random_bytes(size_t size_bytes, uint64_t seed)
{
    unsigned char *bytes = malloc(size_bytes);
    assert_non_null(bytes);
    for (size_t i = 0; i < size_bytes; i++) {
        if (i % 7 == 0)
            seed = seed * 6364136223846793005u + 1442695040888963407u;
        bytes[i] = (unsigned char)(seed >> (8 + 8 * (i % 7)));
    }
    return bytes;
}

static void require_same_bytes(decant_backend *backend, decant_matrix device, decant_matrix host)
{
    void *found = malloc(decant_matrix_bytes(host));
    assert_non_null(found);
    assert_int_equal(device.element, host.element);
    assert_int_equal(device.rows, host.rows);
    assert_int_equal(device.columns, host.columns);
    REQUIRE(backend->memory->download(backend, found, device.data, decant_matrix_bytes(host), err));
    assert_memory_equal(found, host.data, decant_matrix_bytes(host));
    free(found);
}

static void weights_arrive_in_any_order_of_asking(void **state)
{
    decant_backend *backend = *state;
    const decant_weight_kernels *weights = backend->weights;
    static const int order[WEIGHTS] = {5, 0, 6, 2, 1, 4, 3}, never_finished = 4;
    decant_matrix host[WEIGHTS], device[WEIGHTS];
    for (int i = 0; i < WEIGHTS; i++) {
        host[i] = (decant_matrix){NULL, i % 2 ? DECANT_F32 : DECANT_BF16, row_counts[i], column_count};
        host[i].data = random_bytes(decant_matrix_bytes(host[i]), (uint64_t)i + 1);
        REQUIRE(weights->begin_place(backend, host[i], DECANT_PLACE_EXACT, "a test's weight", &device[i], err));
    }
    weights->unplace(backend, &device[never_finished]);
    assert_null(device[never_finished].data);
    for (int i = 0; i < WEIGHTS; i++) {
        int next = order[i];
        REQUIRE(weights->finish_place(backend, &device[next], err));
        if (next != never_finished)
            require_same_bytes(backend, device[next], host[next]);
        REQUIRE(weights->finish_place(backend, &device[next], err)); /* again: nothing left to do */
    }
    for (int i = 0; i < WEIGHTS; i++) {
        weights->unplace(backend, &device[i]);
        assert_null(device[i].data);
        free(host[i].data);
    }
}

/* Uses memory that an earlier weight, given back unfinished, may have had. */
static void a_weight_follows_one_that_was_given_up(void **state)
{
    decant_backend *backend = *state;
    const decant_weight_kernels *weights = backend->weights;
    decant_matrix first = {NULL, DECANT_BF16, 4000, column_count}, second = first, device;
    first.data = random_bytes(decant_matrix_bytes(first), 100);
    second.data = random_bytes(decant_matrix_bytes(second), 200);
    for (int i = 0; i < 5; i++) {
        REQUIRE(weights->begin_place(backend, first, DECANT_PLACE_EXACT, "a test's weight", &device, err));
        weights->unplace(backend, &device);
        REQUIRE(weights->place(backend, second, DECANT_PLACE_EXACT, "a test's weight", &device, err));
        require_same_bytes(backend, device, second);
        weights->unplace(backend, &device);
    }
    free(first.data);
    free(second.data);
}

/* A weight of BF16 loses nothing on its way to any type that products run in. */
static void weights_for_products_arrive_beside_others(void **state)
{
    decant_backend *backend = *state;
    const decant_weight_kernels *weights = backend->weights;
    const int64_t rows = 4500, count = rows * column_count;
    device_array made = random_host_array(DECANT_BF16, rows, column_count, 1.0, 5);
    decant_matrix host = made.matrix, exact, compute;
    host.data = made.host;
    REQUIRE(weights->begin_place(backend, host, DECANT_PLACE_COMPUTE, "a test's weight", &compute, err));
    REQUIRE(weights->begin_place(backend, host, DECANT_PLACE_EXACT, "a test's weight", &exact, err));
    REQUIRE(weights->finish_place(backend, &exact, err));
    REQUIRE(weights->finish_place(backend, &compute, err));
    require_same_bytes(backend, exact, host);
    char *found = malloc(decant_matrix_bytes(compute));
    assert_non_null(found);
    REQUIRE(backend->memory->download(backend, found, compute.data, decant_matrix_bytes(compute), err));
    for (int64_t i = 0; i < count; i++)
        if (load_element(compute.element, found, i) != made.values[i])
            fail_msg("element %lld is %g, not %g", (long long)i, load_element(compute.element, found, i),
                     made.values[i]);
    free(found);
    weights->unplace(backend, &exact);
    weights->unplace(backend, &compute);
    free(made.values);
    free(made.host);
}

/* What is issued after a download was begun does not reach it, even when the memory is given back. */
static void downloads_keep_their_place_in_the_order(void **state)
{
    decant_backend *backend = *state;
    const decant_memory_kernels *memory = backend->memory;
    const size_t part_bytes = (size_t)3 << 20;
    enum { PARTS = 6 };
    char *expected = random_bytes(PARTS * part_bytes, 9);
    void *host;
    REQUIRE(memory->allocate_host(backend, PARTS * part_bytes, "a test's arrays", &host, err));
    memset(host, 0x5a, PARTS * part_bytes);
    for (size_t i = 0; i < PARTS; i++) {
        void *device;
        REQUIRE(memory->allocate(backend, part_bytes, "a test's array", &device, err));
        REQUIRE(memory->upload(backend, device, expected + i * part_bytes, part_bytes, err));
        REQUIRE(memory->begin_download(backend, (char *)host + i * part_bytes, device, part_bytes, err));
        REQUIRE(memory->zero(backend, device, part_bytes, err));
        memory->release(backend, &device);
    }
    REQUIRE(memory->begin_download(backend, host, NULL, 0, err)); /* nothing */
    REQUIRE(memory->finish_downloads(backend, err));
    assert_memory_equal(host, expected, PARTS * part_bytes);
    memory->release_host(backend, &host);
    assert_null(host);
    memory->release_host(backend, &host);
    free(expected);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights_arrive_in_any_order_of_asking),
        cmocka_unit_test(a_weight_follows_one_that_was_given_up),
        cmocka_unit_test(weights_for_products_arrive_beside_others),
        cmocka_unit_test(downloads_keep_their_place_in_the_order),
    };
    return cmocka_run_group_tests(tests, open_backend, close_backend);
}
