/* See not_finite.h. */
#include "pipeline/not_finite.h"

decant_status decant_job_tell_not_finite(const decant_job *job, int model, const char *what, decant_error *err)
{
    const decant_options *options = job->options;
    const char *whose = model == DECANT_VALIDATION_ORIGINAL ? options->model
                        : options->container[0]             ? options->container
                                                            : options->output;
    decant_status status = decant_safetensors_check_finite(job->model, err);
    if (status != DECANT_OK)
        return status;
    return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                        "%s: %s is not finite: an embedding, norm, bias or weight is no number or too large",
                        whose, what);
}
