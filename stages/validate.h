/* One rank's share of validation: passes windows of text through its layers of the original model and of the
 * container, side by side. The schedule and the messages are the pipeline's. */
#ifndef DECANT_STAGES_VALIDATE_H
#define DECANT_STAGES_VALIDATE_H

#include "stages/model.h"

/* Sums over windows, in window order, and the time of this rank. */
typedef struct decant_validation_result {
    int64_t windows;
    decant_comparison sums;
    double original_s, quantized_s; /* time in the forward passes of each on this rank */
} decant_validation_result;

/* From the sums. */
double decant_validation_perplexity_original(const decant_validation_result *result);
double decant_validation_perplexity_quantized(const decant_validation_result *result);

typedef struct decant_validation decant_validation;

/* original and quantized: the same layers of both models, borrowed; original may be NULL when there is nothing
 * to compare with. */
decant_status decant_validation_create(const decant_model_part *original, const decant_model_part *quantized,
                                       decant_validation **validation, decant_error *err);
void decant_validation_destroy(decant_validation **validation); /* takes NULL, sets NULL */

/* The activations of `sequences` windows that enter the part: [0] of the original, [1] of the quantized model,
 * [sequences · T, hidden] each. For the pipeline to fill, unless the part has the embedding. With no original,
 * [0] has data NULL. After decant_validation_forward they hold what leaves the part. */
decant_matrix decant_validation_activation(decant_validation *validation, int model, int64_t sequences);

/* Passes some windows, at most as many as the parts take at once, forward through both, and adds to the
 * result's times; a part with the head compares. tokens       host [sequences · T] comparisons  host
 * [sequences]; filled where the head is */
decant_status decant_validation_forward(decant_validation *validation, const int32_t *tokens, int64_t sequences,
                                        decant_comparison *comparisons, decant_validation_result *result,
                                        decant_error *err);

/* Sums comparisons of windows, in their order. */
void decant_validation_sum(const decant_comparison *comparisons, int64_t windows,
                           decant_validation_result *result);

#endif
