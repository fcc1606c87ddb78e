/* The replicas of a stage hold the same layers and have seen different sequences: adds up their Fisher sums,
 * each matrix on the replica that owns it from then on.
 *
 * Replicas are added in their order, whoever owns the matrix, so the sums depend on the number of replicas and
 * on nothing else. Sums travel through host memory, so that any backend and any MPI will do. */
#ifndef DECANT_PIPELINE_REPLICAS_H
#define DECANT_PIPELINE_REPLICAS_H

#include "pipeline/channel.h"
#include "pipeline/job.h"

typedef struct decant_replica_exchange {
    decant_job *job; /* borrowed */
    size_t largest_bytes;
    char *sum, *part; /* host, each the largest matrix and a mark; NULL where there is one replica */
} decant_replica_exchange;

/* Local. Room for one matrix twice. On failure closed. */
decant_status decant_replica_exchange_open(decant_job *job, decant_replica_exchange *exchange,
                                           decant_error *err);
void decant_replica_exchange_close(decant_replica_exchange *exchange);

/* All replicas of the stage call this for the same blocks in the same order. Afterwards this rank holds the
 * sums of the block's matrices that it owns, and those of the others are released. A rank that does not compute
 * any more takes part with marked messages, as on a channel. */
void decant_replica_exchange_add(decant_replica_exchange *exchange, decant_fisher_sums *fisher, int block,
                                 decant_standing *standing);

#endif
