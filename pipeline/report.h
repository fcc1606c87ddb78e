/* What the job says of its stages: lines for people, figures for the log, results on stdout. Rank 0 speaks.
 * Some of these gather figures of all ranks and are collective, as everything that takes a decant_job is. */
#ifndef DECANT_PIPELINE_REPORT_H
#define DECANT_PIPELINE_REPORT_H

#include "pipeline/calibration_run.h"
#include "pipeline/job.h"
#include "stages/error_table.h"
#include "stages/sensitivity.h"

void decant_report_calibration(decant_job *job, const decant_statistics_origin *origin, double seconds);
/* How long each rank stood idle while micro-batches streamed, and how long the schedule says that it had to. */
void decant_report_idleness(const decant_calibration_run *run);
void decant_report_quantization(decant_job *job, const decant_error_table *table, double seconds);
void decant_report_sensitivity(decant_job *job, const decant_sensitivity *sensitivity, double seconds);
void decant_report_allocation(decant_job *job, const decant_error_table *table, const int *chosen,
                              const decant_plan_summary *summary, double seconds);
void decant_report_writing(decant_job *job, double seconds);

/* summary may be NULL, when the plan is not at hand; result without windows and questions without a set were
 * not asked for. */
void decant_report_validation(decant_job *job, const decant_validation_result *result,
                              const decant_question_result *questions, const decant_plan_summary *summary,
                              double seconds);

#endif
