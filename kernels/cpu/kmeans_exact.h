/* Exact weighted k-means of sorted points in one dimension, for a few clusters, by dynamic programming. */
#ifndef DECANT_KERNELS_CPU_KMEANS_EXACT_H
#define DECANT_KERNELS_CPU_KMEANS_EXACT_H

#include "kernels/cpu/kmeans_points.h"

enum { DECANT_KMEANS_EXACT_MAXIMUM = 16 };

/* Scratch for points->count up to `count`. */
size_t decant_kmeans_exact_bytes(int64_t count);

/* The clusters of least Σ mass (value − mean of the cluster)², for several numbers of clusters at once. The
 * answer for one number does not depend on which others are asked, not even where several answers are as good.
 *   most        the most clusters that the table is made for, up to DECANT_KMEANS_EXACT_MAXIMUM
 *   clusters    [n_targets] ascending, each in 2 … most and below points->count
 *   boundaries  [n_targets] arrays [clusters + 1]: cluster c is the points from boundaries[c] to before
 *               boundaries[c + 1] */
void decant_kmeans_exact(const decant_points *points, int most, const int *clusters, int n_targets,
                         int32_t *const *boundaries, void *scratch);

#endif
