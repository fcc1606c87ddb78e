/* What a streamed calibration saves, so that a job that was killed goes on. In the work directory, each a
 * container (io/container.h) with its checksums:
 *
 *   boundary.K.h5   what enters layer K for all sequences, dataset /replicaR [rows, hidden] of replica R;
 *                   K = layers: the gradient of the loss behind the last layer, and /losses F64 [sequences]
 *   layer.K.h5      what was made of layer K once it went backward (pipeline/streamed_blocks.h)
 *   gradient.K.h5   the gradient of what enters layer K, as a boundary, and /losses: written after the files of
 *                   the layers from K on, and so says that these are there; the one before it, and the
 *                   boundaries from K on, are removed then. K = 0: of the losses alone
 *
 * Nothing here depends on the stages, so any number of them goes on; what is kept of sequences is a replica's,
 * and the replicas must be as many. At most layers + 2 times a boundary and all layers' files are there at one
 * time. Which job it belongs to is the work directory's head's to say. */
#ifndef DECANT_PIPELINE_STREAMED_CHECKPOINT_H
#define DECANT_PIPELINE_STREAMED_CHECKPOINT_H

#include "pipeline/calibration_run.h"
#include "pipeline/streamed_order.h"
#include "stages/streamed_calibration.h"

typedef struct decant_streamed_checkpoint {
    decant_calibration_run *run;              /* borrowed */
    decant_streamed_calibration *calibration; /* borrowed; NULL where this rank has no layers */
    const decant_block_sink *sink;            /* borrowed */
    decant_streamed_state saved;              /* what is on disk; `left` is layers when no gradient is */
    char *record;                             /* host: one micro-batch's boundary */
} decant_streamed_checkpoint;

/* Local. What an earlier job saved is in `saved` then. Closed after a failure too; takes zeros. */
decant_status decant_streamed_checkpoint_open(decant_calibration_run *run,
                                              decant_streamed_calibration *calibration,
                                              const decant_block_sink *sink,
                                              decant_streamed_checkpoint *checkpoint, decant_error *err);
void decant_streamed_checkpoint_close(decant_streamed_checkpoint *checkpoint);

/* Local. Brings what was saved of this rank's layers to where calibration goes on from; rank 0, the losses too.
 * DECANT_ERROR_INPUT when a file is missing or damaged. */
decant_status decant_streamed_checkpoint_restore(decant_streamed_checkpoint *checkpoint, decant_error *err);

/* Collective. Saves what of `state` is not saved yet, layers and gradient first, then boundaries; when the job
 * leaves, only as many of these as a few seconds allow, and the rest is computed again. */
decant_status decant_streamed_checkpoint_write(decant_streamed_checkpoint *checkpoint,
                                               decant_streamed_state state, bool leaves, decant_error *err);

#endif
