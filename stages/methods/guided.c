/* Guided layer-wise quantization: rows have levels as in k-means, but levels and codes are chosen together to
 * make Σ (w − ŵ)ᵀ H (w − ŵ) small, so that the errors of a row make up for each other. H is the Hessian of the
 * row's group of output channels. It starts from k-means and its sparse part; the stored form is k-means', with
 * codes that need not be the nearest levels, and levels of a byte each where codes have at most four bits.
 * Source: LNQ with GuidedQuant (arXiv 2505.07004).
 *
 * Predicted loss increase: ½ T'/N Σ (w − ŵ)ᵀ H (w − ŵ). The diagonal of H, with a group for every channel, is
 * the token form of F, so the factor is that of quantize.h; H keeps in addition what the errors of two columns
 * do to one token. */
#include "stages/methods/guided.h"

static bool offer(const decant_recipe *recipe, int64_t columns, decant_candidate_list *list)
{
    (void)columns;
    for (int bits = DECANT_BITS_MINIMUM; bits <= DECANT_BITS_MAXIMUM; bits++) {
        decant_candidate candidate = {
            .method = DECANT_METHOD_GUIDED, .code_bits = bits, .dimension = 1, .rotation = 1};
        if (!decant_recipe_asks_for(recipe, &candidate))
            continue;
        int fractions = recipe->guided_sparse_count;
        for (int i = 0; i < (fractions > 0 ? fractions : 1); i++) {
            candidate.sparse = fractions > 0 ? recipe->guided_sparse[i] : 0;
            if (!decant_candidate_append(list, &candidate))
                return false;
        }
    }
    return true;
}

static int64_t bytes(const decant_candidate *candidate, int64_t rows, int64_t columns, int64_t sparse_count)
{
    return decant_guided_bytes(rows, columns, candidate->code_bits, sparse_count);
}

decant_status decant_guide_candidate(decant_backend *backend, const decant_recipe *recipe, decant_matrix weight,
                                     const decant_guided_search *search, int index,
                                     decant_quantized_layer *layer, decant_error *err)
{
    decant_candidate *candidate = &layer->candidate[index];
    const decant_sparse_pattern sparse = decant_quantized_layer_sparse(layer, index);
    int64_t count = sparse.count;
    decant_packed_matrix packed = {.rows = layer->rows,
                                   .columns = layer->columns,
                                   .bits = candidate->code_bits,
                                   .levels = layer->levels[index],
                                   .sparse = sparse};
    decant_matrix_error error;
    decant_status status;
    DECANT_TRY(backend->memory->allocate(backend, decant_planes_bytes(layer->rows, layer->columns, packed.bits),
                                         "code planes", (void **)&layer->planes[index], err));
    if (count > 0)
        DECANT_TRY(backend->memory->allocate(backend, (size_t)count * sizeof *packed.sparse_values,
                                             "sparse values", (void **)&layer->sparse_values[index], err));
    packed.planes = layer->planes[index];
    packed.sparse_values = layer->sparse_values[index];
    DECANT_TRY(backend->quantize->guide(backend, weight, search, &packed, &error, err));
    decant_candidate_measured(recipe, &error, true, index, layer);
done:
    return status;
}

static decant_status evaluate(decant_backend *backend, const decant_recipe *recipe, decant_matrix weight,
                              const float *fisher, int first, int count, decant_quantized_layer *layer,
                              decant_error *err)
{
    decant_status status;
    if (!fisher || recipe->hessian_groups < 1)
        DECANT_FAIL(err, DECANT_ERROR_BUG, "guided quantization without Hessians");
    const decant_guided_search search = {
        .groups = recipe->hessian_groups,
        .hessian = fisher + layer->rows * layer->columns,
        .damping = recipe->guided_damping,
        .passes = recipe->guided_passes,
        .rounds = recipe->guided_rounds,
        .sweeps = DECANT_GUIDED_SWEEPS,
    };
    if (recipe->guided_sparse_count > 0)
        return decant_guided_with_sparse(backend, recipe, weight, fisher, &search, first, count, layer, err);
    DECANT_TRY(decant_levels_fit(backend, recipe, weight, fisher, first, count, layer, err));
    for (int i = 0; i < count; i++)
        DECANT_TRY(decant_guide_candidate(backend, recipe, weight, &search, first + i, layer, err));
done:
    return status;
}

static decant_status encode(decant_backend *backend, const decant_quantized_layer *layer, int candidate,
                            decant_matrix weight, decant_encoded_layer *encoded, decant_error *err)
{
    decant_packed_matrix *packed = &encoded->packed;
    int64_t count = decant_quantized_layer_sparse(layer, candidate).count;
    decant_status status;
    (void)weight;
    DECANT_TRY(decant_levels_pack(backend, layer, candidate, packed, err));
    DECANT_TRY(backend->memory->copy(backend, packed->planes, layer->planes[candidate],
                                     decant_planes_bytes(layer->rows, layer->columns, packed->bits), err));
    if (count > 0)
        DECANT_TRY(backend->memory->copy(backend, packed->sparse_values, layer->sparse_values[candidate],
                                         (size_t)count * sizeof *packed->sparse_values, err));
done:
    return status;
}

const decant_method_operations decant_guided_operations = {.name = "guided",
                                                           .needs_statistics = true,
                                                           .offer = offer,
                                                           .bytes = bytes,
                                                           .evaluate = evaluate,
                                                           .encode = encode};
