/* The tables themselves are in stages/grids, with the program that makes them. */
#include "stages/grid_tables.h"

#include <stddef.h>

#include "stages/grids/points_1.inc"
#include "stages/grids/points_2.inc"
#include "stages/grids/points_3.inc"
#include "stages/grids/points_nf4.inc"

#define TEN(tens)                                                                                              \
    10 * tens, 10 * tens + 1, 10 * tens + 2, 10 * tens + 3, 10 * tens + 4, 10 * tens + 5, 10 * tens + 6,       \
        10 * tens + 7, 10 * tens + 8, 10 * tens + 9

static const float even_steps[256] = {
    TEN(0),  TEN(1),  TEN(2),  TEN(3),  TEN(4),  TEN(5),  TEN(6),  TEN(7),  TEN(8),  TEN(9),  TEN(10),
    TEN(11), TEN(12), TEN(13), TEN(14), TEN(15), TEN(16), TEN(17), TEN(18), TEN(19), TEN(20), TEN(21),
    TEN(22), TEN(23), TEN(24), 250,     251,     252,     253,     254,     255,
};

#define HIGGS(p, bits)                                                                                         \
    {                                                                                                          \
        DECANT_GRID_HIGGS, p, bits, points_##p##_##bits, ERROR_##p##_##bits                                    \
    }
#define RTN(bits)                                                                                              \
    {                                                                                                          \
        DECANT_GRID_RTN, 1, bits, even_steps, 0                                                                \
    }

static const decant_grid grids[] = {
    HIGGS(1, 2),
    HIGGS(1, 3),
    HIGGS(1, 4),
    HIGGS(1, 5),
    HIGGS(1, 6),
    HIGGS(1, 7),
    HIGGS(1, 8),
    HIGGS(2, 4),
    HIGGS(2, 5),
    HIGGS(2, 6),
    HIGGS(2, 7),
    HIGGS(2, 8),
    HIGGS(2, 9),
    HIGGS(2, 10),
    HIGGS(2, 11),
    HIGGS(2, 12),
    HIGGS(3, 6),
    HIGGS(3, 7),
    HIGGS(3, 8),
    HIGGS(3, 9),
    HIGGS(3, 10),
    HIGGS(3, 11),
    HIGGS(3, 12),
    RTN(2),
    RTN(3),
    RTN(4),
    RTN(5),
    RTN(6),
    RTN(7),
    RTN(8),
    {DECANT_GRID_NF4, 1, 4, points_nf4, 0},
};

const decant_grid *decant_grid_find(decant_grid_kind kind, int dimension, int code_bits)
{
    for (size_t i = 0; i < sizeof grids / sizeof *grids; i++)
        if (grids[i].kind == kind && grids[i].dimension == dimension && grids[i].code_bits == code_bits)
            return &grids[i];
    return NULL;
}
