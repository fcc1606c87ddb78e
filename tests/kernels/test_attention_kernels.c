/* Attention of a backend against plain loops in double, and its gradients against finite differences of those
 * loops: grouped heads, windows, and lengths around the CPU backend's block of 128 queries. */
#include "tests/kernels/device_arrays.h"

typedef struct attention_case {
    decant_attention_shape shape;
    device_array q, k, v, y, dy, dq, dk, dv;
    device_array log_sum_exp; /* [heads, T] */
} attention_case;

static attention_case make_case(decant_backend *backend, decant_attention_shape shape)
{
    int64_t wide = (int64_t)shape.heads * shape.head_dimension;
    int64_t narrow = (int64_t)shape.key_value_heads * shape.head_dimension;
    return (attention_case){
        .shape = shape,
        .q = activation_array(backend, shape.tokens, wide, 2, 1),
        .k = activation_array(backend, shape.tokens, narrow, 2, 2),
        .v = activation_array(backend, shape.tokens, narrow, 1, 3),
        .y = activation_array(backend, shape.tokens, wide, 1, 4),
        .dy = activation_array(backend, shape.tokens, wide, 1, 5),
        .dq = activation_array(backend, shape.tokens, wide, 1, 6),
        .dk = activation_array(backend, shape.tokens, narrow, 1, 7),
        .dv = activation_array(backend, shape.tokens, narrow, 1, 8),
        .log_sum_exp = float_array(backend, shape.heads, shape.tokens, 1, 9),
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
    double y[64], sum = 0;
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
    run_backward(backend, &attention);
    check_directions(backend, &attention, &attention.q, attention.dq.matrix, "gradient of q");
    check_directions(backend, &attention, &attention.k, attention.dk.matrix, "gradient of k");
    check_directions(backend, &attention, &attention.v, attention.dv.matrix, "gradient of v");
    drop_case(backend, &attention);
}

static void attention_and_its_gradient_match(void **state)
{
    check_small(*state, (decant_attention_shape){1, 1, 1, 2, 0});
    check_small(*state, (decant_attention_shape){9, 3, 3, 4, 0});
    check_small(*state, (decant_attention_shape){17, 2, 2, 16, 0});
}

static void heads_share_keys_and_values_in_groups(void **state)
{
    check_small(*state, (decant_attention_shape){9, 4, 1, 4, 0});
    check_small(*state, (decant_attention_shape){11, 6, 2, 8, 0});
}

static void a_window_limits_what_a_query_sees(void **state)
{
    check_small(*state, (decant_attention_shape){7, 2, 1, 4, 1});
    check_small(*state, (decant_attention_shape){13, 2, 2, 4, 5});
    check_small(*state, (decant_attention_shape){13, 2, 1, 4, 13});
}

static void blocks_of_queries_meet_without_a_seam(void **state)
{
    check_long(*state, (decant_attention_shape){127, 2, 1, 8, 0});
    check_long(*state, (decant_attention_shape){129, 2, 1, 8, 0});
    check_long(*state, (decant_attention_shape){300, 2, 2, 16, 0});
    check_long(*state, (decant_attention_shape){385, 2, 1, 8, 130});
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_and_its_gradient_match),
        cmocka_unit_test(heads_share_keys_and_values_in_groups),
        cmocka_unit_test(a_window_limits_what_a_query_sees),
        cmocka_unit_test(blocks_of_queries_meet_without_a_seam),
    };
    return cmocka_run_group_tests_name("attention", tests, open_backend, close_backend);
}
