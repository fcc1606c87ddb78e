/* Random numbers that are a function of a seed and a place: the same on every backend, in any order, by any
 * number of threads. For C and for CUDA. */
#ifndef DECANT_KERNELS_COUNTER_RANDOM_H
#define DECANT_KERNELS_COUNTER_RANDOM_H

#include <stdint.h>

#ifdef __CUDACC__
#define DECANT_ON_BOTH static __host__ __device__ __forceinline__
#else
#define DECANT_ON_BOTH static inline
#endif

/* The finalizer of splitmix64: every bit of the result depends on every bit of x. Source: Steele, Lea, Flood,
 * "Fast splittable pseudorandom number generators", 2014. */
DECANT_ON_BOTH uint64_t decant_random_mix(uint64_t x)
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* 64 random bits for place (a, b) of the stream `seed`. */
DECANT_ON_BOTH uint64_t decant_random_bits(uint64_t seed, uint64_t a, uint64_t b)
{
    const uint64_t odd = 0x9e3779b97f4a7c15u; /* splitmix64's increment: the golden ratio */
    uint64_t bits = decant_random_mix(seed + odd);
    bits = decant_random_mix(bits ^ (a + 1) * odd);
    return decant_random_mix(bits ^ (b + 1) * odd);
}

/* The sign of a column before it is rotated: 0 for +, 1 for −. */
DECANT_ON_BOTH uint32_t decant_random_sign(uint64_t seed, int64_t column)
{
    return (uint32_t)(decant_random_bits(seed, 0, (uint64_t)column / 64) >> (column % 64)) & 1u;
}

#endif
