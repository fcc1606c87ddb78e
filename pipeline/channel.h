/* A one-way channel of activations between two neighbouring stages: through host memory, so that any backend
 * and any MPI will do. The next message is received, and the last ones are sent, while the rank computes.
 *
 * A rank that failed keeps the schedule's messages going, marked as withdrawn and without computing, so that no
 * neighbour waits for ever; whoever receives a withdrawn message stops computing too, and all ranks meet at the
 * next agreement. */
#ifndef DECANT_PIPELINE_CHANNEL_H
#define DECANT_PIPELINE_CHANNEL_H

#include "base/ranks.h"
#include "kernels/backend.h"

enum { DECANT_CHANNEL_MATRICES = 2 };

typedef struct decant_channel decant_channel;

/* How a rank stands while messages stream: it computes until it failed itself or a neighbour withdrew. */
typedef struct decant_standing {
    decant_status failed; /* the first failure of this rank */
    decant_error error;   /* of that failure */
    bool withdrawn;       /* a neighbour's message said so */
} decant_standing;

static inline bool decant_standing_computes(const decant_standing *standing)
{
    return standing->failed == DECANT_OK && !standing->withdrawn;
}

/* Remembers the first failure; `error` is looked at only when status is one. */
static inline void decant_standing_note(decant_standing *standing, decant_status status,
                                        const decant_error *error)
{
    if (status == DECANT_OK || standing->failed != DECANT_OK)
        return;
    standing->failed = status;
    standing->error = *error;
}

/* Not collective; the peer opens the other end with the same numbers.
 *   peer, tag     the other rank; one tag a channel
 *   message_bytes bytes of all matrices of a message together
 *   messages      how many there will be
 *   receives      which end this is */
decant_status decant_channel_open(decant_ranks *ranks, int peer, int tag, size_t message_bytes,
                                  int64_t messages, bool receives, decant_channel **channel, decant_error *err);
/* Completes what was sent and gives up what was not received; takes NULL, sets NULL. */
void decant_channel_close(decant_channel **channel);

/* Seconds spent waiting for messages so far; 0 for NULL. */
double decant_channel_waited(const decant_channel *channel);

/* Sends the matrices (those with data NULL are skipped), or only the mark when withdrawn. */
decant_status decant_channel_send(decant_channel *channel, decant_backend *backend,
                                  const decant_matrix *matrices, int count, bool withdrawn, decant_error *err);

/* Receives into the matrices unless the message says withdrawn, which sets *withdrawn. */
decant_status decant_channel_receive(decant_channel *channel, decant_backend *backend,
                                     const decant_matrix *matrices, int count, bool *withdrawn,
                                     decant_error *err);

#endif
