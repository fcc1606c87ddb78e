/* The planner's bytes against sums done by hand on a small model, and against what the CPU backend takes for
 * real. */
#include "base/memory.h"
#include "pipeline/memory_plan.h"
#include "stages/calibrate.h"
#include "tests/reference/reference_model.h"

#include <string.h>

/* ---- by hand ---- */

/* Queries are wider than the hidden size, keys as wide, the block's middle wider than both. */
static decant_model_config small_config(void)
{
    return (decant_model_config){
        .architecture = "LlamaForCausalLM",
        .hidden_size = 8,
        .intermediate_size = 20,
        .vocabulary_size = 32,
        .layers = 3,
        .heads = 4,
        .key_value_heads = 2,
        .head_dimension = 4,
    };
}

static decant_job_shape small_shape(const decant_model_config *config)
{
    decant_job_shape shape = {
        .config = config,
        .element = DECANT_BF16,
        .cuda = true,
        .threads = 1,
        .calibrates = true,
        .has_fisher = true,
        .sequences = 4,
        .window = 6,
        .micro_batch = 2,
        .form = DECANT_FISHER_TOKEN,
        .quantizes = true,
        .recipe = {.uses = {[DECANT_METHOD_KMEANS] = true}, .widths = 1, .width = {2}},
        .validation_batch = 1,
    };
    decant_error err;
    assert_int_equal(decant_family_find(config, &shape.family, &err), DECANT_OK);
    return shape;
}

static decant_rank_memory plan_one_rank(const decant_job_shape *shape, decant_rank_share share)
{
    decant_linear_sizes sizes;
    decant_rank_memory memory;
    decant_error err;
    int owners[64] = {0};
    assert_int_equal(decant_linear_sizes_create(shape, &sizes, &err), DECANT_OK);
    assert_true(sizes.count <= 64);
    decant_rank_memory_plan(shape, &sizes, owners, &share, &memory);
    decant_linear_sizes_free(&sizes);
    return memory;
}

static decant_rank_share whole_model(bool retain, bool streamed)
{
    return (decant_rank_share){
        .layers = {0, 3},
        .has_embedding = true,
        .has_head = true,
        .replicas = 1,
        .sequences = 4,
        .slots = 1,
        .retain = retain,
        .streamed = streamed,
    };
}

static void resident_bytes_are_those_summed_by_hand(void **state)
{
    (void)state;
    decant_model_config config = small_config();
    decant_job_shape shape = small_shape(&config);
    decant_rank_memory memory = plan_one_rank(&shape, whole_model(true, false));
    /* q 16x8, k and v 8x8, o 8x16, gate and up 20x8, down 8x20: 864 weights a block */
    assert_int_equal(memory.calibration.fisher, 4 * 3 * 864);
    /* BF16 linear layers, embedding and head; F32 norms; angles of 12 rows and 2 pairs */
    assert_int_equal(memory.calibration.weights,
                     2 * (3 * 864 + 2 * 32 * 8) + 4 * (3 * 2 * 8 + 8) + 2 * 4 * 12 * 2);
    /* three inputs, an output, a gradient of 2 · 6 rows */
    assert_int_equal(memory.calibration.boundaries, 5 * 2 * 12 * 8);
    /* n1 8, q 16, k 8, v 8, a 16, h 8, n2 8, g 20, u 20, m 20 in BF16; two norms and four heads in F32 */
    assert_int_equal(memory.calibration.kept, 3 * 12 * (2 * 132 + 4 * 6));
    assert_int_equal(memory.calibration.head, 2 * 2 * 6 * 8 + 2 * 6 * 32 + 4 * 6);
    assert_int_equal(memory.calibration.working, 1 << 20);
    assert_int_equal(memory.at[DECANT_STAGE_CALIBRATE].device,
                     10368 + 6624 + 960 + 10368 + 600 + (1 << 20) + (48 << 20));
    memory = plan_one_rank(&shape, whole_model(false, false));
    assert_int_equal(memory.calibration.kept, 12 * (2 * 132 + 4 * 6));
}

static void biases_and_norms_of_heads_are_counted(void **state)
{
    (void)state;
    decant_model_config config = small_config();
    decant_job_shape shape = small_shape(&config);
    decant_rank_memory plain = plan_one_rank(&shape, whole_model(true, false));
    snprintf(config.architecture, sizeof config.architecture, "Qwen2ForCausalLM");
    shape = small_shape(&config);
    decant_rank_memory biased = plan_one_rank(&shape, whole_model(true, false));
    /* biases of q 16, k 8 and v 8 in F32, in three blocks */
    assert_int_equal(biased.calibration.weights - plain.calibration.weights, 3 * 4 * (16 + 8 + 8));
    assert_int_equal(biased.calibration.kept, plain.calibration.kept);
    snprintf(config.architecture, sizeof config.architecture, "Qwen3ForCausalLM");
    shape = small_shape(&config);
    decant_rank_memory normed = plan_one_rank(&shape, whole_model(true, false));
    /* two norms of a head's 4 components; q and k before they are normed in BF16, for four heads and two a F32
     */
    assert_int_equal(normed.calibration.weights - plain.calibration.weights, 3 * 4 * (4 + 4));
    assert_int_equal(normed.calibration.kept - plain.calibration.kept, 3 * 12 * (2 * (16 + 8) + 4 * (4 + 2)));
}

/* OPT: blocks of 4 · 8x8 + 2 · 20x8 = 576 weights, biases of 5 · 8 + 20 and two norms of 2 · 8. */
static void the_ends_and_blocks_of_opt_are_counted(void **state)
{
    (void)state;
    decant_model_config config = small_config();
    snprintf(config.architecture, sizeof config.architecture, "OPTForCausalLM");
    config.heads = config.key_value_heads = 2;
    config.embedding_width = 8;
    config.maximum_positions = 40;
    config.position_rows = 42;
    config.tied_head = config.plain_mlp = true;
    decant_job_shape shape = small_shape(&config);
    decant_rank_memory memory = plan_one_rank(&shape, whole_model(true, false));
    /* the embedding, which is the head, 42 positions, the final norm; no angles */
    const int64_t blocks = 2 * 3 * 576 + 4 * 3 * (60 + 32);
    assert_int_equal(memory.calibration.weights, blocks + 2 * (32 * 8 + 42 * 8) + 4 * 2 * 8);
    /* n1, q, k, v, a, s, n2 of 8, f and its gradient of 20 in BF16; two heads in F32 */
    assert_int_equal(memory.calibration.kept, 3 * 12 * (2 * (7 * 8 + 2 * 20) + 4 * 2));
    config.norm_behind = true; /* no n1, but m */
    config.embedding_width = 6;
    memory = plan_one_rank(&shape, whole_model(true, false));
    /* two projections, 12 rows of a narrow activation; no final norm */
    assert_int_equal(memory.calibration.weights, blocks + 2 * (32 * 6 + 42 * 8 + 2 * 6 * 8) + 2 * 12 * 6);
    assert_int_equal(memory.calibration.kept, 3 * 12 * (2 * (7 * 8 + 2 * 20) + 4 * 2));
    /* streamed: the embedding's end, which has the positions, is the larger one, less what comes after it */
    config.vocabulary_size = 3200;
    memory = plan_one_rank(&shape, whole_model(false, true));
    assert_int_equal(memory.calibration.head, 2 * 2 * 6 * 8 + 2 * 6 * 3200 + 4 * 6 +
                                                  2 * (3200 * 6 + 6 * 8 + 42 * 8) -
                                                  (4 * 576 + 2 * (160 + 160) + (5 * 8 + 20) * 4 * 2));
}

static void streamed_bytes_are_those_summed_by_hand(void **state)
{
    (void)state;
    decant_model_config config = small_config();
    decant_job_shape shape = small_shape(&config);
    decant_rank_memory memory = plan_one_rank(&shape, whole_model(false, true));
    assert_int_equal(memory.calibration.fisher, 4 * 864);
    /* two layers; quantizing: 160 weights of gate and of up as they are in the file, a block's 88 rows of 4
     * levels */
    assert_int_equal(memory.calibration.weights,
                     2 * 2 * 864 + 4 * 2 * 2 * 8 + 2 * 4 * 12 * 2 + 2 * (160 + 160) + 88 * 4 * 2);
    /* F and quantizing take more than the embedding or the head, which are gone by then */
    assert_int_equal(memory.calibration.head, 2 * 2 * 6 * 8 + 2 * 6 * 32 + 4 * 6);
    assert_int_equal(memory.calibration.boundaries, 5 * 2 * 12 * 8);
    assert_int_equal(memory.calibration.kept, 12 * (2 * 132 + 4 * 6));
    /* four boundaries of 4 · 6 rows wait, and half of one on its way to a checkpoint; 88 rows of levels a
     * block; tokens */
    decant_rank_share idle = whole_model(false, true);
    idle.layers.count = 0;
    int64_t program = plan_one_rank(&shape, idle).at[DECANT_STAGE_CALIBRATE].host;
    assert_int_equal(memory.at[DECANT_STAGE_CALIBRATE].host - program,
                     4 * 2 * 24 * 8 + 2 * 12 * 8 + 3 * 88 * 4 * 2 + 4 * 4 * 6);
    assert_int_equal(memory.at[DECANT_STAGE_CALIBRATE].scratch, 0);
    config.vocabulary_size = 3200; /* now the ends take more: the head with its norm */
    assert_int_equal(plan_one_rank(&shape, whole_model(false, true)).calibration.head,
                     2 * 2 * 6 * 8 + 2 * 6 * 3200 + 4 * 6 + 2 * 3200 * 8 + 4 * 8 -
                         (4 * 864 + 2 * (160 + 160) + 704));
    config.vocabulary_size = 32;
    idle = whole_model(false, true);
    idle.boundaries_on_disk = true;
    memory = plan_one_rank(&shape, idle);
    assert_int_equal(memory.at[DECANT_STAGE_CALIBRATE].scratch, 4 * 2 * 24 * 8);
}

static void boundaries_stay_where_the_device_has_room(void **state)
{
    (void)state;
    decant_model_config config = small_config();
    decant_job_shape shape = small_shape(&config);
    decant_rank_share share = whole_model(false, true);
    /* a boundary of one micro-batch: 2 · 6 rows of 8 in BF16; four of two micro-batches each */
    const int64_t record = 2 * 12 * 8;
    assert_int_equal(decant_rank_boundaries_in(&shape, &share, -1), 0);
    assert_int_equal(decant_rank_boundaries_in(&shape, &share, 3 * record - 1), 2);
    assert_int_equal(decant_rank_boundaries_in(&shape, &share, 1000 * record), 8);
    decant_rank_memory without = plan_one_rank(&shape, share);
    share.boundaries_on_device = 3;
    decant_rank_memory with = plan_one_rank(&shape, share);
    const decant_memory_bytes *before = &without.at[DECANT_STAGE_CALIBRATE],
                              *now = &with.at[DECANT_STAGE_CALIBRATE];
    assert_int_equal(now->device - before->device, 3 * record);
    assert_int_equal(before->host - now->host, 3 * record);
}

static void replicas_quantize_what_they_own(void **state)
{
    (void)state;
    decant_model_config config = small_config();
    decant_job_shape shape = small_shape(&config);
    decant_rank_share share = whole_model(true, false);
    int64_t alone = plan_one_rank(&shape, share).at[DECANT_STAGE_QUANTIZE].device;
    share.replicas = 2;
    share.replica = 1; /* owns nothing: owners are all 0 */
    int64_t idle = plan_one_rank(&shape, share).at[DECANT_STAGE_QUANTIZE].device;
    /* while the first matrix is measured: all F, its weight and the next one's, 16 rows of levels, working
     * space */
    assert_int_equal(alone - idle, 4 * 3 * 864 + 2 * (128 + 64) + 16 * 4 * 2 + (1 << 20));
}

/* What the sparse parts of the whole model add to what validating takes. */
static int64_t sparse_bytes_of_validation(bool cuda)
{
    decant_model_config config = small_config();
    decant_job_shape shape = small_shape(&config);
    shape.cuda = cuda;
    shape.validation_windows = shape.validation_batch = 1;
    shape.validation_window = 6;
    decant_rank_memory dense = plan_one_rank(&shape, whole_model(true, false));
    shape.recipe.outliers = 0.25;
    decant_rank_memory sparse = plan_one_rank(&shape, whole_model(true, false));
    const decant_memory_bytes *with = &sparse.at[DECANT_STAGE_VALIDATE],
                              *without = &dense.at[DECANT_STAGE_VALIDATE];
    return with->device + with->host - without->device - without->host; /* on the CPU it is the host's */
}

static void loaded_sparse_parts_are_counted(void **state)
{
    (void)state;
    /* 216 entries a block; offsets of q 16, k and v 8, o 8, gate and up 20, down 8 rows, of one more each */
    const int64_t entries = 3 * 216, offsets = 3 * (88 + 7);
    assert_int_equal(sparse_bytes_of_validation(false), 4 * offsets + (4 + 2) * entries);
    assert_int_equal(sparse_bytes_of_validation(true), 4 * offsets + (4 + 2 + 4) * entries); /* and joined */
}

/* ---- what the CPU backend takes ---- */

/* A job shape of a model of tests/reference on the CPU. */
static decant_job_shape reference_shape(const decant_model_config *config, decant_element element,
                                        int64_t micro_batch, decant_fisher_form form)
{
    decant_job_shape shape = small_shape(config);
    shape.cuda = false;
    shape.element = element;
    shape.full_floats = true;
    shape.threads = 2;
    shape.window = 24;
    shape.micro_batch = micro_batch;
    shape.form = form;
    return shape;
}

static void check_model(const char *name, decant_element element, int64_t micro_batch, decant_fisher_form form,
                        int groups, bool retain)
{
    decant_backend *backend;
    reference_model model;
    decant_model_part part;
    decant_fisher_sums fisher;
    decant_calibration *calibration = NULL;
    REQUIRE(decant_backend_create_cpu(2, &backend, err));
    open_reference_model(name, &model);
    decant_job_shape shape = reference_shape(&model.config, element, micro_batch, form);
    shape.recipe.hessian_groups = groups;
    shape.recipe.uses[DECANT_METHOD_GUIDED] = groups > 0;
    decant_rank_share share = whole_model(retain, false);
    share.layers.count = model.config.layers;
    decant_rank_memory memory = plan_one_rank(&shape, share);

    int64_t before, held, unused;
    backend->memory->usage(backend, &before, &unused, &unused);
    REQUIRE(decant_fisher_sums_create(backend, &model.config, shape.family, form, groups, 0,
                                      model.config.layers, &fisher, err));
    load_reference_model(backend, &model, shape.window, micro_batch, &part);
    REQUIRE(decant_calibration_create(&part, &fisher, 1, retain, (decant_interlude){0}, &calibration, err));
    backend->memory->usage(backend, &held, &unused, &unused);
    const decant_calibration_bytes *planned = &memory.calibration;
    assert_int_equal(held - before,
                     planned->weights + planned->fisher + planned->boundaries + planned->kept + planned->head);

    /* Only the backend's working space grows from here on. */
    int32_t tokens[128] = {0};
    double losses[8];
    decant_matrix output;
    int64_t placed = decant_memory_usage_now().bytes;
    REQUIRE(decant_calibration_forward(calibration, 0, tokens, micro_batch, &output, losses, err));
    REQUIRE(decant_calibration_backward(calibration, 0, micro_batch, err));
    assert_int_equal(decant_memory_usage_now().bytes - placed, planned->working);

    decant_calibration_destroy(&calibration);
    decant_model_part_unload(&part);
    decant_fisher_sums_free(&fisher);
    close_reference_model(&model);
    decant_backend_destroy(&backend);
}

static void planned_bytes_are_those_taken_on_the_cpu(void **state)
{
    (void)state;
    check_model("llama_mha", DECANT_F32, 1, DECANT_FISHER_TOKEN, 0, true);
    check_model("llama_mha", DECANT_F32, 3, DECANT_FISHER_TOKEN, 0, false);
    check_model("llama_gqa_tied", DECANT_F32, 2, DECANT_FISHER_SEQUENCE, 0, true);
    check_model("llama_bf16_headdim", DECANT_BF16, 2, DECANT_FISHER_TOKEN, 0, true);
    check_model("mistral_window", DECANT_BF16, 1, DECANT_FISHER_TOKEN, 0, true);
    check_model("qwen2_biases", DECANT_F32, 2, DECANT_FISHER_SEQUENCE, 0, true);
    check_model("qwen3_norms", DECANT_BF16, 2, DECANT_FISHER_TOKEN, 0, false);
    check_model("qwen3_norms", DECANT_BF16, 1, DECANT_FISHER_TOKEN, 0, true);
    check_model("llama_mha", DECANT_F32, 2, DECANT_FISHER_SEQUENCE, 3, true);
    check_model("opt_before", DECANT_F16, 1, DECANT_FISHER_TOKEN, 0, true);
    check_model("opt_before", DECANT_F16, 3, DECANT_FISHER_SEQUENCE, 0, false);
    check_model("opt_behind", DECANT_F32, 2, DECANT_FISHER_TOKEN, 0, true);
}

/* On the CPU, or the device of DECANT_TEST_DEVICE. */
static void guided_takes_the_planned_working_space(void **state)
{
    enum {
        MATRIX_ROWS = 300,
        MATRIX_COLUMNS = 1100,
        HESSIANS = 3,
        CODE_BITS = 5,
        PLANES = MATRIX_ROWS * CODE_BITS * 35
    };
    (void)state;
    const bool on_cpu = strcmp(test_device(), "cpu") == 0;
    decant_model_config config = small_config();
    decant_job_shape shape = small_shape(&config);
    shape.cuda = !on_cpu;
    shape.threads = 2;
    shape.recipe.uses[DECANT_METHOD_GUIDED] = true;
    shape.recipe.hessian_groups = HESSIANS;
    shape.recipe.guided_passes = 2;
    shape.recipe.guided_rounds = 1;
    shape.recipe.width[0] = CODE_BITS;
    decant_backend *backend;
    decant_matrix_error error;
    int64_t before, after, peak, unused;
    REQUIRE(open_backend_named(test_device(), shape.threads, &backend, err));
    device_array weight =
        weight_array(backend, DECANT_PLACE_EXACT, DECANT_F32, MATRIX_ROWS, MATRIX_COLUMNS, 1, 5);
    device_array hessian = float_array(backend, HESSIANS * MATRIX_COLUMNS, MATRIX_COLUMNS, 0, 6);
    device_array levels = float_array(backend, MATRIX_ROWS, 1 << (CODE_BITS - 1), 0, 7); /* two F16 each */
    device_array planes = float_array(backend, 1, PLANES, 0, 8);
    const decant_guided_search search = {HESSIANS, hessian.matrix.data, 0.01, 2, 1, 1};
    decant_packed_matrix packed = {.rows = MATRIX_ROWS,
                                   .columns = MATRIX_COLUMNS,
                                   .bits = CODE_BITS,
                                   .planes = planes.matrix.data,
                                   .levels = levels.matrix.data};
    backend->memory->usage(backend, &before, &peak, &unused);
    const int64_t host_before = decant_memory_usage_now().bytes;
    REQUIRE(backend->quantize->guide(backend, weight.matrix, &search, &packed, &error, err));
    backend->memory->usage(backend, &after, &peak, &unused);
    const int64_t taken = on_cpu ? decant_memory_usage_now().bytes - host_before : after - before;
    assert_int_equal(taken, decant_quantization_working_bytes(&shape, MATRIX_ROWS, MATRIX_COLUMNS));
    drop(backend, &weight);
    drop(backend, &hessian);
    drop(backend, &levels);
    drop(backend, &planes);
    decant_backend_destroy(&backend);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(resident_bytes_are_those_summed_by_hand),
        cmocka_unit_test(biases_and_norms_of_heads_are_counted),
        cmocka_unit_test(the_ends_and_blocks_of_opt_are_counted),
        cmocka_unit_test(streamed_bytes_are_those_summed_by_hand),
        cmocka_unit_test(boundaries_stay_where_the_device_has_room),
        cmocka_unit_test(replicas_quantize_what_they_own),
        cmocka_unit_test(loaded_sparse_parts_are_counted),
        cmocka_unit_test(planned_bytes_are_those_taken_on_the_cpu),
        cmocka_unit_test(guided_takes_the_planned_working_space),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
