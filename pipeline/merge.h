/* The command `merge`: statistics of disjoint calibration parts become one file. What adding means is
 * stages/merge.h. */
#ifndef DECANT_PIPELINE_MERGE_H
#define DECANT_PIPELINE_MERGE_H

#include "base/log.h"
#include "base/ranks.h"
#include "pipeline/options.h"

/* Collective. Adds options->parts into options->output. */
decant_status decant_merge_command(decant_ranks *ranks, const decant_options *options, decant_log *log,
                                   decant_error *err);

#endif
