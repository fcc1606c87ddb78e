/* The bytes that a rank holds in each stage of a job, from shapes alone. Pure: no kernels, MPI or files, so
 * that it can be asked about any model on any number of ranks.
 *
 * With M = sequences of a micro-batch · tokens of a sequence, a block keeps of its forward pass, for LLaMA's
 * family, M · (2·hidden + max(hidden, K) + 2Q + 2K + 2·max(I, Q) + max(I, K)) activations and M · (2 + heads)
 * floats with Q and K the widths of queries and keys and I the intermediate size; the family itself says so
 * (`sizes`). */
#ifndef DECANT_PIPELINE_MEMORY_PLAN_H
#define DECANT_PIPELINE_MEMORY_PLAN_H

#include "pipeline/rank_sizes.h"

/* The stages of a job, in order. */
typedef enum decant_job_stage {
    DECANT_STAGE_LOAD,
    DECANT_STAGE_CALIBRATE,
    DECANT_STAGE_QUANTIZE,
    DECANT_STAGE_WRITE,
    DECANT_STAGE_VALIDATE,
    DECANT_STAGES
} decant_job_stage;

const char *decant_job_stage_name(decant_job_stage stage);

typedef struct decant_memory_bytes {
    int64_t device; /* 0 on the CPU, where all of it is host memory */
    int64_t host;   /* held by the process, itself included; without mapped files */
    int64_t
        mapped; /* pages of the model's files that the rank reads: the system drops them when memory is short */
    int64_t scratch; /* on disk */
} decant_memory_bytes;

/* What takes the memory of calibration where it is computed. */
typedef struct decant_calibration_bytes {
    int64_t weights, fisher, boundaries, kept;
    int64_t head; /* of the head's passes; streamed: and of the model's ends, as far as F does not take their
                     place */
    int64_t working;
} decant_calibration_bytes;

typedef struct decant_rank_memory {
    decant_memory_bytes at[DECANT_STAGES];
    decant_memory_bytes peak; /* the largest of each kind */
    decant_job_stage device_stage,
        host_stage;        /* where the device's (on the CPU: the host's), the host's peak is */
    int64_t process_bytes; /* host and mapped together at the most: what the system shows as resident */
    decant_calibration_bytes calibration;
} decant_rank_memory;

/* The bytes of one rank. `sizes` and `owners` are the whole model's: owners [sizes->count] says which replica
 * of its stage quantizes and writes a matrix. */
void decant_rank_memory_plan(const decant_job_shape *shape, const decant_linear_sizes *sizes, const int *owners,
                             const decant_rank_share *share, decant_rank_memory *memory);

/* How many micro-batches' boundaries of a streamed rank free_bytes of its device take, at most all of them. */
int64_t decant_rank_boundaries_in(const decant_job_shape *shape, const decant_rank_share *share,
                                  int64_t free_bytes);

#endif
