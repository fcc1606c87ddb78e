/* A rank's part of a model: loading it, and what it takes. The passes that no family owns are in model_ends.c.
 *
 * Linear layers come packed when the source has them so, else whole. A tied head is the embedding's array
 * itself where one part has both, and a second copy of it where the model's ends lie on different parts. Packed
 * layers are owned by the part: their arrays were made with backend->memory and the struct with
 * decant_memory_allocate. */
#include "stages/model.h"
#include "base/memory.h"
#include "kernels/packed_input.h"
#include "stages/linear_weight.h"
#include "stages/quantize.h"
#include "stages/rotary_angles.h"

#include <assert.h>

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
    if (linear->grid)
        return backend->grid->linear(backend, x, linear->grid, accumulate, y, err);
    return backend->model->linear(backend, x, linear->weight, accumulate, y, err);
}

decant_status decant_linears_forward(decant_backend *backend, const decant_linear *linears, int count,
                                     const decant_packed_input *input, bool accumulate, const decant_matrix *ys,
                                     decant_error *err)
{
    decant_packed_product packed[DECANT_BLOCK_LINEARS];
    int packed_count = 0;
    decant_packed_input made = *input;
    decant_status status = DECANT_OK;
    assert(count <= DECANT_BLOCK_LINEARS);
    for (int i = 0; i < count; i++)
        if (linears[i].packed)
            packed[packed_count++] = (decant_packed_product){.packed = linears[i].packed, .y = ys[i]};
    if (packed_count < count) {
        made = (decant_packed_input){0};
        DECANT_TRY(decant_packed_input_make(backend, input, &made.x, err));
    }
    for (int i = 0; i < count; i++)
        if (!linears[i].packed)
            DECANT_TRY(decant_linear_forward(backend, &linears[i], made.x, accumulate, ys[i], err));
    if (packed_count > 0)
        DECANT_TRY(backend->validate->packed_products(backend, &made, packed, packed_count, accumulate, err));
done:
    return status;
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
                                 decant_matrix *host, char name[DECANT_WEIGHT_NAME_BYTES], decant_error *err)
{
    decant_linear_weight_name(linear, name);
    return source->matrix(source->context, name, linear->rows, linear->columns, host, err);
}

static decant_status begin_linear(decant_backend *backend, const decant_weight_source *source,
                                  decant_linear *linear, decant_error *err)
{
    char name[DECANT_WEIGHT_NAME_BYTES];
    decant_matrix host;
    decant_status status = DECANT_OK;
    if (source->packed)
        status = source->packed(source->context, backend, linear->name, linear->rows, linear->columns,
                                &linear->packed, err);
    if (status == DECANT_OK && !linear->packed && source->grid)
        status = source->grid(source->context, backend, linear->name, linear->rows, linear->columns,
                              &linear->grid, err);
    if (status != DECANT_OK || linear->packed || linear->grid)
        return status;
    status = find_weight(source, linear, &host, name, err);
    if (status != DECANT_OK)
        return status;
    return backend->weights->begin_place(backend, host, DECANT_PLACE_COMPUTE, name, &linear->weight, err);
}

static decant_status begin_vector(decant_backend *backend, const decant_weight_source *source,
                                  decant_vector *vector, decant_error *err)
{
    decant_matrix host;
    if (vector->length == 0)
        return DECANT_OK;
    decant_status status = source->matrix(source->context, vector->name, 1, vector->length, &host, err);
    if (status != DECANT_OK)
        return status;
    return backend->weights->begin_place(backend, host, DECANT_PLACE_COMPUTE, vector->name, &vector->values,
                                         err);
}

/* Asks for all of a block's weights before any of them is waited for. */
static decant_status expect_block(const decant_model_part *part, const decant_weight_source *source,
                                  const decant_block *block, decant_error *err)
{
    char name[DECANT_WEIGHT_NAME_BYTES];
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
    for (int index = 0; index < DECANT_BLOCK_VECTORS; index++)
        DECANT_TRY(begin_vector(part->backend, source, &target->vectors[index], err));
    for (int index = 0; index < part->family->linear_count; index++)
        DECANT_TRY(begin_linear(part->backend, source, &target->linears[index], err));
done:
    return status;
}

decant_status decant_model_block_finish(decant_model_part *part, int block, decant_error *err)
{
    const decant_weight_kernels *weights = part->backend->weights;
    decant_block *target = &part->blocks[block];
    decant_status status;
    for (int index = 0; index < DECANT_BLOCK_VECTORS; index++)
        DECANT_TRY(weights->finish_place(part->backend, &target->vectors[index].values, err));
    for (int index = 0; index < part->family->linear_count; index++)
        DECANT_TRY(weights->finish_place(part->backend, &target->linears[index].weight, err));
done:
    return status;
}

void decant_model_block_dismiss(const decant_model_part *part, const decant_weight_source *source, int block)
{
    char name[DECANT_WEIGHT_NAME_BYTES];
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

static decant_matrix *end_of(decant_model_part *part, decant_end which)
{
    decant_matrix *const ends[DECANT_ENDS] = {
        [DECANT_END_EMBEDDING] = &part->embedding,
        [DECANT_END_PROJECTION_IN] = &part->projection_in,
        [DECANT_END_POSITIONS] = &part->positions,
        [DECANT_END_NORM] = &part->final_norm,
        [DECANT_END_NORM_BIAS] = &part->final_norm_bias,
        [DECANT_END_PROJECTION_OUT] = &part->projection_out,
        [DECANT_END_HEAD] = &part->head,
    };
    return ends[which];
}

static decant_status place_end(decant_model_part *part, const decant_weight_source *source, decant_end which,
                               decant_error *err)
{
    decant_end_tensor tensor;
    part->family->end(part->config, which, &tensor);
    if (tensor.rows == 0)
        return DECANT_OK;
    return place_tensor(part->backend, source, tensor.name, tensor.rows, tensor.columns, end_of(part, which),
                        err);
}

decant_status decant_model_embedding_place(decant_model_part *part, const decant_weight_source *source,
                                           decant_error *err)
{
    decant_status status = DECANT_OK;
    for (int i = 0; i < DECANT_ENDS && decant_model_part_begins(part); i++)
        if (decant_end_is_first((decant_end)i))
            DECANT_TRY(place_end(part, source, (decant_end)i, err));
done:
    return status;
}

decant_status decant_model_head_place(decant_model_part *part, const decant_weight_source *source,
                                      decant_error *err)
{
    decant_status status = DECANT_OK;
    if (!decant_model_part_ends(part))
        return DECANT_OK;
    if (part->config->tied_head && part->embedding.data)
        part->head = part->embedding;
    for (int i = 0; i < DECANT_ENDS; i++)
        if (!decant_end_is_first((decant_end)i) && !end_of(part, (decant_end)i)->data)
            DECANT_TRY(place_end(part, source, (decant_end)i, err));
done:
    return status;
}

/* Room between a projection and the embedding or the head. */
static decant_status create_projected(decant_model_part *part, decant_error *err)
{
    decant_end_tensor projection;
    part->family->end(part->config, DECANT_END_PROJECTION_IN, &projection);
    if (projection.rows == 0 || !(decant_model_part_begins(part) || decant_model_part_ends(part)))
        return DECANT_OK;
    return decant_activation_create(part->backend, part->rows, projection.columns, "a projection",
                                    &part->projected, err);
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
                                .sequences = sequences,
                                .rows = tokens * sequences};
    DECANT_TRY(decant_family_find(config, &part->family, err));
    DECANT_TRY(
        decant_memory_allocate((size_t)layer_count * sizeof *part->blocks, "the list of layers", &blocks, err));
    part->blocks = blocks;
    for (int i = 0; i < layer_count; i++) {
        part->blocks[i].layer = first_layer + i;
        for (int index = 0; index < part->family->linear_count; index++)
            part->family->linear(config, first_layer + i, index, &part->blocks[i].linears[index]);
        for (int index = 0; index < DECANT_BLOCK_VECTORS; index++)
            part->family->vector(part->family, config, first_layer + i, index, &part->blocks[i].vectors[index]);
    }
    DECANT_TRY(create_projected(part, err));
    if (config->position_rows == 0)
        DECANT_TRY(
            decant_rotary_angles_create(backend, config, tokens, sequences, &part->cosines, &part->sines, err));
done:
    if (status != DECANT_OK)
        decant_model_part_unload(part);
    return status;
}

decant_status decant_model_part_reshape(decant_model_part *part, int64_t tokens, int64_t sequences,
                                        decant_error *err)
{
    assert(tokens * sequences <= part->rows);
    if (part->tokens == tokens && part->sequences == sequences)
        return DECANT_OK;
    part->tokens = tokens;
    part->sequences = sequences;
    if (!part->cosines) /* a family without */
        return DECANT_OK;
    return decant_rotary_angles_fill(part->backend, part->config, tokens, sequences, part->cosines, part->sines,
                                     err);
}

decant_status decant_model_part_begin(decant_backend *backend, const decant_model_config *config,
                                      const decant_weight_source *source, int first_layer, int layer_count,
                                      int64_t tokens, int64_t sequences, decant_model_part *part,
                                      decant_error *err)
{
    decant_status status =
        decant_model_part_outline(backend, config, first_layer, layer_count, tokens, sequences, part, err);
    for (int i = 0; i < layer_count && status == DECANT_OK; i++)
        status = decant_model_block_begin(part, source, i, err);
    if (status != DECANT_OK)
        decant_model_part_unload(part);
    return status;
}

decant_status decant_model_part_finish(decant_model_part *part, const decant_weight_source *source,
                                       decant_error *err)
{
    decant_status status = DECANT_OK;
    for (int i = 0; i < part->layer_count; i++)
        DECANT_TRY(decant_model_block_finish(part, i, err));
    DECANT_TRY(decant_model_embedding_place(part, source, err));
    DECANT_TRY(decant_model_head_place(part, source, err));
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
    decant_status status = decant_model_part_begin(backend, config, source, first_layer, layer_count, tokens,
                                                   sequences, part, err);
    return status == DECANT_OK ? decant_model_part_finish(part, source, err) : status;
}

/* ---- unloading ---- */

static void release_linear(decant_backend *backend, decant_linear *linear)
{
    if (linear->packed)
        decant_packed_matrix_free(backend, linear->packed);
    if (linear->grid)
        decant_grid_matrix_free(backend, linear->grid);
    decant_memory_free(linear->packed);
    decant_memory_free(linear->grid);
    linear->packed = NULL;
    linear->grid = NULL;
    backend->weights->unplace(backend, &linear->weight);
}

void decant_model_block_leave(decant_model_part *part, int block)
{
    decant_backend *backend = part->backend;
    decant_block *target = &part->blocks[block];
    for (int index = 0; index < part->family->linear_count; index++)
        release_linear(backend, &target->linears[index]);
    for (int index = 0; index < DECANT_BLOCK_VECTORS; index++)
        backend->weights->unplace(backend, &target->vectors[index].values);
}

void decant_model_ends_leave(decant_model_part *part)
{
    decant_backend *backend = part->backend;
    if (part->head.data == part->embedding.data) /* the same placed array */
        part->head.data = NULL;
    for (int i = 0; i < DECANT_ENDS; i++)
        backend->weights->unplace(backend, end_of(part, (decant_end)i));
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
    backend->memory->release(backend, &part->projected.data);
    void *cosines = part->cosines, *sines = part->sines;
    backend->memory->release(backend, &cosines);
    backend->memory->release(backend, &sines);
    *part = (decant_model_part){0};
}

/* ---- size ---- */

static int64_t linear_bytes(const decant_linear *linear)
{
    const decant_packed_matrix *packed = linear->packed;
    const decant_grid_matrix *grid = linear->grid;
    if (grid)
        return decant_grid_bytes(grid->rows, grid->columns, grid->form.code_bits, grid->form.dimension,
                                 grid->form.group, grid->form.has_offsets);
    if (!packed)
        return linear->weight.data ? (int64_t)decant_matrix_bytes(linear->weight) : 0;
    int64_t words = (packed->columns + 31) / 32, count = packed->sparse.count;
    int64_t dense = packed->rows * packed->bits * words * 4 + (packed->rows << packed->bits) * 2;
    int64_t entry = 4 + 2 + (packed->sparse_entries ? 4 : 0);
    return count > 0 ? dense + (packed->rows + 1) * 4 + count * entry : dense;
}

static int64_t vector_bytes(const decant_vector *vector)
{
    return vector->values.data ? (int64_t)decant_matrix_bytes(vector->values) : 0;
}

int64_t decant_model_part_weight_bytes(const decant_model_part *part)
{
    decant_model_part ends = *part; /* end_of gives no constant address */
    int64_t bytes = 0;
    if (ends.head.data == ends.embedding.data)
        ends.head.data = NULL;
    for (int i = 0; i < DECANT_ENDS; i++)
        if (end_of(&ends, (decant_end)i)->data)
            bytes += (int64_t)decant_matrix_bytes(*end_of(&ends, (decant_end)i));
    for (int i = 0; i < part->layer_count; i++) {
        const decant_block *block = &part->blocks[i];
        for (int index = 0; index < DECANT_BLOCK_VECTORS; index++)
            bytes += vector_bytes(&block->vectors[index]);
        for (int index = 0; index < part->family->linear_count; index++)
            bytes += linear_bytes(&block->linears[index]);
    }
    return bytes;
}
