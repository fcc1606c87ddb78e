/* HIGGS: rows are multiplied by random signs and rotated by Walsh–Hadamard transforms, after which their
 * entries are nearly Gaussian, and coded on a grid that is optimal for the Gaussian, p columns at a time. Needs
 * no data; the relative error is the grid's constant whatever the layer. The rotation is the largest that needs
 * no padding. Source: Malinovskii et al. (arXiv 2411.17525), section 4; scale refit to the codes, which the
 * paper does not. */
#include "kernels/grid_form.h"
#include "stages/methods/grid.h"

static bool offer_grids(const decant_recipe *recipe, int64_t columns, int64_t dimension, int64_t group,
                        decant_candidate_list *list)
{
    for (int bits = DECANT_GRID_BITS_MINIMUM; bits <= DECANT_GRID_BITS_MAXIMUM; bits++) {
        const decant_candidate candidate = {.method = DECANT_METHOD_HIGGS,
                                            .code_bits = bits,
                                            .dimension = (int32_t)dimension,
                                            .rotation = decant_rotation_of(columns),
                                            .group = group};
        if (decant_grid_find(DECANT_GRID_HIGGS, (int)dimension, bits) &&
            !decant_grid_offer_one(recipe, &candidate, list))
            return false;
    }
    return true;
}

static bool offer(const decant_recipe *recipe, int64_t columns, decant_candidate_list *list)
{
    for (int d = 0; d < recipe->dimensions; d++)
        for (int g = 0; g < recipe->groups; g++)
            if (!offer_grids(recipe, columns, recipe->dimension[d], recipe->group[g], list))
                return false;
    return true;
}

static const decant_grid_rule rule = {.kind = DECANT_GRID_HIGGS, .scale = DECANT_SCALE_LEAST_ERROR};

const decant_method_operations decant_higgs_operations = {
    .name = "higgs", .offer = offer, DECANT_GRID_OPERATIONS(&rule)};
