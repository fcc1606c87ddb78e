/* Levels of guided layers between the device, where they are F16, and a file, where they take a byte each:
 * whole multiples of a power of two of their row (kernels/level_grid.h). Pure. */
#ifndef DECANT_STAGES_LEVEL_BYTES_H
#define DECANT_STAGES_LEVEL_BYTES_H

#include "base/error.h"

#include <stdint.h>

/* multiple = bytes − 128, the power of two is 2^(exponents − 24).
 *   levels     F16 [rows, count], each a multiple of its row's power of two
 *   bytes      [rows, count]; filled, and may lie where levels do
 *   exponents  [rows]; filled
 * DECANT_ERROR_BUG when a level is no such multiple. */
decant_status decant_levels_to_bytes(const void *levels, int64_t rows, int count, uint8_t *bytes,
                                     uint8_t *exponents, decant_error *err);

/* The way back. DECANT_ERROR_INPUT when F16 does not hold a level. */
decant_status decant_levels_from_bytes(const uint8_t *bytes, const uint8_t *exponents, int64_t rows, int count,
                                       uint16_t *levels, decant_error *err);

#endif
