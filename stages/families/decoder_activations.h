/* What the decoder block keeps of a forward pass. Its passes (decoder_block.c) alone look inside. */
#ifndef DECANT_STAGES_FAMILIES_DECODER_ACTIVATIONS_H
#define DECANT_STAGES_FAMILIES_DECODER_ACTIVATIONS_H

#include "stages/families/decoder_block.h"

/* The arrays of the passes, named as at the top of decoder_block.c; those after DECANT_STORED_COUNT lie in
 * another's memory. */
typedef enum decant_activation {
    DECANT_NORMED_INPUT,     /* n1, then its gradient */
    DECANT_UNNORMED_QUERIES, /* q before its heads are normed; width 0 in families that do not */
    DECANT_UNNORMED_KEYS,    /* the same of k */
    DECANT_QUERIES,          /* q, rotated; then the gradient of q before it was normed */
    DECANT_KEYS,             /* k, rotated; the same */
    DECANT_VALUES,           /* v */
    DECANT_ATTENDED,         /* a */
    DECANT_MIDDLE,           /* h */
    DECANT_NORMED_MIDDLE,    /* n2, then its gradient */
    DECANT_GATES,            /* g, then its gradient */
    DECANT_UPS,              /* u, then its gradient */
    DECANT_PRODUCTS,         /* m, then its gradient */
    DECANT_STORED_COUNT,
    DECANT_ATTENDED_GRADIENTS = DECANT_STORED_COUNT,
    DECANT_QUERY_GRADIENTS,
    DECANT_KEY_GRADIENTS,
    DECANT_VALUE_GRADIENTS,
    DECANT_ACTIVATION_COUNT,
} decant_activation;

struct decant_activations {
    void *arrays[DECANT_STORED_COUNT]; /* device [most rows, widest use] */
    float *input_inverse_rms;          /* device [rows] */
    float *middle_inverse_rms;         /* device [rows] */
    float *query_inverse_rms;          /* device [rows, heads]; NULL in families that do not norm heads */
    float *key_inverse_rms;            /* device [rows, key_value_heads]; the same */
    float *log_sum_exp;                /* device [sequences, heads, T] */
};

/* The first rows of an array, as it is used for that many. */
decant_matrix decant_activation_of(const decant_model_part *part, const decant_activations *kept,
                                   decant_activation which, int64_t rows);

/* Widths of q and a, and of k and v. */
static inline int64_t decant_query_width(const decant_model_config *config)
{
    return (int64_t)config->heads * config->head_dimension;
}

static inline int64_t decant_key_value_width(const decant_model_config *config)
{
    return (int64_t)config->key_value_heads * config->head_dimension;
}

#endif
