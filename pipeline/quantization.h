/* The quantization stage of a job: matrices with their Fisher sums in, levels, sparse patterns and rows of the
 * error table out. */
#ifndef DECANT_PIPELINE_QUANTIZATION_H
#define DECANT_PIPELINE_QUANTIZATION_H

#include "pipeline/job.h"
#include "stages/error_table.h"
#include "stages/fisher_sums.h"

/* Between measuring and choosing: a rank's matrices, in model order, with all their candidates. */
typedef struct decant_quantized_share {
    decant_quantized_layer *layers; /* [count] */
    decant_table_row *rows;         /* [count] */
    int64_t *matrices;              /* [count]: their places among the model's linear layers */
    int64_t count;
} decant_quantized_share;

/* One matrix to quantize. */
typedef struct decant_quantization_task {
    decant_linear linear;          /* its name and shape */
    float **fisher;                /* device F32 [rows, columns]; released, and set to NULL, once measured */
    decant_quantized_layer *layer; /* filled; empty when it failed */
    decant_table_row *row;         /* filled */
} decant_quantization_task;

/* What to try on every matrix, from the options and from how many sequences F sums over. */
decant_recipe decant_job_recipe(const decant_job *job, const decant_statistics_origin *origin);

/* Local. Works through a list of matrices in its order. The list can be one block's as soon as its F is done,
 * or a rank's whole share. On failure the message names the tensor. */
decant_status decant_job_quantize_matrices(decant_job *job, const decant_recipe *recipe,
                                           const decant_quantization_task *tasks, int64_t count,
                                           decant_error *err);

/* Collective. All matrices that this rank owns, and the error table of all ranks.
 *   fisher  of this rank's matrices; empty afterwards
 *   share   freed with decant_quantized_share_free, after a failure too */
decant_status decant_job_quantize(decant_job *job, decant_fisher_sums *fisher,
                                  const decant_statistics_origin *origin, decant_quantized_share *share,
                                  decant_error_table *table, decant_error *err);

/* Local. Leaves the share empty; takes an empty one. */
void decant_quantized_share_free(decant_backend *backend, decant_quantized_share *share);

#endif
