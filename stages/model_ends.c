/* The passes at a model's two ends, which no family owns: the embedding in front, the final norm and the head
 * behind, and their gradient. Which of their tensors a family has is told by what was placed. */
#include "stages/model.h"

/* Adds the rows of learned positions that each of the sequences takes. */
static decant_status add_positions(const decant_model_part *part, decant_matrix x, decant_error *err)
{
    int64_t tokens = x.rows / decant_model_part_sequences(part, x.rows);
    int64_t learned = part->config->maximum_positions, first = part->first_position;
    if (first + tokens > learned) /* whoever takes sequences in checks their length */
        return DECANT_ERROR(err, DECANT_ERROR_BUG, "a sequence of %lld tokens, but there are %lld positions",
                            (long long)(first + tokens), (long long)learned);
    decant_matrix rows = decant_matrix_rows(part->positions, part->positions.rows - learned + first, tokens);
    return part->backend->model->add_bias(part->backend, x, rows, err);
}

decant_status decant_model_embed(const decant_model_part *part, const int32_t *tokens, decant_matrix x,
                                 decant_error *err)
{
    decant_backend *backend = part->backend;
    const decant_model_kernels *model = backend->model;
    bool projects = part->projection_in.data != NULL;
    decant_matrix embedded = projects ? decant_matrix_rows(part->projected, 0, x.rows) : x;
    decant_status status;
    DECANT_TRY(model->embed(backend, tokens, part->embedding, embedded, err));
    if (projects)
        DECANT_TRY(model->linear(backend, embedded, part->projection_in, false, x, err));
    if (part->positions.data)
        DECANT_TRY(add_positions(part, x, err));
done:
    return status;
}

/* *normed is x itself in a family without a final norm. */
static decant_status final_norm(const decant_model_part *part, decant_matrix x, decant_matrix *normed,
                                float *inverse_rms, decant_error *err)
{
    decant_backend *backend = part->backend;
    float epsilon = part->config->norm_epsilon;
    if (part->final_norm_bias.data)
        return backend->model->layer_norm(backend, x, part->final_norm, part->final_norm_bias, epsilon, *normed,
                                          err);
    if (part->final_norm.data)
        return backend->model->rms_norm(backend, x, part->final_norm, epsilon, *normed, inverse_rms, err);
    *normed = x;
    return DECANT_OK;
}

decant_status decant_model_head(const decant_model_part *part, decant_matrix x, decant_matrix normed,
                                float *inverse_rms, decant_matrix logits, decant_error *err)
{
    decant_backend *backend = part->backend;
    const decant_model_kernels *model = backend->model;
    decant_status status;
    DECANT_TRY(final_norm(part, x, &normed, inverse_rms, err));
    if (part->projection_out.data) {
        decant_matrix projected = decant_matrix_rows(part->projected, 0, x.rows);
        DECANT_TRY(model->linear(backend, normed, part->projection_out, false, projected, err));
        normed = projected;
    }
    DECANT_TRY(model->linear(backend, normed, part->head, false, logits, err));
done:
    return status;
}

static decant_status final_norm_backward(const decant_model_part *part, decant_matrix dnormed, decant_matrix x,
                                         const float *inverse_rms, decant_matrix dx, decant_error *err)
{
    decant_backend *backend = part->backend;
    if (part->final_norm_bias.data)
        return backend->model->layer_norm_backward(backend, dnormed, x, part->final_norm,
                                                   part->config->norm_epsilon, false, dx, err);
    decant_status status = backend->memory->zero(backend, dx.data, decant_matrix_bytes(dx), err);
    if (status != DECANT_OK)
        return status;
    return backend->model->rms_norm_backward(backend, dnormed, x, part->final_norm, inverse_rms, dx, err);
}

decant_status decant_model_head_backward(const decant_model_part *part, decant_matrix dlogits, decant_matrix x,
                                         const float *inverse_rms, decant_matrix dnormed, decant_matrix dx,
                                         decant_error *err)
{
    decant_backend *backend = part->backend;
    const decant_model_kernels *model = backend->model;
    bool has_norm = part->final_norm.data != NULL;
    decant_matrix before_norm = has_norm ? dnormed : dx;
    decant_status status;
    if (part->projection_out.data) {
        decant_matrix dprojected = decant_matrix_rows(part->projected, 0, x.rows);
        DECANT_TRY(model->linear_backward(backend, dlogits, part->head, false, dprojected, err));
        DECANT_TRY(model->linear_backward(backend, dprojected, part->projection_out, false, before_norm, err));
    } else {
        DECANT_TRY(model->linear_backward(backend, dlogits, part->head, false, before_norm, err));
    }
    if (has_norm)
        DECANT_TRY(final_norm_backward(part, dnormed, x, inverse_rms, dx, err));
done:
    return status;
}
