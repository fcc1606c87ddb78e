/* NF4: 16 values at quantiles of the Gaussian, scaled to the largest magnitude of each block of 64 columns.
 * Source: Dettmers et al. (arXiv 2305.14314), section 3; scales here are F16 and not quantized again. */
#include "stages/methods/grid.h"

static bool offer(const decant_recipe *recipe, int64_t columns, decant_candidate_list *list)
{
    (void)columns;
    const decant_candidate candidate = {
        .method = DECANT_METHOD_NF4, .code_bits = 4, .dimension = 1, .rotation = 1, .group = DECANT_NF4_GROUP};
    return decant_grid_offer_one(recipe, &candidate, list);
}

static const decant_grid_rule rule = {.kind = DECANT_GRID_NF4, .scale = DECANT_SCALE_LARGEST};

const decant_method_operations decant_nf4_operations = {
    .name = "nf4", .offer = offer, DECANT_GRID_OPERATIONS(&rule)};
