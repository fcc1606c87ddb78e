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
    decant_matrix *weights;         /* [count]: still placed exact, for writing; data NULL once taken over */
    int64_t *matrices;              /* [count]: their places among the model's linear layers */
    bool *is_due;                   /* [count]: to be quantized */
    bool *is_taken; /* [count]: to be written as an earlier container has it (pipeline/reuse.h) */
    int64_t count;
    int blocks_done; /* block by block, while layers were streamed; what they kept waits in host memory */
    double seconds;  /* that these took */
} decant_quantized_share;

/* What to try on every matrix, from the options and from how many sequences F sums over (0: none). */
decant_recipe decant_job_recipe(const decant_job *job, const decant_statistics_origin *origin);

/* Local. The list of this rank's matrices, none quantized yet. Freed with decant_quantized_share_free, after a
 * failure too. */
decant_status decant_quantized_share_create(const decant_job *job, decant_quantized_share *share,
                                            decant_error *err);

/* Local. The matrices of one block, counted from this rank's first, that it owns; what they keep is moved to
 * host memory. */
decant_status decant_job_quantize_block(decant_job *job, const decant_recipe *recipe,
                                        decant_fisher_sums *fisher, int block, decant_quantized_share *share,
                                        decant_error *err);

/* Collective. All matrices that this rank owns and that were not quantized block by block, and the error table
 * of all ranks. fisher  of this rank's matrices; empty afterwards, and before too in a data-free run
 *   share   all zeros, or with all blocks done;
 * freed with decant_quantized_share_free, after a failure too */
decant_status decant_job_quantize(decant_job *job, decant_fisher_sums *fisher,
                                  const decant_statistics_origin *origin, decant_quantized_share *share,
                                  decant_error_table *table, decant_error *err);

/* Collective, once bits are allocated. Quantizes the matrices whose rows were taken over from an earlier
 * container but for which that has not the candidate that they were given.
 *   chosen   [linear layers of the model]
 * DECANT_ERROR_INPUT when one does not come out as the container's table says. */
decant_status decant_job_quantize_other_choices(decant_job *job, const decant_statistics_origin *origin,
                                                const int *chosen, decant_quantized_share *share,
                                                decant_error *err);

/* Local. Leaves the share empty; takes an empty one. */
void decant_quantized_share_free(decant_backend *backend, decant_quantized_share *share);

#endif
