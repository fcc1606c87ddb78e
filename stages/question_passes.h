/* Which sequences pass a model so that the choices of questions can be scored, and what the scores say. Pure:
 * nothing here computes on a device or knows of ranks.
 *
 * The score of a choice is its log-likelihood after the question's context, Σ log p(token | all before). One
 * pass of the context gives the scores of all choices of one token; a longer choice takes a pass of its own, of
 * the context and the choice but for its last token. Passes are ordered by length and those of similar length
 * put side by side, filled up at their ends, which causal attention never looks at. This depends on the
 * questions alone, so results do not depend on ranks. */
#ifndef DECANT_STAGES_QUESTION_PASSES_H
#define DECANT_STAGES_QUESTION_PASSES_H

#include "io/question_file.h"

/* One sequence through a model, and the choices that its logits score. */
typedef struct decant_question_pass {
    int64_t question;              /* index into the set's questions */
    int64_t context;               /* tokens of it; logits of the last of them predict a choice's first token */
    int64_t length;                /* tokens of the sequence */
    int64_t first_choice, choices; /* indices into the set's choices */
} decant_question_pass;

/* Passes that go through a model together. */
typedef struct decant_question_batch {
    int64_t first_pass, passes;
    int64_t length;      /* to which each is filled up */
    int64_t first_token; /* index into `tokens` of [passes, length] */
} decant_question_batch;

typedef struct decant_question_passes {
    const decant_question_set *set; /* borrowed */
    decant_question_pass *passes;   /* [pass_count], by length; owned, as is all below */
    int64_t pass_count;
    decant_question_batch *batches; /* [batch_count] */
    int64_t batch_count;
    int32_t *tokens;
    int64_t largest_batch; /* most tokens of a batch, filling included */
    int64_t head_rows;     /* most positions of a pass that predict a choice's tokens */
} decant_question_passes;

/* tokens_together: batches have at most so many tokens, unless a single pass is longer. Freed with
 * decant_question_passes_free, which takes empty ones too; empty after a failure. */
decant_status decant_question_passes_create(const decant_question_set *set, int64_t tokens_together,
                                            decant_question_passes *passes, decant_error *err);
void decant_question_passes_free(decant_question_passes *passes);

/* How many answers were right. */
typedef struct decant_question_tally {
    int64_t questions;
    int64_t right;            /* the right choice has the largest score, the first among equals */
    int64_t right_normalized; /* the same of score / length */
} decant_question_tally;

/* From the scores of all choices.
 *   scores    [set->choice_count]
 *   subjects  [set->subject_count]; filled
 *   overall   over all questions */
void decant_question_tally_scores(const decant_question_set *set, const double *scores,
                                  decant_question_tally *subjects, decant_question_tally *overall);

/* The choice that the scores favour, counted from 0; normalized: by score / length. The first among equals. */
int decant_question_favourite(const decant_question_set *set, const decant_question *question,
                              const double *scores, bool normalized);

#endif
