/* One rank's share of calibration: passes micro-batches forward and backward through its layers and adds up
 * their Fisher sums. The schedule and the messages between ranks are the pipeline's; this is what happens
 * inside a rank.
 *
 * A micro-batch is some consecutive sequences, at most part->sequences. Between its forward and its backward
 * pass it occupies a slot: the input of every block, and, where memory allows, everything a block keeps.
 * Without the latter a block is computed again before its backward pass; the values are the same either way. */
#ifndef DECANT_STAGES_CALIBRATE_H
#define DECANT_STAGES_CALIBRATE_H

#include "stages/fisher_sums.h"

typedef struct decant_calibration decant_calibration;

/* Prepares for sequences of part->tokens tokens.
 *   part    borrowed; outlives the calibration
 *   fisher  of the part's layers, borrowed; what backward adds to
 *   slots   micro-batches between forward and backward pass at most
 *   retain  keep what blocks keep of every micro-batch in flight, in place of computing it again
 *   interlude  called between blocks */
decant_status decant_calibration_create(const decant_model_part *part, decant_fisher_sums *fisher,
                                        int64_t slots, bool retain, decant_interlude interlude,
                                        decant_calibration **calibration, decant_error *err);
void decant_calibration_destroy(decant_calibration **calibration); /* takes NULL, sets NULL */

/* Passes one block, and the model's ends that the part has, forward and then backward with a gradient of zeros.
 * The sums stay as they are, to the bit, and whatever a device does at the first use of a kernel is done: in a
 * pipeline of stages it would be waited for once a stage. Waits for the device.
 *
 *   tokens  host [sequences · T], sequences at most part->sequences
 *   losses  host [sequences], overwritten where the part has the head */
decant_status decant_calibration_warm_up(decant_calibration *calibration, const int32_t *tokens,
                                         int64_t sequences, double *losses, decant_error *err);

/* The activations of `sequences` sequences that enter the part in this slot [sequences · T, hidden]: the
 * pipeline fills them, unless the part has the embedding. */
decant_matrix decant_calibration_input(decant_calibration *calibration, int64_t slot, int64_t sequences);

/* Passes the micro-batch in `slot` forward; *output is what leaves the part (valid until the next forward
 * call). When the part has the head, the loss is computed and losses set.
 *   tokens  host [sequences · T]
 *   losses  host [sequences]; means over a sequence's targets */
decant_status decant_calibration_forward(decant_calibration *calibration, int64_t slot, const int32_t *tokens,
                                         int64_t sequences, decant_matrix *output, double *losses,
                                         decant_error *err);

/* The gradient that enters the part [sequences · T, hidden], for the pipeline to fill, unless the part has the
 * head. After backward it holds the gradient that leaves the part. */
decant_matrix decant_calibration_gradient(decant_calibration *calibration, int64_t sequences);

/* Passes the micro-batch in `slot` backward and adds to the Fisher sums. Micro-batches go backward in order. A
 * part with the head goes backward right after the forward pass of the same micro-batch. */
decant_status decant_calibration_backward(decant_calibration *calibration, int64_t slot, int64_t sequences,
                                          decant_error *err);

#endif
