/* The command `export`: a container as a folder that other programs read. One process, one matrix in memory at
 * a time. */
#ifndef DECANT_PIPELINE_EXPORT_H
#define DECANT_PIPELINE_EXPORT_H

#include "pipeline/options.h"

#include <stdio.h>

/* Writes options->container to the folder options->output, which appears whole or not at all, and tells on
 * `stream` what is in it. DECANT_ERROR_INPUT when the container is damaged or holds a layer that the format
 * cannot; DECANT_ERROR_USAGE when the folder may not be written. */
decant_status decant_export_command(const decant_options *options, FILE *stream, decant_error *err);

#endif
