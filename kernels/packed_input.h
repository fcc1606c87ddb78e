/* What packed products take (decant_packed_input of kernels/backend.h), made one operation at a time: what
 * every backend can do, and what a faster way of its own falls back to. */
#ifndef DECANT_KERNELS_PACKED_INPUT_H
#define DECANT_KERNELS_PACKED_INPUT_H

#include "kernels/backend.h"

/* Whether something is made of x. */
bool decant_packed_input_is_made(const decant_packed_input *input);

/* *x = what the products take: input->x itself, or input->made, which is filled. */
decant_status decant_packed_input_make(decant_backend *backend, const decant_packed_input *input,
                                       decant_matrix *x, decant_error *err);

#endif
