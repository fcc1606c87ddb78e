/* The scores of questions' choices, from the logits of both models: the end of a pass, where the head is. */
#ifndef DECANT_STAGES_QUESTION_SCORES_H
#define DECANT_STAGES_QUESTION_SCORES_H

#include "stages/question_passes.h"
#include "stages/validate.h"

/* Scores the choices of a batch whose passes went through all blocks; this part has the head.
 *   logits   device F32 [passes->head_rows, vocabulary]: scratch
 *   scores   [DECANT_VALIDATION_MODELS] of host [choices of the set], natural logarithms: those of this batch's
 *            choices are filled, of the models that there are
 *   seconds  as for decant_validation_head */
decant_status decant_question_scores_fill(decant_validation *validation, decant_backend *backend,
                                          const decant_question_passes *passes,
                                          const decant_question_batch *batch, bool has_original,
                                          decant_matrix logits, double *const *scores, double *seconds,
                                          decant_error *err);

#endif
