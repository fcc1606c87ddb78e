/* See channel.h. */
#include "pipeline/channel.h"

#include "base/log.h"
#include "base/memory.h"

#include <string.h>

/* So many messages of a channel may be on their way at once. */
enum { BUFFERS = 3, MARK_BYTES = 8 };

/* A buffer that sends goes FREE, COPYING, TRAVELLING, FREE; one that receives FREE, TRAVELLING, ARRIVED,
 * COPYING, FREE. */
typedef enum buffer_state {
    BUFFER_FREE,
    BUFFER_COPYING,    /* between the device and the buffer */
    BUFFER_TRAVELLING, /* between the ranks */
    BUFFER_ARRIVED,
} buffer_state;

typedef struct channel_buffer {
    buffer_state state;
    char *bytes;  /* the message, then the mark; host memory that the device copies from and to by itself */
    void *copied; /* the moment at which a copy is done */
    decant_message message;
} channel_buffer;

struct decant_channel {
    decant_channels *all; /* this one among them */
    int peer, tag;
    size_t message_bytes; /* without the mark */
    bool receives;
    channel_buffer buffers[BUFFERS]; /* taken in turn */
    int next;                        /* the caller's next message goes through this one */
    int next_travel;                 /* and this one is the next to begin its way between ranks */
    int64_t to_post;                 /* messages that are still to be asked for */
    void *issued;                    /* the moment at which all work was done that a wait began with */
    decant_status failed;
    decant_error error; /* of that failure */
};

static int after(int buffer)
{
    return (buffer + 1) % BUFFERS;
}

/* ---- messages on their way ---- */

static void note(decant_channel *channel, decant_status status, const decant_error *error)
{
    if (status == DECANT_OK || channel->failed != DECANT_OK)
        return;
    channel->failed = status;
    channel->error = *error;
}

static bool is_copied(const decant_channel *channel, const channel_buffer *buffer)
{
    decant_backend *backend = channel->all->backend;
    return buffer->state == BUFFER_COPYING && backend->memory->is_reached(backend, buffer->copied);
}

/* Begins the way of the messages whose turn it is: what was copied from the device, or what may be received. */
static void begin_travels(decant_channel *channel)
{
    for (int i = 0; i < BUFFERS; i++) {
        channel_buffer *buffer = &channel->buffers[channel->next_travel];
        const size_t bytes = channel->message_bytes + MARK_BYTES;
        decant_ranks *ranks = channel->all->ranks;
        decant_error error;
        if (is_copied(channel, buffer) && channel->receives)
            buffer->state = BUFFER_FREE;
        bool is_ready = channel->receives ? buffer->state == BUFFER_FREE && channel->to_post > 0
                                          : is_copied(channel, buffer);
        if (!is_ready)
            return;
        decant_status status = channel->receives
                                   ? decant_ranks_receive(ranks, channel->peer, channel->tag, buffer->bytes,
                                                          bytes, &buffer->message, &error)
                                   : decant_ranks_send(ranks, channel->peer, channel->tag, buffer->bytes, bytes,
                                                       &buffer->message, &error);
        note(channel, status, &error);
        buffer->state = BUFFER_TRAVELLING;
        channel->to_post--;
        channel->next_travel = after(channel->next_travel);
    }
}

/* True while a message travels. */
static bool pass(decant_channel *channel)
{
    bool travels = false;
    begin_travels(channel);
    for (int i = 0; i < BUFFERS; i++) {
        channel_buffer *buffer = &channel->buffers[i];
        if (buffer->state != BUFFER_TRAVELLING)
            continue;
        if (decant_message_advance(&buffer->message)) {
            travels = true;
            continue;
        }
        decant_error error;
        note(channel, decant_message_complete(&buffer->message, &error), &error);
        buffer->state = channel->receives ? BUFFER_ARRIVED : BUFFER_FREE;
    }
    return travels;
}

static bool pass_all(decant_channels *channels)
{
    bool sends = false;
    for (int i = 0; i < channels->count; i++)
        sends |= pass(channels->member[i]) && !channels->member[i]->receives;
    return sends;
}

/* A message goes in many pieces, each when the one before has been taken, so one call moves little. Where the
 * rank itself computes, as many are made as fit a moment that is short beside a block's computation; where a
 * device does, the host must go on giving it work, and has time for messages when it waits. */
void decant_channels_advance(decant_channels *channels)
{
    const double moment_s = channels->count > 0 && channels->backend->leaves_host_free ? 0 : 0.002;
    double start_s = decant_clock_s();
    while (pass_all(channels) && decant_clock_s() - start_s < moment_s)
        continue;
}

static bool is_being_copied(const decant_channel *channel)
{
    bool copies = false;
    for (int i = 0; i < BUFFERS; i++)
        copies |= channel->buffers[i].state == BUFFER_COPYING;
    return copies && !channel->receives;
}

void decant_channels_flush(decant_channels *channels)
{
    for (int i = 0; i < channels->count; i++)
        while (is_being_copied(channels->member[i]))
            pass_all(channels);
}

/* Lets all messages move on until this buffer has got so far. Only the time in which the device had nothing to
 * do counts as waiting. */
static decant_status await(decant_channel *channel, const channel_buffer *buffer, buffer_state state,
                           decant_error *err)
{
    decant_channels *all = channel->all;
    decant_backend *backend = all->backend;
    decant_error unused;
    /* A device that failed has nothing to do; what failed, the next copy tells. */
    backend->memory->mark(backend, channel->issued, &unused);
    double before_s = decant_clock_s();
    while (buffer->state != state && channel->failed == DECANT_OK) {
        bool is_idle = backend->memory->is_reached(backend, channel->issued);
        pass_all(all);
        double now_s = decant_clock_s();
        all->waited_s += is_idle ? now_s - before_s : 0;
        before_s = now_s;
    }
    if (channel->failed != DECANT_OK)
        *err = channel->error;
    return channel->failed;
}

/* ---- the caller's messages ---- */

/* A copy that failed must not keep the peer waiting: the message goes out marked. */
decant_status decant_channel_send(decant_channel *channel, const decant_matrix *matrices, int count,
                                  bool withdrawn, decant_error *err)
{
    decant_backend *backend = channel->all->backend;
    channel_buffer *buffer = &channel->buffers[channel->next];
    char *at = buffer->bytes;
    decant_status status = await(channel, buffer, BUFFER_FREE, err);
    if (status != DECANT_OK)
        return status;
    for (int i = 0; i < count && status == DECANT_OK && !withdrawn; i++) {
        if (!matrices[i].data)
            continue;
        size_t bytes = decant_matrix_bytes(matrices[i]);
        status = backend->memory->begin_download(backend, at, matrices[i].data, bytes, err);
        at += bytes;
    }
    if (status == DECANT_OK)
        status = backend->memory->mark(backend, buffer->copied, err);
    int64_t mark = withdrawn || status != DECANT_OK;
    memcpy(buffer->bytes + channel->message_bytes, &mark, MARK_BYTES);
    buffer->state = BUFFER_COPYING;
    channel->next = after(channel->next);
    pass(channel);
    return status;
}

decant_status decant_channel_receive(decant_channel *channel, const decant_matrix *matrices, int count,
                                     bool *withdrawn, decant_error *err)
{
    decant_backend *backend = channel->all->backend;
    channel_buffer *buffer = &channel->buffers[channel->next];
    const char *at = buffer->bytes;
    int64_t mark;
    decant_status status = await(channel, buffer, BUFFER_ARRIVED, err);
    if (status != DECANT_OK)
        return status;
    memcpy(&mark, at + channel->message_bytes, MARK_BYTES);
    if (mark)
        *withdrawn = true;
    for (int i = 0; i < count && status == DECANT_OK && !mark; i++) {
        if (!matrices[i].data)
            continue;
        size_t bytes = decant_matrix_bytes(matrices[i]);
        status = backend->memory->begin_upload(backend, matrices[i].data, at, bytes, err);
        at += bytes;
    }
    if (status == DECANT_OK)
        status = backend->memory->mark(backend, buffer->copied, err);
    buffer->state = BUFFER_COPYING;
    channel->next = after(channel->next);
    pass(channel);
    return status;
}

/* ---- opening and closing ---- */

/* What was sent arrives; what is still asked for will not be sent. */
static void finish_messages(decant_channel *channel)
{
    decant_error unused;
    for (int i = 0; i < BUFFERS; i++) {
        channel_buffer *buffer = &channel->buffers[i];
        if (channel->receives)
            decant_message_cancel(&buffer->message);
        else
            await(channel, buffer, BUFFER_FREE, &unused);
    }
}

static void close_channel(decant_channel *channel)
{
    decant_backend *backend = channel->all->backend;
    for (int i = 0; i < BUFFERS; i++) {
        backend->memory->release_moment(backend, &channel->buffers[i].copied);
        backend->memory->release_host(backend, (void **)&channel->buffers[i].bytes);
    }
    backend->memory->release_moment(backend, &channel->issued);
    decant_memory_free(channel);
}

decant_status decant_channel_open(decant_channels *channels, int peer, int tag, size_t message_bytes,
                                  int64_t messages, bool receives, decant_channel **channel, decant_error *err)
{
    const decant_memory_kernels *memory = channels->backend->memory;
    decant_status status;
    DECANT_TRY(decant_memory_allocate(sizeof **channel, "a channel", (void **)channel, err));
    decant_channel *c = channels->member[channels->count++] = *channel;
    c->all = channels;
    c->peer = peer;
    c->tag = tag;
    c->message_bytes = message_bytes;
    c->to_post = messages;
    c->receives = receives;
    DECANT_TRY(memory->create_moment(channels->backend, &c->issued, err));
    for (int i = 0; i < BUFFERS; i++) {
        DECANT_TRY(memory->create_moment(channels->backend, &c->buffers[i].copied, err));
        DECANT_TRY(memory->allocate_host(channels->backend, message_bytes + MARK_BYTES, "a channel",
                                         (void **)&c->buffers[i].bytes, err));
    }
    pass(c);
done:
    return status;
}

void decant_channels_close(decant_channels *channels)
{
    decant_error unused;
    for (int i = 0; i < channels->count; i++)
        finish_messages(channels->member[i]);
    if (channels->count > 0) /* no copy goes on into memory that is given back */
        channels->backend->memory->synchronize(channels->backend, &unused);
    for (int i = 0; i < channels->count; i++)
        close_channel(channels->member[i]);
    channels->count = 0;
}
