/* The families against PyTorch: logits, losses, hidden states, gradients and both Fisher sums of small
 * random models, as tests/reference/make_golden.py computed them in double. Runs on the backend that
 * DECANT_TEST_DEVICE names. */
#include "stages/calibrate.h"
#include "tests/reference/reference_model.h"

#include <unistd.h>

/* Relative L2 errors. F32: three or four blocks of float sums; a Fisher sum doubles the error of its gradient.
 * BF16: eight bits a rounding. */
static const double F32_FORWARD_TOLERANCE = 2e-6, F32_GRADIENT_TOLERANCE = 2e-5;
static const double BF16_FORWARD_TOLERANCE = 3e-2, BF16_GRADIENT_TOLERANCE = 1e-1;

enum { SEQUENCES = 5, LAYERS_MAXIMUM = 4 };

/* One model and its golden numbers. */
typedef struct golden_model {
    decant_backend *backend;
    reference_model reference;
    decant_safetensors *golden;
} golden_model;

static golden_model open_model(decant_backend *backend, const char *name)
{
    golden_model model = {.backend = backend};
    char path[1024];
    open_reference_model(name, &model.reference);
    reference_path(name, "golden", path, sizeof path);
    REQUIRE(decant_safetensors_open(path, &model.golden, err));
    assert_int_equal(model.reference.tokens.sequences, SEQUENCES);
    assert_true(model.reference.config.layers <= LAYERS_MAXIMUM);
    return model;
}

static void close_model(golden_model *model)
{
    decant_safetensors_close(&model->golden);
    close_reference_model(&model->reference);
}

/* Compares floats with a golden tensor, from its element `first` on. */
static void expect_golden(const golden_model *model, const char *name, int64_t first, int64_t count,
                          const double *actual, double largest_error)
{
    const decant_tensor *tensor = decant_safetensors_find(model->golden, name);
    if (!tensor)
        fail_msg("no golden tensor %s", name);
    assert_true((size_t)(first + count) * sizeof(float) <= tensor->size_bytes);
    const float *expected = (const float *)tensor->data + first;
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < count; i++) {
        difference += (actual[i] - expected[i]) * (actual[i] - expected[i]);
        norm += (double)expected[i] * expected[i];
    }
    if (!(norm > 0 && sqrt(difference / norm) <= largest_error))
        fail_msg("%s is off by %.2e, relative L2 norm", name, sqrt(difference / norm));
}

/* What the device holds, as doubles; free() them. */
static double *download(const golden_model *model, decant_matrix matrix)
{
    void *bytes = download_bytes(model->backend, matrix);
    double *values = doubles(element_count(matrix));
    for (int64_t i = 0; i < element_count(matrix); i++)
        values[i] = load_element(matrix.element, bytes, i);
    free(bytes);
    return values;
}

static void expect_golden_matrix(const golden_model *model, const char *name, int64_t first,
                                 decant_matrix matrix, double largest_error)
{
    double *values = download(model, matrix);
    expect_golden(model, name, first, element_count(matrix), values, largest_error);
    free(values);
}

static double forward_tolerance(const golden_model *model)
{
    return model->backend->activation == DECANT_F32 ? F32_FORWARD_TOLERANCE : BF16_FORWARD_TOLERANCE;
}

static double gradient_tolerance(const golden_model *model)
{
    return model->backend->activation == DECANT_F32 ? F32_GRADIENT_TOLERANCE : BF16_GRADIENT_TOLERANCE;
}

/* A part of the model and what one sequence needs on its way through. */
typedef struct model_run {
    golden_model *model;
    decant_model_part part;
    decant_activations *kept[LAYERS_MAXIMUM];
    decant_matrix hidden[LAYERS_MAXIMUM + 1], gradient, normed, logits;
    float *inverse_rms;
    decant_block_fisher fisher[LAYERS_MAXIMUM];
} model_run;

static decant_matrix make_matrix(golden_model *model, int64_t columns)
{
    decant_matrix matrix;
    REQUIRE(decant_activation_create(model->backend, model->reference.tokens.length, columns, "a test's array",
                                     &matrix, err));
    return matrix;
}

static void *make_floats(golden_model *model, int64_t count)
{
    void *floats;
    REQUIRE(model->backend->memory->allocate(model->backend, (size_t)count * sizeof(float), "a test's array",
                                             &floats, err));
    return floats;
}

static model_run start(golden_model *model, decant_fisher_form form, int first_layer, int layer_count)
{
    model_run run = {.model = model};
    decant_weight_source source = decant_source_of_model(model->reference.weights);
    REQUIRE(decant_model_part_load(model->backend, &model->reference.config, &source, first_layer, layer_count,
                                   model->reference.tokens.length, 1, &run.part, err));
    for (int block = 0; block < layer_count; block++) {
        REQUIRE(run.part.family->create_activations(&run.part, &run.kept[block], err));
        run.fisher[block].form = form;
        for (int i = 0; i < run.part.family->linear_count; i++) {
            const decant_linear *linear = &run.part.blocks[block].linears[i];
            run.fisher[block].sums[i] = make_floats(model, linear->rows * linear->columns);
        }
    }
    for (int block = 0; block <= layer_count; block++)
        run.hidden[block] = make_matrix(model, model->reference.config.hidden_size);
    run.gradient = make_matrix(model, model->reference.config.hidden_size);
    run.normed = make_matrix(model, model->reference.config.hidden_size);
    run.logits = make_matrix(model, model->reference.config.vocabulary_size);
    run.inverse_rms = make_floats(model, model->reference.tokens.length);
    return run;
}

static void release_floats(const model_run *run, float *floats)
{
    void *memory = floats;
    run->model->backend->memory->release(run->model->backend, &memory);
}

static void finish(model_run *run)
{
    decant_backend *backend = run->model->backend;
    for (int block = 0; block < run->part.layer_count; block++) {
        run->part.family->destroy_activations(&run->part, &run->kept[block]);
        for (int i = 0; i < run->part.family->linear_count; i++)
            release_floats(run, run->fisher[block].sums[i]);
    }
    for (int block = 0; block <= run->part.layer_count; block++)
        backend->memory->release(backend, &run->hidden[block].data);
    decant_matrix *matrices[] = {&run->gradient, &run->normed, &run->logits};
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++)
        backend->memory->release(backend, &matrices[i]->data);
    release_floats(run, run->inverse_rms);
    decant_model_part_unload(&run->part);
}

static void forward_block(model_run *run, int block)
{
    REQUIRE(run->part.family->forward(&run->part, &run->part.blocks[block], run->hidden[block],
                                      run->hidden[block + 1], run->kept[block], err));
}

/* Embedding (where the part has it), blocks, and head (likewise). */
static void forward(model_run *run, const int32_t *tokens)
{
    if (run->part.embedding.data)
        REQUIRE(decant_model_embed(&run->part, tokens, run->hidden[0], err));
    for (int block = 0; block < run->part.layer_count; block++)
        forward_block(run, block);
    if (run->part.head.data)
        REQUIRE(decant_model_head(&run->part, run->hidden[run->part.layer_count], run->normed, run->inverse_rms,
                                  run->logits, err));
}

/* From the logits, which become their gradient, down to the embedding. When `again`, blocks share the first
 * one's activations and are run forward once more, as a job does that keeps only what is between blocks. */
static void backward(model_run *run, bool again)
{
    REQUIRE(decant_model_head_backward(&run->part, run->logits, run->hidden[run->part.layer_count],
                                       run->inverse_rms, run->normed, run->gradient, err));
    for (int block = run->part.layer_count - 1; block >= 0; block--) {
        decant_activations *kept = run->kept[again ? 0 : block];
        if (again)
            REQUIRE(run->part.family->forward(&run->part, &run->part.blocks[block], run->hidden[block],
                                              run->hidden[block + 1], kept, err));
        REQUIRE(run->part.family->backward(&run->part, &run->part.blocks[block], run->hidden[block],
                                           run->gradient, kept, &run->fisher[block], run->gradient, err));
    }
}

static decant_matrix fisher_of(const model_run *run, int block, int index)
{
    const decant_linear *linear = &run->part.blocks[block].linears[index];
    return (decant_matrix){run->fisher[block].sums[index], DECANT_F32, linear->rows, linear->columns};
}

static void check_fisher(const model_run *run, const char *kind)
{
    for (int block = 0; block < run->part.layer_count; block++)
        for (int i = 0; i < run->part.family->linear_count; i++) {
            char name[DECANT_NAME_BYTES + 32];
            snprintf(name, sizeof name, "%s.%s", kind, run->part.blocks[block].linears[i].name);
            expect_golden_matrix(run->model, name, 0, fisher_of(run, block, i), gradient_tolerance(run->model));
        }
}

/* After one sequence the sequence form is the squared gradient: its root is compared with the golden one's
 * size. */
static void check_gradients(const model_run *run)
{
    for (int block = 0; block < run->part.layer_count; block++)
        for (int i = 0; i < run->part.family->linear_count; i++) {
            decant_matrix fisher = fisher_of(run, block, i);
            char name[DECANT_NAME_BYTES + 32];
            snprintf(name, sizeof name, "gradient.%s", run->part.blocks[block].linears[i].name);
            const decant_tensor *tensor = decant_safetensors_find(run->model->golden, name);
            assert_non_null(tensor);
            double *values = download(run->model, fisher);
            for (int64_t j = 0; j < element_count(fisher); j++)
                values[j] = copysign(sqrt(values[j]), (double)((const float *)tensor->data)[j]);
            expect_golden(run->model, name, 0, element_count(fisher), values, gradient_tolerance(run->model));
            free(values);
        }
}

static void check_forward(model_run *run, int64_t sequence)
{
    const golden_model *model = run->model;
    int64_t logit_count = element_count(run->logits);
    expect_golden_matrix(model, "logits", sequence * logit_count, run->logits, forward_tolerance(model));
    for (int block = 0; block <= run->part.layer_count && sequence == 0; block++) {
        char name[32];
        snprintf(name, sizeof name, "hidden.%d", block);
        expect_golden_matrix(model, name, 0, run->hidden[block], forward_tolerance(model));
    }
}

static void check_model(decant_backend *backend, const char *name, decant_fisher_form form)
{
    golden_model model = open_model(backend, name);
    model_run run = start(&model, form, 0, model.reference.config.layers);
    for (int64_t sequence = 0; sequence < SEQUENCES; sequence++) {
        const int32_t *tokens = decant_token_array_sequence(&model.reference.tokens, sequence);
        double loss;
        forward(&run, tokens);
        check_forward(&run, sequence);
        REQUIRE(backend->model->cross_entropy(backend, run.logits, tokens, true, &loss, err));
        expect_golden(&model, "loss", sequence, 1, &loss, forward_tolerance(&model));
        backward(&run, sequence % 2 == 0);
        if (sequence == 0 && form == DECANT_FISHER_SEQUENCE)
            check_gradients(&run);
    }
    check_fisher(&run, form == DECANT_FISHER_SEQUENCE ? "fisher_sequence" : "fisher_token");
    finish(&run);
    close_model(&model);
}

/* The sums of a calibration against the golden ones. */
static void check_sums(const golden_model *model, const decant_model_part *part, const decant_fisher_sums *sums)
{
    const char *kind = sums->form == DECANT_FISHER_SEQUENCE ? "fisher_sequence" : "fisher_token";
    for (int block = 0; block < part->layer_count; block++)
        for (int i = 0; i < part->family->linear_count; i++) {
            const decant_linear *linear = &part->blocks[block].linears[i];
            decant_matrix sum = {decant_fisher_sums_at(sums, block, i), DECANT_F32, linear->rows,
                                 linear->columns};
            char name[DECANT_NAME_BYTES + 32];
            snprintf(name, sizeof name, "%s.%s", kind, linear->name);
            expect_golden_matrix(model, name, 0, sum, gradient_tolerance(model));
        }
}

/* Five sequences as micro-batches of `size`, the last of which is smaller. */
static void check_micro_batches(decant_backend *backend, const char *name, decant_fisher_form form,
                                int64_t size, bool retain)
{
    golden_model model = open_model(backend, name);
    decant_weight_source source = decant_source_of_model(model.reference.weights);
    decant_model_part part;
    decant_fisher_sums sums;
    decant_calibration *calibration = NULL;
    decant_matrix output;
    double losses[SEQUENCES];
    REQUIRE(decant_model_part_load(backend, &model.reference.config, &source, 0, model.reference.config.layers,
                                   model.reference.tokens.length, size, &part, err));
    REQUIRE(decant_fisher_sums_create(backend, &model.reference.config, part.family, form, 0, 0,
                                      part.layer_count, &sums, err));
    REQUIRE(decant_calibration_create(&part, &sums, 1, retain, (decant_interlude){0}, &calibration, err));
    for (int64_t first = 0; first < SEQUENCES; first += size) {
        int64_t count = first + size <= SEQUENCES ? size : SEQUENCES - first;
        REQUIRE(decant_calibration_forward(calibration, 0,
                                           decant_token_array_sequence(&model.reference.tokens, first), count,
                                           &output, losses + first, err));
        assert_int_equal(output.rows, count * model.reference.tokens.length);
        REQUIRE(decant_calibration_backward(calibration, 0, count, err));
    }
    expect_golden(&model, "loss", 0, SEQUENCES, losses, forward_tolerance(&model));
    check_sums(&model, &part, &sums);
    decant_calibration_destroy(&calibration);
    decant_fisher_sums_free(&sums);
    decant_model_part_unload(&part);
    close_model(&model);
}

static const char *const names[] = {"llama_mha",    "llama_gqa_tied", "llama_bf16_headdim", "llama3_scaled",
                                    "llama_linear", "mistral_window", "qwen2_biases",       "qwen3_norms",
                                    "opt_before",   "opt_behind"};

static void forward_gradients_and_sequence_fisher_match(void **state)
{
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        check_model(*state, names[i], DECANT_FISHER_SEQUENCE);
}

static void forward_and_token_fisher_match(void **state)
{
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        check_model(*state, names[i], DECANT_FISHER_TOKEN);
}

static void micro_batches_match(void **state)
{
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        for (int64_t size = 2; size <= SEQUENCES; size += 3) {
            check_micro_batches(*state, names[i], DECANT_FISHER_SEQUENCE, size, true);
            check_micro_batches(*state, names[i], DECANT_FISHER_TOKEN, size, false);
        }
}

/* All sums of a linear layer, its Hessians among them, as one row. */
static decant_matrix sums_of(const decant_fisher_sums *sums, const decant_linear *linear, int block, int index)
{
    return (decant_matrix){decant_fisher_sums_at(sums, block, index), DECANT_F32, 1,
                           decant_fisher_sums_floats(linear->rows, linear->columns, sums->hessian_groups)};
}

/* A warm-up before the first micro-batch and between two; the sums of the first block's layers are looked at.
 */
static void check_warm_up(decant_backend *backend, const char *name, decant_fisher_form form,
                          int hessian_groups)
{
    golden_model model = open_model(backend, name);
    const int32_t *tokens = decant_token_array_sequence(&model.reference.tokens, 0);
    decant_weight_source source = decant_source_of_model(model.reference.weights);
    decant_model_part part;
    decant_fisher_sums sums;
    decant_calibration *calibration = NULL;
    decant_matrix output;
    double losses[2], unused[2];
    REQUIRE(decant_model_part_load(backend, &model.reference.config, &source, 0, model.reference.config.layers,
                                   model.reference.tokens.length, 2, &part, err));
    REQUIRE(decant_fisher_sums_create(backend, &model.reference.config, part.family, form, hessian_groups, 0,
                                      part.layer_count, &sums, err));
    REQUIRE(decant_calibration_create(&part, &sums, 1, true, (decant_interlude){0}, &calibration, err));
    for (int64_t pass = 0; pass < 2; pass++) {
        void *before[16];
        for (int i = 0; i < part.family->linear_count; i++)
            before[i] = download_bytes(backend, sums_of(&sums, &part.blocks[0].linears[i], 0, i));
        REQUIRE(decant_calibration_warm_up(calibration, tokens, 2, unused, err));
        for (int i = 0; i < part.family->linear_count; i++) {
            decant_matrix sum = sums_of(&sums, &part.blocks[0].linears[i], 0, i);
            void *after = download_bytes(backend, sum);
            assert_memory_equal(after, before[i], decant_matrix_bytes(sum));
            free(before[i]);
            free(after);
        }
        REQUIRE(decant_calibration_forward(calibration, 0, tokens, 2, &output, losses, err));
        REQUIRE(decant_calibration_backward(calibration, 0, 2, err));
    }
    decant_calibration_destroy(&calibration);
    decant_fisher_sums_free(&sums);
    decant_model_part_unload(&part);
    close_model(&model);
}

static void a_warm_up_leaves_the_sums_as_they_are(void **state)
{
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        check_warm_up(*state, names[i], DECANT_FISHER_TOKEN, 2);
        check_warm_up(*state, names[i], DECANT_FISHER_SEQUENCE, 0);
    }
}

static void parts_of_a_model_give_the_bits_of_the_whole(void **state)
{
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        golden_model model = open_model(*state, names[i]);
        const int32_t *tokens = decant_token_array_sequence(&model.reference.tokens, 1);
        model_run whole = start(&model, DECANT_FISHER_SEQUENCE, 0, model.reference.config.layers);
        model_run first = start(&model, DECANT_FISHER_SEQUENCE, 0, 1);
        model_run second = start(&model, DECANT_FISHER_SEQUENCE, 1, model.reference.config.layers - 1);
        assert_true(first.part.embedding.data && !first.part.head.data);
        assert_true(!second.part.embedding.data && second.part.head.data);
        forward(&whole, tokens);
        forward(&first, tokens);
        REQUIRE(model.backend->memory->copy(model.backend, second.hidden[0].data, first.hidden[1].data,
                                            decant_matrix_bytes(first.hidden[1]), err));
        forward(&second, tokens);
        void *expected = download_bytes(model.backend, whole.logits);
        void *actual = download_bytes(model.backend, second.logits);
        assert_memory_equal(actual, expected, decant_matrix_bytes(whole.logits));
        free(expected);
        free(actual);
        finish(&whole);
        finish(&first);
        finish(&second);
        close_model(&model);
    }
}

static void a_short_sequence_fits_a_part_made_for_longer_ones(void **state)
{
    golden_model model = open_model(*state, names[1]);
    const int32_t *tokens = decant_token_array_sequence(&model.reference.tokens, 0);
    const int64_t length = 11; /* causal: the first rows do not depend on what follows */
    model_run run = start(&model, DECANT_FISHER_SEQUENCE, 0, model.reference.config.layers);
    for (int block = 0; block <= run.part.layer_count; block++)
        run.hidden[block].rows = length;
    run.normed.rows = run.logits.rows = length;
    forward(&run, tokens);
    expect_golden_matrix(&model, "logits", 0, run.logits, forward_tolerance(&model));
    finish(&run);
    close_model(&model);
}

static void an_unknown_family_is_refused_by_name(void **state)
{
    (void)state;
    decant_model_config config = {.architecture = "MambaForCausalLM"};
    const decant_family *family;
    decant_error err = {0};
    assert_int_equal(decant_family_find(&config, &family, &err), DECANT_ERROR_INPUT);
    assert_non_null(strstr(err.message, "MambaForCausalLM"));
    assert_null(family);
}

/* Other keys than those that decant reads must not hide what is wrong. */
static void a_config_of_an_unknown_family_is_refused_for_that(void **state)
{
    (void)state;
    decant_model_config config;
    const decant_family *family;
    decant_error err = {0};
    char path[] = "/tmp/decant-family-XXXXXX.json";
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"{\"architectures\":[\"GPT2LMHeadModel\"],\"n_embd\":768}", "\"GPT2LMHeadModel\" is not one"},
        {"{\"architectures\":[\"Qwen3ForCausalLM\"]}", "no \"hidden_size\""},
        {"{\"hidden_size\":64}", "\"architectures\""},
    };
    int descriptor = mkstemps(path, 5);
    assert_true(descriptor >= 0);
    close(descriptor);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        FILE *file = fopen(path, "w");
        assert_non_null(file);
        fputs(cases[i].text, file);
        fclose(file);
        assert_int_equal(decant_family_read(path, &config, &family, &err), DECANT_ERROR_INPUT);
        assert_non_null(strstr(err.message, cases[i].message));
        decant_model_config_free(&config);
    }
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_gradients_and_sequence_fisher_match),
        cmocka_unit_test(forward_and_token_fisher_match),
        cmocka_unit_test(micro_batches_match),
        cmocka_unit_test(a_warm_up_leaves_the_sums_as_they_are),
        cmocka_unit_test(parts_of_a_model_give_the_bits_of_the_whole),
        cmocka_unit_test(a_short_sequence_fits_a_part_made_for_longer_ones),
        cmocka_unit_test(an_unknown_family_is_refused_by_name),
        cmocka_unit_test(a_config_of_an_unknown_family_is_refused_for_that),
    };
    return cmocka_run_group_tests_name("families against PyTorch", tests, open_backend, close_backend);
}
