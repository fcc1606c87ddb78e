/* Rows for the tests of k-means, and the plain programs that say what the best clusters cost. */
#ifndef DECANT_TESTS_KMEANS_ROWS_H
#define DECANT_TESTS_KMEANS_ROWS_H

#include "tests/kernels/device_arrays.h"

typedef enum row_kind {
    ROW_NORMAL,        /* about normal, masses heavy-tailed as Fisher sums are */
    ROW_UNIFORM_MASS,  /* about normal, all masses alike */
    ROW_HALF_ZERO,     /* half of the masses are 0 */
    ROW_ALL_ZERO,      /* all of them: each point counts once */
    ROW_EQUAL_SPACING, /* equal spacings and masses: many partitions are as good */
    ROW_GRID,          /* few distinct values, many times each */
    ROW_GEOMETRIC,     /* spacings and masses over many orders of magnitude */
    ROW_DOMINATED,     /* one mass as large as a thousand times all others */
    ROW_OFFSET,        /* far from 0 */
    ROW_TWO_HEAPS,     /* two heaps far apart */
    ROW_CONSTANT,
    ROW_KINDS
} row_kind;

static inline double random_normal(uint64_t *seed)
{
    double sum = 0; /* of twelve uniform numbers of variance 1/3 */
    for (int i = 0; i < 12; i++)
        sum += random_value(seed);
    return sum / 2;
}

static inline double random_fisher(uint64_t *seed)
{
    double z = random_normal(seed);
    return 1e-6 * z * z * z * z;
}

static inline double row_value(row_kind kind, int64_t i, int64_t n, uint64_t *seed)
{
    switch (kind) {
    case ROW_EQUAL_SPACING:
        return 0.25 * (double)(i * 7 % n);
    case ROW_GRID:
        return 0.01 * floor(6 * random_normal(seed));
    case ROW_GEOMETRIC:
        return (i % 2 ? 1 : -1) * pow(2, -0.3 * (double)(i % 60)) * (1 + 0.01 * random_value(seed));
    case ROW_OFFSET:
        return 1000 + random_normal(seed);
    case ROW_TWO_HEAPS:
        return (i % 3 ? 10 : -10) + 0.01 * random_normal(seed);
    case ROW_CONSTANT:
        return -0.375;
    default:
        return 0.02 * random_normal(seed);
    }
}

static inline double row_mass(row_kind kind, int64_t i, int64_t n, uint64_t *seed)
{
    switch (kind) {
    case ROW_UNIFORM_MASS:
    case ROW_EQUAL_SPACING:
        return 0.5;
    case ROW_HALF_ZERO:
        return i % 2 ? 0 : random_fisher(seed);
    case ROW_ALL_ZERO:
        return 0;
    case ROW_GEOMETRIC:
        return pow(2, -0.5 * (double)(i % 40));
    case ROW_DOMINATED:
        return i == n / 3 ? 1e3 * (double)n : 1 + random_value(seed);
    default:
        return random_fisher(seed);
    }
}

static inline void fill_row(row_kind kind, int64_t n, uint64_t seed, float *values, float *masses)
{
    for (int64_t i = 0; i < n; i++) {
        values[i] = (float)row_value(kind, i, n, &seed);
        masses[i] = (float)row_mass(kind, i, n, &seed);
    }
}

/* The points of a row that count, sorted. */
typedef struct sorted_row {
    int n;
    long double *value, *mass;
} sorted_row;

static inline int compare_points(const void *a, const void *b)
{
    long double x = *(const long double *)a, y = *(const long double *)b;
    return (x > y) - (x < y);
}

/* left_out: [n] or NULL; free_sorted_row afterwards. */
static inline sorted_row sort_row(const float *values, const float *masses, const bool *left_out, int64_t n)
{
    bool any = false;
    for (int64_t i = 0; i < n; i++)
        any |= !(left_out && left_out[i]) && masses[i] > 0;
    long double(*pairs)[2] = calloc((size_t)n + 1, sizeof *pairs);
    sorted_row row = {0, calloc((size_t)n + 1, sizeof(long double)),
                      calloc((size_t)n + 1, sizeof(long double))};
    assert_true(pairs && row.value && row.mass);
    for (int64_t i = 0; i < n; i++) {
        if ((left_out && left_out[i]) || (any && !(masses[i] > 0)))
            continue;
        pairs[row.n][0] = (long double)values[i];
        pairs[row.n++][1] = any ? (long double)masses[i] : 1;
    }
    qsort(pairs, (size_t)row.n, sizeof *pairs, compare_points);
    for (int i = 0; i < row.n; i++) {
        row.value[i] = pairs[i][0];
        row.mass[i] = pairs[i][1];
    }
    free(pairs);
    return row;
}

static inline void free_sorted_row(sorted_row *row)
{
    free(row->value);
    free(row->mass);
}

/* The least cost for 1 … clusters clusters into best[0 … clusters − 1], and where each of `clusters` clusters
 * begins into first [clusters] when that is not NULL. The plain dynamic program over all splits, in long
 * double; the cost of an interval comes from a running mean, so that no large sums are subtracted (Welford,
 * 1962). */
static inline void slow_kmeans(const sorted_row *row, int clusters, long double *best, int *first)
{
    size_t n = (size_t)row->n;
    long double *cost =
        calloc((size_t)clusters * (n + 1) + 1, sizeof *cost); /* [k][end] of the points before end */
    int *split = calloc((size_t)clusters * (n + 1) + 1, sizeof *split);
    assert_true(cost && split);
    for (size_t k = 0; k < (size_t)clusters; k++)
        for (size_t end = 1; end <= n; end++)
            cost[k * (n + 1) + end] = HUGE_VALL;
    for (size_t end = 1; end <= n; end++) {
        long double mass = 0, mean = 0, interval = 0;
        for (size_t begin = end; begin-- > 0;) { /* the last cluster grows to the left */
            long double distance = row->value[begin] - mean;
            mass += row->mass[begin];
            mean += distance * row->mass[begin] / mass;
            interval += row->mass[begin] * distance * (row->value[begin] - mean);
            if (begin == 0)
                cost[end] = interval;
            for (size_t k = 1; k < (size_t)clusters; k++) {
                long double with = cost[(k - 1) * (n + 1) + begin] + interval;
                if (with < cost[k * (n + 1) + end]) {
                    cost[k * (n + 1) + end] = with;
                    split[k * (n + 1) + end] = (int)begin;
                }
            }
        }
    }
    for (size_t k = 0; k < (size_t)clusters; k++)
        best[k] = cost[k * (n + 1) + n];
    for (size_t k = (size_t)clusters, end = n; first && k-- > 0;)
        end = (size_t)(first[k] = split[k * (n + 1) + end]);
    free(cost);
    free(split);
}

#endif
