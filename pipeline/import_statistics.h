/* The command `import-statistics`: squared gradients of another program as a file for `run --statistics`. */
#ifndef DECANT_PIPELINE_IMPORT_STATISTICS_H
#define DECANT_PIPELINE_IMPORT_STATISTICS_H

#include "base/ranks.h"
#include "pipeline/options.h"

/* Collective; rank 0 does the work. Reads options->gradients, one matrix at a time, by the layers that the
 * model's config.json has, and writes options->output. DECANT_ERROR_INPUT when they are not what
 * stages/gradients.h takes; nothing is written then. */
decant_status decant_import_statistics(decant_ranks *ranks, const decant_options *options, decant_error *err);

#endif
