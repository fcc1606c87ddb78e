/* The ranks of the job: who am I, what do we agree on, and messages between neighbours.
 *
 * The only place outside io/container that knows MPI. A function is collective exactly when it takes a
 * decant_ranks and its comment says so; everything else is local. A collective function is called by all ranks,
 * whatever happened to them before: a rank that failed says so through decant_ranks_agree, and all ranks leave
 * together. */
#ifndef DECANT_BASE_RANKS_H
#define DECANT_BASE_RANKS_H

#include "base/error.h"

#include <mpi.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct decant_ranks {
    MPI_Comm communicator; /* owned */
    int rank, size;
    int node_rank; /* place among the ranks of this machine; chooses the GPU */
    int node_size;
} decant_ranks;

/* Collective. Duplicates the communicator, which the caller keeps. */
decant_status decant_ranks_create(MPI_Comm communicator, decant_ranks **ranks, decant_error *err);
void decant_ranks_destroy(decant_ranks **ranks); /* collective; takes NULL, sets NULL */

/* Collective. Every rank brings its own status and record; all leave with the worst status, and, when that is
 * not DECANT_OK, with the record of the lowest rank that has it (record.rank says which). */
decant_status decant_ranks_agree(decant_ranks *ranks, decant_status status, decant_error *err);

/* Collective. Rank root's bytes reach every rank. */
decant_status decant_ranks_broadcast(decant_ranks *ranks, int root, void *data, size_t size_bytes,
                                     decant_error *err);

/* Collective. The parts of all ranks, in rank order, on every rank.
 *   part, part_bytes   this rank's share, may be empty
 *   all                receives a block freed with decant_memory_free
 *   all_bytes          its size */
decant_status decant_ranks_gather(decant_ranks *ranks, const void *part, size_t part_bytes, void **all,
                                  size_t *all_bytes, decant_error *err);

/* Collective. Element-wise sum / maximum over ranks, in rank order on every rank (not MPI's order), so that the
 * result has the same bits everywhere. */
decant_status decant_ranks_sum(decant_ranks *ranks, double *values, int count, decant_error *err);
decant_status decant_ranks_maximum(decant_ranks *ranks, int64_t *values, int count, decant_error *err);

/* Collective, for what every rank reads for itself: DECANT_ERROR_INPUT on all ranks when the bytes differ
 * between them; `what`, a file, is named. */
decant_status decant_ranks_require_equal(decant_ranks *ranks, const void *data, size_t size_bytes,
                                         const char *what, decant_error *err);

/* A message to or from one other rank, under way. */
typedef struct decant_message {
    MPI_Request request;
    bool active;
} decant_message;

/* Not collective: the other rank makes the matching call. The buffer belongs to the message until it is
 * complete. Messages between two ranks with one tag arrive in order; size_bytes must be equal on both sides. */
decant_status decant_ranks_send(decant_ranks *ranks, int target, int tag, const void *data, size_t size_bytes,
                                decant_message *message, decant_error *err);
decant_status decant_ranks_receive(decant_ranks *ranks, int source, int tag, void *data, size_t size_bytes,
                                   decant_message *message, decant_error *err);
decant_status decant_message_complete(decant_message *message, decant_error *err); /* no-op when not active */
/* Lets a message move on, without waiting for it; false once it is complete. MPI moves a large message in
 * pieces, a few at a call, and only while it is called. */
bool decant_message_advance(decant_message *message);
/* Gives up a message that is being received and that nobody will send; no-op when not active. */
void decant_message_cancel(decant_message *message);

/* Collective, but returns at once: *value becomes the maximum over the ranks when the message is complete, and
 * belongs to it until then. All ranks begin such maxima, and call other collective functions, in one order. */
decant_status decant_ranks_begin_maximum(decant_ranks *ranks, int64_t *value, decant_message *message,
                                         decant_error *err);

/* For what cannot be agreed on, a broken MPI above all: prints the record and ends every rank. Does not return.
 */
void decant_ranks_abort(decant_ranks *ranks, const decant_error *err) __attribute__((noreturn));

#endif
