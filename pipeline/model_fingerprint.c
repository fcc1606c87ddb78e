/* See model_fingerprint.h. */
#include "pipeline/model_fingerprint.h"

#include "base/memory.h"
#include "stages/linear_weight.h"

/* Local. The checksums of the matrices that this rank owns, at their places among all linear layers. A double
 * holds 32 bits exactly, and where this rank owns nothing there are zeros. */
static decant_status sum_own_matrices(const decant_job *job, double *checksums, decant_error *err)
{
    int linears = job->family->linear_count;
    decant_layer_range layers = decant_job_layers(job);
    for (int i = 0; i < layers.count * linears; i++) {
        if (job->owners[i] != job->replica)
            continue;
        decant_linear linear;
        decant_linear_weight weight;
        job->family->linear(&job->config, layers.first + i / linears, i % linears, &linear);
        decant_status status = decant_linear_weight_find(job->model, &linear, &weight, err);
        if (status != DECANT_OK)
            return status;
        checksums[layers.first * linears + i] = decant_linear_weight_checksum(&weight);
    }
    return DECANT_OK;
}

decant_status decant_job_fingerprint_model(decant_job *job, decant_error *err)
{
    int count = job->config.layers * job->family->linear_count;
    double *checksums = NULL, start_s = decant_clock_s();
    decant_status status;
    status = decant_memory_allocate((size_t)count * sizeof *checksums, "checksums of the model",
                                    (void **)&checksums, err);
    if (status == DECANT_OK)
        status = decant_memory_allocate((size_t)count * sizeof *job->weight_checksums, "checksums of the model",
                                        (void **)&job->weight_checksums, err);
    if (status == DECANT_OK)
        status = sum_own_matrices(job, checksums, err);
    if (status == DECANT_OK)
        status = decant_safetensors_check(job->model, err);
    DECANT_TRY(decant_ranks_agree(job->ranks, status, err));
    DECANT_TRY(decant_ranks_sum(job->ranks, checksums, count, err));
    job->model_checksum = 0;
    for (int i = 0; i < count; i++) {
        job->weight_checksums[i] = (uint32_t)checksums[i];
        job->model_checksum = decant_model_checksum_extend(job->model_checksum, job->weight_checksums[i]);
    }
    decant_log_event(job->log, "fingerprint", "\"seconds\":%.3f,\"matrices\":%d", decant_clock_s() - start_s,
                     count);
done:
    decant_memory_free(checksums);
    return status;
}

decant_status decant_job_check_statistics(const decant_job *job, const char *path,
                                          const decant_statistics_origin *origin, decant_error *err)
{
    if (origin->model_checksum == job->model_checksum || job->options->old_statistics)
        return DECANT_OK;
    return DECANT_ERROR(
        err, DECANT_ERROR_INPUT,
        "%s was made from another model than %s: its model_crc32 is %08x, not %08x; make it again "
        "with `decant calibrate`, or take it all the same with --old-statistics",
        path, job->options->model, origin->model_checksum, job->model_checksum);
}
