/* Four doubles at a time, in the compiler's vector types: the same operations in the same order on every
 * processor. */
#ifndef DECANT_KERNELS_CPU_LANES_F64_H
#define DECANT_KERNELS_CPU_LANES_F64_H

#include <stdint.h>
#include <string.h>

typedef double decant_f64x4 __attribute__((vector_size(32)));
typedef int64_t decant_i64x4 __attribute__((vector_size(32)));

static inline decant_f64x4 decant_f64x4_all(double x)
{
    return (decant_f64x4){x, x, x, x};
}

static inline decant_f64x4 decant_f64x4_load(const double *x)
{
    decant_f64x4 lanes;
    memcpy(&lanes, x, sizeof lanes);
    return lanes;
}

static inline void decant_f64x4_store(double *x, decant_f64x4 lanes)
{
    memcpy(x, &lanes, sizeof lanes);
}

/* Where `first` is set lane by lane, x, else y. */
static inline decant_f64x4 decant_f64x4_choose(decant_i64x4 first, decant_f64x4 x, decant_f64x4 y)
{
    return (decant_f64x4)(((decant_i64x4)x & first) | ((decant_i64x4)y & ~first));
}

static inline double decant_f64x4_maximum(decant_f64x4 x)
{
    decant_f64x4 swapped = __builtin_shufflevector(x, x, 2, 3, 0, 1);
    decant_f64x4 larger = decant_f64x4_choose(x > swapped, x, swapped);
    return larger[0] > larger[1] ? larger[0] : larger[1];
}

static inline double decant_f64x4_minimum(decant_f64x4 x)
{
    return -decant_f64x4_maximum(-x);
}

#endif
