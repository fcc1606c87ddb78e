/* One-way channels of activations between neighbouring stages: through host memory, so that any backend and any
 * MPI will do. Nothing here waits for the device: a message is copied behind the work issued before it and
 * leaves when it has arrived in host memory; the next ones are received, and the last ones sent, while the rank
 * computes.
 *
 * A rank that failed keeps the schedule's messages going, marked as withdrawn and without computing, so that no
 * neighbour waits for ever; whoever receives a withdrawn message stops computing too, and all ranks meet at the
 * next agreement. */
#ifndef DECANT_PIPELINE_CHANNEL_H
#define DECANT_PIPELINE_CHANNEL_H

#include "base/ranks.h"
#include "kernels/backend.h"

enum { DECANT_CHANNEL_MATRICES = 2, DECANT_CHANNELS_MAXIMUM = 4 };

typedef struct decant_channel decant_channel;

/* All channels of a rank in one pass over the model: whoever waits for one lets the others move on. */
typedef struct decant_channels {
    decant_ranks *ranks;     /* borrowed */
    decant_backend *backend; /* borrowed */
    decant_channel *member[DECANT_CHANNELS_MAXIMUM];
    int count;
    double waited_s; /* for messages, while the device had nothing to do */
} decant_channels;

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

/* Not collective; the peer opens the other end with the same numbers. The channel belongs to `channels`.
 *   peer, tag     the other rank; one tag a channel
 *   message_bytes bytes of all matrices of a message together
 *   messages      how many there will be
 *   receives      which end this is */
decant_status decant_channel_open(decant_channels *channels, int peer, int tag, size_t message_bytes,
                                  int64_t messages, bool receives, decant_channel **channel, decant_error *err);
/* Completes what was sent and gives up what was not received; leaves the set empty. Takes an empty one. */
void decant_channels_close(decant_channels *channels);

/* Lets messages move on while the rank computes otherwise: for a moment, unless there are none. */
void decant_channels_advance(decant_channels *channels);

/* Puts every message sent so far on its way, so that the peers get it while this rank waits for something else,
 * such as all ranks. Waits for the device, not for the peers. */
void decant_channels_flush(decant_channels *channels);

/* Sends the matrices (those with data NULL are skipped), or only the mark when withdrawn. They may be written
 * again by work that is issued from now on. */
decant_status decant_channel_send(decant_channel *channel, const decant_matrix *matrices, int count,
                                  bool withdrawn, decant_error *err);

/* Receives into the matrices unless the message says withdrawn, which sets *withdrawn; work that is issued from
 * now on finds them there. */
decant_status decant_channel_receive(decant_channel *channel, const decant_matrix *matrices, int count,
                                     bool *withdrawn, decant_error *err);

#endif
