/* See packed_input.h. */
#include "kernels/packed_input.h"

bool decant_packed_input_is_made(const decant_packed_input *input)
{
    return input->norm_weight.data || input->up.data;
}

decant_status decant_packed_input_make(decant_backend *backend, const decant_packed_input *input,
                                       decant_matrix *x, decant_error *err)
{
    *x = decant_packed_input_is_made(input) ? input->made : input->x;
    if (input->norm_weight.data)
        return backend->model->rms_norm(backend, input->x, input->norm_weight, input->epsilon, input->made,
                                        input->inverse_rms, err);
    if (input->up.data)
        return backend->model->silu_multiply(backend, input->x, input->up, input->made, err);
    return DECANT_OK;
}
