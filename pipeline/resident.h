/* Calibration with everything in place: a rank's layers and their Fisher sums stay where it computes, and
 * micro-batches stream through the stages, one forward and one backward in turn (pipeline/schedule.h). */
#ifndef DECANT_PIPELINE_RESIDENT_H
#define DECANT_PIPELINE_RESIDENT_H

#include "pipeline/checkpoint_rounds.h"
#include "pipeline/host_lead.h"
#include "stages/calibrate.h"

typedef struct decant_resident {
    decant_model_part part;
    decant_calibration *calibration;
    int64_t slots;
    decant_calibration_run *run; /* borrowed */
    decant_host_lead lead;       /* over a device */
} decant_resident;

/* Local. Loads the layers and makes room; this rank has layers.
 *   retain  keep what blocks keep, in place of computing it again
 * Free it, after a failure too. */
decant_status decant_resident_create(decant_calibration_run *run, bool retain, decant_resident *resident,
                                     decant_error *err);
void decant_resident_free(decant_resident *resident); /* takes zeros */

/* All micro-batches of this rank, in the schedule's order, with checkpoints between them. Failures, and
 * interruption, are in run->standing. */
void decant_resident_run(decant_calibration_run *run, decant_resident *resident,
                         decant_checkpoint_rounds *rounds);

#endif
