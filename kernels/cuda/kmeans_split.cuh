/* Where the last cluster of a prefix of the sorted points should begin: the inner loop of both exact searches.
 *
 * A column is a prefix, the points before it; a split is where its last cluster begins. The gain of a split is
 *     below[split] + (Σ m x)² / Σ m  of the points from the split to the column,
 * moments m x taken about the row's mean and below[] being what the points before the split are worth. It is
 * not a number, and so never the largest, where the mass between is lost in that of all points before. */
#ifndef DECANT_KERNELS_CUDA_KMEANS_SPLIT_CUH
#define DECANT_KERNELS_CUDA_KMEANS_SPLIT_CUH

#include "kernels/cuda/elements.cuh"

#include <stdint.h>

struct split_choice {
    double gain;
    int split;
};

/* To full precision but for the last bit: division takes half as long again. */
static __device__ __forceinline__ double reciprocal(double x)
{
    double y;
    asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(y) : "d"(x)); /* 20 bits */
    const double e = fma(-x, y, 1.0);
    return fma(y, fma(e, e, e), y); /* one cubic step: all of them */
}

/* column, start: mass and moment before the column and before the split. */
static __device__ __forceinline__ double split_gain(double2 column, double2 start, double below)
{
    const double mass = column.x - start.x, moment = column.y - start.y;
    return fma(moment * reciprocal(mass), moment, below);
}

/* Takes the first of the splits low, low + STRIDE … up to high that gains most, if more than *best. */
template <int STRIDE>
static __device__ __forceinline__ void compare_splits(const double2 *before, const double *below,
                                                      double2 column, int low, int high, split_choice *best)
{
    int i = low;
    for (; i + 3 * STRIDE <= high; i += 4 * STRIDE) { /* several loads under way */
        double2 start[4];
        double worth[4];
#pragma unroll
        for (int t = 0; t < 4; t++) {
            start[t] = before[i + t * STRIDE];
            worth[t] = below[i + t * STRIDE];
        }
#pragma unroll
        for (int t = 0; t < 4; t++) {
            const double gain = split_gain(column, start[t], worth[t]);
            if (gain > best->gain)
                *best = split_choice{gain, i + t * STRIDE};
        }
    }
    for (; i <= high; i += STRIDE) {
        const double gain = split_gain(column, before[i], below[i]);
        if (gain > best->gain)
            *best = split_choice{gain, i};
    }
}

/* The upper half of a double's bits as an integer in the order of the numbers, where the lower half decides
 * between equal ones; and back. */
static __device__ __forceinline__ unsigned ordered_of_high(int high)
{
    return (unsigned)(high ^ (high >> 31 | INT32_MIN));
}

static __device__ __forceinline__ int high_of_ordered(unsigned ordered)
{
    return (int)ordered < 0 ? (int)ordered ^ INT32_MIN : (int)~ordered;
}

/* The largest gain of a warp, the lowest split among equals. */
static __device__ __forceinline__ split_choice best_of_warp(split_choice best)
{
    const int high = __double2hiint(best.gain);
    const unsigned low =
        (unsigned)(__double2loint(best.gain) ^ high >> 31); /* negative numbers fall as bits rise */
    const unsigned ordered = ordered_of_high(high);
    const unsigned most_high = __reduce_max_sync(DECANT_ALL_LANES, ordered);
    const unsigned most_low = __reduce_max_sync(DECANT_ALL_LANES, ordered == most_high ? low : 0u);
    const bool is_best = ordered == most_high && low == most_low;
    const unsigned split = __reduce_min_sync(DECANT_ALL_LANES, is_best ? (unsigned)best.split : 0xffffffffu);
    const int found = high_of_ordered(most_high);
    return split_choice{__hiloint2double(found, (int)most_low ^ found >> 31), (int)split};
}

#endif
