/* The calibration stage over all ranks: micro-batches stream through the stages, one forward and one backward
 * in turn, and every rank adds up the Fisher sums of its own layers. The order is pipeline/schedule.h's, the
 * arithmetic stages/calibrate.h's. */
#include "base/memory.h"
#include "pipeline/channel.h"
#include "pipeline/job.h"
#include "stages/calibrate.h"

enum { TAG_FORWARD = 1, TAG_BACKWARD = 2 };

/* Room left beside what is retained, as a share of the memory that a rank may use. */
static const double RETAINED_SHARE = 0.75;

/* One rank at work. */
typedef struct stage_run {
    decant_job *job;
    const decant_token_array *tokens;
    decant_model_part part;
    decant_calibration *calibration;
    decant_channel *from_previous, *to_next; /* activations */
    decant_channel *from_next, *to_previous; /* gradients */
    int64_t micro_batch, batches;            /* sequences taken together, and how often */
    int64_t slots;
    double *losses; /* [sequences]; filled where the head is */
    decant_standing standing;
} stage_run;

static decant_status choose_retention(stage_run *run, bool *retain, decant_error *err)
{
    decant_backend *backend = run->job->backend;
    int64_t boundary, retained, held, peak, device;
    decant_status status = decant_calibration_slot_bytes(&run->part, &boundary, &retained, err);
    if (status != DECANT_OK)
        return status;
    backend->memory->usage(backend, &held, &peak, &device);
    double room = (double)device / run->job->sharers * RETAINED_SHARE - (double)held;
    *retain = run->job->options->retention == DECANT_RETAIN_ALL ||
              (run->job->options->retention == DECANT_RETAIN_AUTO && (double)(run->slots * retained) < room);
    return DECANT_OK;
}

static decant_status open_channels(stage_run *run, decant_error *err)
{
    decant_job *job = run->job;
    int stage = job->ranks->rank;
    size_t bytes = decant_element_bytes(job->backend->activation) *
                   (size_t)(run->micro_batch * run->tokens->length) * (size_t)job->config.hidden_size;
    int64_t messages = run->batches;
    decant_status status = DECANT_OK;
    if (stage > 0) {
        DECANT_TRY(decant_channel_open(job->ranks, stage - 1, TAG_FORWARD, bytes, messages, true,
                                       &run->from_previous, err));
        DECANT_TRY(decant_channel_open(job->ranks, stage - 1, TAG_BACKWARD, bytes, messages, false,
                                       &run->to_previous, err));
    }
    if (stage < job->stages - 1) {
        DECANT_TRY(decant_channel_open(job->ranks, stage + 1, TAG_FORWARD, bytes, messages, false,
                                       &run->to_next, err));
        DECANT_TRY(decant_channel_open(job->ranks, stage + 1, TAG_BACKWARD, bytes, messages, true,
                                       &run->from_next, err));
    }
done:
    return status;
}

static decant_status prepare(stage_run *run, decant_fisher_sums *fisher, decant_error *err)
{
    decant_job *job = run->job;
    decant_layer_range layers = decant_job_layers(job);
    decant_weight_source source = decant_source_of_model(job->model);
    bool retain = false;
    decant_status status;
    DECANT_TRY(decant_fisher_sums_create(job->backend, &job->config, job->family, job->options->fisher,
                                         layers.first, layers.count, fisher, err));
    DECANT_TRY(decant_memory_allocate((size_t)run->tokens->sequences * sizeof *run->losses, "losses",
                                      (void **)&run->losses, err));
    if (layers.count == 0)
        goto done;
    DECANT_TRY(decant_model_part_load(job->backend, &job->config, &source, layers.first, layers.count,
                                      run->tokens->length, run->micro_batch, &run->part, err));
    run->slots = decant_schedule_in_flight(job->stages, job->ranks->rank, run->batches);
    DECANT_TRY(choose_retention(run, &retain, err));
    DECANT_TRY(decant_calibration_create(&run->part, fisher, run->slots, retain, &run->calibration, err));
    decant_log_event(job->log, "plan",
                     "\"stage\":\"calibrate\",\"micro_batch\":%lld,\"slots\":%lld,\"retain\":%s",
                     (long long)run->micro_batch, (long long)run->slots, retain ? "true" : "false");
done:
    return status;
}

static decant_micro_batch batch_at(const stage_run *run, int64_t index)
{
    return decant_schedule_micro_batch(run->tokens->sequences, run->micro_batch, index);
}

static void step_forward(stage_run *run, int64_t index)
{
    decant_backend *backend = run->job->backend;
    decant_micro_batch batch = batch_at(run, index);
    int64_t slot = index % run->slots;
    decant_matrix output = {0};
    decant_error error;
    if (run->from_previous) {
        decant_matrix input = decant_calibration_input(run->calibration, slot, batch.count);
        decant_standing_note(
            &run->standing,
            decant_channel_receive(run->from_previous, backend, &input, 1, &run->standing.withdrawn, &error),
            &error);
    }
    if (decant_standing_computes(&run->standing))
        decant_standing_note(&run->standing,
                             decant_calibration_forward(
                                 run->calibration, slot, decant_token_array_sequence(run->tokens, batch.first),
                                 batch.count, &output, run->losses + batch.first, &error),
                             &error);
    if (run->to_next)
        decant_standing_note(&run->standing,
                             decant_channel_send(run->to_next, backend, &output, 1,
                                                 !decant_standing_computes(&run->standing), &error),
                             &error);
}

static void step_backward(stage_run *run, int64_t index)
{
    decant_backend *backend = run->job->backend;
    decant_micro_batch batch = batch_at(run, index);
    decant_matrix gradient = decant_calibration_gradient(run->calibration, batch.count);
    decant_error error;
    if (run->from_next)
        decant_standing_note(
            &run->standing,
            decant_channel_receive(run->from_next, backend, &gradient, 1, &run->standing.withdrawn, &error),
            &error);
    if (decant_standing_computes(&run->standing))
        decant_standing_note(
            &run->standing,
            decant_calibration_backward(run->calibration, index % run->slots, batch.count, &error), &error);
    if (run->to_previous)
        decant_standing_note(&run->standing,
                             decant_channel_send(run->to_previous, backend, &gradient, 1,
                                                 !decant_standing_computes(&run->standing), &error),
                             &error);
}

/* All micro-batches through this stage, in the schedule's order. */
static void stream_batches(stage_run *run)
{
    decant_job *job = run->job;
    for (int64_t i = 0; i < 2 * run->batches; i++) {
        decant_step step = decant_schedule_step(job->stages, job->ranks->rank, run->batches, i);
        if (step.direction == DECANT_FORWARD) {
            step_forward(run, step.batch);
        } else {
            step_backward(run, step.batch);
            decant_micro_batch batch = batch_at(run, step.batch);
            decant_log_progress(job->log, batch.first + batch.count, run->tokens->sequences, "sequences");
        }
    }
    decant_error error;
    if (decant_standing_computes(&run->standing))
        decant_standing_note(&run->standing, job->backend->memory->synchronize(job->backend, &error), &error);
}

/* The mean of all sequences' losses, added in order; each was computed on one rank and is zero on the others.
 */
static decant_status mean_loss(stage_run *run, double *loss, decant_error *err)
{
    int64_t sequences = run->tokens->sequences;
    decant_status status = decant_ranks_sum(run->job->ranks, run->losses, (int)sequences, err);
    *loss = 0;
    for (int64_t i = 0; i < sequences && status == DECANT_OK; i++)
        *loss += run->losses[i] / (double)sequences;
    return status;
}

static void dismantle(stage_run *run)
{
    decant_channel_close(&run->from_previous);
    decant_channel_close(&run->to_next);
    decant_channel_close(&run->from_next);
    decant_channel_close(&run->to_previous);
    decant_calibration_destroy(&run->calibration);
    decant_memory_free(run->losses);
    decant_model_part_unload(&run->part);
}

decant_status decant_job_calibrate(decant_job *job, const decant_token_array *tokens,
                                   decant_fisher_sums *fisher, decant_statistics_origin *origin,
                                   decant_error *err)
{
    stage_run run = {.job = job, .tokens = tokens};
    bool is_active = job->ranks->rank < job->stages;
    decant_status status;
    *fisher = (decant_fisher_sums){0};
    decant_log_stage(job->log, "calibrate");
    run.micro_batch = job->options->micro_batch;
    if (run.micro_batch == 0)
        run.micro_batch = decant_schedule_micro_batch_size(tokens->length);
    if (run.micro_batch > tokens->sequences)
        run.micro_batch = tokens->sequences;
    run.batches = decant_schedule_micro_batches(tokens->sequences, run.micro_batch);
    DECANT_TRY(decant_ranks_agree(job->ranks, prepare(&run, fisher, err), err));
    DECANT_TRY(decant_ranks_agree(job->ranks, is_active ? open_channels(&run, err) : DECANT_OK, err));
    if (is_active)
        stream_batches(&run);
    *err = run.standing.error;
    DECANT_TRY(decant_ranks_agree(job->ranks, run.standing.failed, err));
    *origin = (decant_statistics_origin){
        .form = job->options->fisher,
        .sequences = tokens->sequences,
        .length = tokens->length,
        .micro_batch = run.micro_batch,
        .calibration_checksum = tokens->checksum,
    };
    DECANT_TRY(mean_loss(&run, &origin->loss, err));
done:
    dismantle(&run);
    if (status != DECANT_OK && fisher->sums)
        decant_fisher_sums_free(fisher);
    return status;
}
