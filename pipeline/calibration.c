/* The calibration stage over all ranks: micro-batches pass through the layers of the stages, forward and
 * backward, every rank adds up the Fisher sums of its layers over its sequences, and the replicas of a stage
 * add up theirs. In which order a rank goes through layers and micro-batches is resident.h's or streamed.h's.
 */
#include "base/memory.h"
#include "pipeline/calibration_checkpoint.h"
#include "pipeline/not_finite.h"
#include "pipeline/replicas.h"
#include "pipeline/report.h"
#include "pipeline/resident.h"
#include "pipeline/streamed.h"

#include <math.h>

/* Local. Grids do not look at what flows backward from a loss that is no number. */
static decant_status check_losses(const decant_calibration_run *run, decant_error *err)
{
    for (int64_t i = 0; i < run->tokens->sequences; i++)
        if (!isfinite(run->losses[i])) {
            run->job->work.complete = true; /* a norm that was mended would be the same job, with these sums */
            return decant_job_tell_not_finite(run->job, DECANT_VALIDATION_ORIGINAL,
                                              "the loss of a calibration sequence", err);
        }
    return DECANT_OK;
}

/* The mean of all sequences' losses, added in order; each was computed on one rank and is zero on the others.
 */
static decant_status mean_loss(decant_calibration_run *run, double *loss, decant_error *err)
{
    int64_t sequences = run->tokens->sequences;
    decant_status status;
    DECANT_TRY(decant_ranks_sum(run->job->ranks, run->losses, (int)sequences, err));
    DECANT_TRY(decant_ranks_agree(run->job->ranks, check_losses(run, err), err));
    *loss = 0;
    for (int64_t i = 0; i < sequences; i++)
        *loss += run->losses[i] / (double)sequences;
done:
    return status;
}

/* This rank's layers and micro-batches, in one of the two orders. */
typedef struct calibration_order {
    decant_resident resident;
    decant_streamed streamed;
    decant_replica_exchange exchange;
    decant_checkpoint_rounds rounds; /* resident */
} calibration_order;

/* Local. */
static decant_status prepare(decant_calibration_run *run, const decant_block_sink *sink,
                             calibration_order *order, decant_error *err)
{
    decant_job *job = run->job;
    bool on_disk = job->plan.rank[job->ranks->rank].share.boundaries_on_disk;
    const char *scratch = on_disk ? job->options->scratch : NULL;
    decant_status status = DECANT_OK;
    if (job->plan.streamed)
        status = decant_streamed_create(run, scratch, sink, &order->streamed, err);
    else if (decant_job_layers(job).count > 0)
        status = decant_resident_create(run, job->plan.retain, &order->resident, err);
    if (status == DECANT_OK && !job->plan.streamed)
        status = decant_checkpoint_rounds_open(run, &order->rounds, err);
    if (status == DECANT_OK)
        status = decant_replica_exchange_open(job, &order->exchange, err);
    return status;
}

static void dismantle(calibration_order *order)
{
    decant_resident_free(&order->resident);
    decant_streamed_free(&order->streamed);
    decant_replica_exchange_close(&order->exchange);
    decant_checkpoint_rounds_close(&order->rounds);
}

/* What an earlier job has done, and what it has done in the other order, which is of no use in this one. */
static void tell_where(const decant_calibration_run *run, const calibration_order *order)
{
    const decant_job *job = run->job;
    const decant_work_directory *work = &job->work;
    const decant_streamed_state *state = &order->streamed.state;
    int layers = job->config.layers;
    if (job->plan.streamed ? work->has_calibration : work->boundaries > 0 || work->left >= 0)
        decant_log_say(job->log, "what a job with --memory %s has saved in %s is of no use with --memory %s",
                       job->plan.streamed ? "resident" : "streamed", work->path,
                       job->plan.streamed ? "streamed" : "resident");
    if (run->finished > 0)
        decant_log_say(job->log, "going on after %lld of %lld micro-batches", (long long)run->finished,
                       (long long)(run->finished + run->batches));
    if (job->plan.streamed && (state->boundaries > 0 || state->left < layers))
        decant_log_say(job->log,
                       "going on after %d layers that went backward, with what enters %d others, of %d layers",
                       layers - state->left, state->boundaries < layers ? state->boundaries : layers, layers);
}

static void run_resident(decant_calibration_run *run, calibration_order *order)
{
    double start_s = decant_clock_s();
    decant_resident_run(run, &order->resident, &order->rounds);
    run->times.elapsed_s = decant_clock_s() - start_s - run->times.checkpoint_s;
    decant_checkpoint_rounds_attend(&order->rounds, run->batches);
    decant_resident_free(&order->resident);
    for (int block = decant_job_layers(run->job).count - 1; block >= 0; block--)
        decant_replica_exchange_add(&order->exchange, run->fisher, block, &run->standing);
}

decant_status decant_job_calibrate(decant_job *job, const decant_token_array *tokens,
                                   const decant_block_sink *sink, decant_fisher_sums *fisher,
                                   decant_statistics_origin *origin, decant_error *err)
{
    decant_calibration_run run = {0};
    calibration_order order = {0};
    decant_container *checkpoint = NULL;
    decant_status status;
    *fisher = (decant_fisher_sums){0};
    decant_log_stage(job->log, "calibrate");
    status = decant_calibration_run_create(job, tokens, fisher, &run, err);
    if (status == DECANT_OK && !job->plan.streamed)
        status = decant_calibration_checkpoint_open(&run, &checkpoint, err);
    if (status == DECANT_OK)
        status = prepare(&run, sink, &order, err);
    if (status == DECANT_OK)
        status = decant_calibration_checkpoint_restore(&run, checkpoint, err);
    decant_container_close(&checkpoint);
    DECANT_TRY(decant_ranks_agree(job->ranks, status, err));
    tell_where(&run, &order);
    DECANT_TRY(decant_ranks_agree(job->ranks, decant_calibration_run_connect(&run, err), err));
    if (job->plan.streamed)
        decant_streamed_run(&run, &order.streamed, &order.exchange);
    else if (decant_job_layers(job).count > 0)
        run_resident(&run, &order);
    else
        decant_checkpoint_rounds_attend(&order.rounds, 0);
    decant_error unread;
    decant_standing_note(&run.standing, decant_safetensors_check(job->model, &unread), &unread);
    *err = run.standing.error;
    DECANT_TRY(decant_ranks_agree(job->ranks, run.standing.failed, err));
    *origin = (decant_statistics_origin){
        .form = job->options->fisher,
        .sequences = tokens->sequences,
        .length = tokens->length,
        .micro_batch = run.micro_batch,
        .replicas = job->grid.replicas,
        .calibration_checksum = tokens->checksum,
        .model_checksum = job->model_checksum,
    };
    DECANT_TRY(mean_loss(&run, &origin->loss, err));
    if (!job->plan.streamed)
        decant_report_idleness(&run);
done:
    dismantle(&order);
    decant_calibration_run_free(&run);
    if (status != DECANT_OK && fisher->sums)
        decant_fisher_sums_free(fisher);
    return status;
}
