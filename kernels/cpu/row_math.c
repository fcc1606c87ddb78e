/* Sums go in float lanes within a block of ROW_BLOCK elements, and block by block in double: close to a double
 * sum at the speed of a float one. */
#include "kernels/cpu/row_math.h"
#include "kernels/cpu/lanes.h"

enum { ROW_BLOCK = 256 };

float decant_row_maximum(const float *x, int64_t n)
{
    float maximum = x[0];
    int64_t i = 0;
    if (n >= 2 * DECANT_LANES) {
        decant_lanes a = decant_lanes_load(x), b = decant_lanes_load(x + DECANT_LANES);
        for (i = 2 * DECANT_LANES; i + 2 * DECANT_LANES <= n; i += 2 * DECANT_LANES) {
            decant_lanes next_a = decant_lanes_load(x + i), next_b = decant_lanes_load(x + i + DECANT_LANES);
            a = decant_lanes_choose(next_a > a, next_a, a);
            b = decant_lanes_choose(next_b > b, next_b, b);
        }
        a = decant_lanes_choose(b > a, b, a);
        for (int lane = 0; lane < DECANT_LANES; lane++)
            maximum = a[lane] > maximum ? a[lane] : maximum;
    }
    for (; i < n; i++)
        maximum = x[i] > maximum ? x[i] : maximum;
    return maximum;
}

int64_t decant_row_maximum_index(const float *x, int64_t n)
{
    float maximum = decant_row_maximum(x, n);
    int64_t i = 0;
    while (i < n - 1 && x[i] != maximum)
        i++;
    return i;
}

static inline int64_t block_length(int64_t first, int64_t n)
{
    return n - first < ROW_BLOCK ? n - first : ROW_BLOCK;
}

static double block_dot(const float *x, const float *y, int64_t n)
{
    decant_lanes a = {0}, b = {0};
    int64_t i = 0;
    for (; i + 2 * DECANT_LANES <= n; i += 2 * DECANT_LANES) {
        a += decant_lanes_load(x + i) * decant_lanes_load(y + i);
        b += decant_lanes_load(x + i + DECANT_LANES) * decant_lanes_load(y + i + DECANT_LANES);
    }
    double sum = decant_lanes_sum(a) + decant_lanes_sum(b);
    for (; i < n; i++)
        sum += (double)x[i] * y[i];
    return sum;
}

double decant_row_dot(const float *x, const float *y, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i += ROW_BLOCK)
        sum += block_dot(x + i, y + i, block_length(i, n));
    return sum;
}

static double block_exponentials(const float *x, int64_t n, float shift, float *y)
{
    decant_lanes a = {0}, b = {0};
    int64_t i = 0;
    for (; i + 2 * DECANT_LANES <= n; i += 2 * DECANT_LANES) {
        decant_lanes even = decant_lanes_exponential(decant_lanes_load(x + i) - shift);
        decant_lanes odd = decant_lanes_exponential(decant_lanes_load(x + i + DECANT_LANES) - shift);
        decant_lanes_store(y + i, even);
        decant_lanes_store(y + i + DECANT_LANES, odd);
        a += even;
        b += odd;
    }
    double sum = decant_lanes_sum(a) + decant_lanes_sum(b);
    while (i < n) {
        int64_t count = n - i < DECANT_LANES ? n - i : DECANT_LANES;
        decant_lanes some = decant_lanes_exponential(decant_lanes_load_some(x + i, count) - shift);
        decant_lanes_store_some(y + i, some, count);
        for (int64_t lane = 0; lane < count; lane++)
            sum += some[lane];
        i += count;
    }
    return sum;
}

double decant_row_exponentials(const float *x, int64_t n, float shift, float *y)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i += ROW_BLOCK)
        sum += block_exponentials(x + i, block_length(i, n), shift, y + i);
    return sum;
}
