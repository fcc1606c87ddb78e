/* How a job's container says what made it: the root attributes `options` and `device`. */
#ifndef DECANT_PIPELINE_PROVENANCE_H
#define DECANT_PIPELINE_PROVENANCE_H

#include "pipeline/job.h"

enum { DECANT_PROVENANCE_BYTES = 1024 };

/* The options that decide the contents, `name=value` pairs separated by blanks. Where there are statistics,
 * their form is theirs, whatever --fisher says. origin   of the statistics; sequences 0: there are none */
void decant_job_describe_options(const decant_job *job, const decant_statistics_origin *origin,
                                 char text[DECANT_PROVENANCE_BYTES]);

/* The kind of device and its arithmetic: "cuda BF16". */
void decant_job_describe_device(const decant_job *job, char *text, size_t size);

#endif
