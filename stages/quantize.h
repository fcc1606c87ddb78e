/* Quantizing one linear layer: every candidate that the recipe offers is tried and measured, method by method
 * (stages/methods/). What is kept between this and the choice is small: levels and the sparse pattern for
 * k-means, nothing for grids; the codes are made again once the candidate is chosen, but for guided ones, which
 * are kept packed. Local to a rank; knows no other layer.
 *
 * Predicted loss increase of a candidate: ½ H Σ F (w − ŵ)², with the Fisher information for the Hessian. F is a
 * sum over N sequences of squared gradients of a mean over T' targets, so H ≈ T'/N · F: the factor is
 * `curvature`. Source: SqueezeLLM (arXiv 2306.07629), equations 2 to 4; the factor is our own arithmetic. */
#ifndef DECANT_STAGES_QUANTIZE_H
#define DECANT_STAGES_QUANTIZE_H

#include "stages/candidate.h"

/* A layer between evaluation and choice; device arrays. */
typedef struct decant_quantized_layer {
    int64_t rows, columns;
    uint64_t seed;
    double norm;                  /* Σ w² */
    decant_sparse_pattern sparse; /* of the k-means candidates, and of guided ones without their own */
    int candidates;
    decant_candidate candidate[DECANT_CANDIDATES];
    uint16_t
        *levels[DECANT_CANDIDATES]; /* F16 [rows, 2^code_bits] of k-means and guided candidates, else NULL */
    uint32_t
        *planes[DECANT_CANDIDATES]; /* of guided candidates, whose codes cannot be found again, else NULL */
    uint16_t *sparse_values[DECANT_CANDIDATES];          /* F16 [sparse.count], of these too */
    decant_sparse_pattern own_sparse[DECANT_CANDIDATES]; /* of guided candidates that have their own */
    bool is_parked;                                      /* the arrays are in host memory */
} decant_quantized_layer;

/* What a candidate keeps apart; the arrays stay the layer's. */
decant_sparse_pattern decant_quantized_layer_sparse(const decant_quantized_layer *layer, int candidate);

/* A layer in the packed form that is stored: one of the two; the other is empty. */
typedef struct decant_encoded_layer {
    decant_packed_matrix packed; /* levels of each row */
    decant_grid_matrix grid;     /* one grid for all rows; form.points NULL when empty */
} decant_encoded_layer;

/* Measures every candidate that the recipe offers, keeping what encoding one of them will need.
 *   weight  placed exact
 *   fisher  device F32 of its shape, with the recipe's Hessians behind it (stages/fisher_sums.h); NULL when the
 *           recipe does without: predictions are then squared errors
 *   name    for messages
 *   layer   on success freed with decant_quantized_layer_free, on failure empty
 * DECANT_ERROR_INPUT when a weight is not finite, or beyond what F16 holds, as where there is a sparse part no
 * distance within a row may be, and when a prediction is not finite. */
decant_status decant_quantize_layer(decant_backend *backend, const decant_recipe *recipe, const char *name,
                                    decant_matrix weight, const float *fisher, decant_quantized_layer *layer,
                                    decant_error *err);
/* Moves the arrays between evaluation and choice out of the device's memory into the host's, and back before
 * encoding. On failure some may have moved; the layer can be freed all the same. */
decant_status decant_quantized_layer_park(decant_backend *backend, decant_quantized_layer *layer,
                                          decant_error *err);
decant_status decant_quantized_layer_unpark(decant_backend *backend, decant_quantized_layer *layer,
                                            decant_error *err);
void decant_quantized_layer_free(decant_backend *backend, decant_quantized_layer *layer);

/* The packed form of one candidate, from what `layer` keeps, which stays as it is, and the weight. Freed with
 * decant_encoded_layer_free; on failure empty. */
decant_status decant_quantized_layer_encode(decant_backend *backend, const decant_quantized_layer *layer,
                                            int candidate, decant_matrix weight, decant_encoded_layer *encoded,
                                            decant_error *err);
void decant_encoded_layer_free(decant_backend *backend, decant_encoded_layer *encoded);

/* Bytes of the bit planes of a packed matrix. */
size_t decant_planes_bytes(int64_t rows, int64_t columns, int bits);

/* Device memory for a packed matrix of this shape, all zero. */
decant_status decant_packed_matrix_create(decant_backend *backend, int64_t rows, int64_t columns, int bits,
                                          int64_t sparse_count, decant_packed_matrix *packed,
                                          decant_error *err);
void decant_packed_matrix_free(decant_backend *backend, decant_packed_matrix *packed);

/* Device memory for a sparse pattern of so many entries, all zero; none for count 0. */
decant_status decant_sparse_pattern_create(decant_backend *backend, int64_t rows, int64_t count,
                                           decant_sparse_pattern *pattern, decant_error *err);

/* Is a pattern whose arrays are in host memory one of a matrix of this shape: offsets that rise from 0 to
 * count, and in each row columns that ascend and lie inside? Kernels index with them without looking. Pure. */
bool decant_sparse_pattern_fits(const decant_sparse_pattern *host, int64_t rows, int64_t columns);

/* Device memory for a grid matrix of this shape and form, all zero. form->group is at most columns. */
decant_status decant_grid_matrix_create(decant_backend *backend, int64_t rows, int64_t columns,
                                        const decant_grid_form *form, decant_grid_matrix *grid,
                                        decant_error *err);
void decant_grid_matrix_free(decant_backend *backend, decant_grid_matrix *grid);

#endif
