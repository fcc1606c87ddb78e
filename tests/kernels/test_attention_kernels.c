/* Attention of a backend against plain loops in double, and its gradients against finite differences of those
 * loops: grouped heads, windows, and lengths around the CPU backend's block of 128 queries. */
#include "tests/kernels/device_arrays.h"

enum { HEAD_DIMENSION_MAXIMUM = 128 };

typedef struct attention_case {
    decant_attention_shape shape;
    device_array q, k, v, y, dy, dq, dk, dv;
    device_array log_sum_exp; /* [S, heads, T] */
} attention_case;

static attention_case make_case(decant_backend *backend, decant_attention_shape shape)
{
    int64_t rows = shape.sequences * shape.tokens;
    int64_t wide = (int64_t)shape.heads * shape.head_dimension;
    int64_t narrow = (int64_t)shape.key_value_heads * shape.head_dimension;
    return (attention_case){
        .shape = shape,
        .q = activation_array(backend, rows, wide, 2, 1),
        .k = activation_array(backend, rows, narrow, 2, 2),
        .v = activation_array(backend, rows, narrow, 1, 3),
        .y = activation_array(backend, rows, wide, 1, 4),
        .dy = activation_array(backend, rows, wide, 1, 5),
        .dq = activation_array(backend, rows, wide, 1, 6),
        .dk = activation_array(backend, rows, narrow, 1, 7),
        .dv = activation_array(backend, rows, narrow, 1, 8),
        .log_sum_exp = float_array(backend, shape.sequences * shape.heads, shape.tokens, 1, 9),
    };
}

static void drop_case(decant_backend *backend, attention_case *attention)
{
    device_array *arrays[] = {&attention->q,  &attention->k,  &attention->v,
                              &attention->y,  &attention->dy, &attention->dq,
                              &attention->dk, &attention->dv, &attention->log_sum_exp};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        drop(backend, arrays[i]);
}

static int64_t first_key(const decant_attention_shape *shape, int64_t query)
{
    return shape->window > 0 && query + 1 > shape->window ? query + 1 - shape->window : 0;
}

static double score(const attention_case *attention, int64_t head, int64_t query, int64_t key)
{
    const decant_attention_shape *shape = &attention->shape;
    int64_t d = shape->head_dimension, shared = head / (shape->heads / shape->key_value_heads);
    const double *q = attention->q.values + (query * shape->heads + head) * d;
    const double *k = attention->k.values + (key * shape->key_value_heads + shared) * d;
    double sum = 0;
    for (int64_t i = 0; i < d; i++)
        sum += q[i] * k[i];
    return sum / sqrt((double)d);
}

static double reference_log_sum_exp(const attention_case *attention, int64_t head, int64_t query)
{
    double sum = 0; /* scores are small here: no need to shift them */
    for (int64_t key = first_key(&attention->shape, query); key <= query; key++)
        sum += exp(score(attention, head, query, key));
    return log(sum);
}

/* One query's output of one head, into y [head_dimension]. */
static void attend(const attention_case *attention, int64_t head, int64_t query, double *y)
{
    const decant_attention_shape *shape = &attention->shape;
    int64_t d = shape->head_dimension, shared = head / (shape->heads / shape->key_value_heads);
    double shift = reference_log_sum_exp(attention, head, query);
    for (int64_t i = 0; i < d; i++)
        y[i] = 0;
    for (int64_t key = first_key(shape, query); key <= query; key++) {
        double p = exp(score(attention, head, query, key) - shift);
        const double *v = attention->v.values + (key * shape->key_value_heads + shared) * d;
        for (int64_t i = 0; i < d; i++)
            y[i] += p * v[i];
    }
}

/* Σ dy ∘ y over everything that depends on it. */
static double objective(void *context)
{
    const attention_case *attention = context;
    const decant_attention_shape *shape = &attention->shape;
    double y[HEAD_DIMENSION_MAXIMUM], sum = 0;
    for (int64_t head = 0; head < shape->heads; head++)
        for (int64_t query = 0; query < shape->tokens; query++) {
            const double *dy = attention->dy.values + (query * shape->heads + head) * shape->head_dimension;
            attend(attention, head, query, y);
            for (int64_t i = 0; i < shape->head_dimension; i++)
                sum += dy[i] * y[i];
        }
    return sum;
}

static void check_forward(decant_backend *backend, attention_case *attention)
{
    const decant_attention_shape *shape = &attention->shape;
    for (int64_t head = 0; head < shape->heads; head++)
        for (int64_t query = 0; query < shape->tokens; query++) {
            attend(attention, head, query,
                   attention->y.values + (query * shape->heads + head) * shape->head_dimension);
            attention->log_sum_exp.values[head * shape->tokens + query] =
                reference_log_sum_exp(attention, head, query);
        }
    REQUIRE(backend->model->attention(backend, shape, attention->q.matrix, attention->k.matrix,
                                      attention->v.matrix, attention->y.matrix,
                                      attention->log_sum_exp.matrix.data, err));
    expect_close(backend, attention->y.matrix, attention->y.values, "attention");
    expect_close(backend, attention->log_sum_exp.matrix, attention->log_sum_exp.values, "log-sum-exp");
}

/* The same tokens one at a time, their keys and values kept on the way, into the same y. */
static void check_steps(decant_backend *backend, attention_case *attention)
{
    const decant_attention_shape *shape = &attention->shape;
    decant_matrix q = attention->q.matrix, k = attention->k.matrix, v = attention->v.matrix,
                  y = attention->y.matrix;
    device_array keys = activation_array(backend, k.rows + 1, k.columns, 1, 11),
                 values = activation_array(backend, v.rows + 1, v.columns, 1, 12);
    void *position;
    assert_int_equal(shape->sequences, 1);
    REQUIRE(backend->memory->allocate(backend, sizeof(int32_t), "a position", &position, err));
    REQUIRE(backend->memory->zero(backend, y.data, decant_matrix_bytes(y), err));
    for (int32_t t = 0; t < shape->tokens; t++) {
        REQUIRE(backend->memory->upload(backend, position, &t, sizeof t, err));
        REQUIRE(backend->model->attention_step(backend, shape, decant_matrix_rows(q, t, 1),
                                               decant_matrix_rows(k, t, 1), decant_matrix_rows(v, t, 1),
                                               keys.matrix, values.matrix, position,
                                               decant_matrix_rows(y, t, 1), err));
    }
    expect_close(backend, y, attention->y.values, "attention step by step");
    backend->memory->release(backend, &position);
    drop(backend, &keys);
    drop(backend, &values);
}

static void run_backward(decant_backend *backend, attention_case *attention)
{
    REQUIRE(backend->model->attention_backward(
        backend, &attention->shape, attention->q.matrix, attention->k.matrix, attention->v.matrix,
        attention->y.matrix, attention->log_sum_exp.matrix.data, attention->dy.matrix, attention->dq.matrix,
        attention->dk.matrix, attention->dv.matrix, err));
}

static void check_gradient(decant_backend *backend, attention_case *attention, device_array *parameter,
                           device_array *gradient, const char *what)
{
    for (int64_t i = 0; i < element_count(parameter->matrix); i++)
        gradient->values[i] = slope(objective, attention, &parameter->values[i]);
    /* A query that sees one key has no gradient but its value's: dy of size 1 gives the scale. */
    expect_close_at_scale(backend, gradient->matrix, gradient->values, 0.1, what);
}

static void check_small(decant_backend *backend, decant_attention_shape shape)
{
    attention_case attention = make_case(backend, shape);
    check_forward(backend, &attention);
    check_steps(backend, &attention);
    check_forward(backend, &attention);
    run_backward(backend, &attention);
    check_gradient(backend, &attention, &attention.q, &attention.dq, "gradient of q");
    check_gradient(backend, &attention, &attention.k, &attention.dk, "gradient of k");
    check_gradient(backend, &attention, &attention.v, &attention.dv, "gradient of v");
    drop_case(backend, &attention);
}

/* For long sequences the whole gradient by differences would take too long: the slope along a few random
 * directions instead, in which every element of the gradient takes part. */
static double slope_along(attention_case *attention, device_array *parameter, const double *direction)
{
    const double step = 1e-5;
    double results[2];
    int64_t count = element_count(parameter->matrix);
    for (int side = 0; side < 2; side++) {
        for (int64_t i = 0; i < count; i++)
            parameter->values[i] += (side == 0 ? step : -2 * step) * direction[i];
        results[side] = objective(attention);
    }
    for (int64_t i = 0; i < count; i++)
        parameter->values[i] += step * direction[i];
    return (results[0] - results[1]) / (2 * step);
}

static void check_directions(decant_backend *backend, attention_case *attention, device_array *parameter,
                             decant_matrix gradient, const char *what)
{
    int64_t count = element_count(gradient);
    void *bytes = download_bytes(backend, gradient);
    double *direction = doubles(count);
    for (uint64_t seed = 1; seed <= 3; seed++) {
        uint64_t state = 100 * seed;
        double along = 0, scale = 0;
        for (int64_t i = 0; i < count; i++) {
            double value = load_element(gradient.element, bytes, i);
            direction[i] = random_value(&state);
            along += value * direction[i];
            scale += value * value * direction[i] * direction[i];
        }
        double expected = slope_along(attention, parameter, direction);
        if (!(fabs(along - expected) <= tolerance(backend) * sqrt(scale)))
            fail_msg("%s along direction %d: %.9g, expected %.9g", what, (int)seed, along, expected);
    }
    free(direction);
    free(bytes);
}

static void check_long(decant_backend *backend, decant_attention_shape shape)
{
    attention_case attention = make_case(backend, shape);
    check_forward(backend, &attention);
    check_steps(backend, &attention);
    check_forward(backend, &attention);
    run_backward(backend, &attention);
    check_directions(backend, &attention, &attention.q, attention.dq.matrix, "gradient of q");
    check_directions(backend, &attention, &attention.k, attention.dk.matrix, "gradient of k");
    check_directions(backend, &attention, &attention.v, attention.dv.matrix, "gradient of v");
    drop_case(backend, &attention);
}

static void attention_and_its_gradient_match(void **state)
{
    check_small(*state, (decant_attention_shape){1, 1, 1, 2, 0, 1});
    check_small(*state, (decant_attention_shape){9, 3, 3, 4, 0, 1});
    check_small(*state, (decant_attention_shape){17, 2, 2, 16, 0, 1});
}

static void heads_share_keys_and_values_in_groups(void **state)
{
    check_small(*state, (decant_attention_shape){9, 4, 1, 4, 0, 1});
    check_small(*state, (decant_attention_shape){11, 6, 2, 8, 0, 1});
}

static void a_window_limits_what_a_query_sees(void **state)
{
    check_small(*state, (decant_attention_shape){7, 2, 1, 4, 1, 1});
    check_small(*state, (decant_attention_shape){13, 2, 2, 4, 5, 1});
    check_small(*state, (decant_attention_shape){13, 2, 1, 4, 13, 1});
}

static void blocks_of_queries_meet_without_a_seam(void **state)
{
    check_long(*state, (decant_attention_shape){127, 2, 1, 8, 0, 1});
    check_long(*state, (decant_attention_shape){129, 2, 1, 8, 0, 1});
    check_long(*state, (decant_attention_shape){300, 2, 2, 16, 0, 1});
    check_long(*state, (decant_attention_shape){385, 2, 1, 8, 130, 1});
}

/* One sequence's share of an array whose rows are divided evenly. */
static decant_matrix share(decant_matrix matrix, const decant_attention_shape *shape, int64_t sequence)
{
    int64_t rows = matrix.rows / shape->sequences;
    return decant_matrix_rows(matrix, sequence * rows, rows);
}

/* Overwrites the outputs of a batch by running its sequences one by one. */
static void run_one_by_one(decant_backend *backend, attention_case *attention)
{
    decant_attention_shape one = attention->shape;
    one.sequences = 0; /* counts as 1 */
    for (int64_t i = 0; i < attention->shape.sequences; i++) {
        decant_matrix parts[9];
        const device_array *arrays[9] = {&attention->q,  &attention->k,  &attention->v,
                                         &attention->y,  &attention->dy, &attention->dq,
                                         &attention->dk, &attention->dv, &attention->log_sum_exp};
        for (int j = 0; j < 9; j++)
            parts[j] = share(arrays[j]->matrix, &attention->shape, i);
        REQUIRE(backend->model->attention(backend, &one, parts[0], parts[1], parts[2], parts[3], parts[8].data,
                                          err));
        REQUIRE(backend->model->attention_backward(backend, &one, parts[0], parts[1], parts[2], parts[3],
                                                   parts[8].data, parts[4], parts[5], parts[6], parts[7], err));
    }
}

static void check_batch(decant_backend *backend, decant_attention_shape shape)
{
    attention_case attention = make_case(backend, shape);
    device_array *outputs[] = {&attention.y, &attention.log_sum_exp, &attention.dq, &attention.dk,
                               &attention.dv};
    enum { OUTPUTS = sizeof outputs / sizeof *outputs };
    void *together[OUTPUTS];
    REQUIRE(backend->model->attention(backend, &shape, attention.q.matrix, attention.k.matrix,
                                      attention.v.matrix, attention.y.matrix, attention.log_sum_exp.matrix.data,
                                      err));
    run_backward(backend, &attention);
    for (int i = 0; i < OUTPUTS; i++) {
        together[i] = download_bytes(backend, outputs[i]->matrix);
        REQUIRE(backend->memory->zero(backend, outputs[i]->matrix.data, decant_matrix_bytes(outputs[i]->matrix),
                                      err));
    }
    run_one_by_one(backend, &attention);
    for (int i = 0; i < OUTPUTS; i++) {
        void *alone = download_bytes(backend, outputs[i]->matrix);
        assert_memory_equal(together[i], alone, decant_matrix_bytes(outputs[i]->matrix));
        free(alone);
        free(together[i]);
    }
    drop_case(backend, &attention);
}

static void a_batch_equals_its_sequences(void **state)
{
    check_batch(*state, (decant_attention_shape){9, 4, 2, 8, 0, 3});
    check_batch(*state, (decant_attention_shape){130, 2, 1, 64, 0, 4});
    check_batch(*state, (decant_attention_shape){200, 2, 2, 128, 70, 2});
    check_batch(*state, (decant_attention_shape){1, 2, 2, 128, 0, 5});
}

/* The head dimensions that the CUDA backend has tensor-core kernels for; lengths within, at and beyond a tile.
 */
static void the_usual_head_dimensions_match(void **state)
{
    check_long(*state, (decant_attention_shape){5, 2, 1, 64, 0, 1});
    check_long(*state, (decant_attention_shape){128, 2, 2, 64, 0, 1});
    check_long(*state, (decant_attention_shape){217, 3, 1, 64, 0, 1});
    check_long(*state, (decant_attention_shape){217, 2, 1, 64, 90, 1});
    check_long(*state, (decant_attention_shape){5, 1, 1, 128, 0, 1});
    check_long(*state, (decant_attention_shape){256, 2, 2, 128, 0, 1});
    check_long(*state, (decant_attention_shape){301, 4, 2, 128, 0, 1});
    check_long(*state, (decant_attention_shape){301, 2, 1, 128, 65, 1});
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_and_its_gradient_match),
        cmocka_unit_test(heads_share_keys_and_values_in_groups),
        cmocka_unit_test(a_window_limits_what_a_query_sees),
        cmocka_unit_test(blocks_of_queries_meet_without_a_seam),
        cmocka_unit_test(the_usual_head_dimensions_match),
        cmocka_unit_test(a_batch_equals_its_sequences),
    };
    return cmocka_run_group_tests_name("attention", tests, open_backend, close_backend);
}
