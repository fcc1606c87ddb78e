/* Tokens generated with kept keys and values are those of a plain forward pass of the whole sequence, in every
 * family; logits are held against the forward pass too, through how sure it is. Runs on the backend that
 * DECANT_TEST_DEVICE names. */
#include "stages/generation.h"
#include "tests/reference/reference_model.h"

enum { PROMPT = 21, NEW_TOKENS = 30, ROOM = PROMPT + NEW_TOKENS };

typedef struct sample_model {
    decant_backend *backend;
    reference_model reference;
    decant_model_part part;
} sample_model;

static void open_model(decant_backend *backend, const char *name, sample_model *model)
{
    *model = (sample_model){.backend = backend};
    open_reference_model(name, &model->reference);
    load_reference_model(backend, &model->reference, ROOM, 1, &model->part);
}

static void close_model(sample_model *model)
{
    decant_model_part_unload(&model->part);
    close_reference_model(&model->reference);
}

/* The logits behind the last of `count` tokens, by a forward pass of all of them; free() them. */
static double *plain_logits(sample_model *model, const int32_t *tokens, int64_t count)
{
    decant_backend *backend = model->backend;
    const decant_model_part *part = &model->part;
    int64_t hidden = model->reference.config.hidden_size;
    decant_activations *kept;
    device_array x = activation_array(backend, count, hidden, 1, 1),
                 y = activation_array(backend, count, hidden, 1, 2);
    device_array normed = activation_array(backend, 1, hidden, 1, 3),
                 inverse = float_array(backend, 1, 1, 1, 4);
    device_array logits = float_array(backend, 1, model->reference.config.vocabulary_size, 1, 5);
    REQUIRE(part->family->create_activations(part, &kept, err));
    REQUIRE(decant_model_embed(part, tokens, x.matrix, err));
    for (int layer = 0; layer < part->layer_count; layer++) {
        REQUIRE(part->family->forward(part, &part->blocks[layer], x.matrix, y.matrix, kept, err));
        device_array output = y;
        y = x;
        x = output;
    }
    REQUIRE(decant_model_head(part, decant_matrix_rows(x.matrix, count - 1, 1), normed.matrix,
                              inverse.matrix.data, logits.matrix, err));
    void *bytes = download_bytes(backend, logits.matrix);
    double *values = doubles(logits.matrix.columns);
    for (int64_t i = 0; i < logits.matrix.columns; i++)
        values[i] = load_element(DECANT_F32, bytes, i);
    free(bytes);
    part->family->destroy_activations(part, &kept);
    device_array *arrays[] = {&x, &y, &normed, &inverse, &logits};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        drop(backend, arrays[i]);
    return values;
}

/* The chosen token is the largest logit of the plain pass, or as large as rounding lets it seem. */
static void expect_most_likely(sample_model *model, const int32_t *tokens, int64_t count, int32_t chosen)
{
    double *logits = plain_logits(model, tokens, count), largest = logits[0], scale = 0;
    for (int64_t i = 0; i < model->reference.config.vocabulary_size; i++) {
        largest = logits[i] > largest ? logits[i] : largest;
        scale = fabs(logits[i]) > scale ? fabs(logits[i]) : scale;
    }
    if (!(logits[chosen] >= largest - 4 * tolerance(model->backend) * scale))
        fail_msg("after %lld tokens %d is chosen, %.6g, where the most likely one has %.6g", (long long)count,
                 (int)chosen, logits[chosen], largest);
    free(logits);
}

static void check_family(decant_backend *backend, const char *name)
{
    sample_model model;
    decant_generation *generation;
    int32_t tokens[ROOM + 1], again[ROOM + 1], next;
    open_model(backend, name, &model);
    memcpy(tokens, model.reference.tokens.tokens, PROMPT * sizeof *tokens);
    REQUIRE(decant_generation_create(&model.part, &generation, err));
    REQUIRE(decant_generation_begin(generation, tokens, PROMPT, &tokens[PROMPT], err));
    for (int64_t count = PROMPT + 1; count <= ROOM; count++) {
        expect_most_likely(&model, tokens, count - 1, tokens[count - 1]);
        REQUIRE(decant_generation_step(generation, tokens[count - 1], &tokens[count], err));
    }
    decant_error full;
    assert_int_equal(decant_generation_step(generation, tokens[ROOM], &next, &full), DECANT_ERROR_BUG);

    /* The tokens one by one, beginning anew and with an empty prompt but for one; and going back. */
    REQUIRE(decant_generation_begin(generation, tokens, 1, &next, err));
    for (int64_t count = 1; count < ROOM; count++) {
        REQUIRE(decant_generation_step(generation, tokens[count], &again[count + 1], err));
        if (count + 1 >= PROMPT)
            expect_most_likely(&model, tokens, count + 1, again[count + 1]);
    }
    decant_generation_go_back(generation, PROMPT + 3);
    REQUIRE(decant_generation_step(generation, tokens[PROMPT + 3], &next, err));
    assert_int_equal(next, again[PROMPT + 4]);
    decant_generation_destroy(&generation);
    assert_null(generation);
    close_model(&model);
}

static void kept_keys_and_values_change_nothing(void **state)
{
    static const char *const names[] = {"llama_mha",    "llama_gqa_tied", "llama3_scaled", "mistral_window",
                                        "qwen2_biases", "qwen3_norms",    "opt_before",    "opt_behind"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        check_family(*state, names[i]);
}

/* Many steps of one call are those of as many calls. */
static void steps_go_on_by_themselves(void **state)
{
    static const char *const names[] = {"llama_gqa_tied", "qwen3_norms", "opt_before"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        sample_model model;
        decant_generation *generation;
        int32_t first, single[NEW_TOKENS], together[NEW_TOKENS];
        decant_error full;
        open_model(*state, names[i], &model);
        REQUIRE(decant_generation_create(&model.part, &generation, err));
        REQUIRE(decant_generation_begin(generation, model.reference.tokens.tokens, PROMPT, &first, err));
        for (int step = 0; step < NEW_TOKENS; step++)
            REQUIRE(decant_generation_step(generation, step ? single[step - 1] : first, &single[step], err));
        decant_generation_go_back(generation, PROMPT);
        REQUIRE(decant_generation_continue(generation, first, 7, together, err));
        REQUIRE(decant_generation_continue(generation, together[6], NEW_TOKENS - 7, together + 7, err));
        assert_memory_equal(single, together, sizeof single);
        decant_generation_go_back(generation, ROOM - 1);
        assert_int_equal(decant_generation_continue(generation, first, 2, together, &full), DECANT_ERROR_BUG);
        decant_generation_destroy(&generation);
        close_model(&model);
    }
}

/* How often a block was issued, of the family that is counted. */
typedef struct counted_family {
    decant_family family; /* first: a part's family is looked around */
    const decant_family *actual;
    int forwards, steps;
} counted_family;

static decant_status count_forward(const decant_model_part *part, const decant_block *block, decant_matrix x,
                                   decant_matrix y, decant_activations *kept, decant_error *err)
{
    counted_family *counted = (counted_family *)part->family;
    counted->forwards++;
    return counted->actual->forward(part, block, x, y, kept, err);
}

static decant_status count_step(const decant_model_part *part, const decant_block *block,
                                const decant_kept_tokens *tokens, decant_matrix x, decant_activations *kept,
                                decant_error *err)
{
    counted_family *counted = (counted_family *)part->family;
    counted->steps++;
    return counted->actual->step(part, block, tokens, x, kept, err);
}

/* A GPU issues a step twice, once for itself and once to record it, and replays it from then on. */
static void steps_are_replayed(void **state)
{
    enum { STEPS = 9 };
    static const char *const names[] = {"llama_gqa_tied", "opt_before"};
    for (int i = 0; i < 2; i++) {
        sample_model model;
        decant_generation *generation;
        int32_t next;
        open_model(*state, names[i], &model);
        counted_family counted = {.family = *model.part.family, .actual = model.part.family};
        counted.family.forward = count_forward;
        if (counted.actual->step)
            counted.family.step = count_step;
        model.part.family = &counted.family;
        int layers = model.part.layer_count;
        REQUIRE(decant_generation_create(&model.part, &generation, err));
        REQUIRE(decant_generation_begin(generation, model.reference.tokens.tokens, PROMPT, &next, err));
        assert_int_equal(counted.forwards, layers);
        counted.forwards = 0;
        for (int step = 0; step < STEPS; step++)
            REQUIRE(decant_generation_step(generation, next, &next, err));
        bool replays = strcmp(model.backend->name, "cuda") == 0;
        int issued = layers * (replays ? 2 : STEPS);
        assert_int_equal(counted.steps, counted.actual->step ? issued : 0);
        assert_int_equal(counted.forwards, counted.actual->step ? 0 : issued);
        decant_generation_destroy(&generation);
        model.part.family = counted.actual;
        close_model(&model);
    }
}

static void kept_bytes_are_those_of_all_layers(void **state)
{
    sample_model model;
    open_model(*state, "llama_gqa_tied", &model); /* 4 layers, 2 heads of 8 for keys and values */
    assert_int_equal(decant_generation_kept_bytes(&model.reference.config, DECANT_BF16, 10),
                     2 * 4 * 10 * 16 * 2);
    close_model(&model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kept_keys_and_values_change_nothing),
        cmocka_unit_test(steps_go_on_by_themselves),
        cmocka_unit_test(steps_are_replayed),
        cmocka_unit_test(kept_bytes_are_those_of_all_layers),
    };
    return cmocka_run_group_tests(tests, open_backend, close_backend);
}
