/* See noise_regression.h. */
#include "stages/noise_regression.h"

#include <math.h>

static const double SMALLEST_SQUARE = 0.0025, LARGEST_SQUARE = 0.03454;

void decant_noise_levels(int levels, double *t)
{
    double smallest = sqrt(SMALLEST_SQUARE), largest = sqrt(LARGEST_SQUARE);
    for (int i = 0; i < levels; i++)
        t[i] = levels == 1 ? largest : smallest + (largest - smallest) * i / (levels - 1);
}

double decant_noise_slope(const double *increase, const double *t, int levels)
{
    double product = 0, square = 0;
    for (int i = 0; i < levels; i++) {
        product += increase[i] * t[i] * t[i];
        square += t[i] * t[i] * t[i] * t[i];
    }
    return product / square;
}

double decant_correlation(const double *x, const double *y, int count)
{
    double mean_x = 0, mean_y = 0, xx = 0, yy = 0, xy = 0;
    for (int i = 0; i < count; i++) {
        mean_x += x[i] / count;
        mean_y += y[i] / count;
    }
    for (int i = 0; i < count; i++) {
        xx += (x[i] - mean_x) * (x[i] - mean_x);
        yy += (y[i] - mean_y) * (y[i] - mean_y);
        xy += (x[i] - mean_x) * (y[i] - mean_y);
    }
    return xx > 0 && yy > 0 ? xy / sqrt(xx * yy) : 0;
}
