/* One rank's share of validation: passes sequences of tokens, windows of text or questions, through its layers
 * of the original model and of the container, side by side. The schedule and the messages are the pipeline's.
 */
#ifndef DECANT_STAGES_VALIDATE_H
#define DECANT_STAGES_VALIDATE_H

#include "stages/model.h"

enum { DECANT_DECODE_BATCHES = 5 };

/* What a model takes to run; the pipeline measures it. */
typedef struct decant_model_costs {
    int64_t weight_bytes;                   /* of memory for the weights, one copy of the whole model */
    double decode_s[DECANT_DECODE_BATCHES]; /* time of the decode products (decode_products.h) of a batch,
                                               through all stages; batches of DECANT_DECODE_BATCH */
} decant_model_costs;

/* Sums over windows, in window order, and the time of this rank. */
typedef struct decant_validation_result {
    int64_t windows;
    decant_comparison sums;
    double original_s, quantized_s; /* time in the forward passes of each on this rank */
    decant_model_costs original_costs, quantized_costs;
    int64_t peak_bytes; /* of the backend's memory, on the rank that held most, since the program began */
} decant_validation_result;

/* From the sums. */
double decant_validation_perplexity_original(const decant_validation_result *result);
double decant_validation_perplexity_quantized(const decant_validation_result *result);

typedef struct decant_validation decant_validation;

enum { DECANT_VALIDATION_ORIGINAL, DECANT_VALIDATION_QUANTIZED, DECANT_VALIDATION_MODELS };

/* original and quantized: the same layers of both models, borrowed; original may be NULL when there is nothing
 * to compare with. They may be outlines whose blocks come and go. `head_rows`: most positions at once whose
 * logits will be asked for. The interlude is played between blocks. */
decant_status decant_validation_create(const decant_model_part *original, const decant_model_part *quantized,
                                       int64_t head_rows, decant_interlude interlude,
                                       decant_validation **validation, decant_error *err);
void decant_validation_destroy(decant_validation **validation); /* takes NULL, sets NULL */

/* The activations of `rows` tokens that enter the part: of the original or of the quantized model, [rows,
 * hidden]. For the pipeline to fill, unless the part has the embedding. With no original, its data is NULL.
 * After the blocks they hold what leaves the part. */
decant_matrix decant_validation_activation(decant_validation *validation, int model, int64_t rows);

/* Passes tokens through some of the part's blocks, which are in place, in both models; the embedding before
 * block 0 where the part has it.
 *   tokens   host [rows]: as many sequences as the parts were shaped for, or fewer, one after the other
 *   seconds  [DECANT_VALIDATION_MODELS]: the time of each is added */
decant_status decant_validation_pass_blocks(decant_validation *validation, int first_block, int block_count,
                                            const int32_t *tokens, int64_t rows, double *seconds,
                                            decant_error *err);

/* Where the head is: the logits of one model at positions [first_row, first_row + logits.rows) of the tokens
 * that passed the blocks; at most head_rows.
 *   logits  device [rows, vocabulary]: of the activations' type, or F32 */
decant_status decant_validation_head(decant_validation *validation, int model, int64_t first_row,
                                     decant_matrix logits, double *seconds, decant_error *err);

/* Where the head is: compares the models on windows that passed the blocks.
 *   tokens       host [sequences · T]
 *   comparisons  host [sequences]; filled */
decant_status decant_validation_compare(decant_validation *validation, const int32_t *tokens, int64_t sequences,
                                        decant_comparison *comparisons, double *seconds, decant_error *err);

/* Sums comparisons of windows, in their order. */
void decant_validation_sum(const decant_comparison *comparisons, int64_t windows,
                           decant_validation_result *result);

#endif
