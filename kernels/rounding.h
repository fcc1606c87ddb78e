/* Products, sums and differences that are each rounded once, in C as in CUDA, where the compiler would
 * otherwise fuse them: what is built of these has the same bits on every backend. */
#ifndef DECANT_KERNELS_ROUNDING_H
#define DECANT_KERNELS_ROUNDING_H

#include "kernels/counter_random.h" /* DECANT_ON_BOTH */

DECANT_ON_BOTH float decant_times(float a, float b)
{
#ifdef __CUDA_ARCH__
    return __fmul_rn(a, b);
#else
    return a * b;
#endif
}

DECANT_ON_BOTH float decant_plus(float a, float b)
{
#ifdef __CUDA_ARCH__
    return __fadd_rn(a, b);
#else
    return a + b;
#endif
}

DECANT_ON_BOTH float decant_minus(float a, float b)
{
#ifdef __CUDA_ARCH__
    return __fsub_rn(a, b);
#else
    return a - b;
#endif
}

#endif
