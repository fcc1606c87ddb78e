/* The steps table of the CUDA backend: which products of a token go together in one launch.
 *
 *     BF16 weights                                        step_dense.cu
 *     dense packed ones of the same width, up to 4 bits   step_parities.cu
 *     those that differ                                   a launch each, of one of the two
 *     all others                                          one operation after the other
 * (kernels/step_products.h)
 *
 * DECANT_CUDA_STEP=apart takes the last for all. */
#include "kernels/cuda/step.h"

extern "C" {
#include "kernels/step_products.h"
}

/* The whole group in one launch, if there is a kernel for it. */
static decant_status take_together(decant_backend *backend, const decant_step_group *group, bool *taken,
                                   decant_error *err)
{
    *taken = true;
    if (decant_cuda_context_of(backend)->step_apart)
        *taken = false;
    else if (decant_cuda_step_has_dense(backend, group))
        return decant_cuda_step_dense(backend, group, err);
    else if (decant_cuda_step_has_parities(backend, group))
        return decant_cuda_step_parities(backend, group, err);
    else
        *taken = false;
    return DECANT_OK;
}

/* A launch for each product that there is a kernel for; x is normed once for the others. */
static decant_status take_apart(decant_backend *backend, const decant_step_group *all, decant_error *err)
{
    decant_matrix x = {};
    for (int i = 0; i < all->count; i++) {
        const decant_step_group one = {all->input, &all->products[i], 1, all->accumulate, false};
        bool taken;
        DECANT_RETURN_ON_FAILURE(take_together(backend, &one, &taken, err));
        if (taken)
            continue;
        if (!x.data)
            DECANT_RETURN_ON_FAILURE(decant_step_normed(backend, all->input, &x, err));
        DECANT_RETURN_ON_FAILURE(decant_step_multiply(backend, x, &all->products[i], all->accumulate, err));
    }
    return DECANT_OK;
}

static decant_status products(decant_backend *backend, const decant_step_input *input,
                              const decant_step_product *all, int count, bool accumulate, decant_error *err)
{
    const decant_step_group group = {input, all, count, accumulate, false};
    bool taken;
    DECANT_RETURN_ON_FAILURE(take_together(backend, &group, &taken, err));
    return taken ? DECANT_OK : take_apart(backend, &group, err);
}

static decant_status gated_products(decant_backend *backend, const decant_step_input *input,
                                    const decant_step_product *gate, const decant_step_product *up,
                                    decant_error *err)
{
    const decant_step_product both[] = {*gate, *up};
    const decant_step_group group = {input, both, 2, false, true};
    bool taken;
    DECANT_RETURN_ON_FAILURE(take_together(backend, &group, &taken, err));
    if (taken)
        return DECANT_OK;
    DECANT_RETURN_ON_FAILURE(take_apart(backend, &group, err));
    return backend->model->silu_multiply(backend, gate->y, up->y, gate->y, err);
}

extern const decant_step_kernels decant_cuda_step_kernels = {
    .take_row = decant_cuda_take_row,
    .products = products,
    .gated_products = gated_products,
    .attention = decant_cuda_step_attention,
    .choose = decant_cuda_choose,
};
