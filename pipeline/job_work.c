/* See job_work.h. */
#include "pipeline/job_work.h"

#include "io/checksum.h"
#include "pipeline/calibration_run.h"
#include "pipeline/interruption.h"
#include "pipeline/model_fingerprint.h"

#include <stdio.h>
#include <string.h>

/* Which job this is, a line `name = value` each: all that decides the bits of the Fisher sums, and the options
 * that shape the output. */
static void describe_job(const decant_job *job, const decant_token_array *tokens,
                         char head[DECANT_WORK_HEAD_BYTES])
{
    const decant_options *options = job->options;
    char described[2048];
    decant_options_describe(options, described, sizeof described);
    int used =
        snprintf(head, DECANT_WORK_HEAD_BYTES,
                 "program_version = %s\ncommand = %s\nmodel_crc32 = %08x\nother_tensors_crc32 = %08x\n"
                 "config_crc32 = %08x\ncalibration_crc32 = %08x\n"
                 "sequences = %lld\nlength = %lld\nmicro_batch = %lld\nreplicas = %d\ndevice = %s %s\n",
                 DECANT_VERSION, options->command == DECANT_COMMAND_RUN ? "run" : "calibrate",
                 job->model_checksum, job->others_checksum,
                 decant_checksum(0, job->config.json, job->config.json_bytes), tokens ? tokens->checksum : 0,
                 tokens ? (long long)tokens->sequences : 0, tokens ? (long long)tokens->length : 0,
                 tokens ? (long long)decant_calibration_micro_batch(options, tokens) : 0, job->grid.replicas,
                 job->backend->name, decant_element_name(job->backend->activation));
    /* "name=value name=value" */
    for (char *pair = described; *pair && used < DECANT_WORK_HEAD_BYTES;) {
        size_t length = strcspn(pair, " "), name = strcspn(pair, "=");
        used += snprintf(head + used, (size_t)(DECANT_WORK_HEAD_BYTES - used), "%.*s = %.*s\n", (int)name, pair,
                         (int)(length - name - 1), pair + name + 1);
        pair += length + (pair[length] == ' ');
    }
}

decant_status decant_job_open_work(decant_job *job, const decant_token_array *tokens, decant_error *err)
{
    char head[DECANT_WORK_HEAD_BYTES];
    int found[4];
    decant_status status = DECANT_OK;
    decant_work_directory_name(job->options->output, &job->work);
    if (tokens)
        DECANT_TRY(decant_job_fingerprint_others(job, err));
    describe_job(job, tokens, head);
    if (job->ranks->rank == 0)
        status = decant_work_directory_open(&job->work, head, job->options->overwrite_work, err);
    DECANT_TRY(decant_ranks_agree(job->ranks, status, err));
    found[0] = job->work.has_calibration;
    found[1] = job->work.has_statistics;
    found[2] = job->work.boundaries;
    found[3] = job->work.left;
    DECANT_TRY(decant_ranks_broadcast(job->ranks, 0, found, sizeof found, err));
    job->work.has_calibration = found[0];
    job->work.has_statistics = found[1];
    job->work.boundaries = found[2];
    job->work.left = found[3];
    job->work.saved_s = decant_clock_s();
done:
    return status;
}

decant_status decant_job_ask(decant_job *job, bool *leaves, bool *saves, decant_error *err)
{
    bool is_time = decant_clock_s() - job->work.saved_s >= job->options->checkpoint_every;
    int64_t wishes[2] = {decant_interruption_came(), job->ranks->rank == 0 && is_time};
    decant_status status = decant_ranks_maximum(job->ranks, wishes, 2, err);
    *leaves = wishes[0];
    *saves = wishes[0] || wishes[1];
    return status;
}

static decant_status interrupted(const decant_job *job, decant_error *err)
{
    return DECANT_ERROR(err, DECANT_INTERRUPTED, "the same command goes on from what is in %s", job->work.path);
}

decant_status decant_job_keep_statistics(decant_job *job, const decant_fisher_sums *fisher,
                                         const decant_statistics_origin *origin, decant_error *err)
{
    bool leaves, saves;
    double start_s = decant_clock_s();
    decant_error failure;
    decant_status status = decant_job_ask(job, &leaves, &saves, err);
    if (status != DECANT_OK || !saves)
        return status;
    status = decant_statistics_write(job->ranks, job->work.statistics, true, &job->config, job->family,
                                     decant_options_hessian_groups(job->options), fisher, origin, &failure);
    if (status != DECANT_OK && leaves) {
        *err = failure;
        return status;
    }
    if (status != DECANT_OK) {
        decant_log_say(job->log, "the finished Fisher sums are not kept: %s", failure.message);
        return DECANT_OK;
    }
    if (job->ranks->rank == 0)
        decant_work_directory_drop_calibration(&job->work);
    decant_log_event(job->log, "checkpoint", "\"statistics\":true,\"seconds\":%.3f",
                     decant_clock_s() - start_s);
    return leaves ? interrupted(job, err) : DECANT_OK;
}

decant_status decant_job_heed_signals(decant_job *job, decant_error *err)
{
    bool leaves, saves;
    decant_status status = decant_job_ask(job, &leaves, &saves, err);
    if (status == DECANT_OK && leaves)
        return interrupted(job, err);
    decant_interruption_act();
    return status;
}

void decant_job_close_work(decant_job *job)
{
    if (job->ranks->rank == 0)
        decant_work_directory_close(&job->work);
}
