/* See calibration_checkpoint.h. */
#include "pipeline/calibration_checkpoint.h"

#include "base/memory.h"
#include "stages/fisher_file.h"

#include <stdio.h>
#include <string.h>

static const char *const KIND = "checkpoint";

static void name_group(int replica, char group[32])
{
    snprintf(group, 32, "/replica%d", replica);
}

/* ---- writing ---- */

static size_t count_datasets(const decant_job *job)
{
    return (size_t)job->config.layers * (size_t)job->family->linear_count * DECANT_FISHER_DATASETS;
}

/* Collective. The datasets of all replicas; own_ids [count_datasets] are those of this rank's replica. */
static decant_status define_sums(decant_container_writer *writer, const decant_job *job, int *other_ids,
                                 int *own_ids, decant_error *err)
{
    decant_status status = DECANT_OK;
    for (int replica = 0; replica < job->grid.replicas && status == DECANT_OK; replica++) {
        char group[32];
        name_group(replica, group);
        status = decant_fisher_file_define(writer, &job->config, job->family,
                                           decant_options_hessian_groups(job->options), group,
                                           replica == job->replica ? own_ids : other_ids, err);
    }
    return status;
}

/* Collective. The losses of all ranks, on every rank: each is on one of them, and 0 on the others. */
static decant_status collect_losses(decant_calibration_run *run, double *losses, decant_error *err)
{
    memcpy(losses, run->losses, (size_t)run->tokens->sequences * sizeof *losses);
    return decant_ranks_sum(run->job->ranks, losses, (int)run->tokens->sequences, err);
}

/* Local: what this rank brings. */
static decant_status write_share(decant_container_writer *writer, const decant_calibration_run *run,
                                 const int *ids, int losses_id, const double *losses, decant_error *err)
{
    decant_status status = decant_fisher_file_write(writer, run->fisher, ids, err);
    if (status == DECANT_OK && run->job->ranks->rank == 0)
        status = decant_container_write(writer, losses_id, 0, run->tokens->sequences, losses, err);
    return status;
}

/* Collective.
 *   ids      [2, count_datasets], losses [sequences]: room */
static decant_status write_file(decant_calibration_run *run, int64_t micro_batches, int *ids, double *losses,
                                decant_error *err)
{
    decant_job *job = run->job;
    decant_container_writer *writer = NULL;
    int *other_ids = ids + count_datasets(job), losses_id;
    decant_shape sequences = {1, {run->tokens->sequences}};
    decant_status status;
    DECANT_TRY(collect_losses(run, losses, err));
    DECANT_TRY(decant_container_create(job->ranks, job->work.calibration, true, &writer, err));
    DECANT_TRY(define_sums(writer, job, other_ids, ids, err));
    DECANT_TRY(decant_container_define(writer, "/losses", DECANT_STORED_F64, &sequences, &losses_id, err));
    DECANT_TRY(decant_container_set_text(writer, "/", "kind", KIND, err));
    DECANT_TRY(decant_container_set_text(writer, "/", "program_version", DECANT_VERSION, err));
    DECANT_TRY(decant_container_set_integer(writer, "/", "micro_batches", micro_batches, err));
    DECANT_TRY(decant_container_begin(writer, err));
    status = write_share(writer, run, ids, losses_id, losses, err);
    DECANT_TRY(decant_ranks_agree(job->ranks, status, err));
    DECANT_TRY(decant_container_finish(&writer, err));
done:
    decant_container_discard(&writer);
    return status;
}

decant_status decant_calibration_checkpoint_write(decant_calibration_run *run, int64_t micro_batches,
                                                  decant_error *err)
{
    decant_job *job = run->job;
    int *ids = NULL;
    double *losses = NULL;
    decant_status status;
    status =
        decant_memory_allocate(2 * count_datasets(job) * sizeof *ids, "dataset numbers", (void **)&ids, err);
    if (status == DECANT_OK)
        status = decant_memory_allocate((size_t)run->tokens->sequences * sizeof *losses, "losses",
                                        (void **)&losses, err);
    status = decant_ranks_agree(job->ranks, status, err);
    if (status == DECANT_OK)
        status = write_file(run, micro_batches, ids, losses, err);
    decant_memory_free(ids);
    decant_memory_free(losses);
    return status;
}

/* ---- reading ---- */

static decant_status name_remedy(decant_status status, decant_error *err)
{
    return decant_error_name(status, "what was saved cannot be used (--overwrite-work begins anew)", err);
}

decant_status decant_calibration_checkpoint_open(decant_calibration_run *run, decant_container **file,
                                                 decant_error *err)
{
    const char *path = run->job->work.calibration;
    char kind[32];
    int64_t finished = 0, first, largest;
    decant_status status = DECANT_OK;
    if (!run->job->work.has_calibration)
        return DECANT_OK;
    DECANT_TRY(decant_container_open(path, file, err));
    DECANT_TRY(decant_container_get_text(*file, "/", "kind", kind, sizeof kind, err));
    DECANT_TRY(decant_container_get_integer(*file, "/", "micro_batches", &finished, err));
    if (strcmp(kind, KIND) != 0 || finished < 0)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s is no checkpoint of calibration", path);
    decant_schedule_share(decant_schedule_micro_batches(run->tokens->sequences, run->micro_batch),
                          run->job->grid.replicas, 0, &first, &largest);
    run->finished_at_most = finished < largest ? finished : largest;
    run->finished = finished < run->batches ? finished : run->batches;
    run->first_batch += run->finished;
    run->batches -= run->finished;
done:
    return name_remedy(status, err);
}

decant_status decant_calibration_checkpoint_restore(decant_calibration_run *run, const decant_container *file,
                                                    decant_error *err)
{
    char group[32];
    decant_status status = DECANT_OK;
    if (!file)
        return DECANT_OK;
    name_group(run->job->replica, group);
    DECANT_TRY(decant_fisher_file_read(file, group, run->fisher, err));
    if (run->job->ranks->rank == 0)
        DECANT_TRY(decant_container_read(file, "/losses", DECANT_STORED_F64,
                                         &(decant_shape){1, {run->tokens->sequences}}, run->losses, err));
done:
    return name_remedy(status, err);
}
