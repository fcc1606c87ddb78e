/* See question_passes.h. */
#include "stages/question_passes.h"

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

enum { LENGTH_STEP = 16 }; /* lengths of batches are its multiples: few different ones, and little filling */

/* ---- which sequences ---- */

static bool has_single_tokens(const decant_question_set *set, const decant_question *question)
{
    for (int i = 0; i < question->choices; i++)
        if (set->choices[question->first_choice + i].tokens.count > 1)
            return false;
    return true;
}

static void list_passes(decant_question_passes *passes)
{
    const decant_question_set *set = passes->set;
    for (int64_t i = 0; i < set->question_count; i++) {
        const decant_question *question = &set->questions[i];
        int64_t together = has_single_tokens(set, question) ? question->choices : 1;
        for (int64_t choice = 0; choice < question->choices; choice += together) {
            int64_t first = question->first_choice + choice, rows = set->choices[first].tokens.count;
            passes->passes[passes->pass_count++] = (decant_question_pass){
                .question = i,
                .context = question->context.count,
                .length = question->context.count + rows - 1,
                .first_choice = first,
                .choices = together,
            };
            if (rows > passes->head_rows)
                passes->head_rows = rows;
        }
    }
}

/* By length, then as in the file: a total order. */
static int compare_passes(const void *left, const void *right)
{
    const decant_question_pass *a = left, *b = right;
    if (a->length != b->length)
        return a->length < b->length ? -1 : 1;
    return a->first_choice < b->first_choice ? -1 : a->first_choice > b->first_choice;
}

/* ---- which go together ---- */

static int64_t filled_length(int64_t length)
{
    return (length + LENGTH_STEP - 1) / LENGTH_STEP * LENGTH_STEP;
}

/* Returns how many tokens all batches have. */
static int64_t list_batches(decant_question_passes *passes, int64_t tokens_together)
{
    int64_t tokens = 0;
    for (int64_t first = 0; first < passes->pass_count;) {
        decant_question_batch batch = {.first_pass = first, .first_token = tokens};
        while (first + batch.passes < passes->pass_count) {
            int64_t length = filled_length(passes->passes[first + batch.passes].length);
            if (batch.passes > 0 && length * (batch.passes + 1) > tokens_together)
                break;
            batch.length = length;
            batch.passes++;
        }
        passes->batches[passes->batch_count++] = batch;
        if (batch.passes * batch.length > passes->largest_batch)
            passes->largest_batch = batch.passes * batch.length;
        tokens += batch.passes * batch.length;
        first += batch.passes;
    }
    return tokens;
}

static void copy_tokens(decant_question_passes *passes)
{
    const decant_question_set *set = passes->set;
    for (int64_t b = 0; b < passes->batch_count; b++) {
        const decant_question_batch *batch = &passes->batches[b];
        for (int64_t i = 0; i < batch->passes; i++) {
            const decant_question_pass *pass = &passes->passes[batch->first_pass + i];
            const decant_question *question = &set->questions[pass->question];
            int32_t *row = passes->tokens + batch->first_token + i * batch->length;
            memcpy(row, decant_question_tokens(set, question->context),
                   (size_t)pass->context * sizeof *row); /* what follows is zero */
            memcpy(row + pass->context, decant_question_tokens(set, set->choices[pass->first_choice].tokens),
                   (size_t)(pass->length - pass->context) * sizeof *row);
        }
    }
}

decant_status decant_question_passes_create(const decant_question_set *set, int64_t tokens_together,
                                            decant_question_passes *passes, decant_error *err)
{
    const char *what = "passes of questions";
    size_t most = (size_t)set->choice_count;
    void *memory;
    decant_status status;
    *passes = (decant_question_passes){.set = set};
    DECANT_TRY(decant_memory_allocate(most * sizeof *passes->passes, what, &memory, err));
    passes->passes = memory;
    DECANT_TRY(decant_memory_allocate(most * sizeof *passes->batches, what, &memory, err));
    passes->batches = memory;
    list_passes(passes);
    qsort(passes->passes, (size_t)passes->pass_count, sizeof *passes->passes, compare_passes);
    int64_t tokens = list_batches(passes, tokens_together);
    DECANT_TRY(decant_memory_allocate((size_t)tokens * sizeof *passes->tokens, what, &memory, err));
    passes->tokens = memory;
    copy_tokens(passes);
done:
    if (status != DECANT_OK)
        decant_question_passes_free(passes);
    return status;
}

void decant_question_passes_free(decant_question_passes *passes)
{
    decant_memory_free(passes->passes);
    decant_memory_free(passes->batches);
    decant_memory_free(passes->tokens);
    *passes = (decant_question_passes){0};
}

/* ---- what the scores say ---- */

int decant_question_favourite(const decant_question_set *set, const decant_question *question,
                              const double *scores, bool normalized)
{
    int best = 0;
    double best_score = 0;
    for (int i = 0; i < question->choices; i++) {
        int64_t choice = question->first_choice + i;
        double score = normalized ? scores[choice] / set->choices[choice].length : scores[choice];
        if (i == 0 || score > best_score) {
            best = i;
            best_score = score;
        }
    }
    return best;
}

static void add_answer(decant_question_tally *tally, bool right, bool right_normalized)
{
    tally->questions++;
    tally->right += right;
    tally->right_normalized += right_normalized;
}

void decant_question_tally_scores(const decant_question_set *set, const double *scores,
                                  decant_question_tally *subjects, decant_question_tally *overall)
{
    *overall = (decant_question_tally){0};
    for (int i = 0; i < set->subject_count; i++)
        subjects[i] = (decant_question_tally){0};
    for (int64_t i = 0; i < set->question_count; i++) {
        const decant_question *question = &set->questions[i];
        bool right = decant_question_favourite(set, question, scores, false) == question->answer;
        bool right_normalized = decant_question_favourite(set, question, scores, true) == question->answer;
        add_answer(&subjects[question->subject], right, right_normalized);
        add_answer(overall, right, right_normalized);
    }
}
