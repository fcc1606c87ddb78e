/* See import_statistics.h. */
#include "pipeline/import_statistics.h"

#include "stages/linear_weight.h"
#include "stages/statistics.h"

#include <math.h>

/* What ties statistics to their model. */
static decant_status sum_model(const char *path, const decant_model_config *config, const decant_family *family,
                               uint32_t *checksum, decant_error *err)
{
    decant_safetensors *model = NULL;
    decant_status status = decant_safetensors_open(path, &model, err);
    for (int i = 0; status == DECANT_OK && i < config->layers * family->linear_count; i++) {
        decant_linear linear;
        decant_linear_weight weight;
        family->linear(config, i / family->linear_count, i % family->linear_count, &linear);
        status = decant_linear_weight_find(model, &linear, &weight, err);
        if (status == DECANT_OK)
            *checksum = decant_model_checksum_extend(*checksum, decant_linear_weight_checksum(&weight));
    }
    if (status == DECANT_OK)
        status = decant_safetensors_check(model, err);
    decant_safetensors_close(&model);
    return status;
}

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
    if (status == DECANT_OK && ranks->rank == 0)
        status = sum_model(options->model, &config, family, &origin.model_checksum, err);
    DECANT_TRY(decant_ranks_agree(ranks, status, err));
    DECANT_TRY(decant_ranks_broadcast(ranks, 0, &origin.model_checksum, sizeof origin.model_checksum, err));
    DECANT_TRY(decant_statistics_import(ranks, options->output, options->overwrite, &config, family, gradients,
                                        &origin, err));
done:
    decant_safetensors_close(&gradients);
    decant_model_config_free(&config);
    return status;
}
