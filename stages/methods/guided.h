/* What the files on guided quantization share: guided.c is the method, guided_sparse.c its own sparse parts. */
#ifndef DECANT_STAGES_METHODS_GUIDED_H
#define DECANT_STAGES_METHODS_GUIDED_H

#include "stages/methods/methods.h"

/* From the levels that the layer has for candidate `index`, under its sparse pattern, to guided ones, which the
 * layer keeps with their codes; the candidate is measured. */
decant_status decant_guide_candidate(decant_backend *backend, const decant_recipe *recipe, decant_matrix weight,
                                     const decant_guided_search *search, int index,
                                     decant_quantized_layer *layer, decant_error *err);

/* The guided candidates [first, first + count), whose sparse parts are the recipe's guided_sparse: evaluated as
 * decant_method_operations says. */
decant_status decant_guided_with_sparse(decant_backend *backend, const decant_recipe *recipe,
                                        decant_matrix weight, const float *fisher,
                                        const decant_guided_search *search, int first, int count,
                                        decant_quantized_layer *layer, decant_error *err);

#endif
