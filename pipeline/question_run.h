/* Questions over all ranks: their passes go through both models as windows of text do, each batch on the ranks
 * of one replica, and every rank gets every score. */
#ifndef DECANT_PIPELINE_QUESTION_RUN_H
#define DECANT_PIPELINE_QUESTION_RUN_H

#include "pipeline/paired_models.h"
#include "stages/question_passes.h"

/* Collective. Which sequences pass together; freed with decant_question_passes_free. */
decant_status decant_question_run_prepare(decant_job *job, const decant_question_set *set,
                                          decant_question_passes *passes, decant_error *err);

/* Collective. Fills the result, which is empty after a failure. */
decant_status decant_question_run(decant_paired_models *models, const decant_question_passes *passes,
                                  decant_question_result *result, decant_error *err);

#endif
