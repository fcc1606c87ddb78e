/* What guided quantization reports of each row, and what it makes of that for the matrix: the same on every
 * backend. Knows nothing of how rows are searched. */
#ifndef DECANT_KERNELS_GUIDED_ROWS_H
#define DECANT_KERNELS_GUIDED_ROWS_H

#include "kernels/backend.h"

/* Between passes levels go so many times as far as the least-squares solution is: fewer than twice, so that the
 * objective falls all the same. Codes follow levels only so far, and levels codes; going further gets as far in
 * half the passes. */
#define DECANT_GUIDED_STRIDE 1.9

typedef struct decant_guided_row {
    decant_matrix_error error;
    double before, after; /* the objective δᵀ (H + λ) δ, with δ = 0 in the sparse part */
} decant_guided_row;

/* The error of a matrix: those of its rows, added in their order. results: host [rows].
 * DECANT_ERROR_BUG when the objective of a row has risen by more than the rounding of its sums in F32. */
decant_status decant_guided_add_rows(const decant_guided_row *results, int64_t rows, decant_matrix_error *error,
                                     decant_error *err);

#endif
