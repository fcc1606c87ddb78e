/* See block_steps.h. */
#include "stages/families/block_steps.h"

decant_attention_shape decant_block_attention_shape(const decant_model_part *part, int64_t rows, int64_t window)
{
    const decant_model_config *config = part->config;
    return (decant_attention_shape){
        .sequences = decant_model_part_sequences(part, rows),
        .tokens = rows / decant_model_part_sequences(part, rows),
        .heads = config->heads,
        .key_value_heads = config->key_value_heads,
        .head_dimension = config->head_dimension,
        .window = window,
    };
}

/* Without a bias where the family has none. */
static decant_status add_bias(decant_backend *backend, const decant_vector *bias, decant_matrix y,
                              decant_error *err)
{
    return bias->length > 0 ? backend->model->add_bias(backend, y, bias->values, err) : DECANT_OK;
}

decant_status decant_block_project(decant_backend *backend, const decant_linear *linear,
                                   const decant_vector *bias, decant_matrix x, bool accumulate, decant_matrix y,
                                   decant_error *err)
{
    decant_status status = decant_linear_forward(backend, linear, x, accumulate, y, err);
    return status == DECANT_OK ? add_bias(backend, bias, y, err) : status;
}

decant_status decant_block_project_several(decant_backend *backend, const decant_linear *linears,
                                           const decant_vector *biases, int count,
                                           const decant_packed_input *input, const decant_matrix *ys,
                                           decant_error *err)
{
    decant_status status = decant_linears_forward(backend, linears, count, input, false, ys, err);
    for (int i = 0; i < count && status == DECANT_OK; i++)
        status = add_bias(backend, &biases[i], ys[i], err);
    return status;
}

decant_status decant_block_add_fisher(const decant_model_part *part, const decant_block_fisher *fisher,
                                      int index, decant_matrix dy, decant_matrix x, decant_error *err)
{
    if (!fisher || !fisher->sums[index])
        return DECANT_OK;
    bool together = fisher->form == DECANT_FISHER_TOKEN;
    const int64_t rows = together ? x.rows : x.rows / decant_model_part_sequences(part, x.rows);
    decant_status status = DECANT_OK;
    for (int64_t first = 0; first < x.rows && status == DECANT_OK; first += rows)
        status =
            part->backend->model->fisher_add(part->backend, fisher->form, decant_matrix_rows(dy, first, rows),
                                             decant_matrix_rows(x, first, rows), fisher->sums[index], err);
    if (status == DECANT_OK && fisher->hessian_groups > 0)
        status = part->backend->model->gram_add(part->backend, dy, x, fisher->hessian_groups,
                                                fisher->sums[index] + dy.columns * x.columns, err);
    return status;
}
