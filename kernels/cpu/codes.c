/* The nearest of ascending levels is found by comparing with the midpoints between them. Midpoints of F16
 * levels are exact in double; rounded down to a float they divide the floats in the same way. */
#include "kernels/cpu/codes.h"

#include "kernels/cpu/lanes.h"
#include "kernels/cpu/levels.h"

#include <math.h>
#include <string.h>

static float midpoint_rounded_down(float a, float b)
{
    double middle = 0.5 * ((double)a + (double)b);
    float rounded = (float)middle;
    return (double)rounded > middle ? nextafterf(rounded, -INFINITY) : rounded;
}

void decant_code_book_build(const uint16_t *levels, int bits, decant_code_book *book)
{
    int places = 0;
    book->bits = bits;
    for (int code = 0; code < 1 << bits; code++) {
        float level = decant_f16_to_f32(levels[code]);
        if (places > 0 && level == book->level[places - 1])
            continue;
        if (places > 0)
            book->threshold[places - 1] = midpoint_rounded_down(book->level[places - 1], level);
        book->level[places] = level;
        book->code[places] = (uint8_t)code;
        places++;
    }
    for (int place = places; place <= 1 << bits; place++)
        book->threshold[place - 1] = INFINITY;
}

typedef uint8_t place_lanes __attribute__((vector_size(DECANT_LANES)));

enum { COUNTED_BITS = 4 }; /* so many upper bits of a place are found by counting, those below by bisection */

/* Places with only their upper bits, a multiple of `step`: how many of every step-th threshold each value
 * exceeds. */
static void count_thresholds(const decant_code_book *book, int step, const float *values, int64_t count,
                             uint8_t *places)
{
    int64_t j = 0;
    for (; j + 2 * DECANT_LANES <= count; j += 2 * DECANT_LANES) {
        decant_lanes first = decant_lanes_load(values + j),
                     second = decant_lanes_load(values + j + DECANT_LANES);
        decant_lane_mask first_place = {0}, second_place = {0};
        for (int t = step; t < 1 << book->bits; t += step) {
            first_place -= first > book->threshold[t - 1];
            second_place -= second > book->threshold[t - 1];
        }
        place_lanes narrow[2] = {__builtin_convertvector(first_place * step, place_lanes),
                                 __builtin_convertvector(second_place * step, place_lanes)};
        memcpy(places + j, narrow, sizeof narrow);
    }
    for (; j < count; j++) {
        places[j] = 0;
        for (int t = step; t < 1 << book->bits; t += step)
            places[j] += values[j] > book->threshold[t - 1] ? step : 0;
    }
}

static void bisect_thresholds(const decant_code_book *book, int step, const float *values, int64_t count,
                              uint8_t *places)
{
    for (int64_t j = 0; j < count; j++) {
        int place = places[j];
        for (int half = step / 2; half > 0; half /= 2)
            place += values[j] > book->threshold[place + half - 1] ? half : 0;
        places[j] = (uint8_t)place;
    }
}

void decant_code_book_find(const decant_code_book *book, const float *values, int64_t count, uint8_t *places)
{
    const int step = book->bits > COUNTED_BITS ? 1 << (book->bits - COUNTED_BITS) : 1;
    count_thresholds(book, step, values, count, places);
    if (step > 1)
        bisect_thresholds(book, step, values, count, places);
}

/* Bit `bit` of eight codes, the first in the lowest place. The product moves bit 8i to bit 56 + i, without
 * carries. */
static uint32_t gather_bits(const uint8_t *codes, int bit)
{
    uint64_t eight = 0;
    for (int i = 0; i < 8; i++)
        eight |= (uint64_t)codes[i] << 8 * i;
    return (uint32_t)((eight >> bit & 0x0101010101010101u) * 0x0102040810204080u >> 56);
}

void decant_codes_pack(const decant_code_book *book, const uint8_t *places, int64_t columns, int64_t stride,
                       uint32_t *planes)
{
    for (int64_t word = 0; 32 * word < columns; word++) {
        uint8_t codes[32] = {0};
        int64_t left = columns - 32 * word;
        for (int64_t j = 0; j < (left < 32 ? left : 32); j++)
            codes[j] = book->code[places[32 * word + j]];
        for (int bit = 0; bit < book->bits; bit++)
            planes[bit * stride + word] = gather_bits(codes, bit) | gather_bits(codes + 8, bit) << 8 |
                                          gather_bits(codes + 16, bit) << 16 |
                                          gather_bits(codes + 24, bit) << 24;
    }
}

uint16_t decant_codes_remainder(float weight, float level)
{
    return decant_finite_f16((double)weight - (double)level);
}
