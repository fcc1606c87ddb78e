/* See guided_operations.h. */
#include "pipeline/guided_operations.h"

#include "pipeline/rate.h"

decant_guided_operations decant_guided_operations_of(const decant_recipe *recipe, int64_t rows, int64_t columns,
                                                     int bits)
{
    const double m = (double)rows, n = (double)columns, levels = (double)((int64_t)1 << bits);
    const int rounds = recipe->guided_rounds, passes = rounds > 0 ? recipe->guided_passes : 0;
    const int objectives = passes > 0 ? 3 : 2, alternations = rounds + (passes > 0 ? passes - 1 : 0);
    return (decant_guided_operations){
        .products = (objectives + rounds * DECANT_GUIDED_SWEEPS) * 2 * m * n * n,
        .level_sums = alternations * 2 * levels * m * n * n,
        .feedback = passes > 0 ? passes * m * n * n + recipe->hessian_groups * 2 * n * n * n / 3 : 0,
    };
}

void decant_guided_operations_add(decant_guided_operations *sum, const decant_guided_operations *operations)
{
    sum->products += operations->products;
    sum->level_sums += operations->level_sums;
    sum->feedback += operations->feedback;
}

double decant_guided_operations_seconds(const decant_guided_operations *operations,
                                        const decant_guided_operations *rates)
{
    return decant_seconds_of(operations->products, rates->products) +
           decant_seconds_of(operations->level_sums, rates->level_sums) +
           decant_seconds_of(operations->feedback, rates->feedback);
}
