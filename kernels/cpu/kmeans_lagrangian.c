/* Exact k-means through a price for each cluster.
 *
 * With a penalty λ on every cluster the number of clusters is free, and one pass over the points solves this
 * relaxed problem exactly:
 *
 *     V[j] = max over i < j of V[i] + gain(i, j) − λ
 *
 * where the last cluster of the first j points begins at the i that attains it, split[j]. The largest gain of K
 * clusters is concave in K, because gain has the Monge property. So when the optimum under some λ has K
 * clusters it is the best partition into K, and for every K there is such a λ. The number of clusters falls as
 * λ grows: a few passes find λ, the first from a high-resolution estimate, the next by interpolation.
 *
 * What keeps a pass short: split[j] never falls as j grows, nor rises as λ grows. So the splits found under a
 * lower and under a higher penalty bound those in between. The time is about the same for 16 clusters and for
 * 256, where that of the dynamic program grows with their number.
 *
 * When several numbers of clusters are optimal under one λ (equal spacings and masses), all passes may step
 * over K. Then the best partitions with more and with fewer clusters are joined where they interleave; the
 * result has K clusters and lies on the same line, an optimum again.
 *
 * Source: Aggarwal, Schieber and Tokuyama, Finding a minimum-weight k-link path in graphs with the concave
 * Monge property and applications, Discrete & Computational Geometry 12, 1994 (penalty, joining of paths);
 * Grønlund et al., arXiv:1701.07204 (regularized k-means). */
#include "kernels/cpu/kmeans_lagrangian.h"

#include "kernels/cpu/kmeans_split.h"

#include <math.h>
#include <string.h>

/* A solution of the relaxed problem. */
typedef struct relaxation {
    double penalty;
    int clusters;
    double gain;    /* of the clusters, without penalties */
    int32_t *split; /* [count + 1] */
} relaxation;

typedef struct penalty_search {
    const decant_points *points;
    double *value;    /* V */
    relaxation fewer; /* under the lowest penalty that gave fewer clusters than wanted */
    relaxation more;  /* under the highest penalty that gave more */
    relaxation now;
} penalty_search;

size_t decant_kmeans_lagrangian_bytes(int64_t count)
{
    return decant_points_stride(count) * (sizeof(double) + 3 * sizeof(int32_t));
}

static void count_clusters(const decant_points *points, relaxation *solution)
{
    solution->clusters = 0;
    solution->gain = 0;
    for (int32_t end = points->count; end > 0; end = solution->split[end]) {
        solution->clusters++;
        solution->gain += decant_points_gain(points, solution->split[end], end);
    }
}

enum {
    BLOCK = 16,      /* columns that are solved with one look at the splits before them */
    LONG_WINDOW = 24 /* splits worth that look */
};

/* Four columns from `column` on, given that splits above `settled` and before `block` are not theirs. */
static void relax_group(penalty_search *search, const decant_splits *splits, int32_t column, int32_t block,
                        int32_t settled)
{
    int32_t *split = search->now.split;
    int32_t low = decant_larger(split[column - 1], search->fewer.split[column]);
    int32_t high = search->more.split[decant_smaller(column + 3, search->points->count)];
    decant_split_lanes lanes = decant_split_lanes_start(splits, column, low);
    for (int32_t i = low + 1; i <= decant_smaller(settled, high); i++)
        decant_split_lanes_compare(splits, i, splits->before[i], &lanes);
    for (int32_t i = decant_larger(low + 1, block); i <= decant_smaller(column - 1, high); i++)
        decant_split_lanes_compare(splits, i, splits->before[i], &lanes);
    const double penalty = search->now.penalty;
    if (high >= column)
        decant_split_lanes_compare(splits, column, lanes.most[0] - penalty, &lanes);
    if (high >= column + 1)
        decant_split_lanes_compare(splits, column + 1, lanes.most[1] - penalty, &lanes);
    if (high >= column + 2)
        decant_split_lanes_compare(splits, column + 2, lanes.most[2] - penalty, &lanes);
    decant_f64x4_store(search->value + column, lanes.most - penalty);
    for (int lane = 0; lane < 4; lane++)
        split[column + lane] = (int32_t)lanes.at[lane];
}

/* One pass: search->now under its penalty. */
static void relax(penalty_search *search)
{
    const decant_points *points = search->points;
    const decant_splits splits = {points->mass_before, points->moment_before, search->value};
    search->value[0] = 0;
    search->now.split[0] = 0;
    for (int32_t block = 1; block <= points->count; block += BLOCK) {
        int32_t end = decant_smaller(block + BLOCK, points->count + 1);
        int32_t low = decant_larger(search->now.split[block - 1], search->fewer.split[block]);
        int32_t settled = decant_smaller(block - 1, search->more.split[end - 1]);
        if (settled - low >= LONG_WINDOW)
            settled = decant_split_best(&splits, end - 1, low, settled).first;
        for (int32_t column = block; column < end; column += 4)
            relax_group(search, &splits, column, block, settled);
    }
    count_clusters(points, &search->now);
}

/* Between no penalty, under which each point is a cluster, and one that leaves a single cluster. */
static void bound_search(penalty_search *search)
{
    int32_t count = search->points->count;
    for (int32_t j = 0; j <= count; j++) {
        search->fewer.split[j] = 0;
        search->more.split[j] = decant_larger(0, j - 1);
    }
    search->fewer.penalty = INFINITY;
    search->more.penalty = 0;
    count_clusters(search->points, &search->fewer);
    count_clusters(search->points, &search->more);
}

/* The error of K clusters is about (∫ density^⅓)³ / (12 K²) (Panter and Dite, 1951), and the penalty minus its
 * slope. The density is taken over K blocks of as many points each. Half of that estimate: rather too many
 * clusters at first than too few, for bounds from above are what shortens the next pass. */
static double first_penalty(const decant_points *points, int clusters)
{
    double sum = 0;
    for (int block = 0; block < clusters; block++) {
        int32_t first = (int32_t)((int64_t)points->count * block / clusters);
        int32_t end = (int32_t)((int64_t)points->count * (block + 1) / clusters);
        double width = points->value[decant_smaller(end, points->count - 1)] - points->value[first];
        sum += cbrt((points->mass_before[end] - points->mass_before[first]) * width * width);
    }
    return pow(sum / clusters, 3) / 12;
}

enum { GUESSES = 8 }; /* after so many passes the chord alone is used: it cannot fail to progress */

/* The penalty to try next. The slope of the gain at K clusters is about proportional to K^−3. Between two
 * solutions it is known from the chord; beyond one, its penalty is all there is, and half a cluster more is
 * asked for, so that the next solution lies on the other side. */
static double next_penalty(const penalty_search *search, int clusters, int passes)
{
    const relaxation *fewer = &search->fewer, *more = &search->more;
    double chord = (more->gain - fewer->gain) / (more->clusters - fewer->clusters), guess;
    if (passes >= GUESSES)
        return chord;
    if (more->penalty > 0 && isfinite(fewer->penalty))
        guess = chord * pow(sqrt((double)more->clusters * fewer->clusters) / clusters, 3);
    else if (isfinite(fewer->penalty))
        guess = fewer->penalty * pow((fewer->clusters - 0.5) / (clusters + 0.5), 3);
    else if (more->penalty > 0)
        guess = more->penalty * pow((more->clusters + 0.5) / (clusters - 0.5), 3);
    else
        guess = first_penalty(search->points, clusters);
    return guess > more->penalty && guess < fewer->penalty ? guess : chord;
}

static void exchange(relaxation *a, relaxation *b)
{
    relaxation kept = *a;
    *a = *b;
    *b = kept;
}

/* The boundaries of a solution. */
static void trace(const relaxation *solution, int32_t count, int32_t *boundaries)
{
    boundaries[solution->clusters] = count;
    for (int c = solution->clusters; c >= 1; c--)
        boundaries[c - 1] = solution->split[boundaries[c]];
}

/* The best partition into a number of clusters between those of fewer and more, when both are optimal under the
 * same penalty: the one with fewer up to the cluster that holds one of the other's, and the other from there
 * on. */
static void join(penalty_search *search, int clusters, int32_t *boundaries)
{
    int32_t count = search->points->count;
    int32_t *others = search->now.split; /* not needed any more */
    trace(&search->fewer, count, boundaries);
    trace(&search->more, count, others);
    int ahead = search->more.clusters - clusters, kept = 0;
    while (boundaries[kept + 1] < others[kept + 1 + ahead])
        kept++;
    memcpy(boundaries + kept + 1, others + kept + 1 + ahead, (size_t)(clusters - kept) * sizeof *others);
}

void decant_kmeans_lagrangian(const decant_points *points, int clusters, int32_t *boundaries, void *scratch)
{
    const size_t stride = decant_points_stride(points->count);
    penalty_search search = {.points = points, .value = scratch};
    search.fewer.split = (int32_t *)(search.value + stride);
    search.more.split = search.fewer.split + stride;
    search.now.split = search.more.split + stride;
    bound_search(&search);
    for (int passes = 0;; passes++) {
        relaxation *now = &search.now;
        now->penalty = next_penalty(&search, clusters, passes);
        relax(&search);
        if (now->clusters == clusters) {
            trace(now, points->count, boundaries);
            return;
        }
        bool tie = now->clusters <= search.fewer.clusters || now->clusters >= search.more.clusters;
        if (tie && passes >= GUESSES) {
            join(&search, clusters, boundaries);
            return;
        }
        exchange(now, now->clusters < clusters ? &search.fewer : &search.more);
    }
}
