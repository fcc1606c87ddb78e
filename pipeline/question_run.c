/* See question_run.h. */
#include "pipeline/question_run.h"

#include "base/memory.h"
#include "pipeline/not_finite.h"
#include "stages/question_scores.h"

#include <math.h>

enum { MODELS = DECANT_VALIDATION_MODELS };

typedef struct question_run {
    decant_job *job;
    const decant_question_passes *passes;
    decant_matrix logits; /* scratch where the head is */
    double *scores[MODELS];
} question_run;

decant_status decant_question_run_prepare(decant_job *job, const decant_question_set *set,
                                          decant_question_passes *passes, decant_error *err)
{
    int64_t tokens_together = decant_schedule_micro_batch_size(1); /* as many tokens as a micro-batch of text */
    return decant_ranks_agree(job->ranks, decant_question_passes_create(set, tokens_together, passes, err),
                              err);
}

static decant_passage batch_at(const void *context, int64_t index)
{
    const decant_question_passes *passes = ((const question_run *)context)->passes;
    const decant_question_batch *batch = &passes->batches[index];
    return (decant_passage){passes->tokens + batch->first_token, batch->passes, batch->length};
}

static decant_status score_batch(void *context, decant_validation *validation, int64_t index, double *seconds,
                                 decant_error *err)
{
    question_run *run = context;
    return decant_question_scores_fill(validation, run->job->backend, run->passes, &run->passes->batches[index],
                                       run->job->model != NULL, run->logits, run->scores, seconds, err);
}

/* Local. Room for the logits, one row more than are filled, and for the result. */
static decant_status prepare(question_run *run, const decant_model_part *quantized,
                             decant_question_result *result, decant_error *err)
{
    const decant_question_set *set = run->passes->set;
    decant_backend *backend = run->job->backend;
    void *memory;
    decant_status status = DECANT_OK;
    for (int model = 0; model < MODELS; model++) {
        DECANT_TRY(decant_memory_allocate((size_t)set->choice_count * sizeof *result->scores[model], "scores",
                                          &memory, err));
        run->scores[model] = result->scores[model] = memory;
        DECANT_TRY(decant_memory_allocate((size_t)set->subject_count * sizeof *result->subjects[model],
                                          "subjects", &memory, err));
        result->subjects[model] = memory;
    }
    run->logits = (decant_matrix){
        .element = DECANT_F32, .rows = run->passes->head_rows + 1, .columns = run->job->config.vocabulary_size};
    if (quantized->layer_count > 0 && decant_model_part_ends(quantized))
        DECANT_TRY(backend->memory->allocate(backend, decant_matrix_bytes(run->logits), "logits",
                                             &run->logits.data, err));
done:
    return status;
}

/* Local. No choice is the most likely of those whose scores are no numbers. */
static decant_status check_scores(const decant_job *job, const decant_question_set *set, int model,
                                  const double *scores, decant_error *err)
{
    for (int64_t i = 0; i < set->choice_count; i++)
        if (!isfinite(scores[i]))
            return decant_job_tell_not_finite(job, model, "the log-likelihood of a choice", err);
    return DECANT_OK;
}

decant_status decant_question_run(decant_paired_models *models, const decant_question_passes *passes,
                                  decant_question_result *result, decant_error *err)
{
    decant_job *job = models->job;
    const decant_question_set *set = passes->set;
    question_run run = {.job = job, .passes = passes};
    double seconds[MODELS] = {0}, start_s = decant_clock_s();
    decant_passages passages = {
        .context = &run,
        .count = passes->batch_count,
        .largest = passes->largest_batch,
        .head_rows = passes->head_rows,
        .at = batch_at,
        .measure = score_batch,
    };
    decant_status status;
    *result = (decant_question_result){.set = set};
    DECANT_TRY(decant_ranks_agree(
        job->ranks, prepare(&run, &models->parts[DECANT_VALIDATION_QUANTIZED], result, err), err));
    DECANT_TRY(decant_paired_models_pass(models, &passages, seconds, err));
    for (int model = 0; model < MODELS; model++) {
        /* Every choice was scored on one rank and is zero on the others. */
        DECANT_TRY(decant_ranks_sum(job->ranks, result->scores[model], (int)set->choice_count, err));
        DECANT_TRY(
            decant_ranks_agree(job->ranks, check_scores(job, set, model, result->scores[model], err), err));
        decant_question_tally_scores(set, result->scores[model], result->subjects[model],
                                     &result->overall[model]);
    }
    result->seconds = decant_clock_s() - start_s;
done:
    job->backend->memory->release(job->backend, &run.logits.data);
    if (status != DECANT_OK)
        decant_question_result_free(result);
    return status;
}

void decant_question_result_free(decant_question_result *result)
{
    for (int model = 0; model < MODELS; model++) {
        decant_memory_free(result->scores[model]);
        decant_memory_free(result->subjects[model]);
    }
    *result = (decant_question_result){0};
}
