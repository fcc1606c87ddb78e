/* See checkpoint_rounds.h. */
#include "pipeline/checkpoint_rounds.h"

#include "base/memory.h"
#include "pipeline/calibration_checkpoint.h"
#include "pipeline/interruption.h"

enum { WISH_NOTHING, WISH_TO_SAVE, WISH_TO_LEAVE };

decant_status decant_checkpoint_rounds_open(decant_calibration_run *run, decant_checkpoint_rounds *rounds,
                                            decant_error *err)
{
    decant_job *job = run->job;
    int64_t first;
    decant_status status;
    *rounds = (decant_checkpoint_rounds){.run = run, .lag = job->stages - 1 + job->plan.slack, .last = -1};
    decant_schedule_share(decant_schedule_micro_batches(run->tokens->sequences, run->micro_batch),
                          job->grid.replicas, 0, &first, &rounds->largest);
    rounds->rounds = rounds->largest - run->finished_at_most - 1;
    DECANT_TRY(decant_memory_allocate((size_t)(rounds->lag + 1) * sizeof *rounds->wishes, "checkpoint rounds",
                                      (void **)&rounds->wishes, err));
    DECANT_TRY(decant_memory_allocate((size_t)(rounds->lag + 1) * sizeof *rounds->messages, "checkpoint rounds",
                                      (void **)&rounds->messages, err));
    decant_interruption_defer();
done:
    return status;
}

/* One clock decides, the first rank's; any rank may have been sent a signal. */
static int64_t own_wish(const decant_job *job)
{
    if (decant_interruption_came())
        return WISH_TO_LEAVE;
    bool is_time = decant_clock_s() - job->work.saved_s >= job->options->checkpoint_every;
    return job->ranks->rank == 0 && is_time ? WISH_TO_SAVE : WISH_NOTHING;
}

/* What broke MPI here breaks it for all. */
static void note_failure(decant_checkpoint_rounds *rounds, decant_status status, const decant_error *error)
{
    decant_standing_note(&rounds->run->standing, status, error);
    if (status != DECANT_OK)
        rounds->closed = true;
}

static void begin_round(decant_checkpoint_rounds *rounds, int64_t batch)
{
    int64_t place = batch % (rounds->lag + 1);
    decant_error error;
    rounds->wishes[place] = own_wish(rounds->run->job);
    decant_status status = decant_ranks_begin_maximum(rounds->run->job->ranks, &rounds->wishes[place],
                                                      &rounds->messages[place], &error);
    note_failure(rounds, status, &error);
}

static int64_t finish_round(decant_checkpoint_rounds *rounds, int64_t batch)
{
    int64_t place = batch % (rounds->lag + 1);
    decant_error error;
    while (decant_message_advance(&rounds->messages[place])) /* others may wait for this rank's activations */
        decant_channels_advance(&rounds->run->channels);
    note_failure(rounds, decant_message_complete(&rounds->messages[place], &error), &error);
    return rounds->closed ? WISH_NOTHING : rounds->wishes[place];
}

/* All ranks are here, after the same micro-batch. */
static void save(decant_checkpoint_rounds *rounds, int64_t batch, bool leaves)
{
    decant_calibration_run *run = rounds->run;
    decant_job *job = run->job;
    int64_t finished = run->finished_at_most + batch + 1;
    double start_s = decant_clock_s();
    decant_error error = run->standing.error;
    decant_channels_flush(&run->channels);
    decant_status status = decant_ranks_agree(job->ranks, run->standing.failed, &error);
    if (status != DECANT_OK) { /* all meet again when the messages have passed */
        rounds->closed = true;
        return;
    }
    status = decant_calibration_checkpoint_write(run, finished, &error);
    job->work.saved_s = decant_clock_s();
    rounds->last = batch;
    run->times.checkpoint_s += job->work.saved_s - start_s;
    if (status == DECANT_OK)
        decant_log_event(job->log, "checkpoint", "\"micro_batches\":%lld,\"of\":%lld,\"seconds\":%.3f",
                         (long long)finished, (long long)rounds->largest, job->work.saved_s - start_s);
    else
        decant_log_say(job->log, "no checkpoint after %lld micro-batches: %s", (long long)finished,
                       error.message);
    if (!leaves)
        return;
    rounds->closed = true;
    if (status == DECANT_OK)
        status = DECANT_ERROR(&error, DECANT_INTERRUPTED,
                              "%lld of %lld micro-batches are in %s; the same command goes on from there",
                              (long long)finished, (long long)rounds->largest, job->work.path);
    decant_standing_note(&run->standing, status, &error);
}

void decant_checkpoint_rounds_pass(decant_checkpoint_rounds *rounds, int64_t batch)
{
    if (rounds->closed || batch >= rounds->rounds)
        return;
    if (batch + rounds->lag < rounds->rounds)
        begin_round(rounds, batch);
    if (rounds->closed || batch < rounds->lag)
        return;
    int64_t wish = finish_round(rounds, batch - rounds->lag);
    /* One that was wished for before the last checkpoint was fulfilled by it. */
    if (wish == WISH_TO_LEAVE || (wish == WISH_TO_SAVE && batch - rounds->lag > rounds->last))
        save(rounds, batch, wish == WISH_TO_LEAVE);
}

void decant_checkpoint_rounds_attend(decant_checkpoint_rounds *rounds, int64_t first_batch)
{
    for (int64_t batch = first_batch; batch < rounds->rounds && !rounds->closed; batch++)
        decant_checkpoint_rounds_pass(rounds, batch);
}

void decant_checkpoint_rounds_close(decant_checkpoint_rounds *rounds)
{
    decant_error unused;
    for (int64_t i = 0; rounds->messages && i <= rounds->lag; i++)
        decant_message_complete(&rounds->messages[i], &unused);
    decant_memory_free(rounds->messages);
    decant_memory_free(rounds->wishes);
    *rounds = (decant_checkpoint_rounds){0};
}
