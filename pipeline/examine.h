/* The commands that look at finished containers, on one process: inspect, verify, compare, allocate. */
#ifndef DECANT_PIPELINE_EXAMINE_H
#define DECANT_PIPELINE_EXAMINE_H

#include "pipeline/options.h"

#include <stdio.h>

/* Runs options->command and prints its result. `compare` returns DECANT_ERROR_INPUT when the containers differ.
 */
decant_status decant_examine(const decant_options *options, FILE *stream, decant_error *err);

#endif
