/* From the clusters of a row to its levels, as they are stored. */
#ifndef DECANT_KERNELS_CPU_LEVELS_H
#define DECANT_KERNELS_CPU_LEVELS_H

#include "base/element.h"
#include "kernels/cpu/kmeans_points.h"

/* The finite F16 that is nearest to the value once that is an F32; +0 for both zeros. value is not NaN. */
static inline uint16_t decant_finite_f16(double value)
{
    const double largest = 65504;
    value = value > largest ? largest : value < -largest ? -largest : value;
    uint16_t bits = decant_f32_to_f16((float)value);
    return bits == 0x8000u ? 0 : bits;
}

/* The means of the clusters, rounded, ascending. Empty clusters give no level: the last level is repeated for
 * them, and all levels are 0 when there is no point.
 *   boundaries  [clusters + 1], never falling
 *   levels      F16 [clusters]; filled */
void decant_levels_of_clusters(const decant_points *points, const int32_t *boundaries, int clusters,
                               uint16_t *levels);

#endif
