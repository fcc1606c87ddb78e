/* What guided's search computes, as operations of shapes alone: pure, for the plan's seconds. A multiply-add
 * counts as two. The steps are those of kernels/cuda/guided.cu and kernels/cpu/guided.c. */
#ifndef DECANT_PIPELINE_GUIDED_OPERATIONS_H
#define DECANT_PIPELINE_GUIDED_OPERATIONS_H

#include "stages/candidate.h"

/* Of three kinds, because each has a rate of its own: one number for each in what was measured. */
typedef struct decant_guided_operations {
    double products;   /* of δ with H: objectives, and a sweep over the codes each */
    double level_sums; /* sums of H by the codes of each row, for levels in closed form */
    double feedback;   /* H + λ factorized for each group, and passes of rounding with error feedback */
} decant_guided_operations;

/* Of one candidate of `bits` for a matrix [rows, columns]:
 *   a product            2 · rows · columns²: two objectives, one more after passes, rounds · sweeps
 *   sums by 2^b levels   2 · 2^b · rows · columns²: each round, and between two passes
 *   a pass               rows · columns²: on average half of the columns come before one
 *   a factorization      2/3 · columns³ a group: elimination that leaves the symmetry of H unused, as on a GPU
 * No rounds, no passes: see decant_guided_search. */
decant_guided_operations decant_guided_operations_of(const decant_recipe *recipe, int64_t rows, int64_t columns,
                                                     int bits);

/* *sum += *operations */
void decant_guided_operations_add(decant_guided_operations *sum, const decant_guided_operations *operations);

/* At so many operations of each kind a second; a kind whose rate is 0, not known, takes none. */
double decant_guided_operations_seconds(const decant_guided_operations *operations,
                                        const decant_guided_operations *rates);

#endif
