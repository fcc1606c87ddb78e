/* One changed matrix against PyTorch: KL divergence and loss difference for every linear layer of small random
 * models, as tests/reference/make_sensitivity_golden.py computed them in double, asked for in several orders.
 * Runs on the backend that DECANT_TEST_DEVICE names. */
#include "stages/linear_weight.h"
#include "stages/probe.h"
#include "tests/reference/golden_json.h"
#include "tests/reference/reference_model.h"

/* Relative to the divergence; a loss difference has its size but may cancel. */
static const double F32_PROBE_TOLERANCE = 2e-4, BF16_PROBE_TOLERANCE = 0.4;

typedef struct probed_model {
    decant_backend *backend;
    reference_model reference;
    decant_model_part whole;
    decant_probe *probe;
} probed_model;

static void open_model(decant_backend *backend, const char *name, int64_t batch, probed_model *model)
{
    *model = (probed_model){.backend = backend};
    open_reference_model(name, &model->reference);
    load_reference_model(backend, &model->reference, model->reference.tokens.length, batch, &model->whole);
    REQUIRE(decant_probe_create(&model->whole, &model->reference.tokens, &model->probe, err));
}

static void close_model(probed_model *model)
{
    decant_probe_destroy(&model->probe);
    decant_model_part_unload(&model->whole);
    close_reference_model(&model->reference);
}

/* Multiplied by 1 + 0.5 sin(k + 1), as the script does. */
static decant_comparison measure(probed_model *model, int block, int index)
{
    decant_linear changed = model->whole.blocks[block].linears[index];
    decant_linear_weight found;
    REQUIRE(decant_linear_weight_find(model->reference.weights, &changed, &found, err));
    int64_t count = changed.rows * changed.columns;
    float *values = malloc((size_t)count * sizeof *values);
    decant_elements_to_f32(found.host.element, found.host.data, count, values);
    for (int64_t k = 0; k < count; k++)
        values[k] = (float)(values[k] * (1 + 0.5 * sin((double)(k + 1))));
    decant_matrix waved = {values, DECANT_F32, changed.rows, changed.columns};
    decant_comparison sums;
    REQUIRE(model->backend->weights->place(model->backend, waved, DECANT_PLACE_COMPUTE, found.tensor,
                                           &changed.weight, err));
    REQUIRE(decant_probe_measure(model->probe, block, index, &changed, &sums, err));
    model->backend->weights->unplace(model->backend, &changed.weight);
    free(values);
    return sums;
}

static void expect_golden(const cJSON *golden, const probed_model *model, int block, int index,
                          decant_comparison sums)
{
    const char *name = model->whole.blocks[block].linears[index].name;
    const cJSON *layer = cJSON_GetObjectItem(golden, name);
    assert_non_null(layer);
    double targets = (double)sums.targets;
    double divergence = cJSON_GetObjectItem(layer, "divergence")->valuedouble;
    double loss = cJSON_GetObjectItem(layer, "loss")->valuedouble;
    bool exact = model->backend->activation == DECANT_F32;
    double tolerance = exact ? F32_PROBE_TOLERANCE : BF16_PROBE_TOLERANCE;
    assert_int_equal(sums.targets, model->reference.tokens.sequences * (model->reference.tokens.length - 1));
    if (!(fabs(sums.divergence / targets - divergence) <= tolerance * divergence))
        fail_msg("%s: divergence %.8f, not %.8f", name, sums.divergence / targets, divergence);
    double change = (sums.loss_quantized - sums.loss_original) / targets;
    if (!(fabs(change - loss) <= 5 * tolerance * sqrt(divergence / targets)))
        fail_msg("%s: loss difference %.8f, not %.8f", name, change, loss);
}

static void equals_pytorch_in_any_order(void **state)
{
    cJSON *golden = read_golden_json("sensitivity_golden.json");
    const cJSON *entry;
    int measured = 0;
    cJSON_ArrayForEach(entry, cJSON_GetObjectItem(golden, "models"))
    {
        const cJSON *layers = cJSON_GetObjectItem(entry, "layers");
        probed_model model;
        open_model(*state, entry->string, 1 + measured % 4, &model);
        for (int block = model.reference.config.layers - 1; block >= 0; block--)
            for (int index = 0; index < model.whole.family->linear_count; index++) {
                int other = (block + index) % model.reference.config.layers;
                decant_comparison sums = measure(&model, other, index), again;
                expect_golden(layers, &model, other, index, sums);
                measure(&model, block, (index + 1) % model.whole.family->linear_count);
                again = measure(&model, other, index);
                assert_memory_equal(&sums, &again, sizeof sums);
                measured++;
            }
        close_model(&model);
    }
    assert_int_equal(measured, 7 * (3 + 4 + 2));
    cJSON_Delete(golden);
}

static void sequences_at_once_change_little(void **state)
{
    decant_comparison expected[7], found;
    double tolerance =
        ((const decant_backend *)*state)->activation == DECANT_F32 ? F32_PROBE_TOLERANCE : BF16_PROBE_TOLERANCE;
    for (int64_t batch = 1; batch <= 5; batch++) {
        probed_model model;
        open_model(*state, "llama_gqa_tied", batch, &model);
        for (int index = 0; index < 7; index++) {
            found = measure(&model, index % model.reference.config.layers, index);
            if (batch == 1)
                expected[index] = found;
            assert_int_equal(found.targets, expected[index].targets);
            assert_true(fabs(found.divergence - expected[index].divergence) <=
                        tolerance * expected[index].divergence);
        }
        close_model(&model);
    }
}

static void unchanged_layer_changes_nothing(void **state)
{
    probed_model model;
    decant_comparison sums;
    open_model(*state, "llama_mha", 5, &model);
    REQUIRE(decant_probe_measure(model.probe, 1, 2, &model.whole.blocks[1].linears[2], &sums, err));
    assert_true(sums.loss_original == sums.loss_quantized);
    assert_true(fabs(sums.divergence) < 1e-6);
    assert_int_equal(sums.same_top, sums.targets);
    close_model(&model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_pytorch_in_any_order),
        cmocka_unit_test(sequences_at_once_change_little),
        cmocka_unit_test(unchanged_layer_changes_nothing),
    };
    return cmocka_run_group_tests(tests, open_backend, close_backend);
}
