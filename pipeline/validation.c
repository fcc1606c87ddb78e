/* The validation stage over all ranks: the container is opened from disk by every rank, and windows of text
 * stream through the stages, through the original model and the quantized one side by side. */
#include "base/memory.h"
#include "pipeline/channel.h"
#include "pipeline/job.h"

#include <string.h>

enum { TAG_VALIDATE = 3, MODELS = 2 };

typedef struct validation_run {
    decant_job *job;
    const decant_token_array *tokens;
    decant_container *container;
    decant_container_source *source;
    decant_model_part original, quantized;
    decant_validation *validation;
    decant_channel *from_previous, *to_next;
    int64_t micro_batch;            /* windows taken together */
    int64_t first_batch, batches;   /* this replica's share of the micro-batches */
    decant_comparison *comparisons; /* [windows]; filled where the head is, for this rank's share */
    decant_validation_result result;
    decant_standing standing;
} validation_run;

static decant_status load_parts(validation_run *run, decant_error *err)
{
    decant_job *job = run->job;
    decant_layer_range layers = decant_job_layers(job);
    decant_status status;
    DECANT_TRY(decant_container_source_create(run->container, &run->source, err));
    decant_weight_source packed = decant_source_of_container(run->source);
    DECANT_TRY(decant_model_part_load(job->backend, &job->config, &packed, layers.first, layers.count,
                                      run->tokens->length, run->micro_batch, &run->quantized, err));
    if (job->model) {
        decant_weight_source whole = decant_source_of_model(job->model);
        DECANT_TRY(decant_model_part_load(job->backend, &job->config, &whole, layers.first, layers.count,
                                          run->tokens->length, run->micro_batch, &run->original, err));
    }
    DECANT_TRY(
        decant_validation_create(job->model ? &run->original : NULL, &run->quantized, &run->validation, err));
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

static void step_windows(validation_run *run, decant_micro_batch windows)
{
    decant_backend *backend = run->job->backend;
    decant_matrix activations[MODELS];
    decant_error error;
    if (run->from_previous) {
        both_activations(run, windows.count, activations);
        decant_standing_note(&run->standing,
                             decant_channel_receive(run->from_previous, backend, activations, MODELS,
                                                    &run->standing.withdrawn, &error),
                             &error);
    }
    if (decant_standing_computes(&run->standing))
        decant_standing_note(
            &run->standing,
            decant_validation_forward(run->validation, decant_token_array_sequence(run->tokens, windows.first),
                                      windows.count, run->comparisons + windows.first, &run->result, &error),
            &error);
    if (run->to_next) {
        both_activations(run, windows.count, activations);
        decant_standing_note(&run->standing,
                             decant_channel_send(run->to_next, backend, activations, MODELS,
                                                 !decant_standing_computes(&run->standing), &error),
                             &error);
    }
}

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
    decant_model_part_unload(&run->original);
    decant_model_part_unload(&run->quantized);
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
    DECANT_TRY(decant_ranks_agree(job->ranks, prepare(&run, path, err), err));
    DECANT_TRY(decant_ranks_agree(job->ranks, is_active ? open_channels(&run, err) : DECANT_OK, err));
    for (int64_t i = 0; is_active && i < run.batches; i++) {
        step_windows(&run,
                     decant_schedule_micro_batch(tokens->sequences, run.micro_batch, run.first_batch + i));
        decant_log_progress(job->log, i + 1, run.batches, "micro-batches");
    }
    *err = run.standing.error;
    DECANT_TRY(decant_ranks_agree(job->ranks, run.standing.failed, err));
    double seconds[2] = {run.result.original_s, run.result.quantized_s};
    DECANT_TRY(sum_windows(&run, err));
    DECANT_TRY(decant_ranks_sum(job->ranks, seconds, 2, err));
    run.result.original_s = seconds[0];
    run.result.quantized_s = seconds[1];
    *result = run.result;
done:
    dismantle(&run);
    return status;
}
