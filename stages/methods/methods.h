/* What a method is to the rest of the program: a table of operations, one table a file of this folder.
 *
 * A method offers candidates from the recipe and a matrix's shape alone, knows to the byte what they store,
 * measures them on a weight, and encodes the one that was chosen. */
#ifndef DECANT_STAGES_METHODS_METHODS_H
#define DECANT_STAGES_METHODS_METHODS_H

#include "stages/candidate.h"
#include "stages/quantize.h"

/* How a method whose rows lie on a grid goes about it: stages/methods/grid.h. */
typedef struct decant_grid_rule decant_grid_rule;

typedef struct decant_method_operations {
    const char *name;
    bool needs_statistics;        /* is nothing without Fisher sums */
    bool has_offsets;             /* groups have an offset beside their scale */
    const decant_grid_rule *rule; /* NULL: rows have levels of their own */

    /* Appends this method's candidates for matrices of so many columns; false when the list is full. */
    bool (*offer)(const decant_recipe *recipe, int64_t columns, decant_candidate_list *list);

    /* Everything that is stored for a matrix of this shape.
     *   sparse_count   weights that k-means keeps apart; other methods ignore it */
    int64_t (*bytes)(const decant_candidate *candidate, int64_t rows, int64_t columns, int64_t sparse_count);

    /* Measures the candidates [first, first + count) of the layer, which are this method's, and keeps in the
     * layer what encode will need.
     *   weight  placed exact; fisher device F32 of its shape, or NULL: all ones; behind it the Hessians where
     *           the recipe has groups of them (stages/fisher_sums.h) */
    decant_status (*evaluate)(decant_backend *backend, const decant_recipe *recipe, decant_matrix weight,
                              const float *fisher, int first, int count, decant_quantized_layer *layer,
                              decant_error *err);

    /* Fills `encoded`, which is empty and on failure is the caller's to free. */
    decant_status (*encode)(decant_backend *backend, const decant_quantized_layer *layer, int candidate,
                            decant_matrix weight, decant_encoded_layer *encoded, decant_error *err);

    /* The grid of a candidate, [2^code_bits, dimension], for as long as the program runs; NULL itself where
     * rows have levels of their own. */
    const float *(*points)(const decant_candidate *candidate);
} decant_method_operations;

const decant_method_operations *decant_method_operations_of(decant_method method);

extern const decant_method_operations decant_kmeans_operations;
extern const decant_method_operations decant_higgs_operations;
extern const decant_method_operations decant_rtn_operations;
extern const decant_method_operations decant_nf4_operations;
extern const decant_method_operations decant_guided_operations;

/* ---- for the methods' own files ---- */

/* The sparse part of a layer, chosen once for all its methods that have one, and k-means levels of the
 * candidates [first, first + count). */
decant_status decant_levels_fit(decant_backend *backend, const decant_recipe *recipe, decant_matrix weight,
                                const float *fisher, int first, int count, decant_quantized_layer *layer,
                                decant_error *err);

/* A packed matrix with the layer's sparse pattern and the candidate's levels, but no codes. */
decant_status decant_levels_pack(decant_backend *backend, const decant_quantized_layer *layer, int candidate,
                                 decant_packed_matrix *packed, decant_error *err);

/* Is the candidate's width the one that the user wrote, with two digits where it has more ("2.33")? */
bool decant_width_is(const decant_candidate *candidate, double width);

/* Is the candidate's width one of the recipe's? */
bool decant_recipe_asks_for(const decant_recipe *recipe, const decant_candidate *candidate);

/* Appends a candidate; false when the list is full. */
bool decant_candidate_append(decant_candidate_list *list, const decant_candidate *candidate);

/* Puts the measured error of a candidate into the layer: ½ H Σ F (w − ŵ)² where there are Fisher sums, else the
 * relative error times the number of weights. */
void decant_candidate_measured(const decant_recipe *recipe, const decant_matrix_error *error, bool has_fisher,
                               int index, decant_quantized_layer *layer);

#endif
