/* Which layers of a model a stage has, and which matrices a replica of it: decided once, for a plan and for the
 * job that it is the plan of. Pure. */
#ifndef DECANT_PIPELINE_PLACEMENT_H
#define DECANT_PIPELINE_PLACEMENT_H

#include "pipeline/schedule.h"
#include "stages/model.h"

/* The layers of each of a replica's stages, balanced for calibration; the share depends on the model alone, not
 * on what is asked of it. ranges [stages] */
void decant_placement_layers(const decant_model_config *config, int stages, decant_layer_range *ranges);

/* Which replica of a stage owns which of its matrices: shared out by their weights, as decant_schedule_owners
 * says.
 *   layers   the stage's
 *   owners   [layers.count, linear_count]; filled
 * DECANT_ERROR_MEMORY when there is none for a number a matrix. */
decant_status decant_placement_owners(const decant_model_config *config, const decant_family *family,
                                      decant_layer_range layers, int replicas, int *owners, decant_error *err);

#endif
