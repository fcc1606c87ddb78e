/* The validation stage over all ranks: the container is opened from disk by every rank, and windows of text
 * stream through the stages, through the original model and the quantized one side by side. Where both models'
 * layers do not fit a rank's memory together, all windows pass one layer after the other. */
#include "base/memory.h"
#include "pipeline/channel.h"
#include "pipeline/job.h"
#include "pipeline/job_plan.h"
#include "pipeline/model_costs.h"
#include "stages/boundaries.h"

#include <string.h>

enum { TAG_VALIDATE = 3, ORIGINAL = 0, QUANTIZED = 1, MODELS = 2 };

typedef struct validation_run {
    decant_job *job;
    const decant_token_array *tokens;
    decant_container *container;
    decant_container_source *source;
    decant_weight_source sources[MODELS];
    decant_model_part parts[MODELS]; /* that of the original is empty when there is nothing to compare with */
    bool streamed;
    decant_boundaries *boundaries; /* streamed: [MODELS, batches], what enters the next layer */
    decant_validation *validation;
    decant_channel *from_previous, *to_next;
    int64_t micro_batch;            /* windows taken together */
    int64_t first_batch, batches;   /* this replica's share of the micro-batches */
    decant_comparison *comparisons; /* [windows]; filled where the head is, for this rank's share */
    decant_validation_result result;
    decant_standing standing;
} validation_run;

/* Outlines, whose blocks come and go. */
static decant_status outline_parts(validation_run *run, decant_error *err)
{
    decant_job *job = run->job;
    decant_layer_range layers = decant_job_layers(job);
    decant_status status = DECANT_OK;
    for (int model = job->model ? ORIGINAL : QUANTIZED; model < MODELS && status == DECANT_OK; model++)
        status = decant_model_part_outline(job->backend, &job->config, layers.first, layers.count,
                                           run->tokens->length, run->micro_batch, &run->parts[model], err);
    return status;
}

/* The original's weights travel to the backend while the container is read. */
static decant_status place_parts(validation_run *run, decant_error *err)
{
    decant_job *job = run->job;
    decant_layer_range layers = decant_job_layers(job);
    decant_model_part *original = &run->parts[ORIGINAL];
    decant_status status;
    if (job->model)
        DECANT_TRY(decant_model_part_begin(job->backend, &job->config, &run->sources[ORIGINAL], layers.first,
                                           layers.count, run->tokens->length, run->micro_batch, original, err));
    DECANT_TRY(decant_model_part_load(job->backend, &job->config, &run->sources[QUANTIZED], layers.first,
                                      layers.count, run->tokens->length, run->micro_batch,
                                      &run->parts[QUANTIZED], err));
    if (job->model)
        DECANT_TRY(decant_model_part_finish(original, &run->sources[ORIGINAL], err));
done:
    return status;
}

/* For a decant_interlude. */
static void advance_messages(void *run)
{
    decant_channel_advance(((validation_run *)run)->from_previous);
    decant_channel_advance(((validation_run *)run)->to_next);
}

static decant_status load_parts(validation_run *run, decant_error *err)
{
    decant_job *job = run->job;
    const char *scratch = job->options->scratch[0] ? job->options->scratch : NULL;
    size_t record_bytes = decant_element_bytes(job->backend->activation) *
                          (size_t)(run->micro_batch * run->tokens->length) * (size_t)job->config.hidden_size;
    decant_interlude interlude = {.call = advance_messages, .context = run};
    decant_status status;
    DECANT_TRY(decant_container_source_create(run->container, &run->source, err));
    run->sources[QUANTIZED] = decant_source_of_container(run->source);
    if (job->model)
        run->sources[ORIGINAL] = decant_source_of_model(job->model);
    DECANT_TRY(run->streamed ? outline_parts(run, err) : place_parts(run, err));
    DECANT_TRY(decant_validation_create(job->model ? &run->parts[ORIGINAL] : NULL, &run->parts[QUANTIZED],
                                        interlude, &run->validation, err));
    if (run->streamed)
        DECANT_TRY(decant_boundaries_create(job->backend, MODELS * run->batches, record_bytes, scratch,
                                            &run->boundaries, err));
done:
    return status;
}

static decant_status prepare(validation_run *run, const char *path, decant_error *err)
{
    decant_job *job = run->job;
    decant_status status;
    DECANT_TRY(decant_memory_allocate((size_t)run->tokens->sequences * sizeof *run->comparisons, "windows",
                                      (void **)&run->comparisons, err));
    DECANT_TRY(decant_container_open(path, &run->container, err));
    if (decant_job_layers(job).count > 0)
        DECANT_TRY(load_parts(run, err));
done:
    return status;
}

static decant_status open_channels(validation_run *run, decant_error *err)
{
    decant_job *job = run->job;
    int stage = job->stage;
    size_t bytes = decant_element_bytes(job->backend->activation) *
                   (size_t)(run->micro_batch * run->tokens->length) * (size_t)job->config.hidden_size *
                   (job->model ? MODELS : 1);
    decant_status status = DECANT_OK;
    if (stage > 0)
        DECANT_TRY(decant_channel_open(job->ranks, decant_job_rank(job, stage - 1, job->replica), TAG_VALIDATE,
                                       bytes, run->batches, true, &run->from_previous, err));
    if (stage < job->stages - 1)
        DECANT_TRY(decant_channel_open(job->ranks, decant_job_rank(job, stage + 1, job->replica), TAG_VALIDATE,
                                       bytes, run->batches, false, &run->to_next, err));
done:
    return status;
}

static void both_activations(validation_run *run, int64_t windows, decant_matrix activations[MODELS])
{
    for (int model = 0; model < MODELS; model++)
        activations[model] = decant_validation_activation(run->validation, model, windows);
}

static void receive_windows(validation_run *run, int64_t windows)
{
    decant_matrix activations[MODELS];
    decant_error error;
    if (!run->from_previous)
        return;
    both_activations(run, windows, activations);
    decant_standing_note(&run->standing,
                         decant_channel_receive(run->from_previous, run->job->backend, activations, MODELS,
                                                &run->standing.withdrawn, &error),
                         &error);
}

static void send_windows(validation_run *run, int64_t windows)
{
    decant_matrix activations[MODELS];
    decant_error error;
    if (!run->to_next)
        return;
    both_activations(run, windows, activations);
    decant_standing_note(&run->standing,
                         decant_channel_send(run->to_next, run->job->backend, activations, MODELS,
                                             !decant_standing_computes(&run->standing), &error),
                         &error);
}

static decant_micro_batch batch_at(const validation_run *run, int64_t index)
{
    return decant_schedule_micro_batch(run->tokens->sequences, run->micro_batch, run->first_batch + index);
}

/* ---- all layers in place ---- */

static void stream_windows(validation_run *run)
{
    decant_error error;
    for (int64_t i = 0; i < run->batches; i++) {
        decant_micro_batch windows = batch_at(run, i);
        receive_windows(run, windows.count);
        if (decant_standing_computes(&run->standing))
            decant_standing_note(&run->standing,
                                 decant_validation_forward(
                                     run->validation, decant_token_array_sequence(run->tokens, windows.first),
                                     windows.count, run->comparisons + windows.first, &run->result, &error),
                                 &error);
        send_windows(run, windows.count);
        decant_log_progress(run->job->log, i + 1, run->batches, "micro-batches");
    }
}

/* ---- one layer after the other ---- */

static bool is_last(const validation_run *run, int block)
{
    return block == run->parts[QUANTIZED].layer_count - 1;
}

static decant_status enter_block(validation_run *run, int block, decant_error *err)
{
    decant_status status = DECANT_OK;
    for (int model = 0; model < MODELS; model++) {
        decant_model_part *part = &run->parts[model];
        const decant_weight_source *source = &run->sources[model];
        if (part->layer_count == 0)
            continue;
        DECANT_TRY(decant_model_block_begin(part, source, block, err));
        DECANT_TRY(decant_model_block_finish(part, block, err));
        if (block == 0)
            DECANT_TRY(decant_model_embedding_place(part, source, err));
        if (is_last(run, block))
            DECANT_TRY(decant_model_head_place(part, source, err));
    }
done:
    return status;
}

static void leave_block(validation_run *run, int block)
{
    for (int model = 0; model < MODELS; model++) {
        if (run->parts[model].layer_count == 0)
            continue;
        decant_model_block_leave(&run->parts[model], block);
        decant_model_block_dismiss(&run->parts[model], &run->sources[model], block);
        decant_model_ends_leave(&run->parts[model]);
    }
}

/* Some windows through one layer of both models; they wait outside the device before and after. */
static decant_status pass_windows(validation_run *run, int block, int64_t index, decant_error *err)
{
    decant_micro_batch windows = batch_at(run, index);
    const int32_t *tokens = decant_token_array_sequence(run->tokens, windows.first);
    decant_matrix activations[MODELS];
    decant_status status = DECANT_OK;
    both_activations(run, windows.count, activations);
    for (int model = 0; block > 0 && model < MODELS; model++)
        if (activations[model].data)
            DECANT_TRY(
                decant_boundaries_load(run->boundaries, MODELS * index + model, activations[model], err));
    DECANT_TRY(decant_validation_pass_block(run->validation, block, tokens, windows.count, &run->result, err));
    if (run->parts[QUANTIZED].head.data)
        DECANT_TRY(decant_validation_compare(run->validation, tokens, windows.count,
                                             run->comparisons + windows.first, &run->result, err));
    both_activations(run, windows.count, activations);
    for (int model = 0; !is_last(run, block) && model < MODELS; model++)
        if (activations[model].data)
            DECANT_TRY(
                decant_boundaries_begin_save(run->boundaries, MODELS * index + model, activations[model], err));
    DECANT_TRY(decant_boundaries_finish_saves(run->boundaries, err));
done:
    return status;
}

static void stream_layers(validation_run *run)
{
    decant_error error;
    for (int block = 0; block < run->parts[QUANTIZED].layer_count; block++) {
        if (decant_standing_computes(&run->standing))
            decant_standing_note(&run->standing, enter_block(run, block, &error), &error);
        for (int64_t i = 0; i < run->batches; i++) {
            if (block == 0)
                receive_windows(run, batch_at(run, i).count);
            if (decant_standing_computes(&run->standing))
                decant_standing_note(&run->standing, pass_windows(run, block, i, &error), &error);
            if (is_last(run, block))
                send_windows(run, batch_at(run, i).count);
        }
        leave_block(run, block);
        decant_log_progress(run->job->log, block + 1, run->parts[QUANTIZED].layer_count, "layers");
    }
}

/* ---- the result ---- */

/* Every window was compared on one rank: all get all, then add them up in their order, so that the result does
 * not depend on who compared what. Counts are exact as doubles. */
static decant_status sum_windows(validation_run *run, decant_error *err)
{
    enum { FIGURES = 5 };
    int64_t windows = run->tokens->sequences;
    double *figures = NULL;
    decant_status status;
    DECANT_TRY(decant_ranks_agree(
        run->job->ranks,
        decant_memory_allocate((size_t)windows * FIGURES * sizeof *figures, "windows", (void **)&figures, err),
        err));
    for (int64_t i = 0; i < windows; i++) {
        const decant_comparison *window = &run->comparisons[i];
        const double own[FIGURES] = {window->loss_original, window->loss_quantized, window->divergence,
                                     (double)window->same_top, (double)window->targets};
        memcpy(figures + i * FIGURES, own, sizeof own);
    }
    DECANT_TRY(decant_ranks_sum(run->job->ranks, figures, (int)(windows * FIGURES), err));
    for (int64_t i = 0; i < windows; i++) {
        const double *sums = figures + i * FIGURES;
        run->comparisons[i] =
            (decant_comparison){sums[0], sums[1], sums[2], (int64_t)sums[3], (int64_t)sums[4]};
    }
    decant_validation_sum(run->comparisons, windows, &run->result);
done:
    decant_memory_free(figures);
    return status;
}

static void dismantle(validation_run *run)
{
    decant_channel_close(&run->from_previous);
    decant_channel_close(&run->to_next);
    decant_validation_destroy(&run->validation);
    decant_boundaries_destroy(&run->boundaries);
    for (int model = 0; model < MODELS; model++)
        decant_model_part_unload(&run->parts[model]);
    decant_container_source_destroy(&run->source);
    decant_container_close(&run->container);
    decant_memory_free(run->comparisons);
}

decant_status decant_job_validate(decant_job *job, const char *path, const decant_token_array *tokens,
                                  decant_validation_result *result, decant_error *err)
{
    validation_run run = {.job = job, .tokens = tokens};
    bool is_active = job->stage < job->stages;
    decant_status status;
    decant_log_stage(job->log, "validate");
    run.micro_batch = decant_schedule_micro_batch_size(tokens->length);
    if (run.micro_batch > tokens->sequences)
        run.micro_batch = tokens->sequences;
    decant_schedule_share(decant_schedule_micro_batches(tokens->sequences, run.micro_batch), job->grid.replicas,
                          job->replica, &run.first_batch, &run.batches);
    DECANT_TRY(decant_job_plan_validation(job, tokens, &run.streamed, err));
    DECANT_TRY(decant_ranks_agree(job->ranks, prepare(&run, path, err), err));
    DECANT_TRY(decant_ranks_agree(job->ranks, is_active ? open_channels(&run, err) : DECANT_OK, err));
    if (is_active)
        (run.streamed ? stream_layers : stream_windows)(&run);
    decant_error unread;
    decant_standing_note(&run.standing, decant_safetensors_check(job->model, &unread), &unread);
    *err = run.standing.error;
    DECANT_TRY(decant_ranks_agree(job->ranks, run.standing.failed, err));
    double seconds[2] = {run.result.original_s, run.result.quantized_s};
    DECANT_TRY(sum_windows(&run, err));
    if (!run.streamed) /* a model that is never whole in memory has no decode speed */
        DECANT_TRY(decant_model_costs_measure(job, job->model ? &run.parts[ORIGINAL] : NULL,
                                              &run.parts[QUANTIZED], &run.result, err));
    DECANT_TRY(decant_ranks_sum(job->ranks, seconds, 2, err));
    run.result.original_s = seconds[0];
    run.result.quantized_s = seconds[1];
    *result = run.result;
done:
    dismantle(&run);
    return status;
}
