/* What a job takes over from an earlier container (--reuse): the error table's rows and the packed form of
 * every matrix that would come out the same bit for bit. Decided from checksums and attributes; weights are not
 * compared.
 *
 * A matrix is taken over when
 *   - its weight has the CRC-32 that the container says it was made from (source_crc32), its name and its
 * shape;
 *   - the statistics are the same: tokens, sequences, length, micro-batch, replicas, form, the weights that
 * they were made from and the mean loss, to the last bit; or there are none, then and now;
 *   - options (but the budget), decant's version, and the kind of device are the same;
 *   - and the allocation gives it the candidate that the container holds. Where it gives another one, the
 * matrix is quantized after all, and must come out as the container's table says. */
#ifndef DECANT_PIPELINE_REUSE_H
#define DECANT_PIPELINE_REUSE_H

#include "pipeline/container_plan.h"
#include "pipeline/job.h"
#include "stages/statistics.h"

typedef struct decant_reuse {
    decant_container *container; /* the earlier one, open */
    decant_container_plan plan;  /* its error table and choices */
    char obstacle[320];          /* why nothing of it can be taken over; empty: something may */
    int64_t layers;              /* linear layers of the job's model */
    bool *is_same;               /* [layers]: its row can be taken over */
    decant_table_row *rows;      /* [layers]: that row, without `matrix`; zeros where nothing is the same */
    int64_t same;                /* how many */
} decant_reuse;

/* Collective, once the model has its fingerprint. Opens --reuse, if it is given, and finds what is the same;
 * the result, job->reuse, is equal on all ranks. origin   of the statistics; sequences 0: there are none
 * DECANT_ERROR_INPUT when there is no such container. One of another model, of other options or statistics is
 * no error: then nothing is taken over, and the log says why. */
decant_status decant_job_open_reuse(decant_job *job, const decant_statistics_origin *origin, decant_error *err);

/* Pure. Need matrix `matrix` (its place among all linear layers) not be quantized?
 *   reuse    NULL: no
 *   chosen   [layers] the allocation; NULL before there is one */
bool decant_reuse_keeps(const decant_reuse *reuse, int64_t matrix, const int *chosen);

/* Rank 0 says, once bits are allocated, what was taken over and what was not, and why. */
void decant_report_reuse(decant_job *job, const int *chosen);

/* Takes NULL, sets NULL. */
void decant_reuse_close(decant_reuse **reuse);

#endif
