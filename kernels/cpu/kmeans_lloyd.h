/* Weighted k-means of sorted points as it is usually done: a random start and Lloyd's iterations. Here to
 * compare the exact search with. */
#ifndef DECANT_KERNELS_CPU_KMEANS_LLOYD_H
#define DECANT_KERNELS_CPU_KMEANS_LLOYD_H

#include "kernels/cpu/kmeans_points.h"

/* Scratch for points->count up to `count` and up to `clusters` clusters. */
size_t decant_kmeans_lloyd_bytes(int64_t count, int clusters);

/* A local minimum of Σ mass (value − mean of the cluster)². The start depends on the seed and the points, on
 * nothing else: rows may be computed in any order and on any rank.
 *   clusters    at least 2 and below points->count
 *   boundaries  [clusters + 1]: cluster c is the points from boundaries[c] to before boundaries[c + 1] */
void decant_kmeans_lloyd(const decant_points *points, int clusters, uint64_t seed, int32_t *boundaries,
                         void *scratch);

#endif
