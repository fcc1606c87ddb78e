/* Choosing grid and mode: what a plan says of LLaMA-65B, how it answers to more memory and more ranks, and what
 * it advises when nothing fits. */
#include "pipeline/plan.h"
#include "pipeline/plan_advice.h"
#include "pipeline/plan_layout.h"
#include "pipeline/plan_request.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const int64_t GIB = (int64_t)1 << 30;

static decant_model_config config_of(const char *name)
{
    char path[1024];
    const char *root = getenv("DECANT_TEST_SOURCE");
    decant_model_config config;
    decant_error err;
    snprintf(path, sizeof path, "%s/tests/pipeline/configs/%s.json", root ? root : ".", name);
    assert_int_equal(decant_model_config_read(path, &config, &err), DECANT_OK);
    return config;
}

static decant_model_config llama_65b(void)
{
    return config_of("llama_65b");
}

static decant_plan_request request_of(const decant_model_config *config, int ranks, int64_t device_bytes)
{
    decant_options options = {
        .command = DECANT_COMMAND_PLAN,
        .sequences = 128,
        .window = 2048,
        .fisher = DECANT_FISHER_TOKEN,
        .bits = 3.5,
        .methods = 1u << DECANT_METHOD_KMEANS,
        .bit_widths = {.count = 3, .width = {2, 3, 4}},
        .sensitive = 0.0005,
        .outliers = 0.004,
        .ranks = ranks,
        .device_bytes = device_bytes,
    };
    const decant_family *family;
    decant_error err;
    assert_int_equal(decant_family_find(config, &family, &err), DECANT_OK);
    return decant_plan_request_of(&options, config, family, true);
}

static decant_plan plan_of(const decant_plan_request *request)
{
    decant_plan plan;
    decant_error err;
    assert_int_equal(decant_plan_choose(request, &plan, &err), DECANT_OK);
    return plan;
}

static void layers_of_65b_are_shared_out(void **state)
{
    (void)state;
    /* 64 stages: 16 of two layers first, then ones, the head's among them */
    static const struct {
        int ranks, replicas, stages, first_counts, last_count;
    } golden[] = {
        {1, 0, 1, 80, 80}, {8, 0, 8, 10, 10}, {64, 0, 64, 2, 1}, {64, 8, 8, 10, 10}, {96, 0, 48, 2, 1}};
    decant_model_config config = llama_65b();
    for (size_t i = 0; i < sizeof golden / sizeof *golden; i++) {
        decant_plan_request request = request_of(&config, golden[i].ranks, 80 * GIB);
        request.replicas = golden[i].replicas;
        decant_plan plan = plan_of(&request);
        assert_int_equal(plan.stages, golden[i].stages);
        assert_int_equal(plan.rank[0].share.layers.count, golden[i].first_counts);
        assert_int_equal(plan.rank[plan.ranks - 1].share.layers.count, golden[i].last_count);
        int layers = 0;
        int64_t sequences = 0, weights = 0;
        for (int rank = 0; rank < plan.ranks; rank++) {
            assert_int_equal(plan.rank[rank].share.replica, rank % plan.replicas);
            layers += plan.rank[rank].share.replica == 0 ? plan.rank[rank].share.layers.count : 0;
            sequences += rank < plan.replicas ? plan.rank[rank].share.sequences : 0;
            weights += plan.rank[rank].written_bytes;
        }
        assert_int_equal(layers, 80);
        assert_int_equal(sequences, 128);
        assert_in_range((uint64_t)weights, (uint64_t)(plan.container_bytes * 0.999),
                        (uint64_t)plan.container_bytes);
        assert_int_equal(plan.weights, 80 * ((int64_t)4 * 8192 * 8192 + (int64_t)3 * 8192 * 22016));
        decant_plan_free(&plan);
    }
    decant_model_config_free(&config);
}

/* Parameters as the models' cards have them, of OPT as transformers counts them: linear layers, vectors, ends.
 */
static void models_of_all_families_have_the_parameters_of_their_cards(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int64_t parameters;
    } models[] = {{"llama_3.1_8b", 8030261248}, {"llama_3.1_70b", 70553706496}, {"mistral_7b_v0.1", 7241732096},
                  {"qwen2.5_7b", 7615616512},   {"qwen3_8b", 8190735360},       {"opt_125m", 125239296},
                  {"opt_350m", 331196416},      {"opt_1.3b", 1315758080},       {"opt_6.7b", 6658473984},
                  {"opt_13b", 12853473280},     {"opt_30b", 29974540288},       {"opt_66b", 65719701504}};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        decant_model_config config = config_of(models[i].name);
        decant_plan_request request = request_of(&config, 8, 80 * GIB);
        decant_plan plan = plan_of(&request);
        assert_true(plan.fits);
        decant_block_sizes sizes;
        const decant_family *family = plan.shape.family;
        family->sizes(family, &config, &sizes);
        decant_end_sizes ends;
        decant_family_end_sizes(family, &config, true, true, &ends);
        int64_t vectors = config.layers * sizes.vector_weights + ends.vectors;
        assert_int_equal(plan.weights + ends.matrices + vectors, models[i].parameters);
        decant_plan_free(&plan);
        decant_model_config_free(&config);
    }
}

static void modes_follow_the_memory_there_is(void **state)
{
    (void)state;
    decant_model_config config = llama_65b();
    static const struct {
        int ranks;
        int64_t device_gib;
        bool streamed, retain;
    } cases[] = {{1, 80, true, false}, {8, 80, false, false}, {8, 160, false, true}, {16, 80, false, true}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        decant_plan_request request = request_of(&config, cases[i].ranks, cases[i].device_gib * GIB);
        decant_plan plan = plan_of(&request);
        assert_true(plan.fits);
        assert_int_equal(plan.streamed, cases[i].streamed);
        assert_int_equal(plan.retain, cases[i].retain);
        decant_plan_free(&plan);
    }
    /* Activations that neither the device nor host memory can take go to scratch, where there is one. */
    decant_plan_request request = request_of(&config, 1, 80 * GIB);
    request.host_bytes = 64 * GIB;
    decant_plan plan = plan_of(&request);
    assert_false(plan.fits);
    assert_true(plan.advice.scratch);
    decant_plan_free(&plan);
    request.has_scratch = true;
    plan = plan_of(&request);
    assert_true(plan.fits);
    const decant_rank_memory *memory = &plan.rank[0].memory;
    assert_true(memory->peak.scratch > 250 * GIB && memory->calibration.boundaries > 40 * GIB);
    assert_true(memory->peak.device > 70 * GIB && memory->peak.device < 72 * GIB);
    assert_true(plan.rank[0].memory.peak.host < 64 * GIB);
    decant_plan_free(&plan);
    decant_model_config_free(&config);
}

/* The largest device peak of any rank. */
static int64_t device_peak(const decant_plan_request *request)
{
    decant_plan plan = plan_of(request);
    int64_t most = 0;
    for (int rank = 0; rank < plan.ranks; rank++)
        if (plan.rank[rank].memory.peak.device > most)
            most = plan.rank[rank].memory.peak.device;
    decant_plan_free(&plan);
    return most;
}

static void more_ranks_and_shorter_windows_never_take_more(void **state)
{
    (void)state;
    decant_model_config config = llama_65b();
    for (int mode = DECANT_MEMORY_RESIDENT; mode <= DECANT_MEMORY_STREAMED; mode++)
        for (int retention = DECANT_RETAIN_ALL; retention <= DECANT_RETAIN_BOUNDARIES; retention++) {
            int64_t before = INT64_MAX;
            for (int ranks = 1; ranks <= 80; ranks++) {
                decant_plan_request request = request_of(&config, ranks, 0);
                request.memory = (decant_memory_mode)mode;
                request.retention = DECANT_RETAIN_BOUNDARIES;
                int64_t peak = device_peak(&request);
                if (80 % ranks == 0) { /* even shares: else one more micro-batch in flight may count */
                    assert_true(peak <= before);
                    before = peak;
                }
            }
            before = 0;
            for (int64_t window = 64; window <= 8192; window *= 2) {
                decant_plan_request request = request_of(&config, 8, 0);
                request.memory = (decant_memory_mode)mode;
                request.retention = (decant_retention)retention;
                request.shape.window = window;
                request.shape.micro_batch = 1;
                int64_t peak = device_peak(&request);
                assert_true(peak >= before);
                before = peak;
            }
        }
    /* Streamed, device memory does not grow with the number of layers. */
    decant_plan_request request = request_of(&config, 1, 0);
    request.memory = DECANT_MEMORY_STREAMED;
    config.layers = 4;
    int64_t few = device_peak(&request);
    config.layers = 80;
    assert_int_equal(device_peak(&request), few);
    decant_model_config_free(&config);
}

static void advice_is_true(void **state)
{
    (void)state;
    decant_model_config config = llama_65b();
    decant_plan_request request = request_of(&config, 4, 80 * GIB);
    request.memory = DECANT_MEMORY_RESIDENT;
    decant_plan plan = plan_of(&request);
    char text[512];
    assert_false(plan.fits);
    assert_true(plan.advice.ranks > 4 && plan.advice.streamed && plan.advice.device_bytes > 80 * GIB);
    decant_plan_describe_advice(&plan, text, sizeof text);
    assert_non_null(strstr(text, "ranks"));
    assert_non_null(strstr(text, "--memory streamed"));
    decant_plan_advice advice = plan.advice;
    decant_plan_free(&plan);

    decant_plan_request other = request;
    other.device_bytes = advice.device_bytes;
    plan = plan_of(&other);
    assert_true(plan.fits);
    decant_plan_free(&plan);
    other.device_bytes = advice.device_bytes - advice.device_bytes / 100;
    plan = plan_of(&other);
    assert_false(plan.fits);
    decant_plan_free(&plan);
    for (int ranks = 5; ranks <= advice.ranks; ranks++) {
        other = request;
        other.ranks = ranks;
        plan = plan_of(&other);
        assert_int_equal(plan.fits, ranks == advice.ranks);
        decant_plan_free(&plan);
    }
    decant_model_config_free(&config);
}

static void idle_shares_are_the_schedules(void **state)
{
    (void)state;
    decant_model_config config = llama_65b();
    decant_plan_request request = request_of(&config, 8, 80 * GIB);
    request.shape.sequences = 16;
    decant_plan plan = plan_of(&request);
    double forward_s[8], backward_s[8], idle[8];
    double block = decant_schedule_block_cost(&config, 2048), head = decant_schedule_head_cost(&config, 2048);
    for (int s = 0; s < 8; s++) {
        forward_s[s] = 10 * block + (s == 7 ? 2 * head : 0);
        backward_s[s] = 3 * 10 * block; /* computed again */
    }
    decant_error err;
    assert_int_equal(decant_schedule_idle_share(8, plan.slack, 16, forward_s, backward_s, 0, idle, &err),
                     DECANT_OK);
    double flops = 0;
    for (int s = 0; s < 8; s++) {
        assert_true(plan.rank[s].idle > idle[s] - 1e-9 && plan.rank[s].idle < idle[s] + 1e-9);
        flops += plan.rank[s].flops;
    }
    double expected = 16 * 2 * (4 * 80 * block + 2 * head);
    assert_true(flops > 0.999999 * expected && flops < 1.000001 * expected);
    /* Activations on, gradients back: 16 · 2048 tokens of 8192 BF16 each way, to one neighbour or two. */
    assert_int_equal(plan.rank[0].sent_bytes, (int64_t)16 * 2048 * 8192 * 2);
    assert_int_equal(plan.rank[3].sent_bytes, (int64_t)16 * 2048 * 8192 * 2 * 2);
    decant_plan_free(&plan);
    decant_model_config_free(&config);
}

static void grids_that_cannot_be_are_refused(void **state)
{
    (void)state;
    decant_model_config config = llama_65b();
    decant_plan plan;
    decant_error err;
    decant_plan_request request = request_of(&config, 8, 80 * GIB);
    request.replicas = 3;
    assert_int_equal(decant_plan_choose(&request, &plan, &err), DECANT_ERROR_USAGE);
    assert_null(plan.rank);
    request.replicas = 8;
    request.shape.sequences = 4;
    assert_int_equal(decant_plan_choose(&request, &plan, &err), DECANT_ERROR_USAGE);
    assert_non_null(strstr(err.message, "micro-batches"));
    decant_model_config_free(&config);
}

static void a_twentieth_of_a_memory_stays_free(void **state)
{
    (void)state;
    assert_true(decant_plan_is_within(95 * GIB, 100 * GIB));
    assert_false(decant_plan_is_within(95 * GIB + 1024, 100 * GIB));
    assert_true(decant_plan_is_within(INT64_MAX, 0)); /* nobody said how much there is */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layers_of_65b_are_shared_out),
        cmocka_unit_test(models_of_all_families_have_the_parameters_of_their_cards),
        cmocka_unit_test(modes_follow_the_memory_there_is),
        cmocka_unit_test(a_twentieth_of_a_memory_stays_free),
        cmocka_unit_test(more_ranks_and_shorter_windows_never_take_more),
        cmocka_unit_test(advice_is_true),
        cmocka_unit_test(idle_shares_are_the_schedules),
        cmocka_unit_test(grids_that_cannot_be_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
