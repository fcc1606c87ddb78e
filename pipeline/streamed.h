/* Calibration one layer after the other: a block is brought in, all of this rank's micro-batches pass it, and
 * it goes; forward through all blocks, then backward. A block's Fisher sums are complete when its backward pass
 * is, so they are used at once, and the device never holds more than one block's, however many layers there
 * are.
 *
 * Between stages, a micro-batch's activations are sent as soon as it leaves the last block; a stage therefore
 * begins when the one before it has reached its last block. Replicas keep more ranks busy than stages do. */
#ifndef DECANT_PIPELINE_STREAMED_H
#define DECANT_PIPELINE_STREAMED_H

#include "pipeline/calibration_run.h"
#include "pipeline/replicas.h"
#include "stages/streamed_calibration.h"

typedef struct decant_streamed {
    decant_model_part part; /* an outline */
    decant_streamed_calibration *calibration;
} decant_streamed;

/* Local. Makes room; this rank has layers.
 *   scratch  folder for what lies between blocks; NULL: host memory
 * Free it, after a failure too. */
decant_status decant_streamed_create(decant_calibration_run *run, const char *scratch,
                                     decant_streamed *streamed, decant_error *err);
void decant_streamed_free(decant_streamed *streamed); /* takes zeros */

/* All micro-batches through all blocks; each block's sums are added up over the replicas and given to the sink.
 * Failures are in run->standing. */
void decant_streamed_run(decant_calibration_run *run, decant_streamed *streamed,
                         decant_replica_exchange *exchange, const decant_block_sink *sink);

#endif
