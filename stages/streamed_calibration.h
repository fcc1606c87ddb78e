/* One rank's share of calibration when its layers do not fit the device together: one block at a time is there,
 * with the next one on its way, and all micro-batches pass it before it leaves. What lies between blocks waits
 * outside (stages/boundaries.h); inside, a block is computed again before its backward pass. The values are
 * those of stages/calibrate.h, and the Fisher sums are added in the same order.
 *
 * The order of calls, which is the pipeline's (pipeline/streamed.c): blocks ascending, each entered, then each
 * micro-batch arriving (first block only), forward, departing; then blocks descending, each entered, each
 * micro-batch backward; each block left when it is done with, and what lies behind it given up when nobody will
 * want to go back. Passes may begin and end anywhere in this order: what an earlier job saved of what lies
 * before a block can be put there (decant_streamed_calibration_restore). */
#ifndef DECANT_STAGES_STREAMED_CALIBRATION_H
#define DECANT_STAGES_STREAMED_CALIBRATION_H

#include "stages/fisher_sums.h"

typedef struct decant_streamed_calibration decant_streamed_calibration;

/* Prepares for micro-batches of up to part->sequences sequences.
 *   part     an outline (decant_model_part_outline), borrowed: its blocks come and go
 *   source   of the weights, borrowed
 *   fisher   of the part's layers, borrowed; a list: the sums of a block are added as it goes backward
 *   batches  micro-batches that will pass
 *   on_device  micro-batches' boundaries that stay on the device
 *   scratch    folder for what lies between blocks besides, borrowed; NULL: host memory */
decant_status decant_streamed_calibration_create(decant_model_part *part, const decant_weight_source *source,
                                                 decant_fisher_sums *fisher, int64_t batches, int64_t on_device,
                                                 const char *scratch, decant_streamed_calibration **calibration,
                                                 decant_error *err);
void decant_streamed_calibration_destroy(decant_streamed_calibration **calibration); /* takes NULL, sets NULL */

/* Which way the blocks are gone through: it says which block comes next. */
typedef enum decant_pass { DECANT_PASS_FORWARD, DECANT_PASS_BACKWARD } decant_pass;

/* Brings a block in, with the embedding or head where a forward pass of it needs them, and sends the next one
 * on its way. For a backward pass the block's Fisher sums are zeroed. */
decant_status decant_streamed_calibration_enter(decant_streamed_calibration *calibration, decant_pass pass,
                                                int block, decant_error *err);
/* All micro-batches have passed it. The last block stays for its backward pass. */
decant_status decant_streamed_calibration_leave(decant_streamed_calibration *calibration, decant_pass pass,
                                                int block, decant_error *err);
/* The block went backward and was left: gives up the gradients behind it, from which it could be done again. */
void decant_streamed_calibration_forget(decant_streamed_calibration *calibration, int block);

/* The device array that micro-batch `batch` enters a forward pass from [sequences · T, hidden]: for the
 * pipeline to fill for the first block, unless the part has the embedding. */
decant_matrix decant_streamed_calibration_input(decant_streamed_calibration *calibration, int64_t batch,
                                                int64_t sequences);
/* What a forward pass of the last block gave; what a backward pass takes, for the pipeline to fill for the last
 * block, unless the part has the head; what a backward pass gave. */
decant_matrix decant_streamed_calibration_output(decant_streamed_calibration *calibration, int64_t batch,
                                                 int64_t sequences);

/* One micro-batch through the block that was entered. Where the part has the head, the last block's forward
 * pass computes the losses.
 *   tokens  host [sequences · T]
 *   losses  host [sequences] */
decant_status decant_streamed_calibration_forward(decant_streamed_calibration *calibration, int block,
                                                  int64_t batch, const int32_t *tokens, int64_t sequences,
                                                  double *losses, decant_error *err);
decant_status decant_streamed_calibration_backward(decant_streamed_calibration *calibration, int block,
                                                   int64_t batch, int64_t sequences, decant_error *err);

/* Where no block goes forward: keeps the first block's input, which the pipeline has filled, for its backward
 * pass. */
decant_status decant_streamed_calibration_keep_input(decant_streamed_calibration *calibration, int64_t batch,
                                                     int64_t sequences, decant_error *err);

/* What lies before block `block` of one micro-batch, or behind the last one where block is layer_count: what
 * enters it, or, once the block went backward, the gradient of that. Between two blocks' passes, into host
 * memory [sequences · T, hidden], or out of it: then the pipeline need not fill what was restored. */
decant_status decant_streamed_calibration_fetch(decant_streamed_calibration *calibration, int block,
                                                int64_t batch, int64_t sequences, void *host,
                                                decant_error *err);
decant_status decant_streamed_calibration_restore(decant_streamed_calibration *calibration, int block,
                                                  int64_t batch, int64_t sequences, const void *host,
                                                  decant_error *err);

#endif
