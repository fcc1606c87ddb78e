/* The grids that weights may lie on: HIGGS's grids for normal weights, round-to-nearest's even steps, NF4's 16
 * values. Constant tables; knows nothing of matrices or of what a grid costs. */
#ifndef DECANT_STAGES_GRID_TABLES_H
#define DECANT_STAGES_GRID_TABLES_H

typedef enum decant_grid_kind {
    DECANT_GRID_HIGGS, /* least mean square error for standard normal variables; arXiv 2411.17525 */
    DECANT_GRID_RTN,   /* 0, 1 … 2^code_bits − 1 */
    DECANT_GRID_NF4,   /* arXiv 2305.14314 */
} decant_grid_kind;

typedef struct decant_grid {
    decant_grid_kind kind;
    int dimension;       /* p */
    int code_bits;       /* code_bits / p bits a weight */
    const float *points; /* [2^code_bits, p] */
    double error; /* mean square error a coordinate on standard normal variables; 0 for a kind that is not made
                     for them */
} decant_grid;

/* The grid of this kind; NULL where there is none.
 *   HIGGS  p = 1: 2 … 8 code bits, p = 2: 4 … 12, p = 3: 6 … 12, (p = 4: to come)
 *   RTN    p = 1: 2 … 8
 *   NF4    p = 1: 4 */
const decant_grid *decant_grid_find(decant_grid_kind kind, int dimension, int code_bits);

#endif
