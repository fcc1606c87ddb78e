/* The calibration stage over all ranks: micro-batches pass through the layers of the stages, forward and
 * backward, every rank adds up the Fisher sums of its layers over its sequences, and the replicas of a stage
 * add up theirs. In which order a rank goes through layers and micro-batches is resident.h's. */
#include "base/memory.h"
#include "pipeline/calibration_run.h"
#include "pipeline/replicas.h"
#include "pipeline/report.h"
#include "pipeline/resident.h"

/* The mean of all sequences' losses, added in order; each was computed on one rank and is zero on the others.
 */
static decant_status mean_loss(decant_calibration_run *run, double *loss, decant_error *err)
{
    int64_t sequences = run->tokens->sequences;
    decant_status status = decant_ranks_sum(run->job->ranks, run->losses, (int)sequences, err);
    *loss = 0;
    for (int64_t i = 0; i < sequences && status == DECANT_OK; i++)
        *loss += run->losses[i] / (double)sequences;
    return status;
}

static void add_replicas(decant_calibration_run *run, decant_replica_exchange *exchange)
{
    for (int block = decant_job_layers(run->job).count - 1; block >= 0; block--)
        decant_replica_exchange_add(exchange, run->fisher, block, &run->standing);
}

decant_status decant_job_calibrate(decant_job *job, const decant_token_array *tokens,
                                   decant_fisher_sums *fisher, decant_statistics_origin *origin,
                                   decant_error *err)
{
    decant_calibration_run run = {0};
    decant_resident resident = {0};
    decant_replica_exchange exchange = {0};
    bool is_active = decant_job_layers(job).count > 0;
    decant_status status;
    *fisher = (decant_fisher_sums){0};
    decant_log_stage(job->log, "calibrate");
    status = decant_calibration_run_create(job, tokens, fisher, &run, err);
    if (status == DECANT_OK && is_active)
        status = decant_resident_create(&run, &resident, err);
    if (status == DECANT_OK)
        status = decant_replica_exchange_open(job, &exchange, err);
    DECANT_TRY(decant_ranks_agree(job->ranks, status, err));
    DECANT_TRY(decant_ranks_agree(job->ranks, decant_calibration_run_connect(&run, err), err));
    double start_s = decant_clock_s();
    if (is_active)
        decant_resident_run(&run, &resident);
    run.times.elapsed_s = decant_clock_s() - start_s;
    decant_resident_free(&resident);
    add_replicas(&run, &exchange);
    *err = run.standing.error;
    DECANT_TRY(decant_ranks_agree(job->ranks, run.standing.failed, err));
    *origin = (decant_statistics_origin){
        .form = job->options->fisher,
        .sequences = tokens->sequences,
        .length = tokens->length,
        .micro_batch = run.micro_batch,
        .replicas = job->grid.replicas,
        .calibration_checksum = tokens->checksum,
    };
    DECANT_TRY(mean_loss(&run, &origin->loss, err));
    decant_report_idleness(&run);
done:
    decant_replica_exchange_close(&exchange);
    decant_resident_free(&resident);
    decant_calibration_run_free(&run);
    if (status != DECANT_OK && fisher->sums)
        decant_fisher_sums_free(fisher);
    return status;
}
