/* See plan_seconds.h. */
#include "pipeline/plan_seconds.h"

#include "base/memory.h"
#include "pipeline/rate.h"

/* The product of the packed form with 2048 tokens against the dense one: 11008 x 4096 at 4 bits with 0.45 %
 * sparse entries, 0.335 ms against 0.280 (bench_model_kernels --only linear). */
static const double PACKED_COST = 1.2;

static double larger(double a, double b)
{
    return a > b ? a : b;
}

/* ---- operations ---- */

/* Of one pass of one sequence through one block; a multiply-add counts as two. */
static double block_flops(const decant_plan *plan)
{
    return 2 * decant_schedule_block_cost(plan->shape.config, plan->shape.window);
}

static double head_flops(const decant_plan *plan)
{
    return 2 * decant_schedule_head_cost(plan->shape.config, plan->shape.window);
}

/* The forward passes of one sequence, with the head's gradient, which follows at once. */
static double forward_flops(const decant_plan *plan, const decant_rank_share *share)
{
    return share->layers.count * block_flops(plan) + (share->has_head ? 2 * head_flops(plan) : 0);
}

/* Of the Hessians of a block's linear layers for one sequence: half of a symmetric product for each group. */
static double hessian_flops(const decant_plan *plan)
{
    const decant_job_shape *shape = &plan->shape;
    double flops = 0;
    for (int i = 0; i < shape->family->linear_count; i++) {
        decant_linear linear;
        shape->family->linear(shape->config, 0, i, &linear);
        flops += shape->recipe.hessian_groups * (double)shape->window * (double)linear.columns *
                 (double)linear.columns;
    }
    return flops;
}

/* Gradients of inputs and of weights; once more forward where nothing was kept. */
static double backward_flops(const decant_plan *plan, const decant_rank_share *share)
{
    return share->layers.count * (block_flops(plan) * (share->retain ? 2 : 3) + hessian_flops(plan));
}

static double forward_seconds(const decant_plan *plan, const decant_rank_share *share,
                              const decant_rates *rates)
{
    return forward_flops(plan, share) / rates->flop_s;
}

static double backward_seconds(const decant_plan *plan, const decant_rank_share *share,
                               const decant_rates *rates)
{
    const double hessians = share->layers.count * hessian_flops(plan);
    return (backward_flops(plan, share) - hessians) / rates->flop_s +
           hessians / (rates->hessian_flop_s > 0 ? rates->hessian_flop_s : rates->flop_s);
}

/* ---- calibration ---- */

/* Of a micro-batch's activations between two stages; 0 when no rate is known. */
static double message_seconds(const decant_plan *plan, const decant_rates *rates)
{
    double bytes = (double)decant_element_bytes(plan->shape.full_floats ? DECANT_F32 : DECANT_BF16) *
                   (double)(plan->shape.micro_batch * plan->shape.window * plan->shape.config->hidden_size);
    return rates->message_bytes_s > 0 ? bytes / rates->message_bytes_s : 0;
}

/* Seconds of a resident rank are those of its products; ranks wait for each other as the schedule says. */
static decant_status resident_seconds(decant_plan *plan, const decant_rates *rates, decant_error *err)
{
    int stages = plan->active_stages;
    int64_t batch = plan->shape.micro_batch;
    double *numbers = NULL;
    decant_status status;
    DECANT_TRY(
        decant_memory_allocate((size_t)(3 * stages) * sizeof *numbers, "the schedule", (void **)&numbers, err));
    double *forward_s = numbers, *backward_s = numbers + stages, *idle = numbers + 2 * stages;
    for (int s = 0; s < stages; s++) {
        const decant_rank_share *share = &plan->rank[s * plan->replicas].share;
        forward_s[s] = (double)batch * forward_seconds(plan, share, rates);
        backward_s[s] = (double)batch * backward_seconds(plan, share, rates);
    }
    /* The first replica has the most sequences. */
    int64_t batches = decant_schedule_micro_batches(plan->rank[0].share.sequences, batch);
    DECANT_TRY(decant_schedule_idle_share(stages, plan->slack, batches, forward_s, backward_s,
                                          message_seconds(plan, rates), idle, err));
    for (int rank = 0; rank < plan->ranks; rank++) {
        decant_rank_plan *each = &plan->rank[rank];
        int stage = rank / plan->replicas;
        if (stage >= stages) {
            each->idle = 1;
            continue;
        }
        double busy =
            (forward_seconds(plan, &each->share, rates) + backward_seconds(plan, &each->share, rates)) *
            (double)each->share.sequences;
        double whole = (double)batches * (forward_s[stage] + backward_s[stage]) / (1 - idle[stage]);
        each->seconds[DECANT_STAGE_CALIBRATE] = busy;
        each->idle = whole > 0 ? larger(0, 1 - busy / whole) : 0; /* 0 where the sums are there already */
        plan->seconds[DECANT_STAGE_CALIBRATE] = larger(plan->seconds[DECANT_STAGE_CALIBRATE], whole);
    }
done:
    decant_memory_free(numbers);
    return status;
}

/* Bytes that one layer of a streamed rank moves between host and device: weights once a pass; forward, every
 * sequence's activations in and out; backward, activations in, gradients in and out. */
static double layer_traffic(const decant_plan *plan, const decant_rank_plan *rank,
                            const decant_linear_sizes *sizes)
{
    const decant_job_shape *shape = &plan->shape;
    double weights =
        (double)sizes->all.weights / shape->config->layers * (double)decant_element_bytes(shape->element);
    double boundary = (double)decant_activation_bytes(shape) * (double)(rank->share.sequences * shape->window) *
                      (double)shape->config->hidden_size;
    return shape->cuda ? 2 * weights + 5 * boundary : 0;
}

/* Layer by layer over all sequences, what is moved beside what is computed. The next stage can begin with the
 * micro-batches that leave a stage's last layer, so all but the last layer of every stage before is waited for.
 */
static void streamed_seconds(decant_plan *plan, const decant_linear_sizes *sizes, const decant_rates *rates)
{
    double whole = 0;
    for (int s = 0; s < plan->active_stages; s++) {
        decant_rank_plan *rank = &plan->rank[s * plan->replicas];
        int layers = rank->share.layers.count;
        double computing =
            (forward_seconds(plan, &rank->share, rates) + backward_seconds(plan, &rank->share, rates)) *
            (double)rank->share.sequences;
        double busy = larger(computing,
                             decant_seconds_of(layers * layer_traffic(plan, rank, sizes), rates->read_bytes_s));
        bool is_last = s == plan->active_stages - 1;
        whole += is_last ? busy : busy * (layers - 1) / layers;
        for (int replica = 0; replica < plan->replicas; replica++)
            plan->rank[s * plan->replicas + replica].seconds[DECANT_STAGE_CALIBRATE] = busy;
    }
    for (int rank = 0; rank < plan->ranks; rank++) {
        double busy = plan->rank[rank].seconds[DECANT_STAGE_CALIBRATE];
        plan->rank[rank].idle = whole > 0 ? larger(0, 1 - busy / whole) : 0;
        whole = larger(whole, busy);
    }
    plan->seconds[DECANT_STAGE_CALIBRATE] = whole;
}

/* Fisher sums and Hessians that a rank gives away. */
static int64_t given_sums_bytes(const decant_plan *plan, const decant_linear_sizes *sizes, int rank)
{
    const decant_rank_share *share = &plan->rank[rank].share;
    int64_t linears = plan->shape.family->linear_count, bytes = 0;
    int64_t first = share->layers.first * linears;
    for (int64_t i = first; i < first + share->layers.count * linears; i++)
        if (plan->owners[i] != share->replica)
            bytes += sizes->each[i].sums_bytes;
    return bytes;
}

/* Of the matrices that a rank quantizes. */
static decant_guided_operations guided_operations(const decant_plan *plan, const decant_linear_sizes *sizes,
                                                  int rank)
{
    const decant_rank_share *share = &plan->rank[rank].share;
    int64_t linears = plan->shape.family->linear_count, first = share->layers.first * linears;
    decant_guided_operations sum = {0};
    for (int64_t i = first; i < first + share->layers.count * linears; i++)
        if (plan->owners[i] == share->replica)
            decant_guided_operations_add(&sum, &sizes->each[i].guided);
    return sum;
}

static int64_t rank_weights(const decant_plan *plan, const decant_linear_sizes *sizes, int rank, bool owned)
{
    const decant_rank_share *share = &plan->rank[rank].share;
    int64_t linears = plan->shape.family->linear_count, weights = 0;
    int64_t first = share->layers.first * linears;
    for (int64_t i = first; i < first + share->layers.count * linears; i++)
        if ((plan->owners[i] == share->replica) == owned)
            weights += sizes->each[i].weights;
    return weights;
}

/* Activations on, gradients back, and the Fisher sums of matrices that another replica quantizes. */
static void count_messages(decant_plan *plan, const decant_linear_sizes *sizes, const decant_rates *rates)
{
    const decant_job_shape *shape = &plan->shape;
    double slowest = 0;
    for (int rank = 0; rank < plan->ranks; rank++) {
        decant_rank_plan *each = &plan->rank[rank];
        int64_t token_bytes = decant_activation_bytes(shape) * shape->config->hidden_size;
        int64_t sums = given_sums_bytes(plan, sizes, rank);
        each->sent_bytes = token_bytes * each->share.sequences * shape->window *
                               (each->share.has_next + each->share.has_previous) +
                           sums;
        slowest = larger(slowest, decant_seconds_of((double)sums, rates->message_bytes_s));
    }
    plan->seconds[DECANT_STAGE_CALIBRATE] += slowest;
}

decant_status decant_plan_calibration_seconds(decant_plan *plan, const decant_linear_sizes *sizes,
                                              const decant_rates *rates, decant_error *err)
{
    decant_status status = DECANT_OK;
    if (!plan->shape.calibrates)
        return status;
    for (int rank = 0; rank < plan->ranks; rank++) {
        const decant_rank_share *share = &plan->rank[rank].share;
        plan->rank[rank].flops =
            share->layers.count == 0
                ? 0
                : (double)share->sequences * (forward_flops(plan, share) + backward_flops(plan, share));
    }
    if (plan->streamed)
        streamed_seconds(plan, sizes, rates);
    else
        DECANT_TRY(resident_seconds(plan, rates, err));
    count_messages(plan, sizes, rates);
done:
    return status;
}

/* ---- the other stages ---- */

static void note(decant_plan *plan, int rank, decant_job_stage stage, double seconds)
{
    plan->rank[rank].seconds[stage] = seconds;
    plan->seconds[stage] = larger(plan->seconds[stage], seconds);
}

/* Ends, norms and biases as the model's files have them. */
static int64_t whole_tensor_bytes(const decant_job_shape *shape)
{
    const decant_model_config *config = shape->config;
    decant_block_sizes sizes;
    decant_end_sizes ends;
    shape->family->sizes(shape->family, config, &sizes);
    decant_family_end_sizes(shape->family, config, true, true, &ends);
    int64_t weights = ends.matrices + ends.vectors + config->layers * sizes.vector_weights;
    return (int64_t)decant_element_bytes(shape->element) * weights;
}

/* The first replica validates: windows stream through its stages, through both models. */
static void validation_seconds(decant_plan *plan, const decant_linear_sizes *sizes, const decant_rates *rates)
{
    const decant_job_shape *shape = &plan->shape;
    double fill = 0, slowest = 0, load = 0;
    int64_t batches = decant_schedule_micro_batches(shape->validation_windows, shape->validation_batch);
    for (int s = 0; s < plan->active_stages; s++) {
        int rank = s * plan->replicas;
        decant_rank_plan *each = &plan->rank[rank];
        double block = 2 * decant_schedule_block_cost(shape->config, shape->validation_window);
        double head =
            each->share.has_head ? 2 * decant_schedule_head_cost(shape->config, shape->validation_window) : 0;
        double window = each->share.layers.count * block * (1 + PACKED_COST) + 2 * head;
        double batch_s = decant_seconds_of((double)shape->validation_batch * window, rates->flop_s);
        double share = (double)each->share.layers.count / shape->config->layers;
        each->flops += (double)shape->validation_windows * window;
        int64_t token_bytes = decant_activation_bytes(shape) * shape->config->hidden_size;
        if (each->share.has_next)
            each->sent_bytes += 2 * token_bytes * shape->validation_windows * shape->validation_window;
        load =
            larger(load, decant_seconds_of(share * (double)(sizes->all.stored_bytes +
                                                            sizes->all.weights *
                                                                (int64_t)decant_element_bytes(shape->element)),
                                           rates->read_bytes_s));
        note(plan, rank, DECANT_STAGE_VALIDATE, (double)batches * batch_s);
        fill += batch_s;
        slowest = larger(slowest, batch_s);
    }
    if (batches > 0)
        plan->seconds[DECANT_STAGE_VALIDATE] = load + fill + (double)(batches - 1) * slowest;
}

decant_status decant_plan_all_seconds(decant_plan *plan, const decant_linear_sizes *sizes,
                                      const decant_rates *rates, decant_error *err)
{
    const decant_job_shape *shape = &plan->shape;
    if (rates->flop_s > 0) {
        decant_status status = decant_plan_calibration_seconds(plan, sizes, rates, err);
        if (status != DECANT_OK)
            return status;
    } else {
        decant_rates any = {.flop_s = 1, .read_bytes_s = 0}; /* for operations, messages and idle shares */
        decant_status status = decant_plan_calibration_seconds(plan, sizes, &any, err);
        if (status != DECANT_OK)
            return status;
        plan->seconds[DECANT_STAGE_CALIBRATE] = 0;
        for (int rank = 0; rank < plan->ranks; rank++)
            plan->rank[rank].seconds[DECANT_STAGE_CALIBRATE] = 0;
    }
    double whole = (double)whole_tensor_bytes(shape);
    for (int rank = 0; rank < plan->ranks; rank++) {
        int64_t owned = rank_weights(plan, sizes, rank, true);
        int64_t all = owned + rank_weights(plan, sizes, rank, false);
        double share = (double)owned / (double)sizes->all.weights;
        if (shape->calibrates && !plan->streamed)
            note(plan, rank, DECANT_STAGE_LOAD,
                 decant_seconds_of((double)all * (double)decant_element_bytes(shape->element),
                                   rates->read_bytes_s));
        double written = shape->quantizes ? share * (double)sizes->all.stored_bytes + whole / plan->ranks
                                          : 4 * (double)owned;
        plan->rank[rank].written_bytes = (int64_t)written;
        if (shape->quantizes) {
            const decant_guided_operations guided = plan->rank[rank].guided =
                guided_operations(plan, sizes, rank);
            note(plan, rank, DECANT_STAGE_QUANTIZE,
                 decant_seconds_of((double)owned, rates->quantized_s) +
                     decant_guided_operations_seconds(&guided, &rates->guided));
        }
        note(plan, rank, DECANT_STAGE_WRITE, decant_seconds_of(written, rates->write_bytes_s));
    }
    if (shape->quantizes && shape->validation_windows > 0)
        validation_seconds(plan, sizes, rates);
    return DECANT_OK;
}

/* ---- files ---- */

/* HDF5's own records, names, attributes and the tables: about 4 KiB a linear layer (SmolLM2: 210 of them). */
enum { LAYER_RECORD_BYTES = 4096, FISHER_RECORD_BYTES = 1024 };

/* The same of a checkpoint: at most, of a file, of a dataset, and of a linear layer with levels of all widths
 * and the costs of all candidates (tests/pipeline/test_resume_streamed.sh). */
enum { WORK_FILE_BYTES = 4096, WORK_DATASET_BYTES = 1024, WORK_RECORD_BYTES = 20480 };

/* Where nothing is streamed, the sums of each replica, and the same again while they are written anew
 * (pipeline/calibration_checkpoint.h). */
static int64_t resident_work_bytes(const decant_plan *plan)
{
    return 2 * (plan->replicas * plan->statistics_bytes + 8 * plan->shape.sequences);
}

/* Streamed: what enters each layer, the gradient of the loss, a gradient that is being written, and what was
 * made of all layers (pipeline/streamed_checkpoint.h). */
static int64_t streamed_work_bytes(const decant_plan *plan, const decant_linear_sizes *sizes)
{
    const decant_job_shape *shape = &plan->shape;
    int64_t activations =
        decant_activation_bytes(shape) * shape->sequences * shape->window * shape->config->hidden_size;
    int64_t file_bytes = WORK_FILE_BYTES + plan->replicas * WORK_DATASET_BYTES;
    int64_t boundaries = (shape->config->layers + 2) * (activations + file_bytes) + 2 * 8 * shape->sequences;
    int64_t results =
        shape->quantizes ? sizes->all.levels_bytes + sizes->all.pattern_bytes + sizes->count * WORK_RECORD_BYTES
                         : plan->statistics_bytes;
    return boundaries + results + shape->config->layers * file_bytes;
}

void decant_plan_file_sizes(decant_plan *plan, const decant_linear_sizes *sizes)
{
    int64_t rest = whole_tensor_bytes(&plan->shape) + sizes->count * LAYER_RECORD_BYTES;
    plan->weights = sizes->all.weights;
    plan->container_bytes = sizes->all.stored_bytes + rest;
    plan->smallest_bytes = sizes->all.smallest_bytes + rest;
    plan->largest_bytes = sizes->all.largest_bytes + rest;
    plan->hessian_bytes = sizes->all.sums_bytes - 4 * sizes->all.weights;
    plan->block_hessian_bytes = plan->hessian_bytes / plan->shape.config->layers; /* blocks are alike */
    plan->statistics_bytes = sizes->all.sums_bytes + sizes->count * FISHER_RECORD_BYTES;
    if (plan->shape.calibrates)
        plan->work_bytes = plan->streamed ? streamed_work_bytes(plan, sizes) : resident_work_bytes(plan);
}
