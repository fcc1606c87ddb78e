/* Measured sensitivities over all ranks: thousands of independent tasks, each the increase that one changed
 * linear layer causes. Every rank holds the whole model and takes its share; results are gathered by task
 * number, so that they do not depend on who measured what. Noise is dealt out like cards, since a task costs
 * the less the later its block; a matrix quantized alone is measured where its levels are. What is finished is
 * noted in a journal. */
#include "pipeline/sensitivity.h"

#include "base/memory.h"
#include "io/checksum.h"
#include "pipeline/model_fingerprint.h"
#include "pipeline/not_finite.h"
#include "pipeline/report.h"
#include "pipeline/sensitivity_journal.h"
#include "stages/linear_weight.h"
#include "stages/probe.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { ALONE = -1 };

typedef struct sensitivity_task {
    int32_t layer; /* linear layer, in model order */
    int32_t level; /* of noise; ALONE: quantized alone */
    int64_t own;   /* quantized alone here: which of this rank's matrices it is */
    bool is_mine;  /* this rank measures it */
} sensitivity_task;

typedef struct sensitivity_run {
    decant_job *job;
    const decant_quantized_share *share; /* of this rank; borrowed */
    decant_sensitivity *result;
    decant_backend *precise; /* owned; NULL where the job's backend has F32 activations or is to be used */
    decant_model_part whole;
    decant_probe *probe;
    sensitivity_task *tasks; /* [count], in model order */
    int64_t count;
    double *values; /* [count]: measured here; those of an earlier job on rank 0; after the sum all of them */
    bool *done;     /* [count]: by an earlier job */
    decant_journal journal;
} sensitivity_run;

/* ---- the tasks ---- */

/* Which of this rank's matrices it is; -1: another rank has it. */
static int64_t find_own(const decant_quantized_share *share, int64_t layer)
{
    for (int64_t i = 0; i < share->count; i++)
        if (share->matrices[i] == layer)
            return i;
    return -1;
}

/* First to last, last to first, and so on: tasks of falling cost come out even. */
static int deal(int64_t index, int ranks)
{
    int place = (int)(index % ranks);
    return index / ranks % 2 == 0 ? place : ranks - 1 - place;
}

static decant_status list_tasks(sensitivity_run *run, const decant_error_table *table, decant_error *err)
{
    decant_job *job = run->job;
    decant_sensitivity *result = run->result;
    int64_t most = table->layers * (result->levels + 1), dealt = 0;
    decant_status status;
    bool all = result->kind == DECANT_SENSITIVITY_MEASURED;
    decant_sensitivity_choose(result, table, all ? table->layers : job->options->sensitivity_check,
                              job->options->sensitivity_width, job->options->seed);
    DECANT_TRY(
        decant_memory_allocate((size_t)most * sizeof *run->tasks, "the tasks", (void **)&run->tasks, err));
    DECANT_TRY(
        decant_memory_allocate((size_t)most * sizeof *run->values, "the tasks", (void **)&run->values, err));
    DECANT_TRY(decant_memory_allocate((size_t)most * sizeof *run->done, "the tasks", (void **)&run->done, err));
    for (int32_t layer = 0; layer < table->layers; layer++) {
        for (int32_t level = 0; level < result->levels; level++)
            run->tasks[run->count++] = (sensitivity_task){
                .layer = layer,
                .level = level,
                .is_mine = deal(dealt++, job->ranks->size) == job->ranks->rank,
            };
        int64_t own = find_own(run->share, layer);
        if (result->candidate[layer] >= 0)
            run->tasks[run->count++] =
                (sensitivity_task){.layer = layer, .level = ALONE, .own = own, .is_mine = own >= 0};
    }
done:
    return status;
}

/* ---- one task ---- */

/* The packed form of the candidate that is measured. Where layers are streamed, weight and levels are not on
 * the device and go again afterwards. */
static decant_status encode_alone(sensitivity_run *run, const sensitivity_task *task,
                                  const decant_linear *linear, decant_encoded_layer *encoded, decant_error *err)
{
    decant_backend *backend = run->job->backend;
    decant_quantized_layer *layer = &run->share->layers[task->own];
    bool was_parked = layer->is_parked;
    decant_linear_weight found;
    decant_matrix placed = {0}, weight = run->share->weights[task->own];
    decant_status status;
    if (!weight.data) {
        DECANT_TRY(decant_linear_weight_find(run->job->model, linear, &found, err));
        DECANT_TRY(
            backend->weights->place(backend, found.host, DECANT_PLACE_EXACT, found.tensor, &placed, err));
        weight = placed;
    }
    DECANT_TRY(decant_quantized_layer_unpark(backend, layer, err));
    DECANT_TRY(decant_quantized_layer_encode(backend, layer, run->result->candidate[task->layer], weight,
                                             encoded, err));
    DECANT_TRY(backend->memory->synchronize(backend, err)); /* the probe may run on a backend of its own */
    if (was_parked)
        DECANT_TRY(decant_quantized_layer_park(backend, layer, err));
done:
    backend->weights->unplace(backend, &placed);
    return status;
}

static decant_status measure_alone(sensitivity_run *run, const sensitivity_task *task, int block, int index,
                                   decant_comparison *sums, decant_error *err)
{
    decant_linear changed = run->whole.blocks[block].linears[index];
    decant_encoded_layer encoded = {0};
    decant_status status;
    DECANT_TRY(encode_alone(run, task, &changed, &encoded, err));
    if (encoded.grid.form.points)
        changed.grid = &encoded.grid;
    else
        changed.packed = &encoded.packed;
    DECANT_TRY(decant_probe_measure(run->probe, block, index, &changed, sums, err));
done:
    decant_encoded_layer_free(run->job->backend, &encoded);
    return status;
}

static decant_status measure_noise(sensitivity_run *run, const sensitivity_task *task, int block, int index,
                                   decant_comparison *sums, decant_error *err)
{
    decant_backend *backend = run->whole.backend;
    decant_linear changed = run->whole.blocks[block].linears[index];
    decant_matrix weight = changed.weight;
    uint64_t seed = decant_sensitivity_noise_seed(run->job->options->seed, task->layer, task->level);
    decant_status status;
    DECANT_TRY(backend->memory->allocate(backend, decant_matrix_bytes(weight), "a weight with noise",
                                         &changed.weight.data, err));
    DECANT_TRY(
        backend->grid->add_noise(backend, weight, run->result->t[task->level], seed, changed.weight, err));
    DECANT_TRY(decant_probe_measure(run->probe, block, index, &changed, sums, err));
done:
    backend->memory->release(backend, &changed.weight.data);
    return status;
}

static decant_status measure_task(sensitivity_run *run, const sensitivity_task *task, double *value,
                                  decant_error *err)
{
    int linears = run->whole.family->linear_count;
    int block = task->layer / linears, index = task->layer % linears;
    decant_comparison sums = {0};
    decant_status status = task->level == ALONE ? measure_alone(run, task, block, index, &sums, err)
                                                : measure_noise(run, task, block, index, &sums, err);
    double increase = run->result->measure == DECANT_MEASURE_LOSS ? sums.loss_quantized - sums.loss_original
                                                                  : sums.divergence;
    *value =
        status == DECANT_OK ? increase / (double)sums.targets + 0.0 : 0; /* + 0.0: −0 would not survive a sum */
    if (!isfinite(*value))
        return decant_job_tell_not_finite(run->job, DECANT_VALIDATION_ORIGINAL,
                                          "the increase with one matrix changed", err);
    return status;
}

/* ---- all tasks of a rank ---- */

/* What the results depend on. */
static uint32_t fingerprint(const sensitivity_run *run, const decant_error_table *table,
                            const decant_token_array *tokens)
{
    const decant_job *job = run->job;
    char text[1024];
    int length = snprintf(text, sizeof text, "%s %s %s %d %d %d %.17g %lld %llu %lld", DECANT_VERSION,
                          job->backend->name, decant_element_name(run->whole.backend->activation),
                          (int)run->result->kind, (int)run->result->measure, run->result->levels,
                          job->options->sensitivity_width, (long long)job->options->sensitivity_check,
                          (unsigned long long)job->options->seed, (long long)tokens->length);
    uint32_t sum = decant_checksum(0, text, (size_t)length);
    sum = decant_checksum(sum, tokens->tokens,
                          (size_t)(tokens->sequences * tokens->length) * sizeof *tokens->tokens);
    sum = decant_checksum(sum, job->config.json, job->config.json_bytes);
    sum = decant_checksum(sum, &job->others_checksum, sizeof job->others_checksum);
    for (int64_t i = 0; i < table->layers; i++) {
        const decant_table_row *row = &table->rows[i];
        sum = decant_checksum(sum, &row->source_checksum, sizeof row->source_checksum);
        sum = decant_checksum(sum, row->candidate, (size_t)row->candidates * sizeof *row->candidate);
    }
    return sum;
}

/* Collective: what an earlier job has finished, on every rank. */
static decant_status open_journal(sensitivity_run *run, uint32_t mark, decant_error *err)
{
    decant_job *job = run->job;
    int64_t restored = 0;
    bool foreign = false;
    decant_status status = DECANT_OK;
    if (job->ranks->rank == 0)
        status = decant_journal_begin(&run->journal, mark, run->count, run->values, run->done, &restored,
                                      &foreign, err);
    DECANT_TRY(decant_ranks_agree(job->ranks, status, err));
    DECANT_TRY(decant_ranks_agree(job->ranks, decant_journal_join(&run->journal, err), err));
    DECANT_TRY(decant_ranks_broadcast(job->ranks, 0, run->done, (size_t)run->count * sizeof *run->done, err));
    if (foreign)
        decant_log_say(job->log, "%s is of another job (model, tokens, options or version); begun anew",
                       run->journal.path);
    if (restored > 0)
        decant_log_say(job->log, "%lld of %lld measurements are there already, from %s", (long long)restored,
                       (long long)run->count, run->journal.path);
done:
    return status;
}

static decant_status measure_share(sensitivity_run *run, const decant_token_array *tokens, decant_error *err)
{
    decant_job *job = run->job;
    int64_t mine = 0, finished = 0;
    decant_status status;
    for (int64_t i = 0; i < run->count; i++)
        mine += run->tasks[i].is_mine && !run->done[i];
    if (mine == 0)
        return DECANT_OK;
    DECANT_TRY(decant_probe_create(&run->whole, tokens, &run->probe, err));
    for (int64_t i = 0; i < run->count; i++) {
        if (!run->tasks[i].is_mine || run->done[i])
            continue;
        DECANT_TRY(measure_task(run, &run->tasks[i], &run->values[i], err));
        DECANT_TRY(decant_journal_append(&run->journal, i, run->values[i], err));
        decant_log_progress(job->log, ++finished, mine, "measurements");
    }
done:
    return status;
}

/* Results go to their places. */
static void collect(sensitivity_run *run)
{
    decant_sensitivity *result = run->result;
    for (int64_t i = 0; i < run->count; i++) {
        const sensitivity_task *task = &run->tasks[i];
        if (task->level == ALONE)
            result->alone[task->layer] = run->values[i];
        else
            result->noised[(int64_t)task->layer * result->levels + task->level] = run->values[i];
    }
    decant_sensitivity_conclude(result);
}

static void dismantle(sensitivity_run *run)
{
    decant_journal_close(&run->journal);
    decant_probe_destroy(&run->probe);
    decant_model_part_unload(&run->whole);
    decant_backend_destroy(&run->precise);
    decant_memory_free(run->tasks);
    decant_memory_free(run->values);
    decant_memory_free(run->done);
}

/* ---- the whole ---- */

/* BF16 rounds a changed model and the original apart: on SmolLM2 that alone is 0.001 nats a matrix, half of
 * what 3 bits do (tests/gpu/RESULTS.md). So a GPU measures in F32, unless told otherwise. */
static decant_status choose_backend(decant_job *job, decant_backend **precise, decant_error *err)
{
    *precise = NULL;
    if (job->backend->activation == DECANT_F32 || job->options->sensitivity_precision == DECANT_PRECISION_FAST)
        return DECANT_OK;
    return decant_backend_create_cuda(job->ranks->node_rank % decant_backend_count_cuda(), true, precise, err);
}

/* Every rank takes the whole model; says what to do where it does not fit. */
static decant_status load_whole(decant_job *job, const decant_token_array *tokens, decant_backend **precise,
                                decant_model_part *whole, decant_error *err)
{
    decant_weight_source source = decant_source_of_model(job->model);
    decant_error reason;
    decant_status status = choose_backend(job, precise, &reason);
    if (status == DECANT_OK)
        status = decant_model_part_load(*precise ? *precise : job->backend, &job->config, &source, 0,
                                        job->config.layers, tokens->length,
                                        decant_probe_batch(tokens->sequences, tokens->length), whole, &reason);
    if (status == DECANT_ERROR_MEMORY)
        return DECANT_ERROR(
            err, status,
            "--sensitivity needs the whole model on every rank, and it does not fit (%.300s): use "
            "--sensitivity-precision fast, fewer ranks on a device, a larger device, --device cpu, or "
            "--sensitivity fisher",
            reason.message);
    if (status != DECANT_OK)
        *err = reason;
    return status;
}

decant_status decant_job_check_sensitivity(decant_job *job, const decant_token_array *tokens, decant_error *err)
{
    decant_model_part whole = {0};
    decant_backend *precise = NULL;
    decant_status status = load_whole(job, tokens, &precise, &whole, err);
    if (status == DECANT_OK)
        decant_model_part_unload(&whole);
    decant_backend_destroy(&precise);
    return decant_ranks_agree(job->ranks, status, err);
}

decant_status decant_job_measure_sensitivity(decant_job *job, const decant_token_array *tokens,
                                             const decant_quantized_share *share, decant_error_table *table,
                                             decant_sensitivity *result, decant_error *err)
{
    const decant_options *options = job->options;
    sensitivity_run run = {.job = job, .share = share, .result = result};
    double start_s = decant_clock_s();
    decant_status status;
    decant_log_stage(job->log, "sensitivity");
    decant_journal_name(options->output, &run.journal);
    status = decant_sensitivity_create(
        options->sensitivity, table->layers,
        options->sensitivity == DECANT_SENSITIVITY_NOISE ? options->noise_levels : 0, result, err);
    result->measure = options->sensitivity_measure;
    result->sequences = tokens->sequences;
    result->length = tokens->length;
    result->tokens_checksum = tokens->checksum;
    result->random_tokens = !options->calibration[0];
    if (status == DECANT_OK)
        status = list_tasks(&run, table, err);
    if (status == DECANT_OK)
        status = load_whole(job, tokens, &run.precise, &run.whole, err);
    DECANT_TRY(decant_ranks_agree(job->ranks, status, err));
    result->precision = run.whole.backend->activation;
    DECANT_TRY(decant_job_fingerprint_others(job, err));
    DECANT_TRY(open_journal(&run, fingerprint(&run, table, tokens), err));
    DECANT_TRY(decant_ranks_agree(job->ranks, measure_share(&run, tokens, err), err));
    DECANT_TRY(decant_ranks_sum(job->ranks, run.values, (int)run.count, err));
    collect(&run);
    DECANT_TRY(decant_ranks_agree(job->ranks, decant_error_table_apply(table, result, err), err));
    decant_report_sensitivity(job, result, decant_clock_s() - start_s);
done:
    dismantle(&run);
    if (status != DECANT_OK)
        decant_sensitivity_free(result);
    return status;
}

void decant_job_forget_sensitivity(const decant_job *job)
{
    decant_journal journal;
    decant_journal_name(job->options->output, &journal);
    if (job->ranks->rank == 0 && job->options->sensitivity != DECANT_SENSITIVITY_FISHER)
        decant_journal_remove(&journal);
}
