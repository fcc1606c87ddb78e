/* Exact k-means by dynamic programming over prefixes of the sorted points.
 *
 * With gain(i, j) of the points i … j − 1, the largest total gain of the first j points in k clusters is
 *
 *     G[k][j] = max over i of G[k−1][i] + gain(i, j)
 *
 * and split[k][j] is the i that attains it, where the last cluster begins. Three facts keep the search short.
 * They follow from the Monge property of gain; rounded sums may break them by a rounding error, no more.
 *
 *   1. split[k][j] never falls as j grows: columns are solved coarse to fine, between solved neighbours.
 *   2. split[k][j] is at least split[k−1][j].
 *   3. Counted from the end, boundaries of the best partition into k clusters lie no further right than
 *      those of the best partition into K > k. Once the former is known, only columns from its boundary number
 *      2k − K on can be boundary k of the latter.
 *
 * One table gives every number of clusters on the way to the largest.
 *
 * Source: Wang and Song, The R Journal 3(2), 2011 (the program); Grønlund et al., arXiv:1701.07204 (monotone
 * splits); Aggarwal, Schieber and Tokuyama, Discrete & Computational Geometry 12, 1994 (interleaved paths). */
#include "kernels/cpu/kmeans_exact.h"

#include "kernels/cpu/kmeans_split.h"

#include <string.h>

/* One row of the table while it is filled. */
typedef struct kmeans_level {
    decant_splits splits;       /* before[i] is G[k−1][i], valid from first_below */
    const int32_t *split_below; /* split[k−1] */
    int32_t first_below;
    double *gain;   /* G[k] */
    int32_t *split; /* split[k] */
} kmeans_level;

typedef struct kmeans_table {
    const decant_points *points;
    double *gain[2]; /* [count + 1 + padding] G of the level below and of this level */
    int32_t *split;  /* [levels][count + 1 + padding]: level k at index k − 1 */
    size_t stride;   /* of split */
} kmeans_table;

size_t decant_kmeans_exact_bytes(int64_t count)
{
    return decant_points_stride(count) * (2 * sizeof(double) + DECANT_KMEANS_EXACT_MAXIMUM * sizeof(int32_t));
}

static void solve_column(const kmeans_level *level, int32_t column, int32_t low, int32_t high)
{
    decant_split best = decant_split_best(&level->splits, column, low, high);
    level->gain[column] = best.gain;
    level->split[column] = best.first;
}

static void finish_columns(const kmeans_level *level, int32_t first, const decant_split_lanes *lanes)
{
    decant_f64x4_store(level->gain + first, lanes->most);
    for (int lane = 0; lane < 4; lane++)
        level->split[first + lane] = (int32_t)lanes->at[lane];
}

enum { GAP = 8 }; /* columns solved at a time, the last of them once more */

/* The columns left + 1 … left + GAP, all with splits among low … high. */
static void solve_gap(const kmeans_level *level, int32_t left, int32_t low, int32_t high)
{
    const decant_splits *splits = &level->splits;
    decant_split_lanes near = decant_split_lanes_start(splits, left + 1, low);
    decant_split_lanes far = decant_split_lanes_start(splits, left + 5, low);
    for (int32_t split = low + 1; split <= high; split++) {
        decant_split_lanes_compare(splits, split, splits->before[split], &near);
        decant_split_lanes_compare(splits, split, splits->before[split], &far);
    }
    finish_columns(level, left + 1, &near);
    finish_columns(level, left + 5, &far);
}

/* All columns first … last; the last one is solved already. */
static void solve_columns(const kmeans_level *level, int32_t first, int32_t last)
{
    const int32_t *below = level->split_below;
    int32_t *split = level->split;
    if (first == last)
        return;
    solve_column(level, first, decant_larger(level->first_below, below[first]),
                 decant_smaller(first - 1, split[last]));
    int32_t step = GAP;
    while (step < (last - first + 1) / 2)
        step *= 2;
    for (; step >= GAP; step /= 2)
        for (int32_t j = first + step; j < last; j += 2 * step)
            solve_column(level, j, decant_larger(split[j - step], below[j]),
                         decant_smaller(j - 1, split[decant_smaller(j + step, last)]));
    /* From the right, so that no gap waits for what another one has just stored. */
    for (int32_t left = first + (last - first - 1) / GAP * GAP; left >= first; left -= GAP) {
        int32_t right = decant_smaller(left + GAP, last);
        solve_gap(level, left, decant_larger(split[left], below[left + 1]),
                  decant_smaller(split[right], right - 1));
    }
}

static void first_level(const kmeans_table *table)
{
    const decant_points *points = table->points;
    for (int32_t j = 1; j <= points->count; j++)
        table->gain[0][j] = decant_points_gain(points, 0, j);
    memset(table->split, 0, table->stride * sizeof *table->split);
}

/* The best partition into k clusters, once split[k][count] is known. */
static void trace(const kmeans_table *table, int k, int32_t *boundaries)
{
    boundaries[k] = table->points->count;
    for (int c = k; c >= 1; c--)
        boundaries[c - 1] = table->split[(size_t)(c - 1) * table->stride + (size_t)boundaries[c]];
}

void decant_kmeans_exact(const decant_points *points, int most, const int *clusters, int n_targets,
                         int32_t *const *boundaries, void *scratch)
{
    const int32_t count = points->count;
    kmeans_table table = {.points = points, .stride = decant_points_stride(count)};
    table.gain[0] = scratch;
    table.gain[1] = table.gain[0] + table.stride;
    table.split = (int32_t *)(table.gain[1] + table.stride);
    first_level(&table);
    int32_t first_below = 1;
    for (int k = 2, target = 0; target < n_targets; k++) {
        int32_t *split = table.split + (size_t)(k - 1) * table.stride;
        const decant_splits splits = {points->mass_before, points->moment_before, table.gain[0]};
        const kmeans_level level = {splits, split - table.stride, first_below, table.gain[1], split};
        solve_column(&level, count, decant_larger(first_below, level.split_below[count]), count - 1);
        int32_t path[DECANT_KMEANS_EXACT_MAXIMUM + 1];
        trace(&table, k, path);
        if (k == clusters[target])
            memcpy(boundaries[target++], path, (size_t)(k + 1) * sizeof *path);
        if (target == n_targets)
            return;
        int32_t needed = 2 * k > most ? path[2 * k - most] : k;
        first_below = decant_smaller(decant_larger(first_below + 1, needed),
                                     count - 1); /* whatever rounding made of the path */
        solve_columns(&level, first_below, count);
        double *filled = table.gain[1];
        table.gain[1] = table.gain[0];
        table.gain[0] = filled;
    }
}
