/* k-means: each row has its own levels, which minimise Σ F (w − level)², and the outliers and most sensitive
 * weights are kept apart in a sparse matrix. All widths are fitted at once. Source: SqueezeLLM (arXiv
 * 2306.07629). */
#include "stages/methods/methods.h"

static bool offer(const decant_recipe *recipe, int64_t columns, decant_candidate_list *list)
{
    (void)columns;
    for (int bits = DECANT_BITS_MINIMUM; bits <= DECANT_BITS_MAXIMUM; bits++) {
        const decant_candidate candidate = {
            .method = DECANT_METHOD_KMEANS, .code_bits = bits, .dimension = 1, .rotation = 1};
        if (decant_recipe_asks_for(recipe, &candidate) && !decant_candidate_append(list, &candidate))
            return false;
    }
    return true;
}

static int64_t bytes(const decant_candidate *candidate, int64_t rows, int64_t columns, int64_t sparse_count)
{
    return decant_packed_bytes(rows, columns, candidate->code_bits, sparse_count);
}

static decant_status measure_candidate(decant_backend *backend, const decant_recipe *recipe,
                                       decant_matrix weight, const float *fisher, int index,
                                       decant_quantized_layer *layer, decant_error *err)
{
    decant_matrix_error error;
    const decant_sparse_pattern sparse = decant_quantized_layer_sparse(layer, index);
    decant_status status = backend->quantize->measure(
        backend, weight, fisher, &sparse, layer->candidate[index].code_bits, layer->levels[index], &error, err);
    if (status == DECANT_OK)
        decant_candidate_measured(recipe, &error, fisher != NULL, index, layer);
    return status;
}

static decant_status choose_sparse(decant_backend *backend, const decant_recipe *recipe, decant_matrix weight,
                                   const float *fisher, decant_quantized_layer *layer, decant_error *err)
{
    int64_t rows = layer->rows, columns = layer->columns, sensitive, outliers;
    decant_recipe_sparse_counts(recipe, rows, columns, &sensitive, &outliers);
    if (sensitive + outliers == 0 || layer->sparse.count > 0)
        return DECANT_OK;
    decant_status status;
    DECANT_TRY(decant_sparse_pattern_create(backend, rows, sensitive + outliers, &layer->sparse, err));
    DECANT_TRY(
        backend->quantize->select_sparse(backend, weight, fisher, sensitive, outliers, &layer->sparse, err));
done:
    return status;
}

decant_status decant_levels_fit(decant_backend *backend, const decant_recipe *recipe, decant_matrix weight,
                                const float *fisher, int first, int count, decant_quantized_layer *layer,
                                decant_error *err)
{
    int bits[DECANT_CANDIDATES];
    decant_status status;
    DECANT_TRY(choose_sparse(backend, recipe, weight, fisher, layer, err));
    for (int i = 0; i < count; i++) {
        bits[i] = layer->candidate[first + i].code_bits;
        DECANT_TRY(backend->memory->allocate(backend, (size_t)layer->rows << (bits[i] + 1), "levels",
                                             (void **)&layer->levels[first + i], err));
    }
    DECANT_TRY(backend->quantize->fit_levels(backend, weight, fisher, &layer->sparse, recipe->search,
                                             recipe->seed, bits, count, layer->levels + first, err));
done:
    return status;
}

static decant_status evaluate(decant_backend *backend, const decant_recipe *recipe, decant_matrix weight,
                              const float *fisher, int first, int count, decant_quantized_layer *layer,
                              decant_error *err)
{
    decant_status status;
    DECANT_TRY(decant_levels_fit(backend, recipe, weight, fisher, first, count, layer, err));
    for (int i = 0; i < count; i++)
        DECANT_TRY(measure_candidate(backend, recipe, weight, fisher, first + i, layer, err));
done:
    return status;
}

decant_status decant_levels_pack(decant_backend *backend, const decant_quantized_layer *layer, int candidate,
                                 decant_packed_matrix *packed, decant_error *err)
{
    int bits = layer->candidate[candidate].code_bits;
    const decant_sparse_pattern sparse = decant_quantized_layer_sparse(layer, candidate);
    int64_t count = sparse.count;
    decant_status status;
    DECANT_TRY(decant_packed_matrix_create(backend, layer->rows, layer->columns, bits, count, packed, err));
    DECANT_TRY(backend->memory->copy(backend, packed->levels, layer->levels[candidate],
                                     (size_t)layer->rows << (bits + 1), err));
    if (count > 0) {
        DECANT_TRY(backend->memory->copy(backend, packed->sparse.row_offsets, sparse.row_offsets,
                                         (size_t)(layer->rows + 1) * 4, err));
        DECANT_TRY(
            backend->memory->copy(backend, packed->sparse.columns, sparse.columns, (size_t)count * 4, err));
    }
done:
    return status;
}

static decant_status encode(decant_backend *backend, const decant_quantized_layer *layer, int candidate,
                            decant_matrix weight, decant_encoded_layer *encoded, decant_error *err)
{
    decant_status status;
    DECANT_TRY(decant_levels_pack(backend, layer, candidate, &encoded->packed, err));
    DECANT_TRY(backend->quantize->encode(backend, weight, &encoded->packed, err));
done:
    return status;
}

const decant_method_operations decant_kmeans_operations = {.name = "kmeans",
                                                           .needs_statistics = true,
                                                           .offer = offer,
                                                           .bytes = bytes,
                                                           .evaluate = evaluate,
                                                           .encode = encode};
