/* See calibrate.h. The only state besides the sums is what sequences in flight need. */
#include "stages/calibrate.h"

#include "base/memory.h"

struct decant_calibration {
    const decant_model_part *part;
    decant_fisher_sums *fisher;
    int64_t slots;
    bool retain;
    decant_matrix *inputs; /* [slots · blocks]: what enters each block, one matrix a slot and block */
    decant_activations **activations; /* [slots · blocks] when retained, else [1] */
    int64_t activation_count;
    decant_matrix output; /* what leaves the last block */
    decant_matrix gradient;
    decant_matrix normed, dnormed, logits; /* where the part has the head */
    float *inverse_rms;
};

static int blocks_of(const decant_calibration *calibration)
{
    return calibration->part->layer_count;
}

static bool has_head(const decant_model_part *part)
{
    return part->head.data != NULL;
}

static decant_matrix input_of(const decant_calibration *calibration, int64_t slot, int block)
{
    return calibration->inputs[slot * blocks_of(calibration) + block];
}

static decant_activations *activations_of(const decant_calibration *calibration, int64_t slot, int block)
{
    return calibration->activations[calibration->retain ? slot * blocks_of(calibration) + block : 0];
}

static decant_status create_activation_space(decant_calibration *calibration, decant_error *err)
{
    const decant_model_part *part = calibration->part;
    decant_backend *backend = part->backend;
    int64_t hidden = part->config->hidden_size, count = calibration->slots * blocks_of(calibration);
    decant_status status;
    DECANT_TRY(decant_memory_allocate((size_t)count * sizeof *calibration->inputs, "block inputs",
                                      (void **)&calibration->inputs, err));
    for (int64_t i = 0; i < count; i++)
        DECANT_TRY(decant_activation_create(backend, part->tokens, hidden, "the input of a block",
                                            &calibration->inputs[i], err));
    int64_t kept = calibration->retain ? count : 1;
    DECANT_TRY(decant_memory_allocate((size_t)kept * sizeof *calibration->activations, "activations",
                                      (void **)&calibration->activations, err));
    for (; calibration->activation_count < kept; calibration->activation_count++)
        DECANT_TRY(part->family->create_activations(
            part, &calibration->activations[calibration->activation_count], err));
    DECANT_TRY(decant_activation_create(backend, part->tokens, hidden, "the output of the layers",
                                        &calibration->output, err));
    DECANT_TRY(
        decant_activation_create(backend, part->tokens, hidden, "the gradient", &calibration->gradient, err));
    if (has_head(part)) {
        DECANT_TRY(decant_activation_create(backend, part->tokens, hidden, "the final norm",
                                            &calibration->normed, err));
        DECANT_TRY(decant_activation_create(backend, part->tokens, hidden, "the gradient of the final norm",
                                            &calibration->dnormed, err));
        DECANT_TRY(decant_activation_create(backend, part->tokens, part->config->vocabulary_size, "logits",
                                            &calibration->logits, err));
        DECANT_TRY(backend->memory->allocate(backend, (size_t)part->tokens * sizeof(float), "the final norm",
                                             (void **)&calibration->inverse_rms, err));
    }
done:
    return status;
}

decant_status decant_calibration_create(const decant_model_part *part, decant_fisher_sums *fisher,
                                        int64_t slots, bool retain, decant_calibration **calibration,
                                        decant_error *err)
{
    decant_status status;
    DECANT_TRY(decant_memory_allocate(sizeof **calibration, "calibration", (void **)calibration, err));
    (*calibration)->part = part;
    (*calibration)->fisher = fisher;
    (*calibration)->slots = slots;
    (*calibration)->retain = retain;
    DECANT_TRY(create_activation_space(*calibration, err));
done:
    if (status != DECANT_OK)
        decant_calibration_destroy(calibration);
    return status;
}

static void release_activations(decant_calibration *calibration)
{
    const decant_model_part *part = calibration->part;
    decant_backend *backend = part->backend;
    for (int64_t i = 0; calibration->inputs && i < calibration->slots * blocks_of(calibration); i++)
        backend->memory->release(backend, &calibration->inputs[i].data);
    for (int64_t i = 0; i < calibration->activation_count; i++)
        part->family->destroy_activations(part, &calibration->activations[i]);
    calibration->activation_count = 0;
    decant_memory_free(calibration->inputs);
    decant_memory_free(calibration->activations);
    calibration->inputs = NULL;
    calibration->activations = NULL;
    decant_matrix *matrices[] = {&calibration->output, &calibration->gradient, &calibration->normed,
                                 &calibration->dnormed, &calibration->logits};
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++)
        backend->memory->release(backend, &matrices[i]->data);
    backend->memory->release(backend, (void **)&calibration->inverse_rms);
}

void decant_calibration_destroy(decant_calibration **calibration)
{
    if (!*calibration)
        return;
    release_activations(*calibration);
    decant_memory_free(*calibration);
    *calibration = NULL;
}

decant_status decant_calibration_slot_bytes(const decant_model_part *part, int64_t *boundary_bytes,
                                            int64_t *retained_bytes, decant_error *err)
{
    decant_backend *backend = part->backend;
    int64_t before, after, unused;
    decant_activations *activations = NULL;
    backend->memory->usage(backend, &before, &unused, &unused);
    decant_status status = part->family->create_activations(part, &activations, err);
    if (status != DECANT_OK)
        return status;
    backend->memory->usage(backend, &after, &unused, &unused);
    part->family->destroy_activations(part, &activations);
    *boundary_bytes = (int64_t)decant_element_bytes(backend->activation) * part->tokens *
                      part->config->hidden_size * part->layer_count;
    *retained_bytes = (after - before) * part->layer_count;
    return DECANT_OK;
}

decant_matrix decant_calibration_input(decant_calibration *calibration, int64_t slot)
{
    return input_of(calibration, slot, 0);
}

decant_matrix decant_calibration_gradient(decant_calibration *calibration)
{
    return calibration->gradient;
}

/* The loss, and the gradient that the head sends back into the last block, while the logits are at hand. */
static decant_status head_and_loss(decant_calibration *calibration, const int32_t *tokens, double *loss,
                                   decant_error *err)
{
    const decant_model_part *part = calibration->part;
    decant_status status;
    DECANT_TRY(decant_model_head(part, calibration->output, calibration->normed, calibration->inverse_rms,
                                 calibration->logits, err));
    DECANT_TRY(
        part->backend->model->cross_entropy(part->backend, calibration->logits, tokens, true, loss, err));
    DECANT_TRY(decant_model_head_backward(part, calibration->logits, calibration->output,
                                          calibration->inverse_rms, calibration->dnormed, calibration->gradient,
                                          err));
done:
    return status;
}

decant_status decant_calibration_forward(decant_calibration *calibration, int64_t slot, const int32_t *tokens,
                                         decant_matrix *output, double *loss, decant_error *err)
{
    const decant_model_part *part = calibration->part;
    decant_status status;
    if (part->embedding.data)
        DECANT_TRY(decant_model_embed(part, tokens, input_of(calibration, slot, 0), err));
    for (int block = 0; block < part->layer_count; block++) {
        decant_matrix y =
            block + 1 < part->layer_count ? input_of(calibration, slot, block + 1) : calibration->output;
        DECANT_TRY(part->family->forward(part, &part->blocks[block], input_of(calibration, slot, block), y,
                                         activations_of(calibration, slot, block), err));
    }
    *output = calibration->output;
    if (has_head(part))
        DECANT_TRY(head_and_loss(calibration, tokens, loss, err));
    status = DECANT_OK;
done:
    return status;
}

decant_status decant_calibration_backward(decant_calibration *calibration, int64_t slot, decant_error *err)
{
    const decant_model_part *part = calibration->part;
    decant_status status = DECANT_OK;
    for (int block = part->layer_count - 1; block >= 0; block--) {
        decant_matrix x = input_of(calibration, slot, block);
        decant_activations *kept = activations_of(calibration, slot, block);
        if (!calibration->retain)
            DECANT_TRY(part->family->forward(part, &part->blocks[block], x, calibration->output, kept, err));
        decant_block_fisher fisher = {.form = calibration->fisher->form};
        for (int i = 0; i < part->family->linear_count; i++)
            fisher.sums[i] = decant_fisher_sums_at(calibration->fisher, block, i);
        DECANT_TRY(part->family->backward(part, &part->blocks[block], x, calibration->gradient, kept, &fisher,
                                          calibration->gradient, err));
    }
done:
    return status;
}
