/* What a laid-out plan moves, computes and takes: bytes sent, operations, seconds by stage, the schedule's idle
 * share, sizes of files. Pure; a part of plan.c that has a file of its own. */
#ifndef DECANT_PIPELINE_PLAN_SECONDS_H
#define DECANT_PIPELINE_PLAN_SECONDS_H

#include "pipeline/plan.h"

/* Operations, bytes sent, seconds and idle share of calibration. */
decant_status decant_plan_calibration_seconds(decant_plan *plan, const decant_linear_sizes *sizes,
                                              const decant_rates *rates, decant_error *err);

/* The same and the other stages. */
decant_status decant_plan_all_seconds(decant_plan *plan, const decant_linear_sizes *sizes,
                                      const decant_rates *rates, decant_error *err);

/* The sizes of the files that the job may write. */
void decant_plan_file_sizes(decant_plan *plan, const decant_linear_sizes *sizes);

#endif
