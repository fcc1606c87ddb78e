/* The Fisher sums of a rank's linear layers: what calibration adds up, quantization consumes and a statistics
 * file keeps. One owner, freed layer by layer as the job goes on. */
#ifndef DECANT_STAGES_FISHER_SUMS_H
#define DECANT_STAGES_FISHER_SUMS_H

#include "stages/model.h"

typedef struct decant_fisher_sums {
    decant_backend *backend;           /* borrowed */
    const decant_model_config *config; /* borrowed */
    const decant_family *family;
    decant_fisher_form form;
    int first_layer, layer_count;
    float *
        *sums; /* [layer_count · family->linear_count] device F32 [rows, columns], owned; NULL once released */
} decant_fisher_sums;

/* Zeros for the linear layers of `layer_count` blocks from `first_layer` on. On failure empty. */
decant_status decant_fisher_sums_create(decant_backend *backend, const decant_model_config *config,
                                        const decant_family *family, decant_fisher_form form, int first_layer,
                                        int layer_count, decant_fisher_sums *fisher, decant_error *err);

/* The sum of linear layer `linear` of block `block`, counted from first_layer. */
float *decant_fisher_sums_at(const decant_fisher_sums *fisher, int block, int linear);

/* The sums of all linear layers of a block, as a backward pass takes them. */
decant_block_fisher decant_fisher_sums_of_block(const decant_fisher_sums *fisher, int block);

void decant_fisher_sums_release(decant_fisher_sums *fisher, int block, int linear); /* frees one */
void decant_fisher_sums_free(decant_fisher_sums *fisher);                           /* frees all */

#endif
