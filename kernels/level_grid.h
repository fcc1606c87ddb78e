/* Levels that take a byte each: those of a row are whole multiples, −127 … 127, of a power of two of its own.
 * Guided quantization chooses such levels at narrow codes, where 16-bit levels would take more than they are
 * worth: codes are chosen with the levels in mind and make up for most of their rounding. */
#ifndef DECANT_KERNELS_LEVEL_GRID_H
#define DECANT_KERNELS_LEVEL_GRID_H

#include "kernels/on_both.h"

#include <math.h>
#include <stdbool.h>

enum {
    DECANT_LEVEL_MULTIPLE = 127, /* the largest */
    DECANT_LEVEL_EXPONENT = -24, /* the least: that of F16's smallest number */
    DECANT_LEVEL_BITS = 4,       /* of the widest codes whose levels are such */
};

/* Of rows with so many levels. */
DECANT_ON_BOTH bool decant_levels_are_bytes(int count)
{
    return count <= 1 << DECANT_LEVEL_BITS;
}

/* A value that F16 holds, and the largest multiple too. */
DECANT_ON_BOTH double decant_level_clamped(double value)
{
    const double largest = 126 * 512;
    return value > largest ? largest : value < -largest ? -largest : value;
}

/* The least exponent for a row whose largest clamped magnitude is `largest`. */
DECANT_ON_BOTH int decant_level_exponent(double largest)
{
    int exponent = DECANT_LEVEL_EXPONENT;
    while (largest >= ldexp(DECANT_LEVEL_MULTIPLE + 0.5, exponent))
        exponent++;
    return exponent;
}

/* The nearest multiple of 2^exponent; F16 holds it exactly. */
DECANT_ON_BOTH double decant_level_rounded(double value, int exponent)
{
    return ldexp(rint(ldexp(value, -exponent)), exponent);
}

#endif
