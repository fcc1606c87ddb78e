/* See level_bytes.h. */
#include "stages/level_bytes.h"

#include "base/element.h"
#include "kernels/level_grid.h"

#include <string.h>

enum { OFFSET = 128 };

static double level_at(const void *levels, int64_t place)
{
    uint16_t bits;
    memcpy(&bits, (const char *)levels + 2 * place, sizeof bits);
    return decant_f16_to_f32(bits);
}

decant_status decant_levels_to_bytes(const void *levels, int64_t rows, int count, uint8_t *bytes,
                                     uint8_t *exponents, decant_error *err)
{
    for (int64_t row = 0; row < rows; row++) { /* a byte never reaches a level that is still to be read */
        double largest = 0;
        for (int i = 0; i < count; i++)
            largest = fmax(largest, fabs(level_at(levels, row * count + i)));
        const int exponent = decant_level_exponent(largest);
        exponents[row] = (uint8_t)(exponent - DECANT_LEVEL_EXPONENT);
        for (int i = 0; i < count; i++) {
            const double multiple = ldexp(level_at(levels, row * count + i), -exponent);
            if (!(multiple == rint(multiple) && fabs(multiple) <= DECANT_LEVEL_MULTIPLE))
                return DECANT_ERROR(err, DECANT_ERROR_BUG, "a level is no multiple of its row's power of two");
            bytes[row * count + i] = (uint8_t)((int)multiple + OFFSET);
        }
    }
    return DECANT_OK;
}

decant_status decant_levels_from_bytes(const uint8_t *bytes, const uint8_t *exponents, int64_t rows, int count,
                                       uint16_t *levels, decant_error *err)
{
    for (int64_t row = 0; row < rows; row++)
        for (int i = 0; i < count; i++) {
            const double level = ldexp(bytes[row * count + i] - OFFSET, exponents[row] + DECANT_LEVEL_EXPONENT);
            if (!(fabs(level) <= 65504))
                return DECANT_ERROR(err, DECANT_ERROR_INPUT, "a level is beyond what F16 holds");
            levels[row * count + i] = decant_f32_to_f16((float)level);
        }
    return DECANT_OK;
}
