/* NF4: 16 values at quantiles of the Gaussian, scaled to the largest magnitude of each block of 64 columns.
 * Source: Dettmers et al. (arXiv 2305.14314), section 3; scales here are F16 and not quantized again. */
#include "stages/methods/grid.h"

static const decant_grid_rule rule = {.kind = DECANT_GRID_NF4, .scale = DECANT_SCALE_LARGEST};

static bool offer(const decant_recipe *recipe, int64_t columns, decant_candidate_list *list)
{
    (void)columns;
    const decant_candidate candidate = {
        .method = DECANT_METHOD_NF4, .code_bits = 4, .dimension = 1, .rotation = 1, .group = DECANT_NF4_GROUP};
    return decant_grid_offer_one(recipe, &candidate, list);
}

static int64_t bytes(const decant_candidate *candidate, int64_t rows, int64_t columns, int64_t sparse_count)
{
    (void)sparse_count;
    return decant_grid_candidate_bytes(&rule, candidate, rows, columns);
}

static decant_status evaluate(decant_backend *backend, const decant_recipe *recipe, decant_matrix weight,
                              const float *fisher, int first, int count, decant_quantized_layer *layer,
                              decant_error *err)
{
    return decant_grid_evaluate(&rule, backend, recipe, weight, fisher, first, count, layer, err);
}

static decant_status encode(decant_backend *backend, const decant_quantized_layer *layer, int candidate,
                            decant_matrix weight, decant_encoded_layer *encoded, decant_error *err)
{
    return decant_grid_encode(&rule, backend, layer, candidate, weight, &encoded->grid, err);
}

static const float *points(const decant_candidate *candidate)
{
    return decant_grid_find(rule.kind, candidate->dimension, candidate->code_bits)->points;
}

const decant_method_operations decant_nf4_operations = {
    .name = "nf4", .offer = offer, .bytes = bytes, .evaluate = evaluate, .encode = encode, .points = points};
