/* The quantization stage: one matrix after the other is brought to where the backend computes, gets its sparse
 * pattern and levels, and has every candidate measured. While the backend works on a matrix, the next one is on
 * its way there, and a thread takes its checksum. What is computed for a matrix is stages/quantize.c. */
#include "pipeline/quantization.h"

#include "base/memory.h"
#include "base/worker.h"
#include "io/checksum.h"
#include "pipeline/report.h"

#include <stdio.h>
#include <string.h>

decant_recipe decant_job_recipe(const decant_job *job, const decant_statistics_origin *origin)
{
    const decant_options *options = job->options;
    decant_recipe recipe = {
        .widths = options->bit_widths.count,
        .sensitive = options->sensitive,
        .outliers = options->outliers,
        .search = options->levels,
        .seed = options->seed,
        .curvature = (double)(origin->length - 1) / (double)origin->sequences,
    };
    memcpy(recipe.bits, options->bit_widths.bits, sizeof recipe.bits);
    return recipe;
}

/* ---- a list of matrices ---- */

/* A matrix between the file and the backend. Stays where it is in memory: a thread reads and writes it. */
typedef struct arriving_matrix {
    char tensor[DECANT_NAME_BYTES + 8];
    decant_matrix host, weight;
    uint32_t checksum;
    decant_task checksum_task;
} arriving_matrix;

static decant_status take_checksum(void *argument, decant_error *err)
{
    arriving_matrix *arriving = argument;
    (void)err;
    arriving->checksum = decant_checksum(0, arriving->host.data, decant_matrix_bytes(arriving->host));
    return DECANT_OK;
}

static decant_status begin_matrix(decant_job *job, decant_worker *worker, const decant_linear *linear,
                                  arriving_matrix *arriving, decant_error *err)
{
    decant_backend *backend = job->backend;
    decant_status status;
    *arriving = (arriving_matrix){0};
    snprintf(arriving->tensor, sizeof arriving->tensor, "%s.weight", linear->name);
    DECANT_TRY(decant_safetensors_matrix(job->model, arriving->tensor, linear->rows, linear->columns,
                                         &arriving->host, err));
    DECANT_TRY(backend->weights->begin_place(backend, arriving->host, DECANT_PLACE_EXACT, arriving->tensor,
                                             &arriving->weight, err));
    arriving->checksum_task = (decant_task){.run = take_checksum, .argument = arriving};
    decant_worker_submit(worker, &arriving->checksum_task);
done:
    return status;
}

/* Takes a matrix of all zeros too. */
static void end_matrix(decant_backend *backend, arriving_matrix *arriving)
{
    decant_error unread;
    decant_task_wait(&arriving->checksum_task, &unread);
    backend->weights->unplace(backend, &arriving->weight);
}

static decant_status quantize_matrix(decant_backend *backend, const decant_recipe *recipe,
                                     const decant_quantization_task *task, arriving_matrix *arriving,
                                     decant_error *err)
{
    decant_status status;
    DECANT_TRY(backend->weights->finish_place(backend, &arriving->weight, err));
    DECANT_TRY(decant_quantize_layer(backend, recipe, arriving->tensor, arriving->weight, *task->fisher,
                                     task->layer, err));
    DECANT_TRY(decant_task_wait(&arriving->checksum_task, err));
    *task->row = (decant_table_row){
        .source_checksum = arriving->checksum,
        .candidates = task->layer->candidates,
        .weights = task->linear.rows * task->linear.columns,
        .sparse_count = task->layer->sparse.count,
    };
    memcpy(task->row->candidate, task->layer->candidate, sizeof task->row->candidate);
    backend->memory->release(backend, (void **)task->fisher);
done:
    return status;
}

decant_status decant_job_quantize_matrices(decant_job *job, const decant_recipe *recipe,
                                           const decant_quantization_task *tasks, int64_t count,
                                           decant_error *err)
{
    arriving_matrix arriving[2] = {0};
    decant_worker *worker = NULL;
    decant_status status;
    DECANT_TRY(decant_worker_create(&worker, err));
    if (count > 0)
        DECANT_TRY(begin_matrix(job, worker, &tasks[0].linear, &arriving[0], err));
    for (int64_t i = 0; i < count; i++) {
        if (i + 1 < count)
            DECANT_TRY(begin_matrix(job, worker, &tasks[i + 1].linear, &arriving[(i + 1) % 2], err));
        DECANT_TRY(quantize_matrix(job->backend, recipe, &tasks[i], &arriving[i % 2], err));
        end_matrix(job->backend, &arriving[i % 2]);
        decant_log_progress(job->log, i + 1, count, "matrices");
    }
done:
    for (int i = 0; i < 2; i++)
        end_matrix(job->backend, &arriving[i]);
    decant_worker_destroy(&worker);
    return status;
}

/* ---- a rank's share ---- */

static decant_status create_share(decant_quantized_share *share, int64_t count, decant_error *err)
{
    decant_status status;
    *share = (decant_quantized_share){.count = count};
    DECANT_TRY(decant_memory_allocate((size_t)count * sizeof *share->layers, "quantized layers",
                                      (void **)&share->layers, err));
    DECANT_TRY(decant_memory_allocate((size_t)count * sizeof *share->matrices, "the list of matrices",
                                      (void **)&share->matrices, err));
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
    decant_memory_free(share->matrices);
    *share = (decant_quantized_share){0};
}

static int64_t count_owned(const decant_job *job)
{
    int64_t count = 0;
    for (int i = 0; i < decant_job_layers(job).count * job->family->linear_count; i++)
        count += job->owners[i] == job->replica;
    return count;
}

/* The matrices of this rank's layers that it owns, in model order. */
static void list_tasks(const decant_job *job, decant_fisher_sums *fisher, decant_quantized_share *share,
                       decant_quantization_task *tasks)
{
    int linears = job->family->linear_count;
    decant_layer_range layers = decant_job_layers(job);
    int64_t next = 0;
    for (int i = 0; i < layers.count * linears; i++) {
        if (job->owners[i] != job->replica)
            continue;
        share->matrices[next] = (int64_t)layers.first * linears + i;
        tasks[next] = (decant_quantization_task){
            .fisher = &fisher->sums[i], .layer = &share->layers[next], .row = &share->rows[next]};
        job->family->linear(&job->config, layers.first + i / linears, i % linears, &tasks[next].linear);
        next++;
    }
}

/* Local. */
static decant_status quantize_share(decant_job *job, decant_fisher_sums *fisher, const decant_recipe *recipe,
                                    decant_quantized_share *share, decant_error *err)
{
    decant_quantization_task *tasks = NULL;
    decant_status status;
    DECANT_TRY(create_share(share, count_owned(job), err));
    DECANT_TRY(decant_memory_allocate((size_t)share->count * sizeof *tasks, "the matrices to quantize",
                                      (void **)&tasks, err));
    list_tasks(job, fisher, share, tasks);
    DECANT_TRY(decant_job_quantize_matrices(job, recipe, tasks, share->count, err));
    for (int64_t i = 0; i < share->count; i++)
        share->rows[i].matrix = share->matrices[i];
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
