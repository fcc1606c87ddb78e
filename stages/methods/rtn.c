/* Round to nearest: a uniform grid from the least to the largest value of a group, with zero among its points;
 * scale and offset in F16. The baseline that every method must beat. */
#include "stages/methods/grid.h"

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

static const decant_grid_rule rule = {.kind = DECANT_GRID_RTN, .scale = DECANT_SCALE_RANGE};

const decant_method_operations decant_rtn_operations = {
    .name = "rtn", .has_offsets = true, .offer = offer, DECANT_GRID_OPERATIONS(&rule)};
