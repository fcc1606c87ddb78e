/* What calibration has added up so far, in a file from which it goes on: the Fisher sums of all layers of every
 * replica, the losses, and how many micro-batches are in them. A container (io/container.h) with
 *
 *   /replicaR/LAYER/fisher   F32 [rows, columns]: the sums of replica R
 *   /replicaR/LAYER/hessian  F32 [groups, columns, columns]: its Hessians, for guided
 *   /losses                  F64 [sequences]: of those in the sums; of the others 0
 *   attribute `kind` "checkpoint", `micro_batches`: how many of its own each replica has in its sums
 *
 * so 4 bytes a quantized weight and replica, and those of Hessians. Sums are stored a matrix, so any number of
 * stages can go on from them; the replicas must be as many. Which job it belongs to is the work directory's
 * head's to say. */
#ifndef DECANT_PIPELINE_CALIBRATION_CHECKPOINT_H
#define DECANT_PIPELINE_CALIBRATION_CHECKPOINT_H

#include "pipeline/calibration_run.h"

/* Collective, no messages of the run need wait. The file takes its place at once, whole, or the one before
 * stays. micro_batches   in the sums of each replica, or all of them where a replica has fewer */
decant_status decant_calibration_checkpoint_write(decant_calibration_run *run, int64_t micro_batches,
                                                  decant_error *err);

/* Local. Takes what is finished off the run's share of micro-batches, before anything is made for them; nothing
 * when there is no checkpoint. *file stays open for restore; closed by the caller, after a failure too. */
decant_status decant_calibration_checkpoint_open(decant_calibration_run *run, decant_container **file,
                                                 decant_error *err);

/* Local. Reads the sums for which run->fisher has room and, on rank 0, the losses. file NULL: nothing. */
decant_status decant_calibration_checkpoint_restore(decant_calibration_run *run, const decant_container *file,
                                                    decant_error *err);

#endif
