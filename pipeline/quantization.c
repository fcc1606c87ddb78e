/* The quantization stage: one matrix after the other is brought to where the backend computes, gets its sparse
 * pattern and levels, and has every candidate measured. What is computed for a matrix is stages/quantize.c. */
#include "pipeline/quantization.h"

#include "base/memory.h"
#include "io/checksum.h"
#include "pipeline/report.h"

#include <stdio.h>
#include <string.h>

decant_recipe decant_job_recipe(const decant_job *job, const decant_statistics_origin *origin)
{
    decant_recipe recipe = decant_options_recipe(job->options);
    if (origin->sequences > 0)
        recipe.curvature = (double)(origin->length - 1) / (double)origin->sequences;
    return recipe;
}

/* ---- a list of matrices ---- */

static decant_status quantize_matrix(decant_job *job, const decant_recipe *recipe,
                                     const decant_quantization_task *task, decant_error *err)
{
    decant_backend *backend = job->backend;
    const decant_linear *linear = &task->linear;
    char tensor[DECANT_NAME_BYTES + 8];
    decant_matrix host, weight = {0};
    decant_status status;
    snprintf(tensor, sizeof tensor, "%s.weight", linear->name);
    DECANT_TRY(decant_safetensors_matrix(job->model, tensor, linear->rows, linear->columns, &host, err));
    DECANT_TRY(backend->weights->place(backend, host, DECANT_PLACE_EXACT, tensor, &weight, err));
    DECANT_TRY(decant_quantize_layer(backend, recipe, tensor, weight, task->fisher ? *task->fisher : NULL,
                                     task->layer, err));
    *task->row = (decant_table_row){
        .source_checksum = decant_checksum(0, host.data, decant_matrix_bytes(host)),
        .candidates = task->layer->candidates,
        .weights = linear->rows * linear->columns,
        .sparse_count = task->layer->sparse.count,
    };
    memcpy(task->row->candidate, task->layer->candidate, sizeof task->row->candidate);
done:
    backend->weights->unplace(backend, &weight);
    return status;
}

decant_status decant_job_quantize_matrices(decant_job *job, const decant_recipe *recipe,
                                           const decant_quantization_task *tasks, int64_t count,
                                           decant_error *err)
{
    for (int64_t i = 0; i < count; i++) {
        decant_status status = quantize_matrix(job, recipe, &tasks[i], err);
        if (status != DECANT_OK)
            return status;
        if (tasks[i].fisher)
            job->backend->memory->release(job->backend, (void **)tasks[i].fisher);
        decant_log_progress(job->log, i + 1, count, "matrices");
    }
    return DECANT_OK;
}

/* ---- a rank's share ---- */

static decant_status create_share(decant_quantized_share *share, int64_t count, decant_error *err)
{
    decant_status status;
    *share = (decant_quantized_share){.count = count};
    DECANT_TRY(decant_memory_allocate((size_t)count * sizeof *share->layers, "quantized layers",
                                      (void **)&share->layers, err));
    DECANT_TRY(decant_memory_allocate((size_t)count * sizeof *share->rows, "the error table",
                                      (void **)&share->rows, err));
done:
    return status;
}

void decant_quantized_share_free(decant_backend *backend, decant_quantized_share *share)
{
    for (int64_t i = 0; share->layers && i < share->count; i++)
        decant_quantized_layer_free(backend, &share->layers[i]);
    decant_memory_free(share->layers);
    decant_memory_free(share->rows);
    *share = (decant_quantized_share){0};
}

static void list_tasks(const decant_job *job, decant_fisher_sums *fisher, decant_quantized_share *share,
                       decant_quantization_task *tasks)
{
    int linears = job->family->linear_count, first_layer = decant_job_layers(job).first;
    for (int64_t i = 0; i < share->count; i++) {
        tasks[i] = (decant_quantization_task){
            .fisher = fisher->sums ? &fisher->sums[i] : NULL, .layer = &share->layers[i], .row = &share->rows[i]};
        job->family->linear(&job->config, first_layer + (int)(i / linears), (int)(i % linears),
                            &tasks[i].linear);
    }
}

/* Local. */
static decant_status quantize_share(decant_job *job, decant_fisher_sums *fisher, const decant_recipe *recipe,
                                    decant_quantized_share *share, decant_error *err)
{
    decant_quantization_task *tasks = NULL;
    decant_status status;
    DECANT_TRY(create_share(share, (int64_t)decant_job_layers(job).count * job->family->linear_count, err));
    DECANT_TRY(decant_memory_allocate((size_t)share->count * sizeof *tasks, "the matrices to quantize",
                                      (void **)&tasks, err));
    list_tasks(job, fisher, share, tasks);
    DECANT_TRY(decant_job_quantize_matrices(job, recipe, tasks, share->count, err));
done:
    decant_memory_free(tasks);
    return status;
}

decant_status decant_job_quantize(decant_job *job, decant_fisher_sums *fisher,
                                  const decant_statistics_origin *origin, decant_quantized_share *share,
                                  decant_error_table *table, decant_error *err)
{
    decant_recipe recipe = decant_job_recipe(job, origin);
    double start_s = decant_clock_s();
    decant_log_stage(job->log, "quantize");
    decant_status status = quantize_share(job, fisher, &recipe, share, err);
    status = decant_ranks_agree(job->ranks, status, err);
    if (status == DECANT_OK)
        status = decant_error_table_gather(job->ranks, share->rows, share->count, table, err);
    if (status == DECANT_OK)
        decant_report_quantization(job, table, decant_clock_s() - start_s);
    return status;
}
