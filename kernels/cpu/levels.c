/* Means are summed point by point: differences of prefix sums would lose what a light cluster weighs. */
#include "kernels/cpu/levels.h"

static double mean_of(const decant_points *points, int32_t first, int32_t end)
{
    const double origin = points->value[first]; /* near the mean: little is lost in rounding */
    double mass = 0, moment = 0;
    for (int32_t i = first; i < end; i++) {
        mass += points->mass[i];
        moment += points->mass[i] * (points->value[i] - origin);
    }
    return origin + moment / mass;
}

void decant_levels_of_clusters(const decant_points *points, const int32_t *boundaries, int clusters,
                               uint16_t *levels)
{
    int filled = 0;
    for (int c = 0; c < clusters; c++)
        if (boundaries[c] < boundaries[c + 1])
            levels[filled++] = decant_finite_f16(mean_of(points, boundaries[c], boundaries[c + 1]));
    const uint16_t last = filled > 0 ? levels[filled - 1] : 0;
    for (; filled < clusters; filled++)
        levels[filled] = last;
}
