/* Round to nearest: a uniform grid from the least to the largest value of a group, with zero among its points;
 * scale and offset in F16. The baseline that every method must beat. */
#include "stages/methods/grid.h"

static const decant_grid_rule rule = {
    .kind = DECANT_GRID_RTN, .scale = DECANT_SCALE_RANGE, .has_offsets = true};

static bool offer(const decant_recipe *recipe, int64_t columns, decant_candidate_list *list)
{
    (void)columns;
    for (int g = 0; g < recipe->groups; g++)
        for (int bits = DECANT_BITS_MINIMUM; bits <= DECANT_BITS_MAXIMUM; bits++) {
            const decant_candidate candidate = {.method = DECANT_METHOD_RTN,
                                                .code_bits = bits,
                                                .dimension = 1,
                                                .rotation = 1,
                                                .group = recipe->group[g]};
            if (!decant_grid_offer_one(recipe, &candidate, list))
                return false;
        }
    return true;
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

const decant_method_operations decant_rtn_operations = {.name = "rtn",
                                                        .has_offsets = true,
                                                        .offer = offer,
                                                        .bytes = bytes,
                                                        .evaluate = evaluate,
                                                        .encode = encode,
                                                        .points = points};
