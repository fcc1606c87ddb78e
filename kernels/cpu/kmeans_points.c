/* Sorting a row and summing it up. The sort is a radix sort of ordered keys over the bits in which the keys
 * differ at all: two passes for rows that were 16-bit floats, three for others. */
#include "kernels/cpu/kmeans_points.h"

#include "base/memory.h"

#include <stdbool.h>
#include <string.h>

enum { DIGIT_BITS_MAXIMUM = 11 };

size_t decant_points_bytes(int64_t columns)
{
    size_t n = (size_t)columns;
    return 2 * decant_memory_aligned_bytes(n * sizeof(double)) +
           2 * decant_points_stride(columns) * sizeof(double) +
           2 * decant_memory_aligned_bytes(n * sizeof(uint64_t));
}

void decant_points_place(int64_t columns, void *memory, decant_points *points)
{
    size_t n = (size_t)columns;
    char *next = memory;
    points->count = 0;
    points->value = (double *)next, next += decant_memory_aligned_bytes(n * sizeof(double));
    points->mass = (double *)next, next += decant_memory_aligned_bytes(n * sizeof(double));
    points->mass_before = (double *)next, next += decant_points_stride(columns) * sizeof(double);
    points->moment_before = (double *)next, next += decant_points_stride(columns) * sizeof(double);
    points->keys[0] = (uint64_t *)next, next += decant_memory_aligned_bytes(n * sizeof(uint64_t));
    points->keys[1] = (uint64_t *)next;
}

/* An integer in the order of the floats. */
static uint32_t ordered_of(float value)
{
    uint32_t bits;
    value += 0.0f; /* −0 becomes +0 */
    memcpy(&bits, &value, sizeof bits);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

static float value_of(uint32_t ordered)
{
    uint32_t bits = ordered >> 31 ? ordered & 0x7fffffffu : ~ordered;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static int64_t collect_keys(const float *values, const float *masses, int64_t columns, const uint32_t *excluded,
                            int64_t n_excluded, uint64_t *keys)
{
    int64_t count = 0, next_excluded = 0;
    for (int64_t column = 0; column < columns; column++) {
        if (next_excluded < n_excluded && excluded[next_excluded] == column) {
            next_excluded++;
            continue;
        }
        keys[count] = (uint64_t)ordered_of(values[column]) << 32 | (uint64_t)column;
        count += !masses || masses[column] > 0; /* else the next one takes this place */
    }
    return count;
}

/* Sorts keys[0] by the upper half of each key, stably; the lower half is the column, ascending at first. */
static void sort_keys(uint64_t *keys[2], int64_t count)
{
    uint64_t differing = 0;
    for (int64_t i = 1; i < count; i++)
        differing |= keys[0][i] ^ keys[0][0];
    differing >>= 32;
    if (!differing)
        return;
    int lowest = __builtin_ctzll(differing), span = 64 - __builtin_clzll(differing) - lowest;
    int passes = (span + DIGIT_BITS_MAXIMUM - 1) / DIGIT_BITS_MAXIMUM,
        digit_bits = (span + passes - 1) / passes;
    uint32_t digit_mask = (1u << digit_bits) - 1;
    for (int pass = 0; pass < passes; pass++) {
        uint32_t start[1 << DIGIT_BITS_MAXIMUM] = {0};
        int shift = 32 + lowest + pass * digit_bits;
        for (int64_t i = 0; i < count; i++)
            start[keys[0][i] >> shift & digit_mask]++;
        uint32_t sum = 0;
        for (uint32_t digit = 0; digit <= digit_mask; digit++) {
            uint32_t size = start[digit];
            start[digit] = sum;
            sum += size;
        }
        for (int64_t i = 0; i < count; i++)
            keys[1][start[keys[0][i] >> shift & digit_mask]++] = keys[0][i];
        uint64_t *sorted = keys[1];
        keys[1] = keys[0];
        keys[0] = sorted;
    }
}

/* One point for each value; masses NULL: each key has mass 1. */
static void merge_equal_values(const uint64_t *keys, int64_t n_keys, const float *masses, decant_points *points)
{
    int32_t last = -1;
    uint32_t previous = 0;
    double mass = 0;
    for (int64_t i = 0; i < n_keys; i++) {
        uint32_t ordered = (uint32_t)(keys[i] >> 32);
        double more = masses ? masses[(uint32_t)keys[i]] : 1.0;
        bool is_new = i == 0 || ordered != previous;
        last += is_new;
        mass = is_new ? more : mass + more;
        points->value[last] = value_of(ordered);
        points->mass[last] = mass;
        previous = ordered;
    }
    points->count = last + 1;
}

/* Moments are taken about the mean, so that gains are as small as they can be and rounding costs least. */
static void sum_up(decant_points *points)
{
    double mass = 0, moment = 0;
    for (int32_t i = 0; i < points->count; i++) {
        mass += points->mass[i];
        moment += points->mass[i] * points->value[i];
    }
    points->mean = points->count > 0 ? moment / mass : 0;
    mass = moment = 0;
    for (int32_t i = 0; i < points->count; i++) {
        points->mass_before[i] = mass;
        points->moment_before[i] = moment;
        mass += points->mass[i];
        moment += points->mass[i] * (points->value[i] - points->mean);
    }
    for (int32_t i = points->count; i <= points->count + DECANT_POINTS_PADDING; i++) {
        points->mass_before[i] = mass;
        points->moment_before[i] = moment;
    }
}

void decant_points_build(const float *values, const float *masses, int64_t columns, const uint32_t *excluded,
                         int64_t n_excluded, decant_points *points)
{
    int64_t n_keys = collect_keys(values, masses, columns, excluded, n_excluded, points->keys[0]);
    if (n_keys == 0 && masses) {
        masses = NULL;
        n_keys = collect_keys(values, masses, columns, excluded, n_excluded, points->keys[0]);
    }
    sort_keys(points->keys, n_keys);
    merge_equal_values(points->keys[0], n_keys, masses, points);
    sum_up(points);
}
