/* The CPU backend gives the same bytes on one, two and five threads: every operation of the model and validate
 * tables once, at sizes of many tiles with ragged ends. */
#include "base/memory.h"
#include "tests/kernels/device_arrays.h"

enum {
    TOKENS = 301,
    IN = 323,
    OUT = 517,
    HEADS = 6,
    KEY_VALUE_HEADS = 2,
    HEAD_DIMENSION = 20,
    VOCABULARY = 1009
};

/* All outputs of a run, one after the other. */
typedef struct recording {
    decant_backend *backend;
    char *bytes;
    size_t count;
    device_array arrays[64]; /* every array of the run, dropped at its end */
    int array_count;
} recording;

static void record_bytes(recording *run, const void *bytes, size_t count)
{
    run->bytes = realloc(run->bytes, run->count + count);
    assert_non_null(run->bytes);
    memcpy(run->bytes + run->count, bytes, count);
    run->count += count;
}

static void record(recording *run, decant_matrix matrix)
{
    void *bytes = download_bytes(run->backend, matrix);
    record_bytes(run, bytes, decant_matrix_bytes(matrix));
    free(bytes);
}

static decant_matrix keep(recording *run, device_array array)
{
    assert_true(run->array_count < 64);
    run->arrays[run->array_count++] = array;
    return array.matrix;
}

static decant_matrix activation(recording *run, int64_t rows, int64_t columns)
{
    uint64_t seed = (uint64_t)run->array_count;
    return keep(run, activation_array(run->backend, rows, columns, 2, seed));
}

static float *floats(recording *run, int64_t rows, int64_t columns)
{
    return keep(run, float_array(run->backend, rows, columns, 1, (uint64_t)run->array_count)).data;
}

static decant_matrix weight(recording *run, int64_t rows, int64_t columns)
{
    uint64_t seed = (uint64_t)run->array_count;
    return keep(run, weight_array(run->backend, DECANT_PLACE_COMPUTE, DECANT_F16, rows, columns, 1, seed));
}

static void run_linears(recording *run)
{
    decant_backend *backend = run->backend;
    const decant_model_kernels *model = backend->model;
    decant_matrix w = weight(run, OUT, IN), x = activation(run, TOKENS, IN), y = activation(run, TOKENS, OUT);
    decant_matrix fisher = {floats(run, OUT, IN), DECANT_F32, OUT, IN};
    REQUIRE(model->linear(backend, x, w, true, y, err));
    record(run, y);
    for (int form = DECANT_FISHER_SEQUENCE; form <= DECANT_FISHER_TOKEN; form++) {
        REQUIRE(model->fisher_add(backend, (decant_fisher_form)form, y, x, fisher.data, err));
        record(run, fisher);
    }
    REQUIRE(model->linear_backward(backend, y, w, true, x, err));
    record(run, x);
}

/* Large enough for the backend to take all its threads. */
static void run_rows(recording *run)
{
    enum { ROWS = 2111, COLUMNS = 523 };
    decant_backend *backend = run->backend;
    const decant_model_kernels *model = backend->model;
    decant_matrix w = weight(run, 1, COLUMNS), x = activation(run, ROWS, COLUMNS),
                  y = activation(run, ROWS, COLUMNS);
    decant_matrix dx = activation(run, ROWS, COLUMNS), z = activation(run, ROWS, COLUMNS);
    float *inverse_rms = floats(run, 1, ROWS), *cosines = floats(run, ROWS, 261),
          *sines = floats(run, ROWS, 261);
    decant_matrix turned = activation(run, ROWS, 522);
    REQUIRE(model->rms_norm(backend, x, w, 1e-5f, y, inverse_rms, err));
    REQUIRE(model->rms_norm_backward(backend, y, x, w, inverse_rms, dx, err));
    REQUIRE(model->silu_multiply(backend, x, y, z, err));
    REQUIRE(model->rotary(backend, turned, 1, cosines, sines, false, err));
    record(run, dx);
    record(run, z);
    record(run, turned);
    REQUIRE(model->silu_multiply_backward(backend, x, y, z, x, y, err)); /* outputs over inputs */
    record(run, x);
    record(run, y);
    REQUIRE(model->layer_norm(backend, z, w, w, 1e-5f, y, err));
    REQUIRE(model->layer_norm_backward(backend, dx, z, w, 1e-5f, true, x, err));
    REQUIRE(model->relu(backend, y, err));
    REQUIRE(model->relu_backward(backend, y, x, z, err));
    REQUIRE(model->add_bias(backend, dx, decant_matrix_rows(z, 0, 101), err));
    record(run, x);
    record(run, y);
    record(run, z);
    record(run, dx);
}

static void run_attention(recording *run)
{
    decant_backend *backend = run->backend;
    const decant_model_kernels *model = backend->model;
    const int64_t wide = HEADS * HEAD_DIMENSION, narrow = KEY_VALUE_HEADS * HEAD_DIMENSION;
    decant_attention_shape shape = {TOKENS, HEADS, KEY_VALUE_HEADS, HEAD_DIMENSION, 0, 1};
    decant_matrix q = activation(run, TOKENS, wide), k = activation(run, TOKENS, narrow);
    decant_matrix v = activation(run, TOKENS, narrow), y = activation(run, TOKENS, wide);
    decant_matrix dy = activation(run, TOKENS, wide), dq = activation(run, TOKENS, wide);
    decant_matrix dk = activation(run, TOKENS, narrow), dv = activation(run, TOKENS, narrow);
    float *log_sum_exp = floats(run, HEADS, TOKENS);
    REQUIRE(model->attention(backend, &shape, q, k, v, y, log_sum_exp, err));
    REQUIRE(model->attention_backward(backend, &shape, q, k, v, y, log_sum_exp, dy, dq, dk, dv, err));
    const decant_matrix outputs[] = {y, dq, dk, dv};
    for (size_t i = 0; i < sizeof outputs / sizeof *outputs; i++)
        record(run, outputs[i]);
}

static void run_losses(recording *run)
{
    decant_backend *backend = run->backend;
    decant_matrix a = activation(run, TOKENS, VOCABULARY), b = activation(run, TOKENS, VOCABULARY);
    int32_t tokens[TOKENS];
    decant_comparison comparison;
    double loss;
    for (int t = 0; t < TOKENS; t++)
        tokens[t] = t * 31 % VOCABULARY;
    REQUIRE(backend->validate->compare(backend, a, b, tokens, &comparison, err));
    record_bytes(run, &comparison, sizeof comparison);
    REQUIRE(backend->model->cross_entropy(backend, a, tokens, true, &loss, err));
    record_bytes(run, &loss, sizeof loss);
    record(run, a);
}

static void run_packed(recording *run)
{
    decant_backend *backend = run->backend;
    enum { BITS = 3, WORDS = (IN + 31) / 32 };
    decant_matrix x = activation(run, TOKENS, IN), y = activation(run, TOKENS, OUT);
    decant_matrix planes = weight(run, OUT, 2 * BITS * WORDS), levels = weight(run, OUT, 1 << BITS);
    decant_packed_matrix packed = {.rows = OUT, .columns = IN, .bits = BITS};
    packed.planes = planes.data; /* any bits are codes */
    packed.levels = levels.data;
    REQUIRE(backend->validate->packed_linear(backend, x, &packed, false, y, err));
    record(run, y);
}

static recording run_on(int threads)
{
    recording run = {0};
    REQUIRE(decant_backend_create_cpu(threads, &run.backend, err));
    run_linears(&run);
    run_rows(&run);
    run_attention(&run);
    run_losses(&run);
    run_packed(&run);
    for (int i = 0; i < run.array_count; i++)
        drop(run.backend, &run.arrays[i]);
    decant_backend_destroy(&run.backend);
    assert_null(run.backend);
    return run;
}

static void bytes_do_not_depend_on_the_number_of_threads(void **state)
{
    (void)state;
    recording one = run_on(1);
    const int counts[] = {1, 2, 5};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        recording many = run_on(counts[i]);
        assert_int_equal(many.count, one.count);
        assert_memory_equal(many.bytes, one.bytes, one.count);
        free(many.bytes);
    }
    free(one.bytes);
    assert_int_equal(decant_memory_usage_now().blocks, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(bytes_do_not_depend_on_the_number_of_threads)};
    return cmocka_run_group_tests_name("thread counts", tests, NULL, NULL);
}
