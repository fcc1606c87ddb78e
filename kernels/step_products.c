/* See step_products.h. */
#include "kernels/step_products.h"

decant_status decant_step_normed(decant_backend *backend, const decant_step_input *input, decant_matrix *x,
                                 decant_error *err)
{
    *x = input->x;
    if (!input->norm_weight.data)
        return DECANT_OK;
    *x = input->normed;
    return backend->model->rms_norm(backend, input->x, input->norm_weight, input->epsilon, input->normed,
                                    input->inverse_rms, err);
}

decant_status decant_step_multiply(decant_backend *backend, decant_matrix x, const decant_step_product *product,
                                   bool accumulate, decant_error *err)
{
    if (product->packed)
        return backend->validate->packed_linear(backend, x, product->packed, accumulate, product->y, err);
    if (product->grid)
        return backend->grid->linear(backend, x, product->grid, accumulate, product->y, err);
    return backend->model->linear(backend, x, product->weight, accumulate, product->y, err);
}

decant_status decant_step_products(decant_backend *backend, const decant_step_input *input,
                                   const decant_step_product *products, int count, bool accumulate,
                                   decant_error *err)
{
    decant_matrix x;
    decant_status status = decant_step_normed(backend, input, &x, err);
    for (int i = 0; i < count && status == DECANT_OK; i++)
        status = decant_step_multiply(backend, x, &products[i], accumulate, err);
    return status;
}

decant_status decant_step_gated_products(decant_backend *backend, const decant_step_input *input,
                                         const decant_step_product *gate, const decant_step_product *up,
                                         decant_error *err)
{
    const decant_step_product both[] = {*gate, *up};
    decant_status status = decant_step_products(backend, input, both, 2, false, err);
    if (status != DECANT_OK)
        return status;
    return backend->model->silu_multiply(backend, gate->y, up->y, gate->y, err);
}
