/* See not_finite.h. */
#include "pipeline/not_finite.h"

decant_status decant_job_tell_not_finite(const decant_job *job, const char *whose, const char *what,
                                         decant_error *err)
{
    decant_status status = decant_safetensors_check_finite(job->model, err);
    if (status != DECANT_OK)
        return status;
    return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                        "%s: %s is not finite: an embedding, norm, bias or weight is no number or too large",
                        whose, what);
}
