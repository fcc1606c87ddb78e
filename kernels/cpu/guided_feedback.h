/* Rounding with error feedback: column after column takes the level nearest to its weight plus what the errors
 * of the columns before it ask for, those after it being free to make up for the rest as if they were not
 * rounded. Sources: GPTQ (arXiv 2210.17323); as successive conditional optima, Babai's nearest plane
 * (arXiv 2507.18553).
 *
 * With the columns in an order p and (H + λ)[p, p] = U Uᵀ, U upper triangular,
 *
 *     δᵀ (H + λ) δ = Σ_j U_jj² (δ_j + Σ_{i < j} U_ij / U_jj δ_i)²,
 *
 * so column j is rounded from w_j + Σ_{i < j} U_ij / U_jj δ_i. */
#ifndef DECANT_KERNELS_CPU_GUIDED_FEEDBACK_H
#define DECANT_KERNELS_CPU_GUIDED_FEEDBACK_H

#include "kernels/cpu/guided_tile.h"

/* feedback[j, i] = U_ij / U_jj for i < j; the rest is of no meaning.
 *   hessian   [columns, columns]
 *   order     [columns]
 *   feedback  [columns, columns]; filled
 * false when H + λ is not positive definite. */
bool decant_guided_feedback_factorize(const float *hessian, int64_t columns, float damping,
                                      const int32_t *order, float *feedback);

/* Every code of the tile anew, with its δ, under the books that it has. */
void decant_guided_round_with_feedback(decant_guided_tile *tile);

#endif
