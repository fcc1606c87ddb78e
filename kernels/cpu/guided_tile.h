/* Consecutive rows of one group under guided search, and what a thread works in. Only guided.c and
 * guided_feedback.c include it. */
#ifndef DECANT_KERNELS_CPU_GUIDED_TILE_H
#define DECANT_KERNELS_CPU_GUIDED_TILE_H

#include "kernels/cpu/codes.h"

#include <stdbool.h>

enum {
    DECANT_GUIDED_ROWS = 32,  /* of a tile */
    DECANT_GUIDED_BLOCK = 64, /* columns that are searched between products */
};

typedef struct decant_guided_tile {
    int64_t first, rows, columns;
    const float *hessian;  /* [columns, columns] */
    const float *feedback; /* how errors are handed on, [columns, columns], see guided_feedback.h; NULL: not */
    const int32_t *order;  /* [columns] that feedback is in */
    float damping;         /* λ */
    float *weight;         /* [rows, columns] */
    float *missing;        /* δ, [rows, columns]; 0 in the sparse part */
    float *handed;         /* δ in the order of feedback, [rows, columns] */
    float *gradient;       /* [rows, DECANT_GUIDED_BLOCK] */
    float *level_sums;     /* [rows, levels, DECANT_GUIDED_BLOCK] */
    double *normal;        /* [rows, levels, levels] */
    double *right;         /* [rows, levels] */
    uint16_t *start;       /* levels to start from, [rows, levels] */
    uint8_t *codes;        /* [rows, columns] */
    uint8_t *is_sparse;    /* [rows, columns] */
    decant_code_book *books; /* [rows] */
} decant_guided_tile;

static inline int decant_guided_nearest_place(const decant_code_book *book, int thresholds, float value)
{
    int place = 0;
    for (int t = 0; t < thresholds; t++)
        place += value > book->threshold[t];
    return place;
}

#endif
