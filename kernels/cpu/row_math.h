/* What is computed along one row of floats: maxima, sums, exponentials. The order of every sum depends on the
 * length of the row alone. */
#ifndef DECANT_KERNELS_CPU_ROW_MATH_H
#define DECANT_KERNELS_CPU_ROW_MATH_H

#include <stdint.h>

/* Largest element; n >= 1. Whether a NaN shows is not defined. */
float decant_row_maximum(const float *x, int64_t n);

/* Index of the largest element, the lowest among equals; n >= 1. */
int64_t decant_row_maximum_index(const float *x, int64_t n);

double decant_row_dot(const float *x, const float *y, int64_t n); /* Σ x y */

/* y = e^(x − shift); returns the sum. y may be x. */
double decant_row_exponentials(const float *x, int64_t n, float shift, float *y);

#endif
