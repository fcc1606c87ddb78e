/* In which order guided quantization rounds columns when errors are handed on: the same on every backend. Pure.
 */
#ifndef DECANT_KERNELS_GUIDED_ORDER_H
#define DECANT_KERNELS_GUIDED_ORDER_H

#include "base/error.h"

#include <stdint.h>

/* Columns by descending diagonal of H, the lower column first among equals: errors of those that matter most
 * are handed on to the most others. Source: the activation order of GPTQ (arXiv 2210.17323). diagonal, order
 * [columns]; order is filled. DECANT_ERROR_MEMORY. */
decant_status decant_guided_order(const float *diagonal, int64_t columns, int32_t *order, decant_error *err);

#endif
