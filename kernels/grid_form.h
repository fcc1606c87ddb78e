/* What follows from the form and the shape of a matrix on a grid: how many codes, words, groups. Knows nothing
 * of any backend. */
#ifndef DECANT_KERNELS_GRID_FORM_H
#define DECANT_KERNELS_GRID_FORM_H

#include "kernels/backend.h"
#include "kernels/counter_random.h" /* DECANT_ON_BOTH */

enum { DECANT_GRID_DIMENSION_MAXIMUM = 4, DECANT_GRID_BITS_MINIMUM = 2, DECANT_GRID_BITS_MAXIMUM = 12 };

/* Codes of a row; the last stands for fewer than p columns where p does not divide them. */
DECANT_ON_BOTH int64_t decant_grid_codes(int64_t columns, int dimension)
{
    return (columns + dimension - 1) / dimension;
}

/* Words of one plane of a row. */
DECANT_ON_BOTH int64_t decant_grid_words(int64_t columns, int dimension)
{
    return (decant_grid_codes(columns, dimension) + 31) / 32;
}

/* Scales of a row. */
DECANT_ON_BOTH int64_t decant_grid_groups(int64_t columns, int64_t group)
{
    return (columns + group - 1) / group;
}

/* The first code that takes its scale from this group, at most the number of codes. A code belongs to the group
 * of its first column, so with p = 3 a group may end a column or two beyond its share. */
DECANT_ON_BOTH int64_t decant_grid_first_code(int64_t columns, int dimension, int64_t group_columns,
                                              int64_t group)
{
    const int64_t code = (group * group_columns + dimension - 1) / dimension;
    const int64_t codes = decant_grid_codes(columns, dimension);
    return code < codes ? code : codes;
}

/* DECANT_ERROR_BUG, saying why, for a form that the interface does not allow for this many columns, and for a
 * way to a scale that does not go with it. */
decant_status decant_grid_form_check(const decant_grid_form *form, int64_t columns, decant_error *err);
decant_status decant_grid_scale_check(const decant_grid_form *form, decant_grid_scale scale, decant_error *err);

#endif
