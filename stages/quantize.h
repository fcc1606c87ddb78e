/* Quantizing one linear layer: which weights become sparse, the levels for every candidate width, and what each
 * candidate would cost in loss and bytes. What is kept between this and the choice is small: levels and the
 * sparse pattern; the codes are made again from them once the width is chosen. Local to a rank; knows no other
 * layer.
 *
 * Predicted loss increase of a candidate: ½ H Σ F (w − ŵ)², with the Fisher information for the Hessian. F is a
 * sum over N sequences of squared gradients of a mean over T' targets, so H ≈ T'/N · F: the factor is
 * `curvature`. Source: SqueezeLLM (arXiv 2306.07629), equations 2 to 4; the factor is our own arithmetic. */
#ifndef DECANT_STAGES_QUANTIZE_H
#define DECANT_STAGES_QUANTIZE_H

#include "kernels/backend.h"

enum { DECANT_CANDIDATES = DECANT_BITS_MAXIMUM - DECANT_BITS_MINIMUM + 1 };

/* What to try on every layer. */
typedef struct decant_recipe {
    int widths;
    int bits[DECANT_CANDIDATES]; /* ascending */
    double sensitive, outliers;  /* fractions of a matrix */
    decant_level_search search;
    uint64_t seed;
    double curvature; /* T' / N above */
} decant_recipe;

/* What one candidate costs; the same on every rank, gathered as it is. */
typedef struct decant_candidate {
    int32_t bits;
    int32_t unused;   /* keeps the struct free of padding, as it travels between ranks */
    int64_t bytes;    /* codes, levels and sparse part as stored */
    double predicted; /* loss increase */
    double relative;  /* Σ (w − ŵ)² / Σ w² */
} decant_candidate;

/* A layer between evaluation and choice; device arrays. */
typedef struct decant_quantized_layer {
    int64_t rows, columns;
    decant_sparse_pattern sparse;
    int candidates;
    decant_candidate candidate[DECANT_CANDIDATES];
    uint16_t *levels[DECANT_CANDIDATES]; /* F16 [rows, 2^bits] */
    bool is_parked;                      /* the arrays are in host memory */
} decant_quantized_layer;

/* Bytes stored for a packed matrix, before any compression: pure. Column indices take 2 bytes where they fit.
 */
int64_t decant_packed_bytes(int64_t rows, int64_t columns, int bits, int64_t sparse_count);
int decant_sparse_index_bytes(int64_t columns);

/* How many weights a fraction of a matrix is: rounded to nearest. */
int64_t decant_fraction_count(double fraction, int64_t rows, int64_t columns);

/* Finds sparse pattern and levels and measures every candidate.
 *   weight  placed exact; fisher device F32 of its shape
 *   name    for messages
 *   layer   on success freed with decant_quantized_layer_free, on failure empty */
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

/* The packed form of one candidate, from the levels and the pattern of `layer`, which stays as it is, and the
 * weight. Freed with decant_packed_matrix_free. */
decant_status decant_quantized_layer_encode(decant_backend *backend, decant_quantized_layer *layer,
                                            int candidate, decant_matrix weight, decant_packed_matrix *packed,
                                            decant_error *err);

/* Device memory for a packed matrix of this shape, all zero. */
decant_status decant_packed_matrix_create(decant_backend *backend, int64_t rows, int64_t columns, int bits,
                                          int64_t sparse_count, decant_packed_matrix *packed,
                                          decant_error *err);
void decant_packed_matrix_free(decant_backend *backend, decant_packed_matrix *packed);

#endif
