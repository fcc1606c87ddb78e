/* Ranks over MPI 3.1. Each collective function does its local work first, agrees on it where it can fail, and
 * only then communicates, so that no rank is left waiting for one that gave up. Counts in MPI are ints:
 * whatever may be larger is sent in pieces. Sums go in rank order, because the order in which MPI adds is not
 * fixed. */
#include "base/ranks.h"

#include "base/memory.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PIECE_BYTES = 1 << 30 };

/* DECANT_OK or DECANT_ERROR_MPI with MPI's own words. */
static decant_status check(int code, const char *what, decant_error *err)
{
    if (code == MPI_SUCCESS)
        return DECANT_OK;
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    MPI_Error_string(code, text, &length);
    return DECANT_ERROR(err, DECANT_ERROR_MPI, "%s: %s", what, text);
}

static decant_status find_node(decant_ranks *ranks, decant_error *err)
{
    MPI_Comm node;
    decant_status status =
        check(MPI_Comm_split_type(ranks->communicator, MPI_COMM_TYPE_SHARED, ranks->rank, MPI_INFO_NULL, &node),
              "the ranks of this machine cannot be found", err);
    if (status != DECANT_OK)
        return status;
    MPI_Comm_rank(node, &ranks->node_rank);
    MPI_Comm_size(node, &ranks->node_size);
    return check(MPI_Comm_free(&node), "a communicator cannot be freed", err);
}

decant_status decant_ranks_create(MPI_Comm communicator, decant_ranks **ranks, decant_error *err)
{
    void *memory = NULL;
    decant_ranks first = {.communicator = communicator}; /* to agree on the memory for what agrees */
    decant_status status = decant_memory_allocate(sizeof **ranks, "the ranks", &memory, err);
    *ranks = memory;
    if (memory)
        (*ranks)->communicator = MPI_COMM_NULL;
    MPI_Comm_rank(communicator, &first.rank);
    DECANT_TRY(decant_ranks_agree(&first, status, err));
    DECANT_TRY(
        check(MPI_Comm_dup(communicator, &(*ranks)->communicator), "the communicator cannot be copied", err));
    MPI_Comm_set_errhandler((*ranks)->communicator, MPI_ERRORS_RETURN);
    MPI_Comm_rank((*ranks)->communicator, &(*ranks)->rank);
    MPI_Comm_size((*ranks)->communicator, &(*ranks)->size);
    DECANT_TRY(find_node(*ranks, err));
done:
    if (status != DECANT_OK)
        decant_ranks_destroy(ranks);
    return status;
}

void decant_ranks_destroy(decant_ranks **ranks)
{
    if (!*ranks)
        return;
    if ((*ranks)->communicator != MPI_COMM_NULL)
        MPI_Comm_free(&(*ranks)->communicator);
    decant_memory_free(*ranks);
    *ranks = NULL;
}

/* ---- agreement ---- */

decant_status decant_ranks_agree(decant_ranks *ranks, decant_status status, decant_error *err)
{
    struct {
        int status, rank;
    } mine = {(int)status, ranks->rank}, worst;
    /* MAXLOC: the largest status, and of equal ones the lowest rank. */
    decant_status own = check(MPI_Allreduce(&mine, &worst, 1, MPI_2INT, MPI_MAXLOC, ranks->communicator),
                              "the ranks cannot agree", err);
    if (own != DECANT_OK || worst.status == (int)DECANT_OK)
        return own;
    decant_error record;
    memset(&record, 0, sizeof record);
    if (ranks->rank == worst.rank) {
        if (err->status != status)
            DECANT_ERROR(err, status, "%s", decant_status_sentence(status));
        record = *err;
        if (record.rank == 0) /* else it was agreed on before, and says who failed */
            record.rank = ranks->rank;
    }
    own = check(MPI_Bcast(&record, (int)sizeof record, MPI_BYTE, worst.rank, ranks->communicator),
                "the record of a failure cannot be sent", err);
    if (own != DECANT_OK)
        return own;
    *err = record;
    return record.status;
}

decant_status decant_ranks_require_equal(decant_ranks *ranks, const void *data, size_t size_bytes,
                                         const char *what, decant_error *err)
{
    decant_status status = DECANT_OK;
    void *first = NULL;
    uint64_t first_bytes = size_bytes;
    DECANT_TRY(decant_ranks_broadcast(ranks, 0, &first_bytes, sizeof first_bytes, err));
    status = decant_memory_allocate((size_t)first_bytes, what, &first, err);
    DECANT_TRY(decant_ranks_agree(ranks, status, err));
    if (ranks->rank == 0 && size_bytes)
        memcpy(first, data, size_bytes);
    DECANT_TRY(decant_ranks_broadcast(ranks, 0, first, (size_t)first_bytes, err));
    if (first_bytes != size_bytes || (size_bytes && memcmp(first, data, size_bytes) != 0))
        status = DECANT_ERROR(
            err, DECANT_ERROR_INPUT,
            "%s is not the same on rank %d and rank 0; let all machines read one file that they share", what,
            ranks->rank);
    DECANT_TRY(decant_ranks_agree(ranks, status, err));
done:
    decant_memory_free(first);
    return status;
}

/* ---- collective exchange ---- */

decant_status decant_ranks_broadcast(decant_ranks *ranks, int root, void *data, size_t size_bytes,
                                     decant_error *err)
{
    decant_status status = DECANT_OK;
    for (size_t sent = 0; sent < size_bytes && status == DECANT_OK; sent += PIECE_BYTES) {
        size_t left = size_bytes - sent;
        int piece = left < PIECE_BYTES ? (int)left : PIECE_BYTES;
        status = check(MPI_Bcast((char *)data + sent, piece, MPI_BYTE, root, ranks->communicator),
                       "a broadcast failed", err);
    }
    return status;
}

/* The sizes of all ranks' parts, and their sum; agreed, because the memory of one rank may be too small. */
static decant_status gather_sizes(decant_ranks *ranks, size_t part_bytes, uint64_t **sizes, size_t *total,
                                  decant_error *err)
{
    decant_status status = DECANT_OK;
    void *memory = NULL;
    *sizes = NULL;
    *total = 0;
    status =
        decant_memory_allocate((size_t)ranks->size * sizeof **sizes, "sizes of the ranks' parts", &memory, err);
    *sizes = memory;
    DECANT_TRY(decant_ranks_agree(ranks, status, err));
    uint64_t mine = part_bytes;
    DECANT_TRY(check(MPI_Allgather(&mine, 1, MPI_UINT64_T, *sizes, 1, MPI_UINT64_T, ranks->communicator),
                     "gathering sizes failed", err));
    for (int rank = 0; rank < ranks->size; rank++)
        if (__builtin_add_overflow(*total, (size_t)(*sizes)[rank], total))
            DECANT_FAIL(err, DECANT_ERROR_MEMORY, "the ranks' parts are too large to gather");
done:
    return status;
}

decant_status decant_ranks_gather(decant_ranks *ranks, const void *part, size_t part_bytes, void **all,
                                  size_t *all_bytes, decant_error *err)
{
    decant_status status = DECANT_OK;
    uint64_t *sizes = NULL;
    *all = NULL;
    *all_bytes = 0;
    DECANT_TRY(gather_sizes(ranks, part_bytes, &sizes, all_bytes, err));
    status = decant_memory_allocate(*all_bytes, "the ranks' parts", all, err);
    DECANT_TRY(decant_ranks_agree(ranks, status, err));
    size_t offset = 0;
    for (int rank = 0; rank < ranks->size; rank++) {
        char *place = (char *)*all + offset;
        if (rank == ranks->rank && part_bytes)
            memcpy(place, part, part_bytes);
        DECANT_TRY(decant_ranks_broadcast(ranks, rank, place, (size_t)sizes[rank], err));
        offset += (size_t)sizes[rank];
    }
done:
    decant_memory_free(sizes);
    if (status != DECANT_OK) {
        decant_memory_free(*all);
        *all = NULL;
        *all_bytes = 0;
    }
    return status;
}

decant_status decant_ranks_sum(decant_ranks *ranks, double *values, int count, decant_error *err)
{
    decant_status status = DECANT_OK;
    void *all = NULL;
    size_t all_bytes;
    DECANT_TRY(decant_ranks_gather(ranks, values, (size_t)count * sizeof *values, &all, &all_bytes, err));
    const double *parts = all;
    for (int i = 0; i < count; i++)
        values[i] = parts[i];
    for (int rank = 1; rank < ranks->size; rank++)
        for (int i = 0; i < count; i++)
            values[i] += parts[(size_t)rank * (size_t)count + (size_t)i];
done:
    decant_memory_free(all);
    return status;
}

decant_status decant_ranks_maximum(decant_ranks *ranks, int64_t *values, int count, decant_error *err)
{
    return check(MPI_Allreduce(MPI_IN_PLACE, values, count, MPI_INT64_T, MPI_MAX, ranks->communicator),
                 "finding a maximum over the ranks failed", err);
}

/* ---- messages ---- */

/* A committed MPI type of size_bytes bytes, for sizes beyond an int: whole pieces and the rest. */
static decant_status large_type(size_t size_bytes, MPI_Datatype *type, decant_error *err)
{
    MPI_Datatype piece = MPI_DATATYPE_NULL;
    decant_status status = DECANT_OK;
    size_t pieces = size_bytes / PIECE_BYTES;
    *type = MPI_DATATYPE_NULL;
    if (pieces > INT_MAX)
        return DECANT_ERROR(err, DECANT_ERROR_MPI, "a message of %zu bytes is too large", size_bytes);
    int lengths[2] = {(int)pieces, (int)(size_bytes % PIECE_BYTES)};
    MPI_Aint places[2] = {0, (MPI_Aint)(pieces * PIECE_BYTES)};
    DECANT_TRY(check(MPI_Type_contiguous(PIECE_BYTES, MPI_BYTE, &piece), "a message type failed", err));
    MPI_Datatype types[2] = {piece, MPI_BYTE};
    DECANT_TRY(check(MPI_Type_create_struct(2, lengths, places, types, type), "a message type failed", err));
    DECANT_TRY(check(MPI_Type_commit(type), "a message type failed", err));
done:
    if (piece != MPI_DATATYPE_NULL)
        MPI_Type_free(&piece);
    return status;
}

decant_status decant_ranks_send(decant_ranks *ranks, int target, int tag, const void *data, size_t size_bytes,
                                decant_message *message, decant_error *err)
{
    decant_status status = DECANT_OK;
    MPI_Datatype type = MPI_BYTE;
    *message = (decant_message){MPI_REQUEST_NULL, false};
    if (size_bytes > INT_MAX)
        DECANT_TRY(large_type(size_bytes, &type, err));
    DECANT_TRY(check(MPI_Isend(data, size_bytes > INT_MAX ? 1 : (int)size_bytes, type, target, tag,
                               ranks->communicator, &message->request),
                     "sending a message failed", err));
    message->active = true;
done:
    if (type != MPI_BYTE && type != MPI_DATATYPE_NULL)
        MPI_Type_free(&type);
    return status;
}

decant_status decant_ranks_receive(decant_ranks *ranks, int source, int tag, void *data, size_t size_bytes,
                                   decant_message *message, decant_error *err)
{
    decant_status status = DECANT_OK;
    MPI_Datatype type = MPI_BYTE;
    *message = (decant_message){MPI_REQUEST_NULL, false};
    if (size_bytes > INT_MAX)
        DECANT_TRY(large_type(size_bytes, &type, err));
    DECANT_TRY(check(MPI_Irecv(data, size_bytes > INT_MAX ? 1 : (int)size_bytes, type, source, tag,
                               ranks->communicator, &message->request),
                     "receiving a message failed", err));
    message->active = true;
done:
    if (type != MPI_BYTE && type != MPI_DATATYPE_NULL)
        MPI_Type_free(&type);
    return status;
}

decant_status decant_ranks_begin_maximum(decant_ranks *ranks, int64_t *value, decant_message *message,
                                         decant_error *err)
{
    *message = (decant_message){MPI_REQUEST_NULL, false};
    decant_status status = check(
        MPI_Iallreduce(MPI_IN_PLACE, value, 1, MPI_INT64_T, MPI_MAX, ranks->communicator, &message->request),
        "finding a maximum over the ranks failed", err);
    message->active = status == DECANT_OK;
    return status;
}

decant_status decant_message_complete(decant_message *message, decant_error *err)
{
    if (!message->active)
        return DECANT_OK;
    message->active = false;
    return check(MPI_Wait(&message->request, MPI_STATUS_IGNORE), "a message was not delivered", err);
}

bool decant_message_advance(decant_message *message)
{
    int complete = 1;
    /* A failure of it is told by decant_message_complete: MPI_Test leaves the request of a failed test. */
    if (message->active && MPI_Test(&message->request, &complete, MPI_STATUS_IGNORE) != MPI_SUCCESS)
        return false;
    message->active = message->active && !complete;
    return message->active;
}

void decant_message_cancel(decant_message *message)
{
    if (!message->active)
        return;
    message->active = false;
    MPI_Cancel(&message->request);
    MPI_Wait(&message->request, MPI_STATUS_IGNORE);
}

void decant_ranks_abort(decant_ranks *ranks, const decant_error *err)
{
    fprintf(stderr, "decant: rank %d: %s (%s:%d)\n", ranks->rank, err->message, err->source, err->line);
    fflush(NULL);
    MPI_Abort(ranks->communicator, decant_status_exit(err->status));
    abort();
}
