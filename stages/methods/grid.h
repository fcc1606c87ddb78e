/* What the methods share whose rows lie on one grid: HIGGS, round-to-nearest, NF4. They differ in the grid, in
 * where a group's scale comes from, and in whether rows are rotated. */
#ifndef DECANT_STAGES_METHODS_GRID_H
#define DECANT_STAGES_METHODS_GRID_H

#include "stages/grid_tables.h"
#include "stages/methods/methods.h"

typedef struct decant_grid_rule {
    decant_grid_kind kind;
    decant_grid_scale scale;
    bool has_offsets;
} decant_grid_rule;

/* Appends one candidate, unless the recipe does not ask for its width; false when the list is full. */
bool decant_grid_offer_one(const decant_recipe *recipe, const decant_candidate *candidate,
                           decant_candidate_list *list);

int64_t decant_grid_candidate_bytes(const decant_grid_rule *rule, const decant_candidate *candidate,
                                    int64_t rows, int64_t columns);

decant_status decant_grid_evaluate(const decant_grid_rule *rule, decant_backend *backend,
                                   const decant_recipe *recipe, decant_matrix weight, const float *fisher,
                                   int first, int count, decant_quantized_layer *layer, decant_error *err);

decant_status decant_grid_encode(const decant_grid_rule *rule, decant_backend *backend,
                                 const decant_quantized_layer *layer, int candidate, decant_matrix weight,
                                 decant_grid_matrix *grid, decant_error *err);

#endif
