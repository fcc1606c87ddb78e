/* Steps that the blocks of several families are made of. */
#ifndef DECANT_STAGES_FAMILIES_BLOCK_STEPS_H
#define DECANT_STAGES_FAMILIES_BLOCK_STEPS_H

#include "stages/model.h"

/* The attention of `rows` rows of activations: decant_model_part_sequences says how many sequences they are.
 *   window   keys that a query sees, 0: all before it */
decant_attention_shape decant_block_attention_shape(const decant_model_part *part, int64_t rows,
                                                    int64_t window);

/* y = x weightᵀ + bias, or y += it when accumulate; without the bias where the family has none. */
decant_status decant_block_project(decant_backend *backend, const decant_linear *linear,
                                   const decant_vector *bias, decant_matrix x, bool accumulate, decant_matrix y,
                                   decant_error *err);

/* The same of `count` linear layers with the same input, without accumulate.
 *   linears, biases, ys [count]; the ys do not overlap */
decant_status decant_block_project_several(decant_backend *backend, const decant_linear *linears,
                                           const decant_vector *biases, int count,
                                           const decant_packed_input *input, const decant_matrix *ys,
                                           decant_error *err);

/* One linear layer's share of the backward pass: adds to its Fisher sum and Hessians, where it has them. The
 * token form and Hessians take all rows at once; the gradient of a sequence is squared by itself.
 *   fisher   NULL: nothing is added
 *   dy, x    [rows, out], [rows, in]: the gradient of the layer's output, and its input */
decant_status decant_block_add_fisher(const decant_model_part *part, const decant_block_fisher *fisher,
                                      int index, decant_matrix dy, decant_matrix x, decant_error *err);

#endif
