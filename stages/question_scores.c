/* See question_scores.h. Logits are F32 here on every backend: a choice is one token as a rule, and in BF16 two
 * likely ones often come out equal. */
#include "stages/question_scores.h"

#include "base/memory.h"

#include <string.h>

/* Σ log p of a choice's tokens, whose logits are the rows of `logits`. */
static decant_status score_choice(decant_backend *backend, const decant_question_set *set, int64_t choice,
                                  decant_matrix logits, int32_t *targets, double *score, decant_error *err)
{
    decant_token_span span = set->choices[choice].tokens;
    double mean_loss;
    /* Row t predicts the target t + 1; the last row, which is not there, would predict nothing. */
    memcpy(targets + 1, decant_question_tokens(set, span), (size_t)span.count * sizeof *targets);
    logits.rows = span.count + 1;
    decant_status status = backend->model->cross_entropy(backend, logits, targets, false, &mean_loss, err);
    if (status == DECANT_OK)
        *score = -mean_loss * (double)span.count;
    return status;
}

decant_status decant_question_scores_fill(decant_validation *validation, decant_backend *backend,
                                          const decant_question_passes *passes,
                                          const decant_question_batch *batch, bool has_original,
                                          decant_matrix logits, double *const *scores, double *seconds,
                                          decant_error *err)
{
    const decant_question_set *set = passes->set;
    void *targets = NULL;
    decant_status status;
    DECANT_TRY(decant_memory_allocate((size_t)(passes->head_rows + 1) * sizeof(int32_t), "a choice's tokens",
                                      &targets, err));
    for (int64_t i = 0; i < batch->passes; i++) {
        const decant_question_pass *pass = &passes->passes[batch->first_pass + i];
        int64_t first_row = i * batch->length + pass->context - 1;
        logits.rows = set->choices[pass->first_choice].tokens.count;
        for (int model = has_original ? DECANT_VALIDATION_ORIGINAL : DECANT_VALIDATION_QUANTIZED;
             model < DECANT_VALIDATION_MODELS; model++) {
            DECANT_TRY(decant_validation_head(validation, model, first_row, logits, seconds, err));
            for (int64_t choice = pass->first_choice; choice < pass->first_choice + pass->choices; choice++)
                DECANT_TRY(score_choice(backend, set, choice, logits, targets, &scores[model][choice], err));
        }
    }
done:
    decant_memory_free(targets);
    return status;
}
