/* See import_statistics.h. */
#include "pipeline/import_statistics.h"

#include "stages/statistics.h"

#include <math.h>

decant_status decant_import_statistics(decant_ranks *ranks, const decant_options *options, decant_error *err)
{
    decant_model_config config = {0};
    const decant_family *family;
    decant_safetensors *gradients = NULL;
    /* What the gradient program does: sequences one by one, squared whole. It does not say what the loss was.
     */
    decant_statistics_origin origin = {.form = DECANT_FISHER_SEQUENCE,
                                       .sequences = options->sequences,
                                       .length = options->window,
                                       .micro_batch = 1,
                                       .replicas = 1,
                                       .loss = NAN};
    decant_status status = decant_model_config_read(options->model, &config, err);
    if (status == DECANT_OK)
        status = decant_family_find(&config, &family, err);
    if (status == DECANT_OK)
        status = decant_safetensors_open(options->gradients, &gradients, err);
    DECANT_TRY(decant_ranks_agree(ranks, status, err));
    DECANT_TRY(decant_statistics_import(ranks, options->output, options->overwrite, &config, family, gradients,
                                        &origin, err));
done:
    decant_safetensors_close(&gradients);
    decant_model_config_free(&config);
    return status;
}
