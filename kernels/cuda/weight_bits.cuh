/* Weights of the three element types as numbers and as integers that sort like them, and back to F16. Knows
 * nothing of what is done with them. */
#ifndef DECANT_KERNELS_CUDA_WEIGHT_BITS_CUH
#define DECANT_KERNELS_CUDA_WEIGHT_BITS_CUH

extern "C" {
#include "base/element.h"
}

#include <cuda_fp16.h>
#include <stdint.h>

/* The bits of entry i: the low 16 for the two short types. */
__device__ __forceinline__ uint32_t weight_bits(const void *weights, decant_element element, int64_t i)
{
    return element == DECANT_F32 ? ((const uint32_t *)weights)[i] : ((const uint16_t *)weights)[i];
}

__device__ __forceinline__ float weight_of_bits(uint32_t bits, decant_element element)
{
    if (element == DECANT_F32)
        return __uint_as_float(bits);
    return element == DECANT_BF16 ? __uint_as_float(bits << 16)
                                  : __half2float(__ushort_as_half((unsigned short)bits));
}

__device__ __forceinline__ float weight_at(const void *weights, decant_element element, int64_t i)
{
    return weight_of_bits(weight_bits(weights, element, i), element);
}

__device__ __forceinline__ uint32_t sign_bit_of(decant_element element)
{
    return element == DECANT_F32 ? 0x80000000u : 0x8000u;
}

/* An integer of the element's own width in the order of the numbers; −0 counts as +0. For a finite number it is
 * never the largest integer of that width. */
__device__ __forceinline__ uint32_t ordered_of_bits(uint32_t bits, decant_element element)
{
    const uint32_t sign = sign_bit_of(element), all = 2 * sign - 1;
    if (bits == sign)
        bits = 0;
    return bits & sign ? ~bits & all : bits | sign;
}

__device__ __forceinline__ uint32_t bits_of_ordered(uint32_t ordered, decant_element element)
{
    const uint32_t sign = sign_bit_of(element), all = 2 * sign - 1;
    return ordered & sign ? ordered ^ sign : ~ordered & all;
}

__device__ __forceinline__ bool bits_are_finite(uint32_t bits, decant_element element)
{
    const uint32_t exponent = element == DECANT_F32 ? 0x7f800000u : element == DECANT_BF16 ? 0x7f80u : 0x7c00u;
    return (bits & exponent) != exponent;
}

/* The nearest finite F16; +0 for both zeros. value is not NaN. */
__device__ __forceinline__ uint16_t finite_f16(double value)
{
    const double largest = 65504;
    const uint16_t bits = __half_as_ushort(__float2half_rn((float)fmin(fmax(value, -largest), largest)));
    return bits == 0x8000u ? 0 : bits;
}

#endif
