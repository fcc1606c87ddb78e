/* The products of a decode step: which linear layers take the same x is as the forward pass of each family has
 * it, and each layer gives what it gives by itself. Runs on the backend that DECANT_TEST_DEVICE names. */
#include "stages/decode_products.h"
#include "tests/reference/reference_model.h"

enum { TOKENS = 5, FEWER_TOKENS = 3 };

/* Models of tests/reference, one of each family; columns of the widest layer and rows of the layers with the
 * same x where these are most, by hand. */
static const struct {
    const char *name;
    int64_t columns, rows;
} cases[] = {
    {"llama_gqa_tied", 56, 2 * 56},   {"mistral_window", 40, 2 * 40}, {"qwen2_biases", 40, 2 * 40},
    {"qwen3_norms", 48, 48 + 2 * 24}, {"opt_before", 48, 3 * 32},     {"opt_behind", 36, 3 * 36},
};

enum { CASES = sizeof cases / sizeof *cases };

typedef struct stepped_model {
    reference_model reference;
    decant_model_part part;
} stepped_model;

static void open_model(decant_backend *backend, const char *name, stepped_model *model)
{
    open_reference_model(name, &model->reference);
    load_reference_model(backend, &model->reference, TOKENS, 1, &model->part);
}

static void close_model(stepped_model *model)
{
    decant_model_part_unload(&model->part);
    close_reference_model(&model->reference);
}

/* ---- the forward pass ---- */

/* What a forward pass multiplied, one after the other. */
static struct {
    const decant_model_kernels *kernels; /* those that compute */
    const void *weights[DECANT_BLOCK_LINEARS], *xs[DECANT_BLOCK_LINEARS];
    int count;
} watched;

static decant_status watched_linear(decant_backend *backend, decant_matrix x, decant_matrix weight,
                                    bool accumulate, decant_matrix y, decant_error *err)
{
    assert_true(watched.count < DECANT_BLOCK_LINEARS);
    watched.weights[watched.count] = weight.data;
    watched.xs[watched.count++] = x.data;
    return watched.kernels->linear(backend, x, weight, accumulate, y, err);
}

static void watch_forward(const decant_model_part *part)
{
    decant_backend *backend = part->backend;
    const int64_t hidden = part->config->hidden_size;
    device_array x = activation_array(backend, TOKENS, hidden, 1, 7),
                 y = activation_array(backend, TOKENS, hidden, 1, 8);
    decant_activations *kept = NULL;
    watched.kernels = backend->model;
    watched.count = 0;
    decant_model_kernels watching = *backend->model;
    watching.linear = watched_linear;
    REQUIRE(part->family->create_activations(part, &kept, err));
    backend->model = &watching;
    REQUIRE(part->family->forward(part, &part->blocks[0], x.matrix, y.matrix, kept, err));
    backend->model = watched.kernels;
    REQUIRE(backend->memory->synchronize(backend, err));
    part->family->destroy_activations(part, &kept);
    drop(backend, &x);
    drop(backend, &y);
}

static void layers_share_x_as_in_the_forward_pass(void **state)
{
    for (int i = 0; i < CASES; i++) {
        stepped_model model;
        open_model(*state, cases[i].name, &model);
        const decant_linear *linears = model.part.blocks[0].linears;
        watch_forward(&model.part);
        assert_int_equal(watched.count, model.part.family->linear_count);
        for (int j = 0; j < watched.count; j++) {
            assert_ptr_equal(watched.weights[j], linears[j].weight.data);
            if (linears[j].shares_x != (j > 0 && watched.xs[j] == watched.xs[j - 1]))
                fail_msg("%s: whether %s shares its x", cases[i].name, linears[j].name);
        }
        close_model(&model);
    }
}

/* ---- the products ---- */

static void there_is_room_for_an_x_and_the_ys_that_share_it(void **state)
{
    decant_backend *backend = *state;
    for (int i = 0; i < CASES; i++) {
        stepped_model model;
        decant_decode_products products;
        int64_t before, after, unused;
        open_model(backend, cases[i].name, &model);
        backend->memory->usage(backend, &before, &unused, &unused);
        REQUIRE(decant_decode_products_create(&model.part, TOKENS, &products, err));
        backend->memory->usage(backend, &after, &unused, &unused);
        assert_int_equal(after - before, TOKENS * (cases[i].columns + cases[i].rows) *
                                             (int64_t)decant_element_bytes(backend->activation));
        decant_decode_products_destroy(&products);
        close_model(&model);
    }
}

/* The ys that a step of the block's first `count` layers leaves are those of the last layer and of what shares
 * its x. */
static void check_last_layers(stepped_model *model, const decant_decode_products *products, int count,
                              int64_t tokens)
{
    decant_backend *backend = model->part.backend;
    const decant_linear *linears = model->part.blocks[0].linears;
    char *place = products->y;
    int first = count - 1;
    while (linears[first].shares_x)
        first--;
    for (int i = first; i < count; i++) {
        const decant_matrix x = {products->x, backend->activation, tokens, linears[i].columns};
        decant_matrix alone, together = {place, backend->activation, tokens, linears[i].rows};
        REQUIRE(decant_activation_create(backend, tokens, linears[i].rows, "a test's array", &alone, err));
        REQUIRE(decant_linear_forward(backend, &linears[i], x, false, alone, err));
        void *bytes = download_bytes(backend, alone);
        double *expected = doubles(element_count(alone));
        for (int64_t j = 0; j < element_count(alone); j++)
            expected[j] = load_element(backend->activation, bytes, j);
        expect_close(backend, together, expected, linears[i].name);
        place += decant_matrix_bytes(together);
        free(expected);
        free(bytes);
        backend->memory->release(backend, &alone.data);
    }
}

/* Steps of the block's first layers alone show what the layers behind them would write over. */
static void each_layer_gives_what_it_gives_by_itself(void **state)
{
    for (int i = 0; i < CASES; i++) {
        stepped_model model;
        decant_decode_products products;
        open_model(*state, cases[i].name, &model);
        const decant_family *whole = model.part.family;
        decant_family shorter = *whole;
        REQUIRE(decant_decode_products_create(&model.part, TOKENS, &products, err));
        model.part.layer_count = 1;
        model.part.family = &shorter;
        for (int count = 1; count <= whole->linear_count; count++) {
            shorter.linear_count = count;
            for (int64_t tokens = TOKENS; tokens >= FEWER_TOKENS; tokens -= TOKENS - FEWER_TOKENS) {
                REQUIRE(decant_decode_products_record(&products, &model.part, tokens, err));
                REQUIRE(decant_decode_products_run(&products, err));
                check_last_layers(&model, &products, count, tokens);
            }
        }
        decant_decode_products_destroy(&products);
        model.part.layer_count = model.reference.config.layers;
        model.part.family = whole;
        close_model(&model);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layers_share_x_as_in_the_forward_pass),
        cmocka_unit_test(there_is_room_for_an_x_and_the_ys_that_share_it),
        cmocka_unit_test(each_layer_gives_what_it_gives_by_itself),
    };
    return cmocka_run_group_tests_name("decode products", tests, open_backend, close_backend);
}
