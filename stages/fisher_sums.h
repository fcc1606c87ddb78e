/* The Fisher sums of a rank's linear layers: what calibration adds up, quantization consumes and a statistics
 * file keeps. One owner, freed layer by layer as the job goes on.
 *
 * A layer's sums are one array: F [rows, columns], and behind it, where guided quantization is asked for, its
 * Hessians H [hessian_groups, columns, columns] (kernels/backend.h, gram_add). */
#ifndef DECANT_STAGES_FISHER_SUMS_H
#define DECANT_STAGES_FISHER_SUMS_H

#include "stages/model.h"

typedef struct decant_fisher_sums {
    decant_backend *backend;           /* borrowed */
    const decant_model_config *config; /* borrowed */
    const decant_family *family;
    decant_fisher_form form;
    int hessian_groups; /* of output channels; 0: no Hessians */
    int first_layer, layer_count;
    float **sums;      /* [layer_count · family->linear_count] device F32, owned; NULL: not here */
    float **host_sums; /* the same in host memory, for those that were moved there; owned, NULL otherwise */
} decant_fisher_sums;

/* A list without sums for the linear layers of `layer_count` blocks from `first_layer` on; sums are added one
 * by one. On failure empty. */
decant_status decant_fisher_sums_list(decant_backend *backend, const decant_model_config *config,
                                      const decant_family *family, decant_fisher_form form, int hessian_groups,
                                      int first_layer, int layer_count, decant_fisher_sums *fisher,
                                      decant_error *err);

/* Zeros for one linear layer, which has no sum yet. */
decant_status decant_fisher_sums_add(decant_fisher_sums *fisher, int block, int linear, decant_error *err);

/* Zeros for all linear layers of `layer_count` blocks from `first_layer` on. On failure empty. */
decant_status decant_fisher_sums_create(decant_backend *backend, const decant_model_config *config,
                                        const decant_family *family, decant_fisher_form form,
                                        int hessian_groups, int first_layer, int layer_count,
                                        decant_fisher_sums *fisher, decant_error *err);

/* Floats in the sums of a linear layer of this shape. Pure. */
int64_t decant_fisher_sums_floats(int64_t rows, int64_t columns, int hessian_groups);

/* The sum of linear layer `linear` of block `block`, counted from first_layer. */
float *decant_fisher_sums_at(const decant_fisher_sums *fisher, int block, int linear);

/* The sums of all linear layers of a block, as a backward pass takes them. */
decant_block_fisher decant_fisher_sums_of_block(const decant_fisher_sums *fisher, int block);

/* Moves a sum from the device to host memory. */
decant_status decant_fisher_sums_park(decant_fisher_sums *fisher, int block, int linear, decant_error *err);

void decant_fisher_sums_release(decant_fisher_sums *fisher, int block, int linear); /* frees one */
void decant_fisher_sums_free(decant_fisher_sums *fisher);                           /* frees all */

#endif
