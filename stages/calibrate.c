/* See calibrate.h. The only state besides the sums is what micro-batches in flight need. */
#include "stages/calibrate.h"

#include "base/memory.h"
#include "stages/loss_gradient.h"

struct decant_calibration {
    const decant_model_part *part;
    decant_fisher_sums *fisher;
    int64_t slots;
    bool retain;
    decant_interlude interlude;
    decant_matrix *inputs; /* [slots · blocks]: what enters each block, one matrix a slot and block */
    decant_activations **activations; /* [slots · blocks] when retained, else [1] */
    int64_t activation_count;
    decant_matrix output; /* what leaves the last block */
    decant_matrix gradient;
    decant_loss_gradient loss_gradient; /* where the part has the head */
};

static int blocks_of(const decant_calibration *calibration)
{
    return calibration->part->layer_count;
}

static bool has_head(const decant_model_part *part)
{
    return part->head.data != NULL;
}

/* The rows of some sequences. */
static decant_matrix rows_of(const decant_calibration *calibration, decant_matrix matrix, int64_t sequences)
{
    return decant_matrix_rows(matrix, 0, sequences * calibration->part->tokens);
}

static decant_matrix input_of(const decant_calibration *calibration, int64_t slot, int block, int64_t sequences)
{
    return rows_of(calibration, calibration->inputs[slot * blocks_of(calibration) + block], sequences);
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
    int64_t rows = part->sequences * part->tokens;
    decant_status status;
    DECANT_TRY(decant_memory_allocate((size_t)count * sizeof *calibration->inputs, "block inputs",
                                      (void **)&calibration->inputs, err));
    for (int64_t i = 0; i < count; i++)
        DECANT_TRY(decant_activation_create(backend, rows, hidden, "the input of a block",
                                            &calibration->inputs[i], err));
    int64_t kept = calibration->retain ? count : 1;
    DECANT_TRY(decant_memory_allocate((size_t)kept * sizeof *calibration->activations, "activations",
                                      (void **)&calibration->activations, err));
    for (; calibration->activation_count < kept; calibration->activation_count++)
        DECANT_TRY(part->family->create_activations(
            part, &calibration->activations[calibration->activation_count], err));
    DECANT_TRY(
        decant_activation_create(backend, rows, hidden, "the output of the layers", &calibration->output, err));
    DECANT_TRY(decant_activation_create(backend, rows, hidden, "the gradient", &calibration->gradient, err));
    if (has_head(part))
        DECANT_TRY(decant_loss_gradient_create(part, &calibration->loss_gradient, err));
done:
    return status;
}

decant_status decant_calibration_create(const decant_model_part *part, decant_fisher_sums *fisher,
                                        int64_t slots, bool retain, decant_interlude interlude,
                                        decant_calibration **calibration, decant_error *err)
{
    decant_status status;
    DECANT_TRY(decant_memory_allocate(sizeof **calibration, "calibration", (void **)calibration, err));
    (*calibration)->part = part;
    (*calibration)->fisher = fisher;
    (*calibration)->slots = slots;
    (*calibration)->retain = retain;
    (*calibration)->interlude = interlude;
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
    backend->memory->release(backend, &calibration->output.data);
    backend->memory->release(backend, &calibration->gradient.data);
    decant_loss_gradient_free(part, &calibration->loss_gradient);
}

void decant_calibration_destroy(decant_calibration **calibration)
{
    if (!*calibration)
        return;
    release_activations(*calibration);
    decant_memory_free(*calibration);
    *calibration = NULL;
}

decant_status decant_calibration_warm_up(decant_calibration *calibration, const int32_t *tokens,
                                         int64_t sequences, double *losses, decant_error *err)
{
    const decant_model_part *part = calibration->part;
    const decant_memory_kernels *memory = part->backend->memory;
    decant_matrix x = input_of(calibration, 0, 0, sequences),
                  y = rows_of(calibration, calibration->output, sequences);
    decant_matrix gradient = rows_of(calibration, calibration->gradient, sequences);
    decant_activations *kept = activations_of(calibration, 0, 0);
    decant_block_fisher fisher = decant_fisher_sums_of_block(calibration->fisher, 0);
    decant_status status;
    if (part->embedding.data)
        DECANT_TRY(decant_model_embed(part, tokens, x, err));
    DECANT_TRY(part->family->forward(part, &part->blocks[0], x, y, kept, err));
    if (has_head(part))
        DECANT_TRY(
            decant_loss_gradient_compute(part, &calibration->loss_gradient, tokens, y, gradient, losses, err));
    DECANT_TRY(memory->zero(part->backend, gradient.data, decant_matrix_bytes(gradient), err));
    DECANT_TRY(part->family->backward(part, &part->blocks[0], x, gradient, kept, &fisher, gradient, err));
    DECANT_TRY(memory->synchronize(part->backend, err));
done:
    return status;
}

decant_matrix decant_calibration_input(decant_calibration *calibration, int64_t slot, int64_t sequences)
{
    return input_of(calibration, slot, 0, sequences);
}

decant_matrix decant_calibration_gradient(decant_calibration *calibration, int64_t sequences)
{
    return rows_of(calibration, calibration->gradient, sequences);
}

decant_status decant_calibration_forward(decant_calibration *calibration, int64_t slot, const int32_t *tokens,
                                         int64_t sequences, decant_matrix *output, double *losses,
                                         decant_error *err)
{
    const decant_model_part *part = calibration->part;
    decant_status status;
    *output = rows_of(calibration, calibration->output, sequences);
    if (part->embedding.data)
        DECANT_TRY(decant_model_embed(part, tokens, input_of(calibration, slot, 0, sequences), err));
    for (int block = 0; block < part->layer_count; block++) {
        decant_matrix y =
            block + 1 < part->layer_count ? input_of(calibration, slot, block + 1, sequences) : *output;
        DECANT_TRY(part->family->forward(part, &part->blocks[block],
                                         input_of(calibration, slot, block, sequences), y,
                                         activations_of(calibration, slot, block), err));
        decant_interlude_play(calibration->interlude);
    }
    if (has_head(part))
        DECANT_TRY(decant_loss_gradient_compute(part, &calibration->loss_gradient, tokens, *output,
                                                decant_calibration_gradient(calibration, sequences), losses,
                                                err));
    status = DECANT_OK;
done:
    return status;
}

decant_status decant_calibration_backward(decant_calibration *calibration, int64_t slot, int64_t sequences,
                                          decant_error *err)
{
    const decant_model_part *part = calibration->part;
    decant_matrix gradient = decant_calibration_gradient(calibration, sequences);
    decant_status status = DECANT_OK;
    for (int block = part->layer_count - 1; block >= 0; block--) {
        decant_matrix x = input_of(calibration, slot, block, sequences);
        decant_activations *kept = activations_of(calibration, slot, block);
        if (!calibration->retain)
            DECANT_TRY(part->family->forward(part, &part->blocks[block], x,
                                             rows_of(calibration, calibration->output, sequences), kept, err));
        decant_interlude_play(calibration->interlude);
        decant_block_fisher fisher = decant_fisher_sums_of_block(calibration->fisher, block);
        DECANT_TRY(
            part->family->backward(part, &part->blocks[block], x, gradient, kept, &fisher, gradient, err));
    }
done:
    return status;
}
