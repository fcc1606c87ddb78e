/* See channel.h. */
#include "pipeline/channel.h"

#include "base/log.h"
#include "base/memory.h"

#include <string.h>

/* Two messages of a sender may be under way while a third is made ready. */
enum { BUFFERS = 3, MARK_BYTES = 8 };

struct decant_channel {
    decant_ranks *ranks;
    int peer, tag;
    size_t message_bytes; /* without the mark */
    int64_t remaining;    /* messages still to come */
    bool receives;
    char *buffers[BUFFERS]; /* message, then the mark; a receiver uses the first */
    decant_message messages[BUFFERS];
    int next;
    double waited_s;
};

/* Asks for the next message while this rank still computes. */
static decant_status post_receive(decant_channel *channel, decant_error *err)
{
    return decant_ranks_receive(channel->ranks, channel->peer, channel->tag, channel->buffers[0],
                                channel->message_bytes + MARK_BYTES, &channel->messages[0], err);
}

decant_status decant_channel_open(decant_ranks *ranks, int peer, int tag, size_t message_bytes,
                                  int64_t messages, bool receives, decant_channel **channel, decant_error *err)
{
    decant_status status;
    DECANT_TRY(decant_memory_allocate(sizeof **channel, "a channel", (void **)channel, err));
    decant_channel *c = *channel;
    c->ranks = ranks;
    c->peer = peer;
    c->tag = tag;
    c->message_bytes = message_bytes;
    c->remaining = messages;
    c->receives = receives;
    for (int i = 0; i < (receives ? 1 : BUFFERS); i++)
        DECANT_TRY(
            decant_memory_allocate(message_bytes + MARK_BYTES, "a channel", (void **)&c->buffers[i], err));
    if (receives && messages > 0)
        DECANT_TRY(post_receive(c, err));
done:
    if (status != DECANT_OK)
        decant_channel_close(channel);
    return status;
}

void decant_channel_close(decant_channel **channel)
{
    if (!*channel)
        return;
    decant_error unused;
    for (int i = 0; i < BUFFERS; i++) {
        if ((*channel)->receives)
            decant_message_cancel(&(*channel)->messages[i]);
        else
            decant_message_complete(&(*channel)->messages[i], &unused);
        decant_memory_free((*channel)->buffers[i]);
    }
    decant_memory_free(*channel);
    *channel = NULL;
}

double decant_channel_waited(const decant_channel *channel)
{
    return channel ? channel->waited_s : 0;
}

static decant_status wait_for(decant_channel *channel, int buffer, decant_error *err)
{
    double start_s = decant_clock_s();
    decant_status status = decant_message_complete(&channel->messages[buffer], err);
    channel->waited_s += decant_clock_s() - start_s;
    return status;
}

decant_status decant_channel_send(decant_channel *channel, decant_backend *backend,
                                  const decant_matrix *matrices, int count, bool withdrawn, decant_error *err)
{
    int buffer = channel->next;
    char *at = channel->buffers[buffer];
    decant_status status = wait_for(channel, buffer, err);
    for (int i = 0; i < count && status == DECANT_OK && !withdrawn; i++) {
        if (!matrices[i].data)
            continue;
        status =
            backend->memory->download(backend, at, matrices[i].data, decant_matrix_bytes(matrices[i]), err);
        at += decant_matrix_bytes(matrices[i]);
    }
    /* A download that failed must not keep the peer waiting: the message goes out marked. */
    int64_t mark = withdrawn || status != DECANT_OK;
    memcpy(channel->buffers[buffer] + channel->message_bytes, &mark, MARK_BYTES);
    channel->next = (buffer + 1) % BUFFERS;
    channel->remaining--;
    decant_status sent =
        decant_ranks_send(channel->ranks, channel->peer, channel->tag, channel->buffers[buffer],
                          channel->message_bytes + MARK_BYTES, &channel->messages[buffer], err);
    return status != DECANT_OK ? status : sent;
}

decant_status decant_channel_receive(decant_channel *channel, decant_backend *backend,
                                     const decant_matrix *matrices, int count, bool *withdrawn,
                                     decant_error *err)
{
    const char *at = channel->buffers[0];
    int64_t mark;
    decant_status status = wait_for(channel, 0, err);
    if (status != DECANT_OK)
        return status;
    memcpy(&mark, at + channel->message_bytes, MARK_BYTES);
    if (mark)
        *withdrawn = true;
    for (int i = 0; i < count && status == DECANT_OK && !mark; i++) {
        if (!matrices[i].data)
            continue;
        status = backend->memory->upload(backend, matrices[i].data, at, decant_matrix_bytes(matrices[i]), err);
        at += decant_matrix_bytes(matrices[i]);
    }
    if (status == DECANT_OK && !mark) /* the buffer is about to be written again */
        status = backend->memory->synchronize(backend, err);
    decant_error posting;
    decant_status posted = --channel->remaining > 0 ? post_receive(channel, &posting) : DECANT_OK;
    if (status == DECANT_OK && posted != DECANT_OK)
        *err = posting;
    return status != DECANT_OK ? status : posted;
}
