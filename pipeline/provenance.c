/* See provenance.h. */
#include "pipeline/provenance.h"

#include <stdio.h>

void decant_job_describe_options(const decant_job *job, const decant_statistics_origin *origin,
                                 char text[DECANT_PROVENANCE_BYTES])
{
    decant_options described = *job->options;
    if (origin->sequences > 0)
        described.fisher = (int)origin->form;
    decant_options_describe(&described, text, DECANT_PROVENANCE_BYTES);
}

void decant_job_describe_device(const decant_job *job, char *text, size_t size)
{
    snprintf(text, size, "%s %s", job->backend->name, decant_element_name(job->backend->activation));
}
