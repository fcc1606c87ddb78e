/* Consecutive rows of one group under guided search: what a thread works in, and the steps on it, each of a
 * file of its own. Only the CPU files on guided quantization include it.
 *
 *   guided.c            the operation: working space, groups, the order of the steps
 *   guided_tile.c       the beginning (nearest codes), products with H, objectives, what is stored in the end
 *   guided_equations.c  levels in closed form under the codes
 *   guided_descent.c    codes by coordinate descent under the levels
 *   guided_feedback.c   codes by rounding with error feedback */
#ifndef DECANT_KERNELS_CPU_GUIDED_TILE_H
#define DECANT_KERNELS_CPU_GUIDED_TILE_H

#include "kernels/cpu/codes.h"
#include "kernels/guided_rows.h"

#include <stdbool.h>

enum {
    DECANT_GUIDED_ROWS = 32,  /* of a tile */
    DECANT_GUIDED_BLOCK = 64, /* columns that are searched between products */
};

typedef struct decant_guided_tile {
    decant_matrix source;         /* the whole weight; borrowed, as are the next two */
    decant_packed_matrix *packed; /* levels to start from, sparse pattern; filled in the end */
    const float *hessian;         /* [columns, columns] */
    const float *feedback; /* how errors are handed on, [columns, columns], see guided_feedback.h; NULL: not */
    const int32_t *order;  /* [columns] that feedback is in */
    float damping;         /* λ */
    int bits;
    int64_t first, rows, columns; /* the rows [first, first + rows) of the weight */
    float *weight;                /* [rows, columns] */
    float *missing;               /* δ, [rows, columns]; 0 in the sparse part */
    float *handed;                /* δ in the order of feedback, [rows, columns] */
    float *gradient;              /* [rows, DECANT_GUIDED_BLOCK] */
    float *level_sums;            /* [rows, levels, DECANT_GUIDED_BLOCK] */
    double *normal;               /* [rows, levels, levels] */
    double *right;                /* [rows, levels] */
    uint16_t *start;              /* levels to start from, [rows, levels] */
    uint8_t *codes;               /* [rows, columns] */
    uint8_t *is_sparse;           /* [rows, columns] */
    decant_code_book *books;      /* [rows] */
} decant_guided_tile;

/* The levels of row r of the tile, F16 [2^bits], where they are stored. */
static inline uint16_t *decant_guided_levels_of(const decant_guided_tile *tile, int64_t r)
{
    return tile->packed->levels + ((tile->first + r) << tile->bits);
}

/* Columns of the block that begins with column `first`. */
static inline int64_t decant_guided_block_length(const decant_guided_tile *tile, int64_t first)
{
    return tile->columns - first < DECANT_GUIDED_BLOCK ? tile->columns - first : DECANT_GUIDED_BLOCK;
}

static inline int decant_guided_nearest_place(const decant_code_book *book, int thresholds, float value)
{
    int place = 0;
    for (int t = 0; t < thresholds; t++)
        place += value > book->threshold[t];
    return place;
}

/* Reads row r, with its sparse part, and gives every weight its nearest level. */
void decant_guided_load_row(decant_guided_tile *tile, int64_t r);

/* gradient[r, j] = Σ_{i < terms} a[r, i] b[first + j, i] for the columns of a block.
 *   a  [rows, columns], b  [columns, columns] */
void decant_guided_multiply_block(decant_guided_tile *tile, const float *a, int64_t terms, const float *b,
                                  int64_t first);

/* objective[r] = δᵀ (H + damping) δ;  objective [rows] */
void decant_guided_sum_objective(decant_guided_tile *tile, double damping, double *objective);

/* Packs the codes of row r, fills its sparse values and measures result->error but for `weighted`; δ becomes
 * what is missing in the end, in the sparse part too. */
void decant_guided_store_row(decant_guided_tile *tile, int64_t r, decant_guided_row *result);

/* Levels of every row in closed form under its codes, going `stride` times as far; rows that would be worse for
 * it keep theirs. */
void decant_guided_improve_levels(decant_guided_tile *tile, double stride);

/* Every code of the tile once, by cyclic coordinate descent; false when none changed. */
bool decant_guided_sweep_codes(decant_guided_tile *tile);

#endif
