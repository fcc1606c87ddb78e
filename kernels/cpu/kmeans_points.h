/* The weighted points of one row as one-dimensional k-means wants them: sorted, equal values merged, with
 * prefix sums. What the masses mean (Fisher sums) and what becomes of the clusters (levels) is the caller's.
 *
 * A cluster of sorted points is an interval, and its cost follows from prefix sums:
 *
 *     Σ m (x − mean)²  =  Σ m x²  −  (Σ m x)² / Σ m
 *
 * The first sum does not depend on the clusters, so that k-means maximises the total of the second, the gain.
 *
 * Source: Wang and Song, Ckmeans.1d.dp, The R Journal 3(2), 2011; Grønlund et al., Fast Exact k-Means,
 * k-Medians and Bregman Divergence Clustering in 1D, arXiv:1701.07204. */
#ifndef DECANT_KERNELS_CPU_KMEANS_POINTS_H
#define DECANT_KERNELS_CPU_KMEANS_POINTS_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

/* Vectors may be read from, and scratch written, a little beyond the last prefix sum. */
enum { DECANT_POINTS_PADDING = 16 };

/* Elements of an array with one for each prefix of `count` points, padding included; whole cache lines. */
static inline size_t decant_points_stride(int64_t count)
{
    return ((size_t)count + 1 + DECANT_POINTS_PADDING + 15) / 16 * 16;
}

typedef struct decant_points {
    int32_t count;         /* points, values all different; 0 when the row has none that counts */
    double *value;         /* [count] ascending */
    double *mass;          /* [count] > 0 */
    double *mass_before;   /* [count + 1] Σ of mass over the points before */
    double *moment_before; /* [count + 1] Σ of mass · (value − mean) over the points before */
    double mean;           /* of all points, by mass */
    uint64_t *keys[2];     /* [columns] scratch of the sort */
} decant_points;

/* How many bytes the arrays for rows of this many columns take, and their layout in such a block. */
size_t decant_points_bytes(int64_t columns);
void decant_points_place(int64_t columns, void *memory, decant_points *points);

/* Points of a row.
 *   values    [columns], finite
 *   masses    [columns], finite, >= 0; NULL: all ones. A point of mass 0 is left out; but all
 *             count once when all masses are 0
 *   columns   at most what the arrays were placed for
 *   excluded  [n_excluded] columns to leave out, ascending */
void decant_points_build(const float *values, const float *masses, int64_t columns, const uint32_t *excluded,
                         int64_t n_excluded, decant_points *points);

/* (Σ m x)² / Σ m of the points [first, end); 0 when their mass is lost in that of all before them. */
static inline double decant_points_gain(const decant_points *points, int32_t first, int32_t end)
{
    double mass = points->mass_before[end] - points->mass_before[first];
    double moment = points->moment_before[end] - points->moment_before[first];
    return mass > 0 ? moment * moment / mass : 0;
}

#endif
