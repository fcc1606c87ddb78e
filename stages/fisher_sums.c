/* See fisher_sums.h. */
#include "stages/fisher_sums.h"

#include "base/memory.h"

static int index_of(const decant_fisher_sums *fisher, int block, int linear)
{
    return block * fisher->family->linear_count + linear;
}

decant_status decant_fisher_sums_create(decant_backend *backend, const decant_model_config *config,
                                        const decant_family *family, decant_fisher_form form, int first_layer,
                                        int layer_count, decant_fisher_sums *fisher, decant_error *err)
{
    decant_status status;
    *fisher = (decant_fisher_sums){backend, config, family, form, first_layer, layer_count, NULL};
    size_t count = (size_t)layer_count * (size_t)family->linear_count;
    DECANT_TRY(
        decant_memory_allocate(count * sizeof *fisher->sums, "Fisher sums", (void **)&fisher->sums, err));
    for (int block = 0; block < layer_count; block++)
        for (int i = 0; i < family->linear_count; i++) {
            decant_linear linear;
            family->linear(config, first_layer + block, i, &linear);
            DECANT_TRY(backend->memory->allocate(
                backend, (size_t)(linear.rows * linear.columns) * sizeof(float), "Fisher sums",
                (void **)&fisher->sums[index_of(fisher, block, i)], err));
        }
done:
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
