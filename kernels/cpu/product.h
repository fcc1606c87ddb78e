/* Matrix products of one thread, and how a large product is cut into them.
 *
 * Everything that decides the order of a sum is decided here by shapes alone: tiles are cut by the size of the
 * matrix, each is computed by one thread from its first term to its last, and the number of threads only says
 * how many tiles are under way at once. */
#ifndef DECANT_KERNELS_CPU_PRODUCT_H
#define DECANT_KERNELS_CPU_PRODUCT_H

#include "base/element.h"

#include <stdbool.h>
#include <stdint.h>

/* c [m, n] = scale · a b + (accumulate ? c : 0), computed by the calling thread alone.
 * A transposed operand is stored as [columns, rows]; each stride is the distance between stored rows, in
 * elements. */
typedef struct decant_product {
    int64_t m, n, k;
    const float *a; /* [m, k], stored [k, m] when a_transposed */
    int64_t a_stride;
    bool a_transposed;
    const float *b; /* [k, n], stored [n, k] when b_transposed */
    int64_t b_stride;
    bool b_transposed;
    float scale;
    bool accumulate;
    float *c; /* [m, n] */
    int64_t c_stride;
} decant_product;

void decant_product_compute(const decant_product *product);

/* How an extent is cut: tiles of `size`, the last one shorter. */
typedef struct decant_tiles {
    int64_t extent, size, count;
} decant_tiles;

/* Tiles of at most `largest`, about equal, multiples of 16 but for the last, and an even number of them when
 * there are few, so that small layers still keep two threads busy. */
decant_tiles decant_tiles_cut(int64_t extent, int64_t largest);

static inline int64_t decant_tiles_first(decant_tiles tiles, int64_t index)
{
    return index * tiles.size;
}

static inline int64_t decant_tiles_length(decant_tiles tiles, int64_t index)
{
    int64_t left = tiles.extent - index * tiles.size;
    return left < tiles.size ? left : tiles.size;
}

/* A rectangle of a weight matrix as F32. */
typedef struct decant_weight_block {
    const float *data;
    int64_t stride;
} decant_weight_block;

/* A view when the weight is F32, else its conversion into scratch [rows, columns]. */
decant_weight_block decant_weight_block_read(decant_matrix weight, int64_t first_row, int64_t rows,
                                             int64_t first_column, int64_t columns, float *scratch);

#endif
