/* See model_checksum.h. */
#include "pipeline/model_checksum.h"

#include "base/memory.h"
#include "io/checksum.h"

#include <stdio.h>

/* Local. Checksums of this rank's matrices at their places in the model; the others stay 0. */
static decant_status checksum_own(decant_job *job, double *checksums, decant_error *err)
{
    decant_layer_range layers = decant_job_layers(job);
    int linears = job->family->linear_count;
    for (int i = 0; i < layers.count * linears; i++) {
        if (decant_job_owner(job, i / linears, i % linears) != job->replica)
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

decant_status decant_job_model_checksum(decant_job *job, uint32_t *checksum, decant_error *err)
{
    int count = job->config.layers * job->family->linear_count;
    double *checksums = NULL; /* 32 bits are exact in them, and one rank alone brings each */
    decant_status status =
        decant_memory_allocate((size_t)count * sizeof *checksums, "checksums", (void **)&checksums, err);
    if (status == DECANT_OK)
        status = checksum_own(job, checksums, err);
    DECANT_TRY(decant_ranks_agree(job->ranks, status, err));
    DECANT_TRY(decant_ranks_sum(job->ranks, checksums, count, err));
    *checksum = 0;
    for (int i = 0; i < count; i++) {
        uint32_t one = (uint32_t)checksums[i];
        *checksum = decant_checksum(*checksum, &one, sizeof one);
    }
done:
    decant_memory_free(checksums);
    return status;
}
