/* Codes: which level stands for a weight, and how codes are packed. Knows one row at a time. */
#ifndef DECANT_KERNELS_CPU_CODES_H
#define DECANT_KERNELS_CPU_CODES_H

#include "base/element.h"

#include <stdint.h>

enum { DECANT_LEVELS_MAXIMUM = 256 };

/* The levels of a row, ready to find the nearest. A place is the rank of a level among those that differ. */
typedef struct decant_code_book {
    int bits;
    float threshold[DECANT_LEVELS_MAXIMUM]; /* place p is beyond threshold[p − 1]; infinite after the last */
    float level[DECANT_LEVELS_MAXIMUM];     /* of each place */
    uint8_t code[DECANT_LEVELS_MAXIMUM];    /* of each place: the lowest of equal levels */
} decant_code_book;

/* levels: F16 [2^bits], ascending; bits 2 … 8. */
void decant_code_book_build(const uint16_t *levels, int bits, decant_code_book *book);

/* The places of the levels nearest to values, the lower of two as near.
 *   values, places  [count] */
void decant_code_book_find(const decant_code_book *book, const float *values, int64_t count, uint8_t *places);

/* One row of bit planes: bit j % 32 of word j / 32 of plane b is bit b of the code of column j.
 *   places   [columns], columns <= 32 · words
 *   stride   words from one plane to the next
 *   planes   the row's first word to be written; ceil(columns / 32) words of each plane are written */
void decant_codes_pack(const decant_code_book *book, const uint8_t *places, int64_t columns, int64_t stride,
                       uint32_t *planes);

/* The sparse value that makes up for a level: F16(weight − level), finite. */
uint16_t decant_codes_remainder(float weight, float level);

#endif
