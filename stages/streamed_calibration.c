/* See streamed_calibration.h.
 *
 * A micro-batch is issued to the device before the one before it is fetched from there, so that the device
 * always has work; inputs and outputs therefore have two arrays, taken in turn. */
#include "stages/streamed_calibration.h"

#include "base/memory.h"
#include "stages/boundaries.h"
#include "stages/loss_gradient.h"

enum { TURNS = 2 };

struct decant_streamed_calibration {
    decant_model_part *part;
    decant_weight_source source;
    decant_fisher_sums *fisher;
    int64_t batches;
    decant_boundaries
        *boundaries;     /* [blocks + 1, batches]: what enters a block; behind the last: the gradient */
    bool *is_on_its_way; /* [blocks]: begun, or in place */
    bool has_input;      /* what enters the first block was restored */
    bool has_gradient;   /* what is behind the last one was */
    decant_activations *kept;
    decant_matrix inputs[TURNS], outputs[TURNS], recomputed;
    decant_loss_gradient loss_gradient; /* where the part ends the model */
};

static decant_status create_space(decant_streamed_calibration *c, int64_t on_device, const char *scratch,
                                  decant_error *err)
{
    const decant_model_part *part = c->part;
    decant_backend *backend = part->backend;
    int64_t rows = part->sequences * part->tokens, hidden = part->config->hidden_size;
    decant_status status;
    DECANT_TRY(decant_memory_allocate((size_t)part->layer_count * sizeof *c->is_on_its_way,
                                      "the list of layers", (void **)&c->is_on_its_way, err));
    DECANT_TRY(part->family->create_activations(part, &c->kept, err));
    for (int turn = 0; turn < TURNS; turn++) {
        DECANT_TRY(
            decant_activation_create(backend, rows, hidden, "the input of a block", &c->inputs[turn], err));
        DECANT_TRY(
            decant_activation_create(backend, rows, hidden, "the output of a block", &c->outputs[turn], err));
    }
    DECANT_TRY(decant_activation_create(backend, rows, hidden, "the output of a block", &c->recomputed, err));
    if (decant_model_part_ends(part))
        DECANT_TRY(decant_loss_gradient_create(part, &c->loss_gradient, err));
    DECANT_TRY(decant_boundaries_create(backend, (part->layer_count + 1) * c->batches,
                                        decant_matrix_bytes(c->recomputed), on_device, scratch, &c->boundaries,
                                        err));
done:
    return status;
}

decant_status decant_streamed_calibration_create(decant_model_part *part, const decant_weight_source *source,
                                                 decant_fisher_sums *fisher, int64_t batches, int64_t on_device,
                                                 const char *scratch, decant_streamed_calibration **calibration,
                                                 decant_error *err)
{
    decant_status status;
    DECANT_TRY(decant_memory_allocate(sizeof **calibration, "calibration", (void **)calibration, err));
    (*calibration)->part = part;
    (*calibration)->source = *source;
    (*calibration)->fisher = fisher;
    (*calibration)->batches = batches;
    DECANT_TRY(create_space(*calibration, on_device, scratch, err));
done:
    if (status != DECANT_OK)
        decant_streamed_calibration_destroy(calibration);
    return status;
}

void decant_streamed_calibration_destroy(decant_streamed_calibration **calibration)
{
    decant_streamed_calibration *c = *calibration;
    if (!c)
        return;
    decant_model_part *part = c->part;
    decant_backend *backend = part->backend;
    decant_boundaries_destroy(&c->boundaries);
    if (c->kept)
        part->family->destroy_activations(part, &c->kept);
    for (int turn = 0; turn < TURNS; turn++) {
        backend->memory->release(backend, &c->inputs[turn].data);
        backend->memory->release(backend, &c->outputs[turn].data);
    }
    backend->memory->release(backend, &c->recomputed.data);
    decant_loss_gradient_free(part, &c->loss_gradient);
    decant_memory_free(c->is_on_its_way);
    decant_memory_free(c);
    *calibration = NULL;
}

/* ---- blocks come and go ---- */

static decant_status begin_block(decant_streamed_calibration *c, int block, decant_error *err)
{
    if (block < 0 || block >= c->part->layer_count || c->is_on_its_way[block])
        return DECANT_OK;
    c->is_on_its_way[block] = true; /* after a failure too: leaving takes what has begun */
    return decant_model_block_begin(c->part, &c->source, block, err);
}

static bool is_last(const decant_streamed_calibration *c, int block)
{
    return block == c->part->layer_count - 1;
}

decant_status decant_streamed_calibration_enter(decant_streamed_calibration *calibration, decant_pass pass,
                                                int block, decant_error *err)
{
    decant_streamed_calibration *c = calibration;
    bool is_forward = pass == DECANT_PASS_FORWARD;
    decant_status status;
    DECANT_TRY(begin_block(c, block, err));
    if (is_forward && block == 0)
        DECANT_TRY(decant_model_embedding_place(c->part, &c->source, err));
    if (is_forward && is_last(c, block))
        DECANT_TRY(decant_model_head_place(c->part, &c->source, err));
    DECANT_TRY(decant_model_block_finish(c->part, block, err));
    for (int i = 0; !is_forward && i < c->part->family->linear_count; i++)
        DECANT_TRY(decant_fisher_sums_add(c->fisher, block, i, err));
    DECANT_TRY(begin_block(c, is_forward ? block + 1 : block - 1, err));
done:
    return status;
}

decant_status decant_streamed_calibration_leave(decant_streamed_calibration *calibration, decant_pass pass,
                                                int block, decant_error *err)
{
    decant_streamed_calibration *c = calibration;
    bool is_forward = pass == DECANT_PASS_FORWARD;
    decant_status status;
    DECANT_TRY(decant_boundaries_finish_saves(c->boundaries, err));
    if (is_forward && (block == 0 || is_last(c, block)))
        decant_model_ends_leave(c->part);
    if (!is_forward || !is_last(c, block)) {
        decant_model_block_leave(c->part, block);
        decant_model_block_dismiss(c->part, &c->source, block);
        c->is_on_its_way[block] = false;
    }
    if (!is_forward) /* records may still be on their way to the device */
        DECANT_TRY(c->part->backend->memory->synchronize(c->part->backend, err));
done:
    return status;
}

void decant_streamed_calibration_forget(decant_streamed_calibration *calibration, int block)
{
    decant_streamed_calibration *c = calibration;
    for (int64_t batch = 0; batch < c->batches; batch++)
        decant_boundaries_discard(c->boundaries, (block + 1) * c->batches + batch);
}

/* ---- micro-batches ---- */

static decant_matrix turn_of(const decant_streamed_calibration *c, const decant_matrix matrices[TURNS],
                             int64_t batch, int64_t sequences)
{
    return decant_matrix_rows(matrices[batch % TURNS], 0, sequences * c->part->tokens);
}

decant_matrix decant_streamed_calibration_input(decant_streamed_calibration *calibration, int64_t batch,
                                                int64_t sequences)
{
    return turn_of(calibration, calibration->inputs, batch, sequences);
}

decant_matrix decant_streamed_calibration_output(decant_streamed_calibration *calibration, int64_t batch,
                                                 int64_t sequences)
{
    return turn_of(calibration, calibration->outputs, batch, sequences);
}

static int64_t record_of(const decant_streamed_calibration *c, int block, int64_t batch)
{
    return block * c->batches + batch;
}

decant_status decant_streamed_calibration_forward(decant_streamed_calibration *calibration, int block,
                                                  int64_t batch, const int32_t *tokens, int64_t sequences,
                                                  double *losses, decant_error *err)
{
    decant_streamed_calibration *c = calibration;
    const decant_model_part *part = c->part;
    decant_matrix x = decant_streamed_calibration_input(c, batch, sequences);
    decant_matrix y = decant_streamed_calibration_output(c, batch, sequences);
    bool has_loss = is_last(c, block) && decant_model_part_ends(part);
    decant_status status;
    if (block > 0 || c->has_input)
        DECANT_TRY(decant_boundaries_load(c->boundaries, record_of(c, block, batch), x, err));
    else if (decant_model_part_begins(part))
        DECANT_TRY(decant_model_embed(part, tokens, x, err));
    decant_matrix target = has_loss ? decant_matrix_rows(c->recomputed, 0, y.rows) : y;
    DECANT_TRY(part->family->forward(part, &part->blocks[block], x, target, c->kept, err));
    if (has_loss)
        DECANT_TRY(decant_loss_gradient_compute(part, &c->loss_gradient, tokens, target, y, losses, err));
    DECANT_TRY(decant_boundaries_finish_saves(c->boundaries, err)); /* of the micro-batch before */
    if (block == 0 && !c->has_input)
        DECANT_TRY(decant_boundaries_begin_save(c->boundaries, record_of(c, 0, batch), x, err));
    if (!is_last(c, block) || has_loss)
        DECANT_TRY(decant_boundaries_begin_save(c->boundaries, record_of(c, block + 1, batch), y, err));
done:
    return status;
}

decant_status decant_streamed_calibration_backward(decant_streamed_calibration *calibration, int block,
                                                   int64_t batch, int64_t sequences, decant_error *err)
{
    decant_streamed_calibration *c = calibration;
    const decant_model_part *part = c->part;
    decant_matrix x = decant_streamed_calibration_input(c, batch, sequences);
    decant_matrix gradient = decant_streamed_calibration_output(c, batch, sequences);
    decant_block_fisher fisher = decant_fisher_sums_of_block(c->fisher, block);
    decant_status status;
    DECANT_TRY(decant_boundaries_load(c->boundaries, record_of(c, block, batch), x, err));
    if (!is_last(c, block) || decant_model_part_ends(part) || c->has_gradient)
        DECANT_TRY(decant_boundaries_load(c->boundaries, record_of(c, block + 1, batch), gradient, err));
    DECANT_TRY(part->family->forward(part, &part->blocks[block], x,
                                     decant_matrix_rows(c->recomputed, 0, x.rows), c->kept, err));
    DECANT_TRY(
        part->family->backward(part, &part->blocks[block], x, gradient, c->kept, &fisher, gradient, err));
    DECANT_TRY(decant_boundaries_finish_saves(c->boundaries, err)); /* of the micro-batch before */
    if (block > 0)
        DECANT_TRY(decant_boundaries_begin_save(c->boundaries, record_of(c, block, batch), gradient, err));
done:
    return status;
}

decant_status decant_streamed_calibration_keep_input(decant_streamed_calibration *calibration, int64_t batch,
                                                     int64_t sequences, decant_error *err)
{
    decant_streamed_calibration *c = calibration;
    decant_matrix x = decant_streamed_calibration_input(c, batch, sequences);
    decant_status status = decant_boundaries_begin_save(c->boundaries, record_of(c, 0, batch), x, err);
    return status == DECANT_OK ? decant_boundaries_finish_saves(c->boundaries, err) : status;
}

/* ---- what lies between blocks, for whoever keeps it ---- */

decant_status decant_streamed_calibration_fetch(decant_streamed_calibration *calibration, int block,
                                                int64_t batch, int64_t sequences, void *host, decant_error *err)
{
    decant_streamed_calibration *c = calibration;
    size_t size_bytes = decant_matrix_bytes(decant_streamed_calibration_input(c, batch, sequences));
    return decant_boundaries_fetch(c->boundaries, record_of(c, block, batch), host, size_bytes, err);
}

decant_status decant_streamed_calibration_restore(decant_streamed_calibration *calibration, int block,
                                                  int64_t batch, int64_t sequences, const void *host,
                                                  decant_error *err)
{
    decant_streamed_calibration *c = calibration;
    size_t size_bytes = decant_matrix_bytes(decant_streamed_calibration_input(c, batch, sequences));
    c->has_input = c->has_input || block == 0;
    c->has_gradient = c->has_gradient || block == c->part->layer_count;
    return decant_boundaries_put(c->boundaries, record_of(c, block, batch), host, size_bytes, err);
}
