/* Two independent standard normal numbers for a place, for C and for CUDA; the same on both up to the rounding
 * of logarithm, sine and cosine. */
#ifndef DECANT_KERNELS_GAUSSIAN_PAIR_H
#define DECANT_KERNELS_GAUSSIAN_PAIR_H

#include "kernels/counter_random.h"

#include <math.h>

typedef struct decant_gaussian_pair {
    float first, second;
} decant_gaussian_pair;

/* Box and Muller 1958. The radius comes of 32 bits, so it is at most 6.66 and never infinite; the angle of
 * another 24. */
DECANT_ON_BOTH decant_gaussian_pair decant_gaussian_pair_at(uint64_t seed, int64_t row, int64_t pair)
{
    const uint64_t bits = decant_random_bits(seed, (uint64_t)row, (uint64_t)pair);
    const float open = ((float)(uint32_t)(bits >> 32) + 0.5f) * 0x1p-32f; /* in (0, 1] */
    const float angle = 6.28318530717958648f * (float)((uint32_t)bits >> 8) * 0x1p-24f;
    const float radius = sqrtf(-2.0f * logf(open));
    decant_gaussian_pair both = {radius * cosf(angle), radius * sinf(angle)};
    return both;
}

#endif
