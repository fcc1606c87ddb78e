/* Lloyd's iterations on prefix sums, from a k-means++ start with a few trials a centre.
 *
 * The rules are those of scikit-learn's KMeans, which SqueezeLLM uses with max_iter = 50: 2 + ⌊ln k⌋ trials, an
 * end when no point changes its cluster or when the centres' squared movements add up to 1e-4 of the variance.
 * Two things differ: the variance is weighted by mass, and a cluster that loses all its points keeps its
 * centre.
 *
 * Source: Lloyd, IEEE Transactions on Information Theory 28(2), 1982; Arthur and Vassilvitskii, k-means++, SODA
 * 2007; the generator is splitmix64 (Steele, Lea and Flood, OOPSLA 2014). */
#include "kernels/cpu/kmeans_lloyd.h"

#include "kernels/counter_random.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

enum { ITERATIONS = 50 };
static const double tolerance = 1e-4;

size_t decant_kmeans_lloyd_bytes(int64_t count, int clusters)
{
    return (2 * (size_t)count + (size_t)clusters) * sizeof(double) + (size_t)clusters * sizeof(int32_t);
}

static uint64_t next_random(uint64_t *state)
{
    return decant_random_mix(*state += 0x9e3779b97f4a7c15u); /* splitmix64's increment */
}

static double next_uniform(uint64_t *state)
{
    return (double)(next_random(state) >> 11) * 0x1p-53;
}

/* Different rows start differently under one seed. */
static uint64_t state_of_points(const decant_points *points, uint64_t seed)
{
    uint64_t state = seed;
    for (int32_t i = 0; i < points->count; i++) {
        uint64_t value, mass;
        memcpy(&value, &points->value[i], sizeof value);
        memcpy(&mass, &points->mass[i], sizeof mass);
        state ^= value;
        state = next_random(&state) ^ mass;
        state = next_random(&state);
    }
    return state;
}

/* The start while it is chosen. */
typedef struct lloyd_start {
    const decant_points *points;
    double *distance;   /* [count] squared, from each point to the nearest chosen centre */
    double *cumulative; /* [count] Σ of mass · distance up to and with each point */
    int32_t *chosen;    /* points that are centres, ascending */
    int n_chosen;
} lloyd_start;

/* The first point at which the cumulative sum exceeds r. */
static int32_t draw(const lloyd_start *start, double r)
{
    int32_t low = 0, high = start->points->count - 1;
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        if (start->cumulative[middle] > r)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* How many chosen centres lie below a point. */
static int rank_of(const lloyd_start *start, int32_t point)
{
    int rank = 0;
    while (rank < start->n_chosen && start->chosen[rank] < point)
        rank++;
    return rank;
}

/* What a further centre would save; only points up to the neighbouring centres can come nearer. With `update`
 * the distances become those with it. */
static double saving_of(const lloyd_start *start, int32_t centre, bool update)
{
    const decant_points *points = start->points;
    int rank = rank_of(start, centre);
    int32_t first = rank > 0 ? start->chosen[rank - 1] : 0;
    int32_t end = rank < start->n_chosen ? start->chosen[rank] + 1 : points->count;
    double saving = 0;
    for (int32_t i = first; i < end; i++) {
        double distance = points->value[i] - points->value[centre];
        distance *= distance;
        if (distance < start->distance[i]) {
            saving += points->mass[i] * (start->distance[i] - distance);
            if (update)
                start->distance[i] = distance;
        }
    }
    return saving;
}

static void take(lloyd_start *start, int32_t centre)
{
    saving_of(start, centre, true);
    int rank = rank_of(start, centre);
    memmove(start->chosen + rank + 1, start->chosen + rank,
            (size_t)(start->n_chosen - rank) * sizeof *start->chosen);
    start->chosen[rank] = centre;
    start->n_chosen++;
}

/* Sums up mass · distance; returns the point that contributes most. */
static int32_t accumulate(lloyd_start *start)
{
    double sum = 0, most = -1;
    int32_t at = 0;
    for (int32_t i = 0; i < start->points->count; i++) {
        double share = start->points->mass[i] * start->distance[i];
        sum += share;
        start->cumulative[i] = sum;
        if (share > most) {
            most = share;
            at = i;
        }
    }
    return at;
}

static void choose_start(lloyd_start *start, int clusters, uint64_t *state)
{
    int32_t count = start->points->count;
    double total = start->points->mass_before[count];
    for (int32_t i = 0; i < count; i++) {
        start->distance[i] = INFINITY;
        start->cumulative[i] = start->points->mass_before[i + 1];
    }
    start->n_chosen = 0;
    take(start, draw(start, next_uniform(state) * total));
    const int trials = 2 + (int)log(clusters);
    while (start->n_chosen < clusters) {
        int32_t best = accumulate(start); /* where all draws fall on centres, the point that is worst off */
        double most = 0;
        for (int trial = 0; trial < trials; trial++) {
            int32_t point = draw(start, next_uniform(state) * start->cumulative[count - 1]);
            double saving = saving_of(start, point, false);
            if (saving > most) {
                most = saving;
                best = point;
            }
        }
        take(start, best);
    }
}

/* The first point above a value. */
static int32_t first_above(const decant_points *points, double value)
{
    int32_t low = 0, high = points->count;
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        if (points->value[middle] > value)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* Gives each point to the nearest centre; whether anything changed. */
static bool assign(const decant_points *points, const double *centres, int clusters, int32_t *boundaries)
{
    bool changed = false;
    for (int c = 1; c < clusters; c++) {
        int32_t boundary = first_above(points, 0.5 * (centres[c - 1] + centres[c]));
        changed |= boundary != boundaries[c];
        boundaries[c] = boundary;
    }
    return changed;
}

/* Moves each centre to the mean of its points; the sum of the squared movements. */
static double move(const decant_points *points, const int32_t *boundaries, int clusters, double *centres)
{
    double movement = 0;
    for (int c = 0; c < clusters; c++) {
        double mass = points->mass_before[boundaries[c + 1]] - points->mass_before[boundaries[c]];
        double moment = points->moment_before[boundaries[c + 1]] - points->moment_before[boundaries[c]];
        if (boundaries[c] == boundaries[c + 1] || !(mass > 0))
            continue;
        double centre = points->mean + moment / mass;
        movement += (centre - centres[c]) * (centre - centres[c]);
        centres[c] = centre;
    }
    return movement;
}

static double variance_of(const decant_points *points)
{
    double sum = 0;
    for (int32_t i = 0; i < points->count; i++)
        sum += points->mass[i] * (points->value[i] - points->mean) * (points->value[i] - points->mean);
    return sum / points->mass_before[points->count];
}

void decant_kmeans_lloyd(const decant_points *points, int clusters, uint64_t seed, int32_t *boundaries,
                         void *scratch)
{
    double *centres = scratch;
    lloyd_start start = {.points = points, .distance = centres + clusters};
    start.cumulative = start.distance + points->count;
    start.chosen = (int32_t *)(start.cumulative + points->count);
    uint64_t state = state_of_points(points, seed);
    choose_start(&start, clusters, &state);
    for (int c = 0; c < clusters; c++)
        centres[c] = points->value[start.chosen[c]];

    memset(boundaries, 0, (size_t)clusters * sizeof *boundaries);
    boundaries[clusters] = points->count;
    const double enough = tolerance * variance_of(points);
    assign(points, centres, clusters, boundaries);
    for (int iteration = 0; iteration < ITERATIONS; iteration++) {
        double movement = move(points, boundaries, clusters, centres);
        if (!assign(points, centres, clusters, boundaries) || movement <= enough)
            break;
    }
}
