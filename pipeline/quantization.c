/* The quantization stage: one matrix after the other is brought to where the backend computes, gets its sparse
 * pattern and levels, and has every candidate measured. While the backend works on a matrix, the next one is on
 * its way there, and, where the model has no fingerprint, a thread takes its checksum. What is computed for a
 * matrix is stages/quantize.c. */
#include "pipeline/quantization.h"

#include "base/memory.h"
#include "base/worker.h"
#include "pipeline/interruption.h"
#include "pipeline/job_statistics.h"
#include "pipeline/report.h"
#include "pipeline/reuse.h"
#include "stages/linear_weight.h"

#include <string.h>

decant_recipe decant_job_recipe(const decant_job *job, const decant_statistics_origin *origin)
{
    decant_recipe recipe = decant_options_recipe(job->options);
    if (origin->sequences > 0)
        recipe.curvature = (double)(origin->length - 1) / (double)origin->sequences;
    return recipe;
}

/* ---- a list of matrices ---- */

/* One matrix to quantize. */
typedef struct quantization_task {
    decant_linear linear; /* its name and shape */
    int64_t matrix;       /* its place among the model's linear layers */
    float *
        *fisher; /* device F32 [rows, columns]; released, and set to NULL, once measured. NULL: no statistics */
    decant_quantized_layer *layer; /* filled; empty when it failed */
    decant_table_row *row;         /* filled */
    decant_matrix *weight; /* receives the weight, placed exact, for the caller to unplace; NULL: unplaced
                              once measured */
} quantization_task;

/* A matrix between the file and the backend. Stays where it is in memory: a thread reads and writes it. */
typedef struct arriving_matrix {
    decant_linear_weight source;
    decant_matrix weight;
    uint32_t checksum;
    decant_task checksum_task;
} arriving_matrix;

static decant_status take_checksum(void *argument, decant_error *err)
{
    arriving_matrix *arriving = argument;
    (void)err;
    arriving->checksum = decant_linear_weight_checksum(&arriving->source);
    return DECANT_OK;
}

/* The checksum is the fingerprint's, where the model has one; else `worker` takes it, or, where that is NULL,
 * this function. */
static decant_status begin_matrix(decant_job *job, decant_worker *worker, const quantization_task *task,
                                  arriving_matrix *arriving, decant_error *err)
{
    decant_backend *backend = job->backend;
    decant_status status;
    *arriving = (arriving_matrix){0};
    DECANT_TRY(decant_linear_weight_find(job->model, &task->linear, &arriving->source, err));
    DECANT_TRY(backend->weights->begin_place(backend, arriving->source.host, DECANT_PLACE_EXACT,
                                             arriving->source.tensor, &arriving->weight, err));
    arriving->checksum_task = (decant_task){.run = take_checksum, .argument = arriving};
    if (job->weight_checksums)
        arriving->checksum = job->weight_checksums[task->matrix];
    else if (worker)
        decant_worker_submit(worker, &arriving->checksum_task);
    else
        DECANT_TRY(take_checksum(arriving, err));
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
                                     const quantization_task *task, arriving_matrix *arriving,
                                     decant_error *err)
{
    decant_status status;
    DECANT_TRY(backend->weights->finish_place(backend, &arriving->weight, err));
    DECANT_TRY(decant_quantize_layer(backend, recipe, arriving->source.tensor, arriving->weight,
                                     task->fisher ? *task->fisher : NULL, task->layer, err));
    DECANT_TRY(decant_task_wait(&arriving->checksum_task, err));
    *task->row = (decant_table_row){
        .source_checksum = arriving->checksum,
        .candidates = task->layer->candidates,
        .weights = task->linear.rows * task->linear.columns,
    };
    memcpy(task->row->candidate, task->layer->candidate, sizeof task->row->candidate);
    if (task->fisher)
        backend->memory->release(backend, (void **)task->fisher);
    if (task->weight) {
        *task->weight = arriving->weight;
        arriving->weight.data = NULL;
    }
done:
    return status;
}

/* Works through a list of matrices in its order: one block's as soon as its F is done, or a rank's whole share.
 * On failure the message names the tensor. */
static decant_status quantize_matrices(decant_job *job, const decant_recipe *recipe,
                                       const quantization_task *tasks, int64_t count, bool shows_progress,
                                       decant_error *err)
{
    arriving_matrix arriving[2] = {0};
    decant_worker *worker = NULL;
    decant_status status;
    if (job->backend->leaves_host_free && !job->weight_checksums) /* else a thread has no cores, or no work */
        DECANT_TRY(decant_worker_create(&worker, err));
    if (count > 0)
        DECANT_TRY(begin_matrix(job, worker, &tasks[0], &arriving[0], err));
    for (int64_t i = 0; i < count; i++) {
        if (decant_interruption_came())
            DECANT_FAIL(err, DECANT_INTERRUPTED,
                        "while matrices were quantized; the same command goes on from the "
                        "last checkpoint");
        if (i + 1 < count)
            DECANT_TRY(begin_matrix(job, worker, &tasks[i + 1], &arriving[(i + 1) % 2], err));
        DECANT_TRY(quantize_matrix(job->backend, recipe, &tasks[i], &arriving[i % 2], err));
        end_matrix(job->backend, &arriving[i % 2]);
        if (shows_progress)
            decant_log_progress(job->log, i + 1, count, "matrices");
    }
done:
    for (int i = 0; i < 2; i++)
        end_matrix(job->backend, &arriving[i]);
    decant_worker_destroy(&worker);
    return status;
}

/* ---- a rank's share ---- */

static bool is_owned(const decant_job *job, int index)
{
    return job->owners[index] == job->replica;
}

decant_status decant_quantized_share_create(const decant_job *job, decant_quantized_share *share,
                                            decant_error *err)
{
    int linears = job->family->linear_count;
    decant_layer_range layers = decant_job_layers(job);
    decant_status status;
    *share = (decant_quantized_share){0};
    for (int i = 0; i < layers.count * linears; i++)
        share->count += is_owned(job, i);
    DECANT_TRY(decant_memory_allocate((size_t)share->count * sizeof *share->layers, "quantized layers",
                                      (void **)&share->layers, err));
    DECANT_TRY(decant_memory_allocate((size_t)share->count * sizeof *share->matrices, "the list of matrices",
                                      (void **)&share->matrices, err));
    DECANT_TRY(decant_memory_allocate((size_t)share->count * sizeof *share->rows, "the error table",
                                      (void **)&share->rows, err));
    DECANT_TRY(decant_memory_allocate((size_t)share->count * sizeof *share->weights, "the list of weights",
                                      (void **)&share->weights, err));
    DECANT_TRY(decant_memory_allocate((size_t)share->count * sizeof *share->is_due, "the list of matrices",
                                      (void **)&share->is_due, err));
    DECANT_TRY(decant_memory_allocate((size_t)share->count * sizeof *share->is_taken, "the list of matrices",
                                      (void **)&share->is_taken, err));
    int64_t next = 0;
    for (int i = 0; i < layers.count * linears; i++)
        if (is_owned(job, i))
            share->matrices[next++] = (int64_t)layers.first * linears + i;
    for (int64_t i = 0; i < share->count; i++) {
        share->is_taken[i] = decant_reuse_keeps(job->reuse, share->matrices[i], NULL);
        share->is_due[i] = !share->is_taken[i];
        if (share->is_taken[i])
            share->rows[i] = job->reuse->rows[share->matrices[i]];
    }
done:
    return status;
}

void decant_quantized_share_free(decant_backend *backend, decant_quantized_share *share)
{
    for (int64_t i = 0; share->layers && i < share->count; i++)
        decant_quantized_layer_free(backend, &share->layers[i]);
    for (int64_t i = 0; share->weights && i < share->count; i++)
        backend->weights->unplace(backend, &share->weights[i]);
    decant_memory_free(share->weights);
    decant_memory_free(share->layers);
    decant_memory_free(share->rows);
    decant_memory_free(share->matrices);
    decant_memory_free(share->is_due);
    decant_memory_free(share->is_taken);
    *share = (decant_quantized_share){0};
}

/* The matrices of some blocks, counted from this rank's first, that it owns and that are due, in model order;
 * returns how many. Unless what they keep is parked, weights stay on the device to be written where they are no
 * larger than the F that goes as they come, and always to be measured. */
static int64_t list_tasks(const decant_job *job, decant_fisher_sums *fisher, int first_block, int blocks,
                          bool parks, decant_quantized_share *share, quantization_task *tasks)
{
    int linears = job->family->linear_count, first_layer = decant_job_layers(job).first;
    bool keeps_weights = !parks && (fisher->sums || job->options->sensitivity != DECANT_SENSITIVITY_FISHER);
    int64_t count = 0;
    for (int64_t i = 0; i < share->count; i++) {
        int64_t own = share->matrices[i] - (int64_t)first_layer * linears; /* among this rank's layers */
        if (!share->is_due[i] || own < first_block * linears || own >= (first_block + blocks) * linears)
            continue;
        share->is_due[i] = false;
        quantization_task *task = &tasks[count++];
        *task = (quantization_task){
            .matrix = share->matrices[i],
            .fisher = fisher->sums ? &fisher->sums[own] : NULL,
            .layer = &share->layers[i],
            .row = &share->rows[i],
            .weight = keeps_weights ? &share->weights[i] : NULL,
        };
        job->family->linear(&job->config, first_layer + (int)(own / linears), (int)(own % linears),
                            &task->linear);
    }
    return count;
}

static decant_status quantize_blocks(decant_job *job, const decant_recipe *recipe, decant_fisher_sums *fisher,
                                     int first_block, int blocks, bool parks, decant_quantized_share *share,
                                     decant_error *err)
{
    quantization_task *tasks = NULL;
    decant_status status;
    DECANT_TRY(decant_memory_allocate((size_t)share->count * sizeof *tasks, "the matrices to quantize",
                                      (void **)&tasks, err));
    int64_t count = list_tasks(job, fisher, first_block, blocks, parks, share, tasks);
    DECANT_TRY(quantize_matrices(job, recipe, tasks, count, !parks, err));
    for (int64_t i = 0; parks && i < count; i++)
        DECANT_TRY(decant_quantized_layer_park(job->backend, tasks[i].layer, err));
done:
    decant_memory_free(tasks);
    return status;
}

decant_status decant_job_quantize_block(decant_job *job, const decant_recipe *recipe,
                                        decant_fisher_sums *fisher, int block, decant_quantized_share *share,
                                        decant_error *err)
{
    double start_s = decant_clock_s();
    decant_status status = quantize_blocks(job, recipe, fisher, block, 1, true, share, err);
    share->seconds += decant_clock_s() - start_s;
    share->blocks_done++;
    return status;
}

/* Local. What was not quantized block by block. */
static decant_status quantize_share(decant_job *job, decant_fisher_sums *fisher, const decant_recipe *recipe,
                                    decant_quantized_share *share, decant_error *err)
{
    int blocks = decant_job_layers(job).count;
    decant_status status = DECANT_OK;
    if (!share->layers)
        status = decant_quantized_share_create(job, share, err);
    if (status == DECANT_OK && share->blocks_done == 0)
        status = quantize_blocks(job, recipe, fisher, 0, blocks, false, share, err);
    for (int64_t i = 0; i < share->count && status == DECANT_OK; i++)
        share->rows[i].matrix = share->matrices[i];
    decant_error unread;
    if (decant_safetensors_check(job->model, &unread) != DECANT_OK) { /* what else failed came of it */
        *err = unread;
        return unread.status;
    }
    return status;
}

/* Does the matrix come out as the earlier container's table says? */
static bool is_as_before(const decant_table_row *row, const decant_table_row *before)
{
    for (int i = 0; i < row->candidates; i++)
        if (row->candidate[i].predicted != before->candidate[i].predicted ||
            row->candidate[i].relative != before->candidate[i].relative ||
            row->candidate[i].bytes != before->candidate[i].bytes)
            return false;
    return row->candidates == before->candidates;
}

/* Local. */
static decant_status quantize_other_choices(decant_job *job, const decant_recipe *recipe,
                                            decant_fisher_sums *fisher, const int *chosen,
                                            decant_quantized_share *share, decant_error *err)
{
    int blocks = decant_job_layers(job).count;
    for (int64_t i = 0; i < share->count; i++) {
        share->is_due[i] = share->is_taken[i] && !decant_reuse_keeps(job->reuse, share->matrices[i], chosen);
        share->is_taken[i] = share->is_taken[i] && !share->is_due[i];
    }
    decant_status status = quantize_blocks(job, recipe, fisher, 0, blocks, false, share, err);
    for (int64_t i = 0; i < share->count && status == DECANT_OK; i++) {
        const decant_table_row *before = &job->reuse->rows[share->matrices[i]];
        bool is_compared = !share->is_taken[i] && decant_reuse_keeps(job->reuse, share->matrices[i], NULL);
        if (is_compared && !is_as_before(&share->rows[i], before))
            status =
                DECANT_ERROR(err, DECANT_ERROR_INPUT,
                             "%s is not what this decant makes of the same weights and statistics (matrix %lld "
                             "comes out otherwise); run again without --reuse",
                             job->options->reuse, (long long)share->matrices[i]);
    }
    return status;
}

decant_status decant_job_quantize_other_choices(decant_job *job, const decant_statistics_origin *origin,
                                                const int *chosen, decant_quantized_share *share,
                                                decant_error *err)
{
    decant_recipe recipe = decant_job_recipe(job, origin);
    decant_fisher_sums fisher = {0};
    bool any = false;
    for (int64_t i = 0; job->reuse && i < job->reuse->layers; i++)
        any |= decant_reuse_keeps(job->reuse, i, NULL) && !decant_reuse_keeps(job->reuse, i, chosen);
    if (!any) /* the same on every rank */
        return DECANT_OK;
    decant_log_stage(job->log, "quantize");
    decant_status status = decant_job_find_other_sums(job, chosen, &fisher, err);
    if (status == DECANT_OK)
        status = decant_ranks_agree(job->ranks,
                                    quantize_other_choices(job, &recipe, &fisher, chosen, share, err), err);
    decant_fisher_sums_free(&fisher);
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
        decant_report_quantization(job, table, share->seconds + decant_clock_s() - start_s);
    return status;
}
