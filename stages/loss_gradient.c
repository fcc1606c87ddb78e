/* See loss_gradient.h. */
#include "stages/loss_gradient.h"

decant_status decant_loss_gradient_create(const decant_model_part *part, decant_loss_gradient *space,
                                          decant_error *err)
{
    decant_backend *backend = part->backend;
    int64_t hidden = part->config->hidden_size;
    decant_status status;
    *space = (decant_loss_gradient){0};
    DECANT_TRY(decant_activation_create(backend, part->tokens, hidden, "the final norm", &space->normed, err));
    DECANT_TRY(decant_activation_create(backend, part->tokens, hidden, "the gradient of the final norm",
                                        &space->dnormed, err));
    DECANT_TRY(decant_activation_create(backend, part->tokens, part->config->vocabulary_size, "logits",
                                        &space->logits, err));
    DECANT_TRY(backend->memory->allocate(backend, (size_t)part->tokens * sizeof(float), "the final norm",
                                         (void **)&space->inverse_rms, err));
done:
    if (status != DECANT_OK)
        decant_loss_gradient_free(part, space);
    return status;
}

void decant_loss_gradient_free(const decant_model_part *part, decant_loss_gradient *space)
{
    decant_backend *backend = part->backend;
    decant_matrix *matrices[] = {&space->normed, &space->dnormed, &space->logits};
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++)
        backend->memory->release(backend, &matrices[i]->data);
    backend->memory->release(backend, (void **)&space->inverse_rms);
}

static decant_status compute_one(const decant_model_part *part, const decant_loss_gradient *space,
                                 const int32_t *tokens, decant_matrix x, decant_matrix gradient, double *loss,
                                 decant_error *err)
{
    decant_status status;
    DECANT_TRY(decant_model_head(part, x, space->normed, space->inverse_rms, space->logits, err));
    DECANT_TRY(part->backend->model->cross_entropy(part->backend, space->logits, tokens, true, loss, err));
    DECANT_TRY(
        decant_model_head_backward(part, space->logits, x, space->inverse_rms, space->dnormed, gradient, err));
done:
    return status;
}

decant_status decant_loss_gradient_compute(const decant_model_part *part, const decant_loss_gradient *space,
                                           const int32_t *tokens, decant_matrix x, decant_matrix gradient,
                                           double *losses, decant_error *err)
{
    decant_status status = DECANT_OK;
    for (int64_t i = 0; i < decant_model_part_sequences(part, x.rows) && status == DECANT_OK; i++) {
        int64_t first = i * part->tokens;
        status = compute_one(part, space, tokens + first, decant_matrix_rows(x, first, part->tokens),
                             decant_matrix_rows(gradient, first, part->tokens), &losses[i], err);
    }
    return status;
}
