/* The levels of a row that are best under its codes: weighted least squares in closed form. Knows one row at a
 * time. */
#ifndef DECANT_KERNELS_CPU_GUIDED_LEVELS_H
#define DECANT_KERNELS_CPU_GUIDED_LEVELS_H

#include <stdbool.h>
#include <stdint.h>

/* Solves A Δ = b for the change of a row's levels that lowers the objective most, A = Pᵀ(H + λ)P and b = Pᵀ(H +
 * λ)δ with δ = w − ŵ, rounds the levels to F16 and puts them in ascending order. Levels without a code stay.
 * Where rounding would raise the objective, or A is not positive definite, nothing changes. normal  A [count,
 * count], overwritten; right  b [count], overwritten levels  F16 [count] places  [count]: where each level has
 * gone Returns whether anything changed. count <= 256. */
bool decant_guided_levels_solve(double *normal, double *right, int count, uint16_t *levels, uint8_t *places);

#endif
