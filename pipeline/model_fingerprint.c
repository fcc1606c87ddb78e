/* See model_fingerprint.h. */
#include "pipeline/model_fingerprint.h"

#include "base/memory.h"
#include "io/checksum.h"

#include <stdio.h>

/* Local. The checksums of the matrices that this rank owns, at their places among all linear layers. A double
 * holds 32 bits exactly, and where this rank owns nothing there are zeros. */
static decant_status sum_own_matrices(const decant_job *job, double *checksums, decant_error *err)
{
    int linears = job->family->linear_count;
    decant_layer_range layers = decant_job_layers(job);
    for (int i = 0; i < layers.count * linears; i++) {
        if (job->owners[i] != job->replica)
            continue;
        char tensor[DECANT_NAME_BYTES + 8];
        decant_linear linear;
        decant_matrix host;
        job->family->linear(&job->config, layers.first + i / linears, i % linears, &linear);
        snprintf(tensor, sizeof tensor, "%s.weight", linear.name);
        decant_status status =
            decant_safetensors_matrix(job->model, tensor, linear.rows, linear.columns, &host, err);
        if (status != DECANT_OK)
            return status;
        checksums[layers.first * linears + i] = decant_checksum(0, host.data, decant_matrix_bytes(host));
    }
    return DECANT_OK;
}

decant_status decant_job_fingerprint_model(decant_job *job, decant_error *err)
{
    int count = job->config.layers * job->family->linear_count;
    double *checksums = NULL;
    decant_status status;
    status = decant_memory_allocate((size_t)count * sizeof *checksums, "checksums of the model",
                                    (void **)&checksums, err);
    if (status == DECANT_OK)
        status = sum_own_matrices(job, checksums, err);
    if (status == DECANT_OK)
        status = decant_safetensors_check(job->model, err);
    DECANT_TRY(decant_ranks_agree(job->ranks, status, err));
    DECANT_TRY(decant_ranks_sum(job->ranks, checksums, count, err));
    job->model_checksum = 0;
    for (int i = 0; i < count; i++) {
        uint32_t own = (uint32_t)checksums[i];
        job->model_checksum = decant_checksum(job->model_checksum, &own, sizeof own);
    }
done:
    decant_memory_free(checksums);
    return status;
}

decant_status decant_job_check_statistics(const decant_job *job, const char *path,
                                          const decant_statistics_origin *origin, decant_error *err)
{
    if (origin->model_checksum == job->model_checksum)
        return DECANT_OK;
    return DECANT_ERROR(
        err, DECANT_ERROR_INPUT,
        "%s was made from another model than %s: its model_crc32 is %08x, not %08x; make it again "
        "with `decant calibrate`",
        path, job->options->model, origin->model_checksum, job->model_checksum);
}
