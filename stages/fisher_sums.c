/* See fisher_sums.h. */
#include "stages/fisher_sums.h"

#include "base/memory.h"

static int index_of(const decant_fisher_sums *fisher, int block, int linear)
{
    return block * fisher->family->linear_count + linear;
}

decant_status decant_fisher_sums_list(decant_backend *backend, const decant_model_config *config,
                                      const decant_family *family, decant_fisher_form form, int hessian_groups,
                                      int first_layer, int layer_count, decant_fisher_sums *fisher,
                                      decant_error *err)
{
    *fisher = (decant_fisher_sums){backend,     config,      family, form, hessian_groups,
                                   first_layer, layer_count, NULL,   NULL};
    size_t count = (size_t)layer_count * (size_t)family->linear_count;
    decant_status status =
        decant_memory_allocate(count * sizeof *fisher->sums, "Fisher sums", (void **)&fisher->sums, err);
    if (status != DECANT_OK)
        return status;
    status = decant_memory_allocate(count * sizeof *fisher->host_sums, "Fisher sums",
                                    (void **)&fisher->host_sums, err);
    if (status != DECANT_OK)
        decant_fisher_sums_free(fisher);
    return status;
}

int64_t decant_fisher_sums_floats(int64_t rows, int64_t columns, int hessian_groups)
{
    return rows * columns + hessian_groups * columns * columns;
}

static size_t bytes_of(const decant_fisher_sums *fisher, int block, int linear)
{
    decant_linear shape;
    fisher->family->linear(fisher->config, fisher->first_layer + block, linear, &shape);
    return (size_t)decant_fisher_sums_floats(shape.rows, shape.columns, fisher->hessian_groups) * sizeof(float);
}

decant_status decant_fisher_sums_add(decant_fisher_sums *fisher, int block, int linear, decant_error *err)
{
    return fisher->backend->memory->allocate(fisher->backend, bytes_of(fisher, block, linear), "Fisher sums",
                                             (void **)&fisher->sums[index_of(fisher, block, linear)], err);
}

decant_status decant_fisher_sums_create(decant_backend *backend, const decant_model_config *config,
                                        const decant_family *family, decant_fisher_form form,
                                        int hessian_groups, int first_layer, int layer_count,
                                        decant_fisher_sums *fisher, decant_error *err)
{
    decant_status status = decant_fisher_sums_list(backend, config, family, form, hessian_groups, first_layer,
                                                   layer_count, fisher, err);
    for (int i = 0; status == DECANT_OK && i < layer_count * family->linear_count; i++)
        status = decant_fisher_sums_add(fisher, i / family->linear_count, i % family->linear_count, err);
    if (status != DECANT_OK)
        decant_fisher_sums_free(fisher);
    return status;
}

decant_status decant_fisher_sums_park(decant_fisher_sums *fisher, int block, int linear, decant_error *err)
{
    decant_backend *backend = fisher->backend;
    float **host = &fisher->host_sums[index_of(fisher, block, linear)];
    size_t size_bytes = bytes_of(fisher, block, linear);
    decant_status status;
    DECANT_TRY(decant_memory_allocate(size_bytes, "Fisher sums", (void **)host, err));
    DECANT_TRY(backend->memory->download(backend, *host, decant_fisher_sums_at(fisher, block, linear),
                                         size_bytes, err));
    decant_fisher_sums_release(fisher, block, linear);
done:
    return status;
}

float *decant_fisher_sums_at(const decant_fisher_sums *fisher, int block, int linear)
{
    return fisher->sums[index_of(fisher, block, linear)];
}

decant_block_fisher decant_fisher_sums_of_block(const decant_fisher_sums *fisher, int block)
{
    decant_block_fisher sums = {.form = fisher->form, .hessian_groups = fisher->hessian_groups};
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
    for (int i = 0; fisher->host_sums && i < fisher->layer_count * fisher->family->linear_count; i++)
        decant_memory_free(fisher->host_sums[i]);
    decant_memory_free(fisher->sums);
    decant_memory_free(fisher->host_sums);
    fisher->sums = NULL;
    fisher->host_sums = NULL;
}
