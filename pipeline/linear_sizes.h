/* What the linear layers of a model store, what waits of them between measuring and choosing, and what guided
 * computes for them, from shapes alone. Pure. */
#ifndef DECANT_PIPELINE_LINEAR_SIZES_H
#define DECANT_PIPELINE_LINEAR_SIZES_H

#include "pipeline/guided_operations.h"
#include "pipeline/working_space.h"

/* One linear layer: what it stores and what waits of it between measuring and choosing. */
typedef struct decant_linear_size {
    int64_t rows, columns;
    int64_t weights;        /* rows · columns */
    int64_t sums_bytes;     /* its Fisher sums, and its Hessians where there are any */
    int64_t pattern_bytes;  /* sparse pattern where it is computed */
    int64_t levels_bytes;   /* levels of every width; with them the codes and sparse values of guided ones */
    int64_t trial_bytes;    /* of the largest grid form, which is there while it is measured; in no sum */
    int64_t smallest_bytes; /* stored, as the smallest candidate */
    int64_t largest_bytes;  /* stored, as the largest */
    int64_t stored_bytes;   /* stored, at the average that was asked for */
    int64_t packed_bytes;   /* the same on a device: column indices take 4 bytes there */
    int64_t prepared_bytes; /* what decant_validate_kernels.prepare adds to it at most */
    decant_guided_operations guided; /* of all its guided candidates */
} decant_linear_size;

/* The linear layers of a model. */
typedef struct decant_linear_sizes {
    int64_t count;            /* layers · linear_count */
    decant_linear_size *each; /* [count], owned, in model order */
    decant_linear_size all;   /* sums of weights, bytes and operations; rows and columns 0 */
} decant_linear_sizes;

decant_status decant_linear_sizes_create(const decant_job_shape *shape, decant_linear_sizes *sizes,
                                         decant_error *err);
void decant_linear_sizes_free(decant_linear_sizes *sizes);

/* *sum += *size, but for rows and columns. */
void decant_linear_size_add(decant_linear_size *sum, const decant_linear_size *size);

#endif
