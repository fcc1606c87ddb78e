/* The validation stage over all ranks: windows of text pass the original model and the container side by side
 * and are compared; questions are scored (question_run.c); and what the models take to run is measured. */
#include "base/memory.h"
#include "pipeline/job.h"
#include "pipeline/job_plan.h"
#include "pipeline/model_costs.h"
#include "pipeline/not_finite.h"
#include "pipeline/paired_models.h"
#include "pipeline/question_run.h"

#include <math.h>
#include <string.h>

/* ---- windows of text ---- */

typedef struct window_run {
    const decant_token_array *text;
    int64_t micro_batch;            /* windows taken together */
    decant_comparison *comparisons; /* [windows]; filled on this rank for its share */
} window_run;

static int64_t micro_batch_of(const decant_token_array *text)
{
    int64_t size = decant_schedule_micro_batch_size(text->length);
    return size < text->sequences ? size : text->sequences;
}

static decant_passage windows_at(const void *context, int64_t index)
{
    const window_run *run = context;
    decant_micro_batch windows = decant_schedule_micro_batch(run->text->sequences, run->micro_batch, index);
    return (decant_passage){decant_token_array_sequence(run->text, windows.first), windows.count,
                            run->text->length};
}

static decant_status compare_windows(void *context, decant_validation *validation, int64_t index,
                                     double *seconds, decant_error *err)
{
    window_run *run = context;
    decant_passage windows = windows_at(run, index);
    return decant_validation_compare(validation, windows.tokens, windows.sequences,
                                     run->comparisons + index * run->micro_batch, seconds, err);
}

/* Local. What is said of the most likely tokens of logits that are no numbers, that they agree, is no result.
 */
static decant_status check_figures(const decant_job *job, const decant_validation_result *result,
                                   decant_error *err)
{
    static const char what[] = "the perplexity";
    if (job->model && !isfinite(decant_validation_perplexity_original(result)))
        return decant_job_tell_not_finite(job, DECANT_VALIDATION_ORIGINAL, what, err);
    if (!isfinite(decant_validation_perplexity_quantized(result)) || !isfinite(result->sums.divergence))
        return decant_job_tell_not_finite(job, DECANT_VALIDATION_QUANTIZED, what, err);
    return DECANT_OK;
}

/* Every window was compared on one rank: all get all, then add them up in their order, so that the result does
 * not depend on who compared what. Counts are exact as doubles. */
static decant_status sum_windows(decant_job *job, window_run *run, decant_validation_result *result,
                                 decant_error *err)
{
    enum { FIGURES = 5 };
    int64_t windows = run->text->sequences;
    double *figures = NULL;
    decant_status status;
    DECANT_TRY(decant_ranks_agree(
        job->ranks,
        decant_memory_allocate((size_t)windows * FIGURES * sizeof *figures, "windows", (void **)&figures, err),
        err));
    for (int64_t i = 0; i < windows; i++) {
        const decant_comparison *window = &run->comparisons[i];
        const double own[FIGURES] = {window->loss_original, window->loss_quantized, window->divergence,
                                     (double)window->same_top, (double)window->targets};
        memcpy(figures + i * FIGURES, own, sizeof own);
    }
    DECANT_TRY(decant_ranks_sum(job->ranks, figures, (int)(windows * FIGURES), err));
    for (int64_t i = 0; i < windows; i++) {
        const double *sums = figures + i * FIGURES;
        run->comparisons[i] =
            (decant_comparison){sums[0], sums[1], sums[2], (int64_t)sums[3], (int64_t)sums[4]};
    }
    decant_validation_sum(run->comparisons, windows, result);
    DECANT_TRY(decant_ranks_agree(job->ranks, check_figures(job, result, err), err));
done:
    decant_memory_free(figures);
    return status;
}

static decant_status validate_text(decant_paired_models *models, const decant_token_array *text,
                                   decant_validation_result *result, decant_error *err)
{
    decant_job *job = models->job;
    window_run run = {.text = text, .micro_batch = micro_batch_of(text)};
    double seconds[DECANT_VALIDATION_MODELS] = {0};
    decant_passages passages = {
        .context = &run,
        .count = decant_schedule_micro_batches(text->sequences, run.micro_batch),
        .largest = run.micro_batch * text->length,
        .head_rows = text->length,
        .at = windows_at,
        .measure = compare_windows,
    };
    decant_status status;
    DECANT_TRY(decant_ranks_agree(job->ranks,
                                  decant_memory_allocate((size_t)text->sequences * sizeof *run.comparisons,
                                                         "windows", (void **)&run.comparisons, err),
                                  err));
    DECANT_TRY(decant_paired_models_pass(models, &passages, seconds, err));
    DECANT_TRY(sum_windows(job, &run, result, err));
    DECANT_TRY(decant_ranks_sum(job->ranks, seconds, DECANT_VALIDATION_MODELS, err));
    result->original_s = seconds[DECANT_VALIDATION_ORIGINAL];
    result->quantized_s = seconds[DECANT_VALIDATION_QUANTIZED];
done:
    decant_memory_free(run.comparisons);
    return status;
}

/* ---- all of it ---- */

/* Whether layers have to come one after the other, for the text or for the questions. */
static decant_status plan(decant_job *job, const decant_validation_inputs *inputs,
                          const decant_question_passes *passes, bool *streamed, decant_error *err)
{
    const decant_token_array longest = {.sequences = passes->batch_count, .length = passes->largest_batch};
    decant_status status = DECANT_OK;
    *streamed = false;
    if (inputs->text.sequences > 0)
        DECANT_TRY(decant_job_plan_validation(job, &inputs->text, streamed, err));
    if (!*streamed && passes->batch_count > 0)
        DECANT_TRY(decant_job_plan_validation(job, &longest, streamed, err));
done:
    return status;
}

decant_status decant_job_validate(decant_job *job, const char *path, const decant_validation_inputs *inputs,
                                  decant_validation_result *result, decant_question_result *questions,
                                  decant_error *err)
{
    const decant_token_array *text = &inputs->text;
    decant_paired_models models = {0};
    decant_question_passes passes = {0};
    int64_t rows = text->sequences > 0 ? micro_batch_of(text) * text->length : 0;
    bool streamed;
    decant_status status;
    decant_log_stage(job->log, "validate");
    *result = (decant_validation_result){0};
    *questions = (decant_question_result){0};
    if (inputs->questions.question_count > 0)
        DECANT_TRY(decant_question_run_prepare(job, &inputs->questions, &passes, err));
    if (passes.largest_batch > rows)
        rows = passes.largest_batch;
    DECANT_TRY(plan(job, inputs, &passes, &streamed, err));
    DECANT_TRY(decant_paired_models_open(job, path, rows, streamed, &models, err));
    if (text->sequences > 0)
        DECANT_TRY(validate_text(&models, text, result, err));
    if (passes.batch_count > 0)
        DECANT_TRY(decant_question_run(&models, &passes, questions, err));
    if (!streamed) /* a model that is never whole in memory has no decode speed */
        DECANT_TRY(decant_model_costs_measure(job,
                                              job->model ? &models.parts[DECANT_VALIDATION_ORIGINAL] : NULL,
                                              &models.parts[DECANT_VALIDATION_QUANTIZED], result, err));
done:
    if (status != DECANT_OK)
        decant_question_result_free(questions);
    decant_paired_models_close(&models);
    decant_question_passes_free(&passes);
    return status;
}
