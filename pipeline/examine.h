/* The commands that look at finished containers, on one process: inspect, verify, compare, allocate. */
#ifndef DECANT_PIPELINE_EXAMINE_H
#define DECANT_PIPELINE_EXAMINE_H

#include "pipeline/options.h"

#include <stdio.h>

/* Runs options->command and prints its result. `compare` returns DECANT_ERROR_INPUT when the containers differ.
 */
decant_status decant_examine(const decant_options *options, FILE *stream, decant_error *err);

/* `decant inspect`, inspect.c: what options->container says of itself. DECANT_ERROR_INPUT when it holds no
 * model or is damaged. */
decant_status decant_inspect(const decant_options *options, FILE *stream, decant_error *err);

/* `decant allocate`, reallocate.c: the allocation of options->container solved again for options->bits,
 * size_bytes or sweep, and printed; the container stays as it is. DECANT_ERROR_USAGE for a budget that cannot
 * be kept. */
decant_status decant_reallocate(const decant_options *options, FILE *stream, decant_error *err);

#endif
