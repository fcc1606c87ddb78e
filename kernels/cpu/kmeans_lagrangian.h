/* Exact weighted k-means of sorted points in one dimension, for many clusters, by Lagrangian relaxation. */
#ifndef DECANT_KERNELS_CPU_KMEANS_LAGRANGIAN_H
#define DECANT_KERNELS_CPU_KMEANS_LAGRANGIAN_H

#include "kernels/cpu/kmeans_points.h"

/* Scratch for points->count up to `count`. */
size_t decant_kmeans_lagrangian_bytes(int64_t count);

/* The clusters of least Σ mass (value − mean of the cluster)².
 *   clusters    at least 2 and below points->count
 *   boundaries  [clusters + 1]: cluster c is the points from boundaries[c] to before boundaries[c + 1] */
void decant_kmeans_lagrangian(const decant_points *points, int clusters, int32_t *boundaries, void *scratch);

#endif
