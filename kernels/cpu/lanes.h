/* Eight floats at a time: the arithmetic of the element-wise kernels. Written with the compiler's vector types,
 * so that the same operations happen in the same order on every processor, whatever the compiler options. */
#ifndef DECANT_KERNELS_CPU_LANES_H
#define DECANT_KERNELS_CPU_LANES_H

#include <stdint.h>
#include <string.h>

/* GCC warns where these types are passed without AVX, as other compilers' code would pass them differently:
 * they never leave the file that they are used in. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

enum { DECANT_LANES = 8 };

typedef float decant_lanes __attribute__((vector_size(4 * DECANT_LANES)));
typedef int32_t decant_lane_mask __attribute__((vector_size(4 * DECANT_LANES)));
typedef uint32_t decant_lane_bits __attribute__((vector_size(4 * DECANT_LANES)));

static inline decant_lanes decant_lanes_load(const float *x)
{
    decant_lanes lanes;
    memcpy(&lanes, x, sizeof lanes);
    return lanes;
}

static inline void decant_lanes_store(float *x, decant_lanes lanes)
{
    memcpy(x, &lanes, sizeof lanes);
}

/* The first count < DECANT_LANES elements; the other lanes are zero. */
static inline decant_lanes decant_lanes_load_some(const float *x, int64_t count)
{
    decant_lanes lanes = {0};
    memcpy(&lanes, x, (size_t)count * sizeof *x);
    return lanes;
}

static inline void decant_lanes_store_some(float *x, decant_lanes lanes, int64_t count)
{
    memcpy(x, &lanes, (size_t)count * sizeof *x);
}

/* Where `first` is set lane by lane, x, else y. */
static inline decant_lanes decant_lanes_choose(decant_lane_mask first, decant_lanes x, decant_lanes y)
{
    return (decant_lanes)(((decant_lane_mask)x & first) | ((decant_lane_mask)y & ~first));
}

static inline double decant_lanes_sum(decant_lanes x)
{
    return (((double)x[0] + x[1]) + ((double)x[2] + x[3])) + (((double)x[4] + x[5]) + ((double)x[6] + x[7]));
}

/* e^x with a relative error below 2e-7 for x in [-87, 88]; the value at the nearer end outside; NaN for NaN.
 * Source: the polynomial and the two-part logarithm of Cephes' expf. */
static inline decant_lanes decant_lanes_exponential(decant_lanes x)
{
    const decant_lanes zero = {0};
    const decant_lanes highest = zero + 88.0f, lowest = zero - 87.0f;
    x = decant_lanes_choose(x > highest, highest, x);
    x = decant_lanes_choose(x < lowest, lowest, x);
    const float rounder = 12582912.0f; /* 1.5 · 2^23: adding it rounds to an integer, kept in the low bits */
    decant_lanes shifted = x * 1.44269504088896341f + rounder;
    decant_lanes n = shifted - rounder;
    decant_lanes r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    decant_lanes p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    /* 2^n: the shift leaves nothing but n, in the exponent's place. */
    decant_lane_bits power = ((decant_lane_bits)shifted << 23) + 0x3f800000;
    return p * (decant_lanes)power;
}

#endif
