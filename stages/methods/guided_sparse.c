/* Guided candidates with sparse parts of their own. The weights that leave the dense part are those whose error
 * F (w − level)² is largest, as many as the candidate says; levels are then fitted to the rest, which shows
 * other weights to be the worst, and so on a few times: trimmed k-means. Then the rest is guided. How many
 * weights a matrix keeps apart is thereby one more choice of the allocator, to which a byte is a byte. */
#include "stages/methods/guided.h"

/* The first choice is made under levels that the outliers themselves have drawn to them; over the first two
 * blocks of SmolLM2-135M at 3 bits three choices leave 1.5 % less of the guided objective than one, and six
 * 0.2 % less than three. */
enum { TRIMMINGS = 3 };

typedef struct trimming {
    decant_backend *backend;
    const decant_recipe *recipe;
    decant_matrix weight;
    const float *fisher;
    const decant_guided_search *search;
    decant_quantized_layer *layer;
    decant_packed_matrix nearest; /* every weight at its nearest level; owned */
    float *cost;                  /* of each weight's error in it, [rows, columns]; owned */
} trimming;

static size_t levels_bytes(const trimming *t, int index)
{
    return (size_t)t->layer->rows << (t->layer->candidate[index].code_bits + 1);
}

/* K-means levels of all candidates, as if nothing were kept apart: one fit a width. */
static decant_status fit_dense(const trimming *t, int first, int end, decant_error *err)
{
    decant_quantized_layer *layer = t->layer;
    const decant_sparse_pattern none = {0};
    int bits[DECANT_CANDIDATES], widths = 0, first_of_width = first;
    uint16_t *levels[DECANT_CANDIDATES];
    decant_status status;
    for (int i = first; i < end; i++) {
        DECANT_TRY(t->backend->memory->allocate(t->backend, levels_bytes(t, i), "levels",
                                                (void **)&layer->levels[i], err));
        if (widths > 0 && bits[widths - 1] == layer->candidate[i].code_bits)
            continue;
        bits[widths] = layer->candidate[i].code_bits;
        levels[widths++] = layer->levels[i];
    }
    DECANT_TRY(t->backend->quantize->fit_levels(t->backend, t->weight, t->fisher, &none, t->recipe->search,
                                                t->recipe->seed, bits, widths, levels, err));
    for (int i = first; i < end; i++) {
        if (layer->candidate[i].code_bits != layer->candidate[first_of_width].code_bits)
            first_of_width = i;
        if (i != first_of_width)
            DECANT_TRY(t->backend->memory->copy(t->backend, layer->levels[i], layer->levels[first_of_width],
                                                levels_bytes(t, i), err));
    }
done:
    return status;
}

/* Takes the worst weights under the levels that candidate `index` has, and fits its levels to the others. */
static decant_status trim(trimming *t, int index, decant_error *err)
{
    decant_backend *backend = t->backend;
    decant_sparse_pattern *pattern = &t->layer->own_sparse[index];
    uint16_t *levels = t->layer->levels[index];
    const int bits = t->layer->candidate[index].code_bits;
    decant_status status;
    DECANT_TRY(backend->memory->copy(backend, t->nearest.levels, levels, levels_bytes(t, index), err));
    DECANT_TRY(backend->quantize->encode(backend, t->weight, &t->nearest, err));
    DECANT_TRY(backend->quantize->weigh_errors(backend, t->weight, t->fisher, &t->nearest, t->cost, err));
    DECANT_TRY(backend->quantize->select_sparse(backend, t->weight, t->cost, pattern->count, 0, pattern, err));
    DECANT_TRY(backend->quantize->fit_levels(backend, t->weight, t->fisher, pattern, t->recipe->search,
                                             t->recipe->seed, &bits, 1, &levels, err));
done:
    return status;
}

static decant_status choose_sparse(trimming *t, int index, decant_error *err)
{
    decant_quantized_layer *layer = t->layer;
    const decant_candidate *candidate = &layer->candidate[index];
    decant_status status = DECANT_OK;
    if (candidate->sparse_count == 0)
        return status;
    DECANT_TRY(decant_sparse_pattern_create(t->backend, layer->rows, candidate->sparse_count,
                                            &layer->own_sparse[index], err));
    DECANT_TRY(decant_packed_matrix_create(t->backend, layer->rows, layer->columns, candidate->code_bits, 0,
                                           &t->nearest, err));
    for (int i = 0; i < TRIMMINGS; i++)
        DECANT_TRY(trim(t, index, err));
done:
    decant_packed_matrix_free(t->backend, &t->nearest);
    return status;
}

decant_status decant_guided_with_sparse(decant_backend *backend, const decant_recipe *recipe,
                                        decant_matrix weight, const float *fisher,
                                        const decant_guided_search *search, int first, int count,
                                        decant_quantized_layer *layer, decant_error *err)
{
    trimming t = {.backend = backend,
                  .recipe = recipe,
                  .weight = weight,
                  .fisher = fisher,
                  .search = search,
                  .layer = layer};
    decant_status status;
    DECANT_TRY(backend->memory->allocate(backend, (size_t)(layer->rows * layer->columns) * sizeof *t.cost,
                                         "costs of errors", (void **)&t.cost, err));
    DECANT_TRY(fit_dense(&t, first, first + count, err));
    for (int i = first; i < first + count; i++) {
        DECANT_TRY(choose_sparse(&t, i, err));
        DECANT_TRY(decant_guide_candidate(backend, recipe, weight, search, i, layer, err));
    }
done:
    backend->memory->release(backend, (void **)&t.cost);
    return status;
}
