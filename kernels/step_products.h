/* The products of one token made of operations that every backend has, one after the other: all there is to it
 * on the CPU, and what a GPU does where no kernel of its own takes them together. */
#ifndef DECANT_KERNELS_STEP_PRODUCTS_H
#define DECANT_KERNELS_STEP_PRODUCTS_H

#include "kernels/backend.h"

/* What the weights are multiplied with: input->x, or input->normed once it has been filled. */
decant_status decant_step_normed(decant_backend *backend, const decant_step_input *input, decant_matrix *x,
                                 decant_error *err);

/* product->y = x weightᵀ, or += it, with x as it is. */
decant_status decant_step_multiply(decant_backend *backend, decant_matrix x, const decant_step_product *product,
                                   bool accumulate, decant_error *err);

/* As in decant_step_kernels. */
decant_status decant_step_products(decant_backend *backend, const decant_step_input *input,
                                   const decant_step_product *products, int count, bool accumulate,
                                   decant_error *err);
decant_status decant_step_gated_products(decant_backend *backend, const decant_step_input *input,
                                         const decant_step_product *gate, const decant_step_product *up,
                                         decant_error *err);

#endif
