/* Bits of two words put together, as codes are made of bit planes. Knows neither planes nor codes. */
#ifndef DECANT_KERNELS_CUDA_BIT_MERGE_CUH
#define DECANT_KERNELS_CUDA_BIT_MERGE_CUH

#include <stdint.h>

/* first where the mask has ones, second elsewhere: one instruction, which the compiler would make two of. */
static __host__ __device__ __forceinline__ uint32_t decant_merge(uint32_t mask, uint32_t first, uint32_t second)
{
#ifdef __CUDA_ARCH__
    uint32_t bits;
    asm("lop3.b32 %0, %1, %2, %3, 0xca;" : "=r"(bits) : "r"(mask), "r"(first), "r"(second));
    return bits;
#else
    return (first & mask) | (second & ~mask);
#endif
}

#endif
