/* See model_fingerprint.h. */
#include "pipeline/model_fingerprint.h"

#include "base/memory.h"
#include "io/checksum.h"
#include "stages/linear_weight.h"

#include <string.h>

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

/* Local. Marks the tensors that are the weights of linear layers. */
static void mark_linears(const decant_job *job, bool *is_linear)
{
    int linears = job->family->linear_count;
    for (int i = 0; i < job->config.layers * linears; i++) {
        decant_linear linear;
        char name[DECANT_WEIGHT_NAME_BYTES];
        job->family->linear(&job->config, i / linears, i % linears, &linear);
        decant_linear_weight_name(&linear, name);
        int64_t index = decant_safetensors_index(job->model, name);
        if (index >= 0)
            is_linear[index] = true;
    }
}

/* Local. The checksums of this rank's share of the tensors that are not marked; of the others zeros. Their
 * pages go again: what follows is planned without them. */
static void sum_own_others(const decant_job *job, const bool *is_linear, double *checksums)
{
    for (int64_t i = job->ranks->rank; i < decant_safetensors_count(job->model); i += job->ranks->size) {
        const decant_tensor *tensor = decant_safetensors_at(job->model, i);
        if (is_linear[i])
            continue;
        int64_t count = (int64_t)(tensor->size_bytes / decant_element_bytes(tensor->element));
        checksums[i] = decant_checksum(0, tensor->data, tensor->size_bytes);
        decant_safetensors_dismiss(job->model,
                                   (decant_matrix){(void *)(uintptr_t)tensor->data, tensor->element, 1, count});
    }
}

decant_status decant_job_fingerprint_others(decant_job *job, decant_error *err)
{
    static const char what[] = "checksums of the model";
    int count = (int)decant_safetensors_count(job->model);
    double *checksums = NULL;
    bool *is_linear = NULL;
    decant_status status;
    if (job->knows_others)
        return DECANT_OK;
    status = decant_memory_allocate((size_t)count * sizeof *checksums, what, (void **)&checksums, err);
    if (status == DECANT_OK)
        status = decant_memory_allocate((size_t)count * sizeof *is_linear, what, (void **)&is_linear, err);
    if (status == DECANT_OK) {
        mark_linears(job, is_linear);
        sum_own_others(job, is_linear, checksums);
        status = decant_safetensors_check(job->model, err);
    }
    DECANT_TRY(decant_ranks_agree(job->ranks, status, err));
    DECANT_TRY(decant_ranks_sum(job->ranks, checksums, count, err));
    for (int i = 0; i < count; i++) {
        const char *name = decant_safetensors_at(job->model, i)->name;
        uint32_t checksum = (uint32_t)checksums[i];
        if (is_linear[i])
            continue;
        job->others_checksum = decant_checksum(job->others_checksum, name, strlen(name) + 1);
        job->others_checksum = decant_model_checksum_extend(job->others_checksum, checksum);
    }
    job->knows_others = true;
done:
    decant_memory_free(checksums);
    decant_memory_free(is_linear);
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
