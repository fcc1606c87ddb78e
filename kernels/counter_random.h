/* Random numbers that are a function of a seed and a place: the same on every backend, in any order, by any
 * number of threads. For C and for CUDA. */
#ifndef DECANT_KERNELS_COUNTER_RANDOM_H
#define DECANT_KERNELS_COUNTER_RANDOM_H

#include "kernels/on_both.h"

#include <stdint.h>

/* The finalizer of splitmix64: every bit of the result depends on every bit of x. Source: Steele, Lea, Flood,
 * "Fast splittable pseudorandom number generators", 2014. */
DECANT_ON_BOTH uint64_t decant_random_mix(uint64_t x)
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* What is the same of all places (a, …) of the stream `seed`. */
DECANT_ON_BOTH uint64_t decant_random_key(uint64_t seed, uint64_t a)
{
    const uint64_t odd = 0x9e3779b97f4a7c15u; /* splitmix64's increment: the golden ratio */
    return decant_random_mix(decant_random_mix(seed + odd) ^ (a + 1) * odd);
}

/* 64 random bits for place (a, b) of the stream that the key is of. */
DECANT_ON_BOTH uint64_t decant_random_keyed(uint64_t key, uint64_t b)
{
    const uint64_t odd = 0x9e3779b97f4a7c15u;
    return decant_random_mix(key ^ (b + 1) * odd);
}

/* 64 random bits for place (a, b) of the stream `seed`. */
DECANT_ON_BOTH uint64_t decant_random_bits(uint64_t seed, uint64_t a, uint64_t b)
{
    return decant_random_keyed(decant_random_key(seed, a), b);
}

/* The sign of a column before it is rotated: 0 for +, 1 for −. */
DECANT_ON_BOTH uint32_t decant_random_sign(uint64_t seed, int64_t column)
{
    return (uint32_t)(decant_random_bits(seed, 0, (uint64_t)column / 64) >> (column % 64)) & 1u;
}

#endif
