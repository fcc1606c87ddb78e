/* See calibration_run.h. */
#include "pipeline/calibration_run.h"

#include "base/memory.h"

enum { TAG_FORWARD = 1, TAG_BACKWARD = 2 };

int64_t decant_calibration_micro_batch(const decant_options *options, const decant_token_array *tokens)
{
    int64_t size =
        options->micro_batch > 0 ? options->micro_batch : decant_schedule_micro_batch_size(tokens->length);
    return size < tokens->sequences ? size : tokens->sequences;
}

decant_status decant_calibration_run_create(decant_job *job, const decant_token_array *tokens,
                                            decant_fisher_sums *fisher, decant_calibration_run *run,
                                            decant_error *err)
{
    *run = (decant_calibration_run){
        .job = job,
        .tokens = tokens,
        .fisher = fisher,
        .channels = {.ranks = job->ranks, .backend = job->backend},
    };
    run->micro_batch = decant_calibration_micro_batch(job->options, tokens);
    decant_schedule_share(decant_schedule_micro_batches(tokens->sequences, run->micro_batch),
                          job->grid.replicas, job->replica, &run->first_batch, &run->batches);
    return decant_memory_allocate((size_t)tokens->sequences * sizeof *run->losses, "losses",
                                  (void **)&run->losses, err);
}

static decant_status open_channel(decant_calibration_run *run, int stage, int tag, bool receives,
                                  decant_channel **channel, decant_error *err)
{
    decant_job *job = run->job;
    size_t bytes = decant_element_bytes(job->backend->activation) *
                   (size_t)(run->micro_batch * run->tokens->length) * (size_t)job->config.hidden_size;
    return decant_channel_open(&run->channels, decant_job_rank(job, stage, job->replica), tag, bytes,
                               run->batches, receives, channel, err);
}

decant_status decant_calibration_run_connect(decant_calibration_run *run, decant_error *err)
{
    const int stage = run->job->stage;
    decant_status status = DECANT_OK;
    if (stage > 0 && stage < run->job->stages) {
        DECANT_TRY(open_channel(run, stage - 1, TAG_FORWARD, true, &run->from_previous, err));
        DECANT_TRY(open_channel(run, stage - 1, TAG_BACKWARD, false, &run->to_previous, err));
    }
    if (stage < run->job->stages - 1) {
        DECANT_TRY(open_channel(run, stage + 1, TAG_FORWARD, false, &run->to_next, err));
        DECANT_TRY(open_channel(run, stage + 1, TAG_BACKWARD, true, &run->from_next, err));
    }
done:
    return status;
}

void decant_calibration_run_free(decant_calibration_run *run)
{
    decant_channels_close(&run->channels);
    decant_memory_free(run->losses);
    *run = (decant_calibration_run){0};
}

decant_micro_batch decant_calibration_run_batch(const decant_calibration_run *run, int64_t index)
{
    return decant_schedule_micro_batch(run->tokens->sequences, run->micro_batch, run->first_batch + index);
}

void decant_calibration_run_receive(decant_calibration_run *run, decant_channel *channel, decant_matrix matrix)
{
    decant_error error;
    if (channel)
        decant_standing_note(&run->standing,
                             decant_channel_receive(channel, &matrix, 1, &run->standing.withdrawn, &error),
                             &error);
}

void decant_calibration_run_send(decant_calibration_run *run, decant_channel *channel, decant_matrix matrix)
{
    decant_error error;
    /* On the way too: sums of weights that cannot be read must get into no checkpoint. */
    decant_standing_note(&run->standing, decant_safetensors_check(run->job->model, &error), &error);
    if (channel)
        decant_standing_note(
            &run->standing,
            decant_channel_send(channel, &matrix, 1, !decant_standing_computes(&run->standing), &error),
            &error);
}

void decant_calibration_run_advance(void *run)
{
    decant_channels_advance(&((decant_calibration_run *)run)->channels);
}
