/* What a plan may take: an average of bits a quantized weight, or the size of the whole file, or both; and how
 * far what it predicts can be trusted. Pure: no files, no MPI, no kernels. */
#ifndef DECANT_STAGES_BUDGET_H
#define DECANT_STAGES_BUDGET_H

#include "stages/candidate.h"

#include <stdbool.h>
#include <stdint.h>

/* What was asked for. */
typedef struct decant_budget {
    double bits;        /* average over the quantized weights of everything stored for them; 0: not asked */
    int64_t file_bytes; /* of the whole container; 0: not asked */
    int64_t rest_bytes; /* what the container takes besides its quantized layers, at most */
} decant_budget;

/* What a container takes besides its quantized layers, at most.
 *   layers      quantized linear layers
 *   datasets    datasets that belong to none of them
 *   data_bytes  the data of those datasets
 * HDF5's own records take 505 bytes a dataset or group in SmolLM2's container, which has 1541 of them, and up
 * to 511 in smaller ones (file size less data, over their number); 768 are counted, for seven of them a layer.
 */
int64_t decant_budget_rest(int64_t layers, int64_t datasets, int64_t data_bytes);

/* Adds the grids that the candidates of a layer lie on, each of which the container may hold once. */
void decant_budget_count_grids(const decant_candidate *candidates, int count, int64_t *datasets,
                               int64_t *bytes);

/* The budget of the quantized layers in bytes: the smaller one of what both wishes leave.
 *   weights         quantized weights
 *   smallest_bytes  of all layers with their smallest candidates
 *   bytes           filled; −1 when nothing was asked
 * DECANT_ERROR_USAGE, naming the option and what would do, when the smallest candidates exceed it. */
decant_status decant_budget_bytes(const decant_budget *asked, int64_t weights, int64_t smallest_bytes,
                                  int64_t *bytes, decant_error *err);

/* Whether a plan lies where losses add up over layers. With 3.2 bits and more, and up to a predicted increase
 * of 0.2, prediction and measurement were within 10 % (Llama-3.1-8B, HIGGS authors' published
 * measurements: 3.23 bits 1.137 against 1.120 of perplexity on 5.6); at 3.08 bits the increase was 1.7 times
 * the predicted one, at 2.6 four times.
 *   warning   filled with one sentence when it does not; a buffer of DECANT_BUDGET_WARNING_BYTES */
#define DECANT_BUDGET_TRUSTED_BITS     3.2
#define DECANT_BUDGET_TRUSTED_INCREASE 0.2
enum { DECANT_BUDGET_WARNING_BYTES = 256 };
bool decant_budget_is_trusted(double bits, double predicted, char *warning);

#endif
