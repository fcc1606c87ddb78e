/* The methods that decant knows; a new one is its own file and one line here. */
#include "stages/methods/methods.h"

#include <math.h>

const decant_method_operations *decant_method_operations_of(decant_method method)
{
    static const decant_method_operations *const methods[DECANT_METHODS] = {
        [DECANT_METHOD_KMEANS] = &decant_kmeans_operations, [DECANT_METHOD_HIGGS] = &decant_higgs_operations,
        [DECANT_METHOD_RTN] = &decant_rtn_operations,       [DECANT_METHOD_NF4] = &decant_nf4_operations,
        [DECANT_METHOD_GUIDED] = &decant_guided_operations,
    };
    return methods[method];
}

bool decant_width_is(const decant_candidate *candidate, double width)
{
    const double two_digits = 0.006; /* "2.33" and "2.67" stand for thirds */
    return fabs(decant_candidate_width(candidate) - width) < two_digits;
}

bool decant_recipe_asks_for(const decant_recipe *recipe, const decant_candidate *candidate)
{
    for (int i = 0; i < recipe->widths; i++)
        if (decant_width_is(candidate, recipe->width[i]))
            return true;
    return false;
}

bool decant_candidate_append(decant_candidate_list *list, const decant_candidate *candidate)
{
    if (list->count == DECANT_CANDIDATES)
        return false;
    list->candidate[list->count++] = *candidate;
    return true;
}

void decant_candidate_measured(const decant_recipe *recipe, const decant_matrix_error *error, bool has_fisher,
                               int index, decant_quantized_layer *layer)
{
    decant_candidate *candidate = &layer->candidate[index];
    const double weights = (double)(layer->rows * layer->columns);
    layer->norm = error->norm;
    candidate->relative = error->norm > 0 ? error->squared / error->norm : 0;
    candidate->predicted =
        has_fisher ? 0.5 * recipe->curvature * error->weighted : candidate->relative * weights;
    candidate->from_sums = candidate->predicted;
}
