/* The rotation of rows before they go onto a grid: random signs, then the orthonormal Walsh–Hadamard matrix in
 * pieces of a row. Knows one row at a time. */
#ifndef DECANT_KERNELS_CPU_HADAMARD_H
#define DECANT_KERNELS_CPU_HADAMARD_H

#include <stdint.h>

/* signs [columns]: +1 or −1, by decant_random_sign. */
void decant_rotation_signs(uint64_t seed, int64_t columns, float *signs);

/* row = H diag(signs) row, in place, for each piece of `piece` columns, a power of two that divides columns;
 * piece 1 leaves the row alone. */
void decant_rotate_row(float *row, int64_t columns, int64_t piece, const float *signs);

/* The inverse, which is the transpose: row = diag(signs) H row. */
void decant_rotate_row_back(float *row, int64_t columns, int64_t piece, const float *signs);

#endif
