/* Work that is recorded and replayed: each replay is as if the work were issued anew, on what its arrays then
 * hold. */
#include "tests/kernels/device_arrays.h"

enum { TOKENS = 3, IN = 40, OUT = 24 };

/* Two products one after the other, y = x aᵀ and z = y bᵀ; counts how often it was issued. */
typedef struct two_products {
    decant_backend *backend;
    decant_matrix x, a, y, b, z;
    int issued;
} two_products;

static decant_status issue(void *context, decant_error *err)
{
    two_products *work = context;
    const decant_model_kernels *model = work->backend->model;
    decant_status status;
    work->issued++;
    DECANT_TRY(model->linear(work->backend, work->x, work->a, false, work->y, err));
    DECANT_TRY(model->linear(work->backend, work->y, work->b, false, work->z, err));
done:
    return status;
}

static decant_status refuse(void *context, decant_error *err)
{
    (void)context;
    return DECANT_ERROR(err, DECANT_ERROR_BUG, "on purpose");
}

static void replay_follows_the_input(void **state)
{
    decant_backend *backend = *state;
    device_array x = activation_array(backend, TOKENS, IN, 1, 1),
                 other = activation_array(backend, TOKENS, IN, 1, 5);
    device_array a = activation_array(backend, OUT, IN, 1, 2), b = activation_array(backend, IN, OUT, 1, 3);
    device_array y = activation_array(backend, TOKENS, OUT, 1, 4),
                 z = activation_array(backend, TOKENS, IN, 1, 6);
    two_products work = {backend, x.matrix, a.matrix, y.matrix, b.matrix, z.matrix, 0};
    decant_recording *recording = NULL;
    REQUIRE(backend->recordings->record(backend, (decant_work){issue, &work}, &recording, err));
    void *first = download_bytes(backend, z.matrix);
    REQUIRE(backend->memory->upload(backend, x.matrix.data, other.host, decant_matrix_bytes(x.matrix), err));
    REQUIRE(backend->recordings->replay(backend, recording, err));
    void *replayed = download_bytes(backend, z.matrix);
    REQUIRE(backend->memory->zero(backend, z.matrix.data, decant_matrix_bytes(z.matrix), err));
    int issued = work.issued;
    REQUIRE(issue(&work, err));
    void *anew = download_bytes(backend, z.matrix);
    assert_true(memcmp(first, replayed, decant_matrix_bytes(z.matrix)) != 0);
    assert_memory_equal(replayed, anew, decant_matrix_bytes(z.matrix));
    if (strcmp(backend->name, "cuda") == 0)
        assert_int_equal(issued, 2); /* once, and once captured: the replay was the graph's */
    backend->recordings->drop(backend, &recording);
    assert_null(recording);
    backend->recordings->drop(backend, &recording);
    free(first);
    free(replayed);
    free(anew);
    device_array *arrays[] = {&x, &other, &a, &b, &y, &z};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        drop(backend, arrays[i]);
}

static void work_that_fails_is_not_recorded(void **state)
{
    decant_backend *backend = *state;
    decant_recording *recording = NULL;
    decant_error err = {0};
    assert_int_equal(backend->recordings->record(backend, (decant_work){refuse, NULL}, &recording, &err),
                     DECANT_ERROR_BUG);
    assert_null(recording);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(replay_follows_the_input),
        cmocka_unit_test(work_that_fails_is_not_recorded),
    };
    return cmocka_run_group_tests_name("recordings", tests, open_backend, close_backend);
}
