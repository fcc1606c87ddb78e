/* What the methods share whose rows lie on one grid: HIGGS, round-to-nearest, NF4. They differ in the grid, in
 * where a group's scale comes from, and in whether rows are rotated. */
#ifndef DECANT_STAGES_METHODS_GRID_H
#define DECANT_STAGES_METHODS_GRID_H

#include "stages/grid_tables.h"
#include "stages/methods/methods.h"

struct decant_grid_rule {
    decant_grid_kind kind;
    decant_grid_scale scale; /* where a group's scale comes from */
};

/* Appends one candidate, unless the recipe does not ask for its width; false when the list is full. */
bool decant_grid_offer_one(const decant_recipe *recipe, const decant_candidate *candidate,
                           decant_candidate_list *list);

/* The operations of methods.h that are the same for all of them; the candidates say by their method which rule
 * is theirs. sparse_count is ignored: nothing is kept apart. */
int64_t decant_grid_candidate_bytes(const decant_candidate *candidate, int64_t rows, int64_t columns,
                                    int64_t sparse_count);
decant_status decant_grid_evaluate(decant_backend *backend, const decant_recipe *recipe, decant_matrix weight,
                                   const float *fisher, int first, int count, decant_quantized_layer *layer,
                                   decant_error *err);
decant_status decant_grid_encode(decant_backend *backend, const decant_quantized_layer *layer, int candidate,
                                 decant_matrix weight, decant_encoded_layer *encoded, decant_error *err);
const float *decant_grid_points(const decant_candidate *candidate);

/* What fills a method's table beside its name and its offer. */
#define DECANT_GRID_OPERATIONS(grid_rule)                                                                      \
    .rule = (grid_rule), .bytes = decant_grid_candidate_bytes, .evaluate = decant_grid_evaluate,               \
    .encode = decant_grid_encode, .points = decant_grid_points

#endif
