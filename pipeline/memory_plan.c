/* See memory_plan.h. Every line here stands for an allocation somewhere else: the comments say where. */
#include "pipeline/memory_plan.h"

#include "stages/error_table.h"
#include "stages/quantize.h"

/* What a process holds before it does anything: code, MPI, HDF5, OpenBLAS (docs/planning.md); with CUDA its
 * context and libraries, and the pinned rings of kernels/cuda/context.h. */
static const int64_t CPU_PROGRAM_BYTES = 48 << 20, CUDA_PROGRAM_BYTES = (int64_t)640 << 20,
                     PINNED_BYTES = 2 * (4 << 24) + (32 << 16);

enum { CHANNEL_BUFFERS = 6 }; /* pipeline/channel.c: three to receive, three to send */

const char *decant_job_stage_name(decant_job_stage stage)
{
    static const char *const names[DECANT_STAGES] = {"load", "calibrate", "quantize", "write", "validate"};
    return names[stage];
}

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* ---- calibrate ---- */

/* stages/loss_gradient.c: the final norm and its gradient, logits, inverse root mean squares, of one sequence
 */
static int64_t head_bytes(const decant_rank_view *view, int64_t rows)
{
    if (!view->share->has_head)
        return 0;
    return 2 * decant_rank_boundary_bytes(view, rows) +
           decant_activation_bytes(view->shape) * rows * view->vocabulary + 4 * rows;
}

/* Resident: all of a rank's layers, for as many micro-batches as are under way. */
static decant_calibration_bytes resident_bytes(const decant_rank_view *view)
{
    const decant_job_shape *shape = view->shape;
    const decant_rank_share *share = view->share;
    int64_t rows = shape->micro_batch * shape->window, all = decant_rank_linears(view).weights;
    int64_t held = share->slots * share->layers.count; /* block inputs, and what is kept of each */
    return (decant_calibration_bytes){
        .weights =
            decant_rank_placed_bytes(view, all, share->layers.count) + decant_rank_part_bytes(view, rows),
        .fisher = decant_rank_linears(view).sums_bytes,
        .boundaries = (held + 2) * decant_rank_boundary_bytes(view, rows), /* output and gradient besides */
        .kept = (share->retain ? held : 1) * decant_rank_kept_bytes(view, rows),
        .head = head_bytes(view, shape->window),
    };
}

static int64_t end_bytes(const decant_rank_view *view, bool begins, bool ends)
{
    decant_end_sizes sizes = decant_rank_ends_of(view, begins, ends);
    return view->shape->cuda ? decant_compute_bytes(view->shape) * sizes.matrices + 4 * sizes.vectors : 0;
}

/* What comes with the embedding and with the head while they are in: for the first layer, for the last. */
static int64_t largest_end_bytes(const decant_rank_view *view)
{
    const decant_rank_share *share = view->share;
    if (share->layers.count == 1)
        return end_bytes(view, share->has_embedding, share->has_head);
    return larger(end_bytes(view, share->has_embedding, false), end_bytes(view, false, share->has_head));
}

/* Streamed (stages/streamed_calibration.c): the weights of a layer and of the next one; forward, one of the
 * model's ends; backward, one layer's F, and what quantizing that layer takes before F makes room for the next
 * one's; one micro-batch, its inputs and outputs twice. */
static decant_calibration_bytes streamed_bytes(const decant_rank_view *view, int64_t quantizing)
{
    const decant_job_shape *shape = view->shape;
    int64_t rows = shape->micro_batch * shape->window, block = decant_rank_largest_block_weights(view);
    int64_t blocks = view->share->layers.count < 2 ? view->share->layers.count : 2;
    int64_t backward = decant_rank_largest_block_sums(view) + quantizing, end = largest_end_bytes(view);
    int64_t placed =
        view->shape->cuda
            ? blocks * (decant_compute_bytes(shape) * block + 4 * decant_rank_block_sizes(view).vector_weights)
            : 0;
    return (decant_calibration_bytes){
        .weights = placed + decant_rank_part_bytes(view, rows) + quantizing,
        .fisher = decant_rank_largest_block_sums(view),
        .boundaries = 5 * decant_rank_boundary_bytes(view, rows) + decant_rank_device_boundaries(view),
        .kept = decant_rank_kept_bytes(view, rows),
        .head = head_bytes(view, shape->window) + larger(0, end - backward),
    };
}

static int64_t calibration_total(const decant_calibration_bytes *bytes)
{
    return bytes->weights + bytes->fisher + bytes->boundaries + bytes->kept + bytes->head + bytes->working;
}

/* Messages to and from neighbours; pipeline/channel.c. */
static int64_t channel_bytes(const decant_rank_view *view, int64_t message_bytes)
{
    return CHANNEL_BUFFERS * message_bytes * (view->share->has_previous + view->share->has_next);
}

/* Streamed: what enters each layer and what leaves the last, for all sequences, as far as it does not stay on
 * the device; the gradient takes the place of what left. */
static int64_t waiting_boundaries(const decant_rank_view *view)
{
    if (!view->share->streamed)
        return 0;
    int64_t all = (view->share->layers.count + 1) *
                  decant_rank_boundary_bytes(view, view->share->sequences * view->shape->window);
    return larger(0, all - decant_rank_device_boundaries(view));
}

/* Where a streamed rank lets these wait: a few micro-batches stay at hand when it is the disk. */
static int64_t boundaries_in_memory(const decant_rank_view *view)
{
    int64_t at_hand = 4 * decant_rank_boundary_bytes(view, view->shape->micro_batch * view->shape->window);
    return view->share->boundaries_on_disk ? at_hand : waiting_boundaries(view);
}

static int64_t token_bytes(const decant_rank_view *view)
{
    return 4 * view->shape->sequences * view->shape->window;
}

/* What waits of the quantized layers that a rank owns, from the first to before the end-th. */
static int64_t results_bytes(const decant_rank_view *view, int64_t end)
{
    int64_t bytes = 0;
    for (int64_t i = 0; i < end; i++)
        if (decant_rank_owns(view, i))
            bytes += view->linears[i].pattern_bytes + view->linears[i].levels_bytes;
    return bytes;
}

static int64_t owned_sums_bytes(const decant_rank_view *view)
{
    int64_t bytes = 0;
    for (int64_t i = 0; i < view->count; i++)
        bytes += decant_rank_owns(view, i) ? view->linears[i].sums_bytes : 0;
    return view->shape->has_fisher ? bytes : 0;
}

static int64_t exact_bytes(const decant_rank_view *view, int64_t weights)
{
    return view->shape->cuda ? (int64_t)decant_element_bytes(view->shape->element) * weights : 0;
}

/* The most that quantizing a block takes beside its F: a matrix as the file has it and the next one, which
 * arrives meanwhile, and the results of a block, which leave together. Raises the working space. */
static int64_t quantizing_bytes(decant_rank_view *view)
{
    int64_t linears = view->shape->family->linear_count, arriving = 0, results = 0;
    for (int64_t first = 0; first < view->count; first += linears) {
        int64_t own = 0;
        for (int64_t i = first; i < first + linears; i++) {
            const decant_linear_size *linear = &view->linears[i];
            int64_t next = i + 1 < first + linears ? linear[1].weights : 0;
            view->working = larger(
                view->working, decant_quantization_working_bytes(view->shape, linear->rows, linear->columns));
            arriving = larger(arriving, exact_bytes(view, linear->weights + next) + linear->trial_bytes);
            own += linear->pattern_bytes + linear->levels_bytes;
        }
        results = larger(results, own);
    }
    return arriving + results;
}

static void plan_calibration(decant_rank_view *view, decant_rank_memory *memory)
{
    const decant_job_shape *shape = view->shape;
    decant_memory_bytes *at = &memory->at[DECANT_STAGE_CALIBRATE];
    const bool streamed = view->share->streamed;
    view->working = decant_calibration_working_bytes(shape, view->share->layers.first, view->share->has_head);
    int64_t quantizing = streamed && shape->quantizes ? quantizing_bytes(view) : 0;
    decant_calibration_bytes bytes = streamed ? streamed_bytes(view, quantizing) : resident_bytes(view);
    bytes.working = view->working;
    memory->calibration = bytes;
    at->device = calibration_total(&bytes);
    at->host = token_bytes(view) +
               channel_bytes(view, decant_rank_boundary_bytes(view, shape->micro_batch * shape->window)) +
               boundaries_in_memory(view);
    if (streamed) /* a micro-batch on its way to a checkpoint; pipeline/streamed_checkpoint.h */
        at->host += decant_rank_boundary_bytes(view, shape->micro_batch * shape->window);
    if (streamed) /* what was quantized waits there, or the sums do that are wanted themselves */
        at->host += shape->quantizes ? results_bytes(view, view->count) : owned_sums_bytes(view);
    if (view->share->replicas > 1) /* F on its way to its owner, in and out */
        at->host += 2 * decant_rank_largest_matrix_sums(view);
    at->mapped = decant_rank_read_bytes(view);
    at->scratch = view->share->boundaries_on_disk ? waiting_boundaries(view) : 0;
}

/* ---- quantize ---- */

/* The weights of the first `end` matrices that a rank owns, and of the next one. */
static int64_t arrived_weights(const decant_rank_view *view, int64_t end)
{
    int64_t weights = 0, i = 0;
    for (; i < view->count; i++) {
        bool is_kept = view->shape->has_fisher || i + 1 >= end; /* without F they go at once */
        if (decant_rank_owns(view, i) && is_kept)
            weights += view->linears[i].weights;
        if (i >= end && decant_rank_owns(view, i))
            break;
    }
    return weights;
}

/* Fisher sums go as results come, weights stay to be written: pipeline/quantization.c. Streamed ranks are done
 * by then. */
static void plan_quantization(decant_rank_view *view, decant_rank_memory *memory)
{
    const decant_job_shape *shape = view->shape;
    decant_memory_bytes *at = &memory->at[DECANT_STAGE_QUANTIZE];
    int64_t fisher = owned_sums_bytes(view), results = 0;
    at->mapped = decant_rank_read_bytes(view);
    at->host = token_bytes(view);
    if (view->share->streamed) {
        at->host += results_bytes(view, view->count);
        at->device = view->working;
        return;
    }
    for (int64_t i = 0; i < view->count; i++) {
        const decant_linear_size *linear = &view->linears[i];
        if (!decant_rank_owns(view, i))
            continue;
        results += linear->pattern_bytes + linear->levels_bytes;
        view->working =
            larger(view->working, decant_quantization_working_bytes(shape, linear->rows, linear->columns));
        at->device = larger(at->device, fisher + results + linear->trial_bytes +
                                            exact_bytes(view, arrived_weights(view, i + 1)) + view->working);
        fisher -= shape->has_fisher ? linear->sums_bytes : 0;
    }
    at->host += view->count * (int64_t)(sizeof(decant_quantized_layer) + sizeof(decant_table_row));
}

/* ---- write ---- */

/* stages/write.c: one matrix after the other is encoded, and written through a copy in host memory while the
 * next one is. */
static void plan_writing(decant_rank_view *view, decant_rank_memory *memory)
{
    decant_memory_bytes *at = &memory->at[DECANT_STAGE_WRITE];
    int64_t packed = 0, arriving = 0;
    if (!view->shape->quantizes) { /* the Fisher sums are written, through a copy of one */
        bool parked = view->share->streamed;
        at->device = view->working + (parked ? 0 : owned_sums_bytes(view));
        at->host = decant_rank_largest_matrix_sums(view) + (parked ? owned_sums_bytes(view) : 0);
        return;
    }
    for (int64_t i = 0; i < view->count; i++) {
        const decant_linear_size *linear = &view->linears[i];
        packed = larger(packed, linear->packed_bytes);
        arriving = larger(arriving,
                          exact_bytes(view, linear->weights + (i + 1 < view->count ? linear[1].weights : 0)));
    }
    int64_t results = results_bytes(view, view->count);
    at->device = packed + view->working;
    at->device +=
        view->share->streamed ? arriving : results + exact_bytes(view, arrived_weights(view, view->count));
    at->host = 2 * packed + (view->share->streamed ? results : 0);
    at->mapped = decant_rank_file_bytes(view);
}

/* ---- validate ---- */

/* stages/validate.c and the two parts; pipeline/validation.c. What is whole in the container is read into host
 * memory. A streamed rank holds one layer of each model at a time, and the next one. The arrays of
 * stages/decode_products.c come when those of a forward pass have gone, and are smaller for as many tokens. */
static void plan_validation(decant_rank_view *view, decant_rank_memory *memory)
{
    const decant_job_shape *shape = view->shape;
    decant_memory_bytes *at = &memory->at[DECANT_STAGE_VALIDATE];
    int64_t rows = shape->validation_batch * shape->validation_window, layers = view->share->layers.count;
    if (shape->validation_windows == 0 || layers == 0)
        return;
    decant_linear_size all = decant_rank_linears(view);
    int64_t whole = decant_rank_end_elements(view) + layers * decant_rank_block_sizes(view).vector_weights;
    view->working = larger(view->working, decant_validation_working_bytes(shape, view->share->has_head));
    at->device = decant_rank_placed_bytes(view, all.weights, layers) +
                 decant_rank_placed_bytes(view, 0, layers) + all.packed_bytes + all.prepared_bytes +
                 2 * decant_rank_part_bytes(view, rows) + decant_rank_kept_bytes(view, rows) +
                 3 * decant_rank_boundary_bytes(view, rows) + view->working;
    if (view->share->has_head) { /* window by window, both models' logits */
        int64_t window = shape->validation_window;
        at->device += decant_rank_boundary_bytes(view, window) +
                      2 * decant_activation_bytes(shape) * window * view->vocabulary + 4 * window;
    }
    at->host = (int64_t)decant_element_bytes(shape->element) * whole +
               channel_bytes(view, 2 * decant_rank_boundary_bytes(view, rows)) / 2 +
               4 * shape->validation_windows * shape->validation_window;
    at->mapped = decant_rank_file_bytes(view);
}

/* ---- all stages ---- */

static void add_program(const decant_job_shape *shape, decant_memory_bytes *at)
{
    at->device += decant_backend_bytes(shape);
    at->host += shape->cuda ? CUDA_PROGRAM_BYTES + PINNED_BYTES : CPU_PROGRAM_BYTES;
    if (shape->cuda)
        return;
    at->host += at->device;
    at->device = 0;
}

static void find_peaks(decant_rank_memory *memory)
{
    memory->device_stage = memory->host_stage = DECANT_STAGE_CALIBRATE;
    for (int stage = 0; stage < DECANT_STAGES; stage++) {
        const decant_memory_bytes *at = &memory->at[stage];
        if (at->device > memory->peak.device)
            memory->device_stage = (decant_job_stage)stage;
        if (at->host > memory->peak.host)
            memory->host_stage = (decant_job_stage)stage;
        memory->peak.device = larger(memory->peak.device, at->device);
        memory->peak.host = larger(memory->peak.host, at->host);
        memory->peak.mapped = larger(memory->peak.mapped, at->mapped);
        memory->peak.scratch = larger(memory->peak.scratch, at->scratch);
        memory->process_bytes = larger(memory->process_bytes, at->host + at->mapped);
    }
}

void decant_rank_memory_plan(const decant_job_shape *shape, const decant_linear_sizes *sizes, const int *owners,
                             const decant_rank_share *share, decant_rank_memory *memory)
{
    int64_t linears = shape->family->linear_count;
    decant_rank_view view = {
        .shape = shape,
        .linears = sizes->each + share->layers.first * linears,
        .owners = owners + share->layers.first * linears,
        .count = share->layers.count * linears,
        .share = share,
        .hidden = shape->config->hidden_size,
        .vocabulary = shape->config->vocabulary_size,
    };
    *memory = (decant_rank_memory){0};
    if (share->layers.count > 0) {
        if (shape->calibrates)
            plan_calibration(&view, memory);
        if (shape->quantizes)
            plan_quantization(&view, memory);
        plan_writing(&view, memory);
        plan_validation(&view, memory);
    }
    for (int stage = 0; stage < DECANT_STAGES; stage++)
        add_program(shape, &memory->at[stage]);
    find_peaks(memory);
}

int64_t decant_rank_boundaries_in(const decant_job_shape *shape, const decant_rank_share *share,
                                  int64_t free_bytes)
{
    int64_t record =
        decant_activation_bytes(shape) * shape->micro_batch * shape->window * shape->config->hidden_size;
    int64_t batches = decant_schedule_micro_batches(share->sequences, shape->micro_batch);
    int64_t all = (share->layers.count + 1) * batches,
            fitting = free_bytes > 0 && record > 0 ? free_bytes / record : 0;
    return fitting < all ? fitting : all;
}
