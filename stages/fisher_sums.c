/* See fisher_sums.h. */
#include "stages/fisher_sums.h"

#include "base/memory.h"

static int index_of(const decant_fisher_sums *fisher, int block, int linear)
{
    return block * fisher->family->linear_count + linear;
}

decant_status decant_fisher_sums_list(decant_backend *backend, const decant_model_config *config,
                                      const decant_family *family, decant_fisher_form form, int first_layer,
                                      int layer_count, decant_fisher_sums *fisher, decant_error *err)
{
    *fisher = (decant_fisher_sums){backend, config, family, form, first_layer, layer_count, NULL};
    size_t count = (size_t)layer_count * (size_t)family->linear_count;
    return decant_memory_allocate(count * sizeof *fisher->sums, "Fisher sums", (void **)&fisher->sums, err);
}

decant_status decant_fisher_sums_add(decant_fisher_sums *fisher, int block, int linear, decant_error *err)
{
    decant_linear shape;
    fisher->family->linear(fisher->config, fisher->first_layer + block, linear, &shape);
    return fisher->backend->memory->allocate(
        fisher->backend, (size_t)(shape.rows * shape.columns) * sizeof(float), "Fisher sums",
        (void **)&fisher->sums[index_of(fisher, block, linear)], err);
}

decant_status decant_fisher_sums_create(decant_backend *backend, const decant_model_config *config,
                                        const decant_family *family, decant_fisher_form form, int first_layer,
                                        int layer_count, decant_fisher_sums *fisher, decant_error *err)
{
    decant_status status =
        decant_fisher_sums_list(backend, config, family, form, first_layer, layer_count, fisher, err);
    for (int i = 0; status == DECANT_OK && i < layer_count * family->linear_count; i++)
        status = decant_fisher_sums_add(fisher, i / family->linear_count, i % family->linear_count, err);
    if (status != DECANT_OK)
        decant_fisher_sums_free(fisher);
    return status;
}

float *decant_fisher_sums_at(const decant_fisher_sums *fisher, int block, int linear)
{
    return fisher->sums[index_of(fisher, block, linear)];
}

decant_block_fisher decant_fisher_sums_of_block(const decant_fisher_sums *fisher, int block)
{
    decant_block_fisher sums = {.form = fisher->form};
    for (int linear = 0; linear < fisher->family->linear_count; linear++)
        sums.sums[linear] = decant_fisher_sums_at(fisher, block, linear);
    return sums;
}

void decant_fisher_sums_release(decant_fisher_sums *fisher, int block, int linear)
{
    fisher->backend->memory->release(fisher->backend, (void **)&fisher->sums[index_of(fisher, block, linear)]);
}

void decant_fisher_sums_free(decant_fisher_sums *fisher)
{
    for (int block = 0; fisher->sums && block < fisher->layer_count; block++)
        for (int linear = 0; linear < fisher->family->linear_count; linear++)
            decant_fisher_sums_release(fisher, block, linear);
    decant_memory_free(fisher->sums);
    fisher->sums = NULL;
}
