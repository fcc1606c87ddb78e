/* Calibration one layer after the other: a block is brought in, all of this rank's micro-batches pass it, and
 * it goes; forward through all blocks, then backward. A block's Fisher sums are complete when its backward pass
 * is, so they are used at once, and the device never holds more than one block's, however many layers there
 * are.
 *
 * Between stages, a micro-batch's activations are sent as soon as it leaves the last block; a stage therefore
 * begins when the one before it has reached its last block. Replicas keep more ranks busy than stages do.
 *
 * All ranks meet after every round (pipeline/streamed_order.h): there they agree on failures, and save what is
 * done when it is time to (pipeline/streamed_checkpoint.h). A rank that is sent a signal stops at its next
 * micro-batch or matrix, and with it the round; all leave with what was there before the round. */
#ifndef DECANT_PIPELINE_STREAMED_H
#define DECANT_PIPELINE_STREAMED_H

#include "pipeline/replicas.h"
#include "pipeline/streamed_checkpoint.h"

typedef struct decant_streamed {
    decant_model_part part;                   /* an outline */
    decant_streamed_calibration *calibration; /* NULL where this rank has no layers */
    decant_streamed_checkpoint checkpoint;
    const decant_block_sink *sink; /* borrowed */
    decant_streamed_state state;   /* what is done, on all ranks */
    bool has_input, has_gradient;  /* restored, so that no neighbour sends them: what enters this rank's first
                                      block; the gradient behind its last one */
} decant_streamed;

/* Local. Makes room, and restores what an earlier job has saved. Signals are listened to from now on.
 *   scratch  folder for what lies between blocks; NULL: host memory
 *   sink     of the blocks, borrowed
 * Free it, after a failure too. */
decant_status decant_streamed_create(decant_calibration_run *run, const char *scratch,
                                     const decant_block_sink *sink, decant_streamed *streamed,
                                     decant_error *err);
void decant_streamed_free(decant_streamed *streamed); /* takes zeros */

/* Collective. All micro-batches through all blocks; each block's sums are added up over the replicas and given
 * to the sink. Failures, and DECANT_INTERRUPTED, are in run->standing. */
void decant_streamed_run(decant_calibration_run *run, decant_streamed *streamed,
                         decant_replica_exchange *exchange);

#endif
