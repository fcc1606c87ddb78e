/* One rank's share of calibration: passes sequences forward and backward through its layers and adds up their
 * Fisher sums. The schedule and the messages between ranks are the pipeline's; this is what happens inside a
 * rank.
 *
 * Between its forward and its backward pass a sequence occupies a slot: the input of every block, and, where
 * memory allows, everything a block keeps. Without the latter a block is computed again before its backward
 * pass; the values are the same either way. */
#ifndef DECANT_STAGES_CALIBRATE_H
#define DECANT_STAGES_CALIBRATE_H

#include "stages/fisher_sums.h"

typedef struct decant_calibration decant_calibration;

/* Prepares for sequences of part->tokens tokens.
 *   part    borrowed; outlives the calibration
 *   fisher  of the part's layers, borrowed; what backward adds to
 *   slots   sequences between forward and backward pass at most
 *   retain  keep what blocks keep of every sequence in flight, in place of computing it again */
decant_status decant_calibration_create(const decant_model_part *part, decant_fisher_sums *fisher,
                                        int64_t slots, bool retain, decant_calibration **calibration,
                                        decant_error *err);
void decant_calibration_destroy(decant_calibration **calibration); /* takes NULL, sets NULL */

/* Device bytes that create would take for one more slot, and for what it retains of it: for choosing `retain`.
 */
decant_status decant_calibration_slot_bytes(const decant_model_part *part, int64_t *boundary_bytes,
                                            int64_t *retained_bytes, decant_error *err);

/* The activation that enters the part in this slot [T, hidden]: the pipeline fills it, unless the part has the
 * embedding. */
decant_matrix decant_calibration_input(decant_calibration *calibration, int64_t slot);

/* Passes the sequence in `slot` forward; *output is the activation that leaves the part (valid until the next
 * forward call), or, when the part has the head, the loss is computed and *loss set.  tokens: host [T]. */
decant_status decant_calibration_forward(decant_calibration *calibration, int64_t slot, const int32_t *tokens,
                                         decant_matrix *output, double *loss, decant_error *err);

/* The gradient that enters the part [T, hidden], for the pipeline to fill, unless the part has the head. After
 * backward it holds the gradient that leaves the part. */
decant_matrix decant_calibration_gradient(decant_calibration *calibration);

/* Passes the sequence in `slot` backward and adds to the Fisher sums. Slots go backward in sequence order. A
 * part with the head goes backward right after the forward pass of the same sequence. */
decant_status decant_calibration_backward(decant_calibration *calibration, int64_t slot, decant_error *err);

#endif
