/* `decant plan`: from a config.json and the options to a plan, printed for people or as JSON. */
#ifndef DECANT_PIPELINE_PLAN_REPORT_H
#define DECANT_PIPELINE_PLAN_REPORT_H

#include "pipeline/plan.h"

#include <stdio.h>

/* Prints the plan of the options' model and ranks. DECANT_ERROR_MEMORY when it does not fit, with one line that
 * says what would; the plan is printed all the same. */
decant_status decant_plan_command(const decant_options *options, FILE *stream, decant_error *err);

#endif
