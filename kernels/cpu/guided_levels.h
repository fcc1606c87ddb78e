/* The levels of a row that are best under its codes: weighted least squares in closed form. Knows one row at a
 * time. */
#ifndef DECANT_KERNELS_CPU_GUIDED_LEVELS_H
#define DECANT_KERNELS_CPU_GUIDED_LEVELS_H

#include <stdbool.h>
#include <stdint.h>

/* Levels to start from, rounded to what can be stored: F16, and where they take a byte each
 * (kernels/level_grid.h) to their grid. They stay in order.  levels  F16 [count]; in place. count <= 256. */
void decant_guided_levels_begin(uint16_t *levels, int count);

/* Solves A Δ = b for the change of a row's levels that lowers the objective most, A = Pᵀ(H + λ)P and b = Pᵀ(H +
 * λ)δ with δ = w − ŵ, goes `stride` times as far, rounds the levels as above and puts them in ascending order.
 * Levels without a code stay. Where that would raise the objective, or A is not positive definite, nothing
 * changes.
 *   normal  A [count, count], overwritten
 *   right   b [count], overwritten
 *   levels  F16 [count]
 *   places  [count]: where each level has gone
 * Returns whether anything changed. count <= 256. */
bool decant_guided_levels_solve(double *normal, double *right, int count, double stride, uint16_t *levels,
                                uint8_t *places);

#endif
