/* A rank's part of a model: loading it, and the passes that no family owns (embedding, final norm and head).
 *
 * Linear layers come packed when the source has them so, else whole. A tied head is the embedding's array
 * itself where one part has both, and a second copy of it where the model's ends lie on different parts. Packed
 * layers are owned by the part: their arrays were made with backend->memory and the struct with
 * decant_memory_allocate. */
#include "stages/model.h"
#include "base/memory.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

decant_status decant_activation_create(decant_backend *backend, int64_t rows, int64_t columns, const char *what,
                                       decant_matrix *matrix, decant_error *err)
{
    *matrix = (decant_matrix){.element = backend->activation, .rows = rows, .columns = columns};
    return backend->memory->allocate(backend, decant_matrix_bytes(*matrix), what, &matrix->data, err);
}

decant_status decant_linear_forward(decant_backend *backend, const decant_linear *linear, decant_matrix x,
                                    bool accumulate, decant_matrix y, decant_error *err)
{
    if (linear->packed)
        return backend->validate->packed_linear(backend, x, linear->packed, accumulate, y, err);
    return backend->model->linear(backend, x, linear->weight, accumulate, y, err);
}

/* ---- loading ---- */

static decant_status place_tensor(decant_backend *backend, const decant_weight_source *source, const char *name,
                                  int64_t rows, int64_t columns, decant_matrix *placed, decant_error *err)
{
    decant_matrix host;
    decant_status status = source->matrix(source->context, name, rows, columns, &host, err);
    if (status != DECANT_OK)
        return status;
    return backend->weights->place(backend, host, DECANT_PLACE_COMPUTE, name, placed, err);
}

/* The linear layer's whole weight as the source has it, in host memory. */
static decant_status find_weight(const decant_weight_source *source, const decant_linear *linear,
                                 decant_matrix *host, char name[DECANT_NAME_BYTES + 8], decant_error *err)
{
    snprintf(name, DECANT_NAME_BYTES + 8, "%s.weight", linear->name);
    return source->matrix(source->context, name, linear->rows, linear->columns, host, err);
}

static decant_status begin_linear(decant_backend *backend, const decant_weight_source *source,
                                  decant_linear *linear, decant_error *err)
{
    char name[DECANT_NAME_BYTES + 8];
    decant_matrix host;
    decant_status status = DECANT_OK;
    if (source->packed)
        status = source->packed(source->context, backend, linear->name, linear->rows, linear->columns,
                                &linear->packed, err);
    if (status != DECANT_OK || linear->packed)
        return status;
    status = find_weight(source, linear, &host, name, err);
    if (status != DECANT_OK)
        return status;
    return backend->weights->begin_place(backend, host, DECANT_PLACE_COMPUTE, name, &linear->weight, err);
}

/* Asks for all of a block's weights before any of them is waited for. */
static decant_status expect_block(const decant_model_part *part, const decant_weight_source *source,
                                  const decant_block *block, decant_error *err)
{
    char name[DECANT_NAME_BYTES + 8];
    decant_matrix host;
    for (int index = 0; source->expect && index < part->family->linear_count; index++) {
        decant_status status = find_weight(source, &block->linears[index], &host, name, err);
        if (status != DECANT_OK)
            return status;
        source->expect(source->context, host);
    }
    return DECANT_OK;
}

decant_status decant_model_block_begin(decant_model_part *part, const decant_weight_source *source, int block,
                                       decant_error *err)
{
    decant_block *target = &part->blocks[block];
    decant_status status;
    DECANT_TRY(expect_block(part, source, target, err));
    /* Weights arrive in order, and the small ones here are waited for. */
    DECANT_TRY(part->family->place_block(part->backend, part->config, source, target, err));
    for (int index = 0; index < part->family->linear_count; index++)
        DECANT_TRY(begin_linear(part->backend, source, &target->linears[index], err));
done:
    return status;
}

decant_status decant_model_block_finish(decant_model_part *part, int block, decant_error *err)
{
    decant_status status = DECANT_OK;
    for (int index = 0; index < part->family->linear_count && status == DECANT_OK; index++)
        status = part->backend->weights->finish_place(part->backend, &part->blocks[block].linears[index].weight,
                                                      err);
    return status;
}

void decant_model_block_dismiss(const decant_model_part *part, const decant_weight_source *source, int block)
{
    char name[DECANT_NAME_BYTES + 8];
    decant_matrix host;
    decant_error unread;
    for (int index = 0; source->dismiss && index < part->family->linear_count; index++)
        if (find_weight(source, &part->blocks[block].linears[index], &host, name, &unread) == DECANT_OK)
            source->dismiss(source->context, host);
}

bool decant_model_part_begins(const decant_model_part *part)
{
    return part->first_layer == 0;
}

bool decant_model_part_ends(const decant_model_part *part)
{
    return part->first_layer + part->layer_count == part->config->layers;
}

static const char embedding_name[] = "model.embed_tokens.weight";

decant_status decant_model_embedding_place(decant_model_part *part, const decant_weight_source *source,
                                           decant_error *err)
{
    const decant_model_config *config = part->config;
    if (!decant_model_part_begins(part))
        return DECANT_OK;
    return place_tensor(part->backend, source, embedding_name, config->vocabulary_size, config->hidden_size,
                        &part->embedding, err);
}

decant_status decant_model_head_place(decant_model_part *part, const decant_weight_source *source,
                                      decant_error *err)
{
    const decant_model_config *config = part->config;
    decant_status status = DECANT_OK;
    if (!decant_model_part_ends(part))
        return DECANT_OK;
    DECANT_TRY(place_tensor(part->backend, source, "model.norm.weight", 1, config->hidden_size,
                            &part->final_norm, err));
    if (config->tied_head && part->embedding.data)
        part->head = part->embedding;
    else
        DECANT_TRY(place_tensor(part->backend, source, config->tied_head ? embedding_name : "lm_head.weight",
                                config->vocabulary_size, config->hidden_size, &part->head, err));
done:
    return status;
}

/* The angle of pair i at position t is t · base^(−2i / head_dimension); in double, as its error grows with t.
 * Later sequences repeat the first one's. */
static void fill_angles(const decant_model_part *part, float *cosines, float *sines)
{
    int64_t half = part->config->head_dimension / 2, count = part->tokens * half;
    for (int64_t t = 0; t < part->tokens; t++)
        for (int64_t i = 0; i < half; i++) {
            double angle = (double)t * pow(part->config->rotary_base, -(double)i / (double)half);
            cosines[t * half + i] = (float)cos(angle);
            sines[t * half + i] = (float)sin(angle);
        }
    for (int64_t sequence = 1; sequence < part->sequences; sequence++) {
        memcpy(cosines + sequence * count, cosines, (size_t)count * sizeof *cosines);
        memcpy(sines + sequence * count, sines, (size_t)count * sizeof *sines);
    }
}

static decant_status make_angles(decant_model_part *part, decant_error *err)
{
    decant_backend *backend = part->backend;
    int64_t count = part->sequences * part->tokens * (part->config->head_dimension / 2);
    size_t size_bytes = (size_t)count * sizeof(float);
    const char *what = "rotary angles";
    void *host = NULL, *cosines = NULL, *sines = NULL;
    decant_status status;
    DECANT_TRY(decant_memory_allocate(2 * size_bytes, what, &host, err));
    fill_angles(part, host, (float *)host + count);
    status = backend->memory->allocate(backend, size_bytes, what, &cosines, err);
    part->cosines = cosines;
    if (status != DECANT_OK)
        goto done;
    status = backend->memory->allocate(backend, size_bytes, what, &sines, err);
    part->sines = sines;
    if (status != DECANT_OK)
        goto done;
    DECANT_TRY(backend->memory->upload(backend, part->cosines, host, size_bytes, err));
    DECANT_TRY(backend->memory->upload(backend, part->sines, (float *)host + count, size_bytes, err));
    DECANT_TRY(backend->memory->synchronize(backend, err)); /* before the host's copy goes */
done:
    decant_memory_free(host);
    return status;
}

decant_status decant_model_part_outline(decant_backend *backend, const decant_model_config *config,
                                        int first_layer, int layer_count, int64_t tokens, int64_t sequences,
                                        decant_model_part *part, decant_error *err)
{
    assert(first_layer >= 0 && layer_count >= 0 && first_layer + layer_count <= config->layers);
    decant_status status;
    void *blocks;
    *part = (decant_model_part){.backend = backend,
                                .config = config,
                                .first_layer = first_layer,
                                .layer_count = layer_count,
                                .tokens = tokens,
                                .sequences = sequences};
    DECANT_TRY(decant_family_find(config, &part->family, err));
    DECANT_TRY(
        decant_memory_allocate((size_t)layer_count * sizeof *part->blocks, "the list of layers", &blocks, err));
    part->blocks = blocks;
    for (int i = 0; i < layer_count; i++) {
        part->blocks[i].layer = first_layer + i;
        for (int index = 0; index < part->family->linear_count; index++)
            part->family->linear(config, first_layer + i, index, &part->blocks[i].linears[index]);
    }
    DECANT_TRY(make_angles(part, err));
done:
    if (status != DECANT_OK)
        decant_model_part_unload(part);
    return status;
}

decant_status decant_model_part_load(decant_backend *backend, const decant_model_config *config,
                                     const decant_weight_source *source, int first_layer, int layer_count,
                                     int64_t tokens, int64_t sequences, decant_model_part *part,
                                     decant_error *err)
{
    decant_status status =
        decant_model_part_outline(backend, config, first_layer, layer_count, tokens, sequences, part, err);
    if (status != DECANT_OK)
        return status;
    for (int i = 0; i < layer_count; i++) {
        DECANT_TRY(decant_model_block_begin(part, source, i, err));
        DECANT_TRY(decant_model_block_finish(part, i, err));
    }
    DECANT_TRY(decant_model_embedding_place(part, source, err));
    DECANT_TRY(decant_model_head_place(part, source, err));
done:
    if (status != DECANT_OK)
        decant_model_part_unload(part);
    return status;
}

/* ---- unloading ---- */

static void release_packed(decant_backend *backend, decant_packed_matrix **packed)
{
    if (!*packed)
        return;
    void *arrays[] = {(*packed)->planes, (*packed)->levels, (*packed)->sparse.row_offsets,
                      (*packed)->sparse.columns, (*packed)->sparse_values};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        backend->memory->release(backend, &arrays[i]);
    decant_memory_free(*packed);
    *packed = NULL;
}

void decant_model_block_leave(decant_model_part *part, int block)
{
    decant_backend *backend = part->backend;
    decant_block *target = &part->blocks[block];
    for (int index = 0; index < part->family->linear_count; index++) {
        release_packed(backend, &target->linears[index].packed);
        backend->weights->unplace(backend, &target->linears[index].weight);
    }
    backend->weights->unplace(backend, &target->input_norm);
    backend->weights->unplace(backend, &target->post_attention_norm);
}

void decant_model_ends_leave(decant_model_part *part)
{
    decant_backend *backend = part->backend;
    if (part->head.data != part->embedding.data) /* else the same placed array */
        backend->weights->unplace(backend, &part->head);
    part->head.data = NULL;
    backend->weights->unplace(backend, &part->embedding);
    backend->weights->unplace(backend, &part->final_norm);
}

void decant_model_part_unload(decant_model_part *part)
{
    decant_backend *backend = part->backend;
    if (!backend)
        return;
    for (int i = 0; part->blocks && i < part->layer_count; i++)
        decant_model_block_leave(part, i);
    decant_memory_free(part->blocks);
    decant_model_ends_leave(part);
    void *cosines = part->cosines, *sines = part->sines;
    backend->memory->release(backend, &cosines);
    backend->memory->release(backend, &sines);
    *part = (decant_model_part){0};
}

/* ---- the model's ends ---- */

decant_status decant_model_embed(const decant_model_part *part, const int32_t *tokens, decant_matrix x,
                                 decant_error *err)
{
    return part->backend->model->embed(part->backend, tokens, part->embedding, x, err);
}

decant_status decant_model_head(const decant_model_part *part, decant_matrix x, decant_matrix normed,
                                float *inverse_rms, decant_matrix logits, decant_error *err)
{
    decant_backend *backend = part->backend;
    decant_status status;
    DECANT_TRY(backend->model->rms_norm(backend, x, part->final_norm, part->config->norm_epsilon, normed,
                                        inverse_rms, err));
    DECANT_TRY(backend->model->linear(backend, normed, part->head, false, logits, err));
done:
    return status;
}

decant_status decant_model_head_backward(const decant_model_part *part, decant_matrix dlogits, decant_matrix x,
                                         const float *inverse_rms, decant_matrix dnormed, decant_matrix dx,
                                         decant_error *err)
{
    decant_backend *backend = part->backend;
    decant_status status;
    DECANT_TRY(backend->model->linear_backward(backend, dlogits, part->head, false, dnormed, err));
    DECANT_TRY(backend->memory->zero(backend, dx.data, decant_matrix_bytes(dx), err));
    DECANT_TRY(backend->model->rms_norm_backward(backend, dnormed, x, part->final_norm, inverse_rms, dx, err));
done:
    return status;
}
