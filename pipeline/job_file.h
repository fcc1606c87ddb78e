/* The job file: options under the same names as on the command line, a `name = value` line each. */
#ifndef DECANT_PIPELINE_JOB_FILE_H
#define DECANT_PIPELINE_JOB_FILE_H

#include "pipeline/option_values.h"

/* Sets the options that the file at `path` names.
 *   rows    [count]: the options there are
 *   given   [count]: those that were said on the command line, which wins
 * DECANT_ERROR_USAGE for a name or value that is none, DECANT_ERROR_INPUT when the file cannot be read or a
 * line is no `name = value`. */
decant_status decant_job_file_read(const char *path, const option_row *rows, int count, const bool *given,
                                   decant_options *options, decant_error *err);

#endif
