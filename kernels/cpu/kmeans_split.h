/* Where the last cluster of a prefix of the sorted points should begin: the inner loop of both exact searches.
 *
 * A column is a prefix, the points before it; a split is where its last cluster begins. The gain of a split is
 *     before[split] + (Σ m x)² / Σ m  of the points from the split to the column,
 * before[] being whatever the points before the split are worth. Sums that vanish in rounding give nothing. */
#ifndef DECANT_KERNELS_CPU_KMEANS_SPLIT_H
#define DECANT_KERNELS_CPU_KMEANS_SPLIT_H

#include "kernels/cpu/lanes_f64.h"

#include <stdbool.h>

static inline int32_t decant_larger(int32_t a, int32_t b)
{
    return a > b ? a : b;
}

static inline int32_t decant_smaller(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

/* What splits are judged by. Arrays may be read, not used, up to DECANT_POINTS_PADDING beyond their last
 * element. */
typedef struct decant_splits {
    const double *mass, *moment; /* prefix sums of the points */
    const double *before;
} decant_splits;

typedef struct decant_split {
    double gain;
    int32_t first; /* point with which the last cluster begins */
} decant_split;

static inline double decant_split_gain(const decant_splits *splits, int32_t split, int32_t column)
{
    double m = splits->mass[column] - splits->mass[split], s = splits->moment[column] - splits->moment[split];
    return splits->before[split] + (m > 0 ? s * s / m : 0);
}

/* Takes the best of the splits low … high, high < column, in place of *best when it is better; the lowest among
 * equals. */
static inline void decant_split_compare(const decant_splits *splits, int32_t column, int32_t low, int32_t high,
                                        decant_split *best)
{
    const decant_f64x4 mass = decant_f64x4_all(splits->mass[column]);
    const decant_f64x4 moment = decant_f64x4_all(splits->moment[column]);
    const decant_f64x4 last = decant_f64x4_all(high);
    decant_f64x4 most = decant_f64x4_all(best->gain), at = decant_f64x4_all(best->first);
    decant_f64x4 index = {low, low + 1.0, low + 2.0, low + 3.0};
    for (int32_t i = low; i <= high; i += 4) {
        decant_f64x4 m = mass - decant_f64x4_load(splits->mass + i);
        decant_f64x4 s = moment - decant_f64x4_load(splits->moment + i);
        decant_f64x4 gain = decant_f64x4_load(splits->before + i) + s * s / m;
        decant_i64x4 better = (gain > most) & (m > 0) & (index <= last);
        most = decant_f64x4_choose(better, gain, most);
        at = decant_f64x4_choose(better, index, at);
        index += 4;
    }
    double largest = decant_f64x4_maximum(most);
    double first = decant_f64x4_minimum(decant_f64x4_choose(most == largest, at, decant_f64x4_all(column)));
    *best = (decant_split){largest, (int32_t)first};
}

enum { DECANT_SPLIT_SCREEN = 32 }; /* splits screened at a time */

/* Whether any of the splits first … first + DECANT_SPLIT_SCREEN − 1 gains more than `most`: without a division,
 * from before + s²/m > most  ⇔  (before − most) m + s² > 0  for m > 0. */
static inline bool decant_split_any_above(const decant_splits *splits, int32_t column, int32_t first,
                                          double most)
{
    const decant_f64x4 mass = decant_f64x4_all(splits->mass[column]);
    const decant_f64x4 moment = decant_f64x4_all(splits->moment[column]);
    decant_i64x4 above = {0};
    for (int32_t i = first; i < first + DECANT_SPLIT_SCREEN; i += 4) {
        decant_f64x4 m = mass - decant_f64x4_load(splits->mass + i);
        decant_f64x4 s = moment - decant_f64x4_load(splits->moment + i);
        above |= (decant_f64x4_load(splits->before + i) - most) * m + s * s > 0;
    }
    return (above[0] | above[1] | above[2] | above[3]) != 0;
}

/* The best split of a column among low … high; low < column, high < column, and low alone when high < low. */
static inline decant_split decant_split_best(const decant_splits *splits, int32_t column, int32_t low,
                                             int32_t high)
{
    decant_split best = {decant_split_gain(splits, low, column), low};
    int32_t first = low;
    if (high - low >= DECANT_SPLIT_SCREEN) {
        decant_split other = {decant_split_gain(splits, high, column), high};
        if (other.gain > best.gain)
            best = other;
        for (; first + DECANT_SPLIT_SCREEN <= high; first += DECANT_SPLIT_SCREEN)
            if (decant_split_any_above(splits, column, first, best.gain))
                decant_split_compare(splits, column, first, first + DECANT_SPLIT_SCREEN - 1, &best);
    }
    decant_split_compare(splits, column, first, high, &best);
    return best;
}

/* Four columns next to each other, a lane each, all compared with the same splits. */
typedef struct decant_split_lanes {
    decant_f64x4 mass, moment;
    decant_f64x4 most, at; /* the best gain so far and its split */
} decant_split_lanes;

/* Takes one split where it is better, in the columns beyond it. */
static inline void decant_split_lanes_compare(const decant_splits *splits, int32_t split, double before,
                                              decant_split_lanes *lanes)
{
    decant_f64x4 m = lanes->mass - splits->mass[split];
    decant_f64x4 s = lanes->moment - splits->moment[split];
    decant_f64x4 gain = before + s * s / m;
    decant_i64x4 better = (gain > lanes->most) & (m > 0);
    lanes->most = decant_f64x4_choose(better, gain, lanes->most);
    lanes->at = decant_f64x4_choose(better, decant_f64x4_all(split), lanes->at);
}

/* The columns first_column … first_column + 3 with a split that all of them may have. */
static inline decant_split_lanes decant_split_lanes_start(const decant_splits *splits, int32_t first_column,
                                                          int32_t split)
{
    decant_split_lanes lanes = {decant_f64x4_load(splits->mass + first_column),
                                decant_f64x4_load(splits->moment + first_column),
                                decant_f64x4_all(splits->before[split]), decant_f64x4_all(split)};
    decant_split_lanes_compare(splits, split, splits->before[split], &lanes);
    return lanes;
}

#endif
