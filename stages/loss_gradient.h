/* Where calibration turns round: the final norm, the head, the loss of a sequence, and the gradient that goes
 * back into the last block. Sequence by sequence, so that logits take the room of one. */
#ifndef DECANT_STAGES_LOSS_GRADIENT_H
#define DECANT_STAGES_LOSS_GRADIENT_H

#include "stages/model.h"

/* Working space for one sequence; all zero before create and after free. */
typedef struct decant_loss_gradient {
    decant_matrix normed, dnormed; /* [T, hidden] */
    decant_matrix logits;          /* [T, vocabulary] */
    float *inverse_rms;            /* device [T] */
} decant_loss_gradient;

/* For sequences of part->tokens tokens. On failure freed. */
decant_status decant_loss_gradient_create(const decant_model_part *part, decant_loss_gradient *space,
                                          decant_error *err);
void decant_loss_gradient_free(const decant_model_part *part, decant_loss_gradient *space);

/* The loss of each sequence and the gradient of that loss; the part has its head placed.
 *   tokens    host [x.rows]: the sequences one after the other
 *   x         what leaves the last block
 *   gradient  of x's shape; filled
 *   losses    host [sequences in x]; filled: means over a sequence's targets */
decant_status decant_loss_gradient_compute(const decant_model_part *part, const decant_loss_gradient *space,
                                           const int32_t *tokens, decant_matrix x, decant_matrix gradient,
                                           double *losses, decant_error *err);

#endif
