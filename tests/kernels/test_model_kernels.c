/* The model table of a backend against plain loops in double, and its gradients against finite differences of
 * those loops. Attention has a file of its own. Sizes are odd on purpose and cross the CPU backend's tiles (256
 * channels, 512 tokens, 1024 terms) where that matters. */
#include "tests/kernels/device_arrays.h"

/* ---- embedding ---- */

static void embed_takes_the_rows_that_the_tokens_name(void **state)
{
    decant_backend *backend = *state;
    const int32_t tokens[] = {4, 0, 4, 10, 3};
    enum { TOKENS = 5, VOCABULARY = 11, HIDDEN = 19 };
    for (int element = DECANT_F32; element <= DECANT_BF16; element++) {
        device_array table =
            weight_array(backend, DECANT_PLACE_COMPUTE, (decant_element)element, VOCABULARY, HIDDEN, 2, 1);
        device_array y = activation_array(backend, TOKENS, HIDDEN, 1, 2);
        double expected[TOKENS * HIDDEN];
        for (int t = 0; t < TOKENS; t++)
            for (int i = 0; i < HIDDEN; i++)
                expected[t * HIDDEN + i] = table.values[tokens[t] * HIDDEN + i];
        REQUIRE(backend->model->embed(backend, tokens, table.matrix, y.matrix, err));
        expect_close(backend, y.matrix, expected, "embedding");
        drop(backend, &table);
        drop(backend, &y);
    }
}

/* ---- norm ---- */

static const double epsilon = 1e-5;

typedef struct norm_case {
    int64_t tokens, hidden;
    const double *weight, *dy;
    double *x;
    int64_t token; /* whose row the objective reads */
} norm_case;

static double inverse_rms_of(const double *row, int64_t hidden)
{
    double sum = 0;
    for (int64_t i = 0; i < hidden; i++)
        sum += row[i] * row[i];
    return 1 / sqrt(sum / (double)hidden + epsilon);
}

static double norm_objective(void *context)
{
    const norm_case *norm = context;
    const double *row = norm->x + norm->token * norm->hidden, *dy = norm->dy + norm->token * norm->hidden;
    double inverse = inverse_rms_of(row, norm->hidden), sum = 0;
    for (int64_t i = 0; i < norm->hidden; i++)
        sum += dy[i] * row[i] * inverse * norm->weight[i];
    return sum;
}

static void check_norm(decant_backend *backend, decant_element element, int64_t tokens, int64_t hidden)
{
    device_array x = activation_array(backend, tokens, hidden, 2, 1);
    device_array weight = weight_array(backend, DECANT_PLACE_EXACT, element, 1, hidden, 1, 2);
    device_array y = activation_array(backend, tokens, hidden, 1, 3);
    device_array dy = activation_array(backend, tokens, hidden, 1, 4);
    device_array dx = activation_array(backend, tokens, hidden, 1, 5);
    device_array inverse = float_array(backend, 1, tokens, 1, 6);
    double *expected = doubles(tokens * hidden);

    REQUIRE(backend->model->rms_norm(backend, x.matrix, weight.matrix, (float)epsilon, y.matrix,
                                     inverse.matrix.data, err));
    for (int64_t t = 0; t < tokens; t++) {
        inverse.values[t] = inverse_rms_of(x.values + t * hidden, hidden);
        for (int64_t i = 0; i < hidden; i++)
            expected[t * hidden + i] = x.values[t * hidden + i] * inverse.values[t] * weight.values[i];
    }
    expect_close(backend, y.matrix, expected, "norm");
    expect_close(backend, inverse.matrix, inverse.values, "inverse root mean square");

    REQUIRE(backend->model->rms_norm_backward(backend, dy.matrix, x.matrix, weight.matrix, inverse.matrix.data,
                                              dx.matrix, err));
    norm_case norm = {tokens, hidden, weight.values, dy.values, x.values, 0};
    for (int64_t i = 0; i < tokens * hidden; i++) {
        norm.token = i / hidden;
        expected[i] = dx.values[i] + slope(norm_objective, &norm, &x.values[i]);
    }
    expect_close(backend, dx.matrix, expected, "gradient of the norm, added to what was there");
    free(expected);
    device_array *arrays[] = {&x, &weight, &y, &dy, &dx, &inverse};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        drop(backend, arrays[i]);
}

static void norm_and_its_gradient_match(void **state)
{
    for (int element = DECANT_F32; element <= DECANT_BF16; element++) {
        check_norm(*state, (decant_element)element, 1, 1);
        check_norm(*state, (decant_element)element, 7, 37);
        check_norm(*state, (decant_element)element, 33, 64);
        check_norm(*state, (decant_element)element, 3, 577);
    }
}

/* ---- layer norm ---- */

/* The norm of a row, into `normed`. */
static void layer_norm_of(const double *row, const norm_case *norm, const double *bias, double *normed)
{
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < norm->hidden; i++)
        mean += row[i] / (double)norm->hidden;
    for (int64_t i = 0; i < norm->hidden; i++)
        variance += (row[i] - mean) * (row[i] - mean) / (double)norm->hidden;
    for (int64_t i = 0; i < norm->hidden; i++)
        normed[i] = (row[i] - mean) / sqrt(variance + epsilon) * norm->weight[i] + (bias ? bias[i] : 0);
}

static double layer_norm_objective(void *context)
{
    const norm_case *norm = context;
    double normed[1024], sum = 0;
    layer_norm_of(norm->x + norm->token * norm->hidden, norm, NULL, normed);
    for (int64_t i = 0; i < norm->hidden; i++)
        sum += norm->dy[norm->token * norm->hidden + i] * normed[i];
    return sum;
}

static void check_layer_norm(decant_backend *backend, decant_element element, int64_t tokens, int64_t hidden)
{
    device_array x = activation_array(backend, tokens, hidden, 2, 1);
    device_array weight = weight_array(backend, DECANT_PLACE_EXACT, element, 1, hidden, 1, 2);
    device_array bias = weight_array(backend, DECANT_PLACE_EXACT, element, 1, hidden, 1, 3);
    device_array y = activation_array(backend, tokens, hidden, 1, 5);
    device_array dy = activation_array(backend, tokens, hidden, 1, 6);
    device_array dx = activation_array(backend, tokens, hidden, 1, 7);
    double *expected = doubles(tokens * hidden), *gradient = doubles(tokens * hidden);
    norm_case norm = {tokens, hidden, weight.values, dy.values, x.values, 0};

    for (int64_t t = 0; t < tokens; t++)
        layer_norm_of(x.values + t * hidden, &norm, bias.values, expected + t * hidden);
    REQUIRE(backend->model->layer_norm(backend, x.matrix, weight.matrix, bias.matrix, (float)epsilon, y.matrix,
                                       err));
    expect_close(backend, y.matrix, expected, "layer norm");

    for (int64_t i = 0; i < tokens * hidden; i++) {
        norm.token = i / hidden;
        gradient[i] = slope(layer_norm_objective, &norm, &x.values[i]);
        expected[i] = dx.values[i] + gradient[i];
    }
    REQUIRE(backend->model->layer_norm_backward(backend, dy.matrix, x.matrix, weight.matrix, (float)epsilon,
                                                true, dx.matrix, err));
    expect_close_at_scale(backend, dx.matrix, expected, 1,
                          "gradient of the layer norm, added to what was there");
    REQUIRE(backend->model->layer_norm_backward(backend, dy.matrix, x.matrix, weight.matrix, (float)epsilon,
                                                false, dy.matrix, err));
    expect_close_at_scale(backend, dy.matrix, gradient, 1, "gradient of the layer norm, over dy");
    free(expected);
    free(gradient);
    device_array *arrays[] = {&x, &weight, &bias, &y, &dy, &dx};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        drop(backend, arrays[i]);
}

static void layer_norm_and_its_gradient_match(void **state)
{
    for (int element = DECANT_F32; element <= DECANT_BF16; element++) {
        check_layer_norm(*state, (decant_element)element, 1, 1);
        check_layer_norm(*state, (decant_element)element, 7, 37);
        check_layer_norm(*state, (decant_element)element, 33, 64);
        check_layer_norm(*state, (decant_element)element, 3, 577);
    }
}

/* ---- bias ---- */

static void check_bias(decant_backend *backend, decant_element element, int64_t tokens, int64_t bias_rows,
                       int64_t columns)
{
    device_array y = activation_array(backend, tokens, columns, 2, 1);
    device_array bias = weight_array(backend, DECANT_PLACE_EXACT, element, bias_rows, columns, 3, 2);
    for (int64_t i = 0; i < tokens * columns; i++)
        y.values[i] += bias.values[i % (bias_rows * columns)];
    REQUIRE(backend->model->add_bias(backend, y.matrix, bias.matrix, err));
    expect_close(backend, y.matrix, y.values, "bias");
    drop(backend, &y);
    drop(backend, &bias);
}

static void bias_is_added_to_every_row(void **state)
{
    for (int element = DECANT_F32; element <= DECANT_BF16; element++) {
        check_bias(*state, (decant_element)element, 1, 1, 1);
        check_bias(*state, (decant_element)element, 7, 1, 256);
        check_bias(*state, (decant_element)element, 5, 1, 777);
    }
}

static void positions_are_added_in_turn(void **state)
{
    for (int element = DECANT_F32; element <= DECANT_BF16; element++) {
        check_bias(*state, (decant_element)element, 6, 2, 1);
        check_bias(*state, (decant_element)element, 12, 3, 256);
        check_bias(*state, (decant_element)element, 5, 5, 777);
    }
}

/* ---- linear layers ---- */

/* c [m, n] (+)= a [m, k] times b, where b's element (k, n) lies at k · b_row + n · b_column. */
static void multiply(int64_t m, int64_t n, int64_t k, const double *a, const double *b, int64_t b_row,
                     int64_t b_column, bool accumulate, double *c)
{
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = accumulate ? c[i * n + j] : 0;
            for (int64_t l = 0; l < k; l++)
                sum += a[i * k + l] * b[l * b_row + j * b_column];
            c[i * n + j] = sum;
        }
}

static void check_linear(decant_backend *backend, decant_element element, int64_t tokens, int64_t in,
                         int64_t out)
{
    device_array weight = weight_array(backend, DECANT_PLACE_COMPUTE, element, out, in, 1, 1);
    device_array x = activation_array(backend, tokens, in, 1, 2),
                 dy = activation_array(backend, tokens, out, 1, 3);
    device_array y = activation_array(backend, tokens, out, 1, 4),
                 dx = activation_array(backend, tokens, in, 1, 5);

    multiply(tokens, out, in, x.values, weight.values, 1, in, false, y.values);
    REQUIRE(backend->model->linear(backend, x.matrix, weight.matrix, false, y.matrix, err));
    expect_close(backend, y.matrix, y.values, "linear");
    multiply(tokens, out, in, x.values, weight.values, 1, in, true, y.values);
    REQUIRE(backend->model->linear(backend, x.matrix, weight.matrix, true, y.matrix, err));
    expect_close(backend, y.matrix, y.values, "linear, accumulated");

    multiply(tokens, in, out, dy.values, weight.values, in, 1, false, dx.values);
    REQUIRE(backend->model->linear_backward(backend, dy.matrix, weight.matrix, false, dx.matrix, err));
    expect_close(backend, dx.matrix, dx.values, "linear backward");
    multiply(tokens, in, out, dy.values, weight.values, in, 1, true, dx.values);
    REQUIRE(backend->model->linear_backward(backend, dy.matrix, weight.matrix, true, dx.matrix, err));
    expect_close(backend, dx.matrix, dx.values, "linear backward, accumulated");

    device_array *arrays[] = {&weight, &x, &dy, &y, &dx};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        drop(backend, arrays[i]);
}

static void linear_and_its_gradient_match(void **state)
{
    for (int element = DECANT_F32; element <= DECANT_BF16; element++) {
        check_linear(*state, (decant_element)element, 1, 1, 1);
        check_linear(*state, (decant_element)element, 7, 5, 3);
        check_linear(*state, (decant_element)element, 37, 48, 80);
        check_linear(*state, (decant_element)element, 37, 259, 129);
    }
    check_linear(*state, DECANT_F16, 3, 1031, 1027);
    check_linear(*state, DECANT_BF16, 515, 67, 261);
}

/* ---- Fisher sums ---- */

static void add_reference_fisher(decant_fisher_form form, const device_array *dy, const device_array *x,
                                 double *fisher)
{
    int64_t out = dy->matrix.columns, in = x->matrix.columns;
    for (int64_t i = 0; i < out; i++)
        for (int64_t j = 0; j < in; j++) {
            double gradient = 0, squares = 0;
            for (int64_t t = 0; t < x->matrix.rows; t++) {
                double term = dy->values[t * out + i] * x->values[t * in + j];
                gradient += term;
                squares += term * term;
            }
            fisher[i * in + j] += form == DECANT_FISHER_TOKEN ? squares : gradient * gradient;
        }
}

static void check_fisher(decant_backend *backend, decant_fisher_form form, int64_t tokens, int64_t in,
                         int64_t out)
{
    device_array fisher = float_array(backend, out, in, 1, 1);
    for (uint64_t sequence = 0; sequence < 2; sequence++) {
        device_array x = activation_array(backend, tokens, in, 1, 2 + sequence);
        device_array dy = activation_array(backend, tokens, out, 1, 20 + sequence);
        add_reference_fisher(form, &dy, &x, fisher.values);
        REQUIRE(backend->model->fisher_add(backend, form, dy.matrix, x.matrix, fisher.matrix.data, err));
        drop(backend, &x);
        drop(backend, &dy);
    }
    expect_close(backend, fisher.matrix, fisher.values,
                 form == DECANT_FISHER_TOKEN ? "token Fisher" : "sequence Fisher");
    drop(backend, &fisher);
}

static void fisher_sums_match(void **state)
{
    for (int form = DECANT_FISHER_SEQUENCE; form <= DECANT_FISHER_TOKEN; form++) {
        check_fisher(*state, (decant_fisher_form)form, 1, 1, 1);
        check_fisher(*state, (decant_fisher_form)form, 37, 5, 3);
        check_fisher(*state, (decant_fisher_form)form, 37, 80, 48);
        check_fisher(*state, (decant_fisher_form)form, 19, 1031, 261);
        /* whole and partial tiles of the CUDA backend's products */
        check_fisher(*state, (decant_fisher_form)form, 300, 320, 192);
        check_fisher(*state, (decant_fisher_form)form, 70, 2112, 2240);
    }
}

/* ---- rotary embedding ---- */

static void check_rotary(decant_backend *backend, int64_t tokens, int heads, int64_t half)
{
    int64_t columns = heads * 2 * half;
    device_array x = activation_array(backend, tokens, columns, 1, 1);
    device_array cosines = float_array(backend, tokens, half, 1, 2),
                 sines = float_array(backend, tokens, half, 1, 3);
    double *forward = doubles(tokens * columns), *there_and_back = doubles(tokens * columns);
    for (int64_t i = 0; i < tokens * columns; i++) {
        int64_t t = i / columns, within = i % (2 * half), pair = within % half;
        double c = cosines.values[t * half + pair], s = sines.values[t * half + pair];
        double partner = x.values[within < half ? i + half : i - half];
        forward[i] = x.values[i] * c + (within < half ? -partner : partner) * s;
        there_and_back[i] = x.values[i] * (c * c + s * s);
    }
    REQUIRE(
        backend->model->rotary(backend, x.matrix, heads, cosines.matrix.data, sines.matrix.data, false, err));
    expect_close(backend, x.matrix, forward, "rotary");
    REQUIRE(
        backend->model->rotary(backend, x.matrix, heads, cosines.matrix.data, sines.matrix.data, true, err));
    expect_close(backend, x.matrix, there_and_back, "rotary and its inverse");
    free(forward);
    free(there_and_back);
    drop(backend, &x);
    drop(backend, &cosines);
    drop(backend, &sines);
}

static void rotary_turns_pairs_of_the_two_halves(void **state)
{
    check_rotary(*state, 1, 1, 1);
    check_rotary(*state, 5, 3, 4);
    check_rotary(*state, 37, 2, 33);
}

/* ---- SwiGLU ---- */

static double silu_multiply_of(double gate, double up)
{
    return gate / (1 + exp(-gate)) * up;
}

typedef struct silu_case {
    double gate, up, dy;
} silu_case;

static double silu_objective(void *context)
{
    const silu_case *silu = context;
    return silu->dy * silu_multiply_of(silu->gate, silu->up);
}

static void check_silu(decant_backend *backend, int64_t tokens, int64_t intermediate, double scale)
{
    int64_t count = tokens * intermediate;
    device_array gate = activation_array(backend, tokens, intermediate, scale, 1);
    device_array up = activation_array(backend, tokens, intermediate, 1, 2);
    device_array dy = activation_array(backend, tokens, intermediate, 1, 3);
    device_array y = activation_array(backend, tokens, intermediate, 1, 4);
    device_array dgate = activation_array(backend, tokens, intermediate, 1, 5);
    device_array dup = activation_array(backend, tokens, intermediate, 1, 6);
    for (int64_t i = 0; i < count; i++) {
        silu_case silu = {gate.values[i], up.values[i], dy.values[i]};
        y.values[i] = silu_multiply_of(silu.gate, silu.up);
        dgate.values[i] = slope(silu_objective, &silu, &silu.gate);
        dup.values[i] = slope(silu_objective, &silu, &silu.up);
    }
    REQUIRE(backend->model->silu_multiply(backend, gate.matrix, up.matrix, y.matrix, err));
    expect_close(backend, y.matrix, y.values, "silu times up");
    REQUIRE(backend->model->silu_multiply_backward(backend, gate.matrix, up.matrix, dy.matrix, dgate.matrix,
                                                   dup.matrix, err));
    expect_close(backend, dgate.matrix, dgate.values, "gradient of gate");
    expect_close(backend, dup.matrix, dup.values, "gradient of up");
    REQUIRE(backend->model->silu_multiply_backward(backend, gate.matrix, up.matrix, dy.matrix, gate.matrix,
                                                   up.matrix, err));
    expect_close(backend, gate.matrix, dgate.values, "gradient of gate, over gate");
    expect_close(backend, up.matrix, dup.values, "gradient of up, over up");
    device_array *arrays[] = {&gate, &up, &dy, &y, &dgate, &dup};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        drop(backend, arrays[i]);
}

static void silu_multiply_and_its_gradient_match(void **state)
{
    check_silu(*state, 1, 1, 3);
    check_silu(*state, 5, 13, 6);
    check_silu(*state, 67, 131, 20);
    check_silu(*state, 3, 11, 500); /* e^500 has no float */
}

/* ---- ReLU ---- */

static void check_relu(decant_backend *backend, int64_t tokens, int64_t columns)
{
    device_array x = activation_array(backend, tokens, columns, 2, 1);
    device_array dy = activation_array(backend, tokens, columns, 1, 2);
    device_array dx = activation_array(backend, tokens, columns, 1, 3);
    for (int64_t i = 0; i < tokens * columns; i++) {
        x.values[i] = fmax(x.values[i], 0);
        dx.values[i] = x.values[i] > 0 ? dy.values[i] : 0;
    }
    REQUIRE(backend->model->relu(backend, x.matrix, err));
    expect_close_at_scale(backend, x.matrix, x.values, 1, "relu");
    REQUIRE(backend->model->relu_backward(backend, x.matrix, dy.matrix, dx.matrix, err));
    expect_close_at_scale(backend, dx.matrix, dx.values, 1, "gradient of relu");
    REQUIRE(backend->model->relu_backward(backend, x.matrix, dy.matrix, dy.matrix, err));
    expect_close_at_scale(backend, dy.matrix, dx.values, 1, "gradient of relu, over dy");
    drop(backend, &x);
    drop(backend, &dy);
    drop(backend, &dx);
}

static void relu_and_its_gradient_match(void **state)
{
    check_relu(*state, 1, 1);
    check_relu(*state, 5, 13);
    check_relu(*state, 67, 128);
}

/* ---- cross-entropy ---- */

static double row_log_sum_exp(const double *row, int64_t count)
{
    double largest = row[0], sum = 0;
    for (int64_t i = 1; i < count; i++)
        largest = fmax(largest, row[i]);
    for (int64_t i = 0; i < count; i++)
        sum += exp(row[i] - largest);
    return largest + log(sum);
}

static void check_cross_entropy(decant_backend *backend, int64_t tokens, int64_t vocabulary, double scale)
{
    device_array logits = activation_array(backend, tokens, vocabulary, scale, 1);
    int32_t *ids = calloc((size_t)tokens, sizeof *ids);
    assert_non_null(ids);
    uint64_t seed = 2;
    for (int64_t t = 0; t < tokens; t++)
        ids[t] = (int32_t)((random_value(&seed) + 1) / 2 * (double)vocabulary);
    double expected_loss = 0, loss = 0, targets = (double)(tokens - 1);
    double *gradient = doubles(tokens * vocabulary);
    for (int64_t t = 0; t < tokens - 1; t++) {
        const double *row = logits.values + t * vocabulary;
        double log_sum = row_log_sum_exp(row, vocabulary);
        expected_loss += (log_sum - row[ids[t + 1]]) / targets;
        for (int64_t i = 0; i < vocabulary; i++)
            gradient[t * vocabulary + i] = (exp(row[i] - log_sum) - (i == ids[t + 1])) / targets;
    }
    REQUIRE(backend->model->cross_entropy(backend, logits.matrix, ids, false, &loss, err));
    expect_number_close(backend, loss, expected_loss, "loss");
    expect_close(backend, logits.matrix, logits.values, "logits left alone");
    REQUIRE(backend->model->cross_entropy(backend, logits.matrix, ids, true, &loss, err));
    expect_number_close(backend, loss, expected_loss, "loss with gradient");
    expect_close(backend, logits.matrix, gradient, "gradient of the loss");
    free(gradient);
    free(ids);
    drop(backend, &logits);
}

static void cross_entropy_and_its_gradient_match(void **state)
{
    check_cross_entropy(*state, 2, 1, 1);
    check_cross_entropy(*state, 2, 17, 3);
    check_cross_entropy(*state, 37, 113, 10);
    check_cross_entropy(*state, 5, 5003, 200); /* e^200 has no float */
}

/* ---- memory ---- */

static void memory_moves_bytes_and_counts_them(void **state)
{
    decant_backend *backend = *state;
    const decant_memory_kernels *memory = backend->memory;
    const char written[5] = "four";
    char read[5] = "";
    void *a = NULL, *b = NULL;
    int64_t before, now, peak, device;
    memory->usage(backend, &before, &peak, &device);
    REQUIRE(memory->allocate(backend, sizeof written, "a", &a, err));
    REQUIRE(memory->allocate(backend, sizeof written, "b", &b, err));
    REQUIRE(memory->download(backend, read, a, sizeof read, err));
    assert_memory_equal(read, (char[5]){0}, sizeof read);
    REQUIRE(memory->upload(backend, a, written, sizeof written, err));
    REQUIRE(memory->copy(backend, b, a, sizeof written, err));
    REQUIRE(memory->zero(backend, a, sizeof written, err));
    REQUIRE(memory->download(backend, read, b, sizeof read, err));
    assert_memory_equal(read, written, sizeof read);
    REQUIRE(memory->download(backend, read, a, sizeof read, err));
    assert_memory_equal(read, (char[5]){0}, sizeof read);
    memory->usage(backend, &now, &peak, &device);
    assert_true(now >= before + 2 * (int64_t)sizeof written && peak >= now && device > peak);
    memory->release(backend, &a);
    memory->release(backend, &b);
    memory->release(backend, &b); /* NULL by now */
    assert_null(a);
    memory->usage(backend, &now, &peak, &device);
    assert_int_equal(now, before);
}

static void a_weight_at_an_odd_address_can_be_placed(void **state)
{
    decant_backend *backend = *state;
    enum { COLUMNS = 6 };
    device_array x = activation_array(backend, 1, COLUMNS, 1, 1), y = activation_array(backend, 1, 1, 1, 2);
    device_array weight = random_host_array(DECANT_F16, 1, COLUMNS, 1, 3);
    char bytes[1 + COLUMNS * sizeof(uint16_t)];
    char *odd = bytes + ((uintptr_t)bytes % 2 == 0);
    memcpy(odd, weight.host, COLUMNS * sizeof(uint16_t));
    weight.matrix.data = odd;
    REQUIRE(backend->weights->place(backend, weight.matrix, DECANT_PLACE_COMPUTE, "w", &weight.matrix, err));
    weight.placed = true;
    REQUIRE(backend->model->linear(backend, x.matrix, weight.matrix, false, y.matrix, err));
    multiply(1, 1, COLUMNS, x.values, weight.values, 1, COLUMNS, false, y.values);
    expect_close(backend, y.matrix, y.values, "linear with a weight at an odd address");
    drop(backend, &weight);
    assert_null(weight.matrix.data);
    drop(backend, &x);
    drop(backend, &y);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_moves_bytes_and_counts_them),
        cmocka_unit_test(a_weight_at_an_odd_address_can_be_placed),
        cmocka_unit_test(embed_takes_the_rows_that_the_tokens_name),
        cmocka_unit_test(norm_and_its_gradient_match),
        cmocka_unit_test(layer_norm_and_its_gradient_match),
        cmocka_unit_test(bias_is_added_to_every_row),
        cmocka_unit_test(positions_are_added_in_turn),
        cmocka_unit_test(linear_and_its_gradient_match),
        cmocka_unit_test(fisher_sums_match),
        cmocka_unit_test(rotary_turns_pairs_of_the_two_halves),
        cmocka_unit_test(silu_multiply_and_its_gradient_match),
        cmocka_unit_test(relu_and_its_gradient_match),
        cmocka_unit_test(cross_entropy_and_its_gradient_match),
    };
    return cmocka_run_group_tests_name("model kernels", tests, open_backend, close_backend);
}
