/* See replicas.h. */
#include "pipeline/replicas.h"

#include "base/memory.h"

#include <string.h>

enum { TAG_FISHER = 4, MARK_BYTES = 8 };

static size_t matrix_bytes(const decant_job *job, int linear)
{
    decant_linear shape;
    job->family->linear(&job->config, 0, linear, &shape);
    int groups = decant_options_hessian_groups(job->options);
    return (size_t)decant_fisher_sums_floats(shape.rows, shape.columns, groups) * sizeof(float);
}

decant_status decant_replica_exchange_open(decant_job *job, decant_replica_exchange *exchange,
                                           decant_error *err)
{
    decant_status status = DECANT_OK;
    *exchange = (decant_replica_exchange){.job = job};
    if (job->grid.replicas == 1)
        return DECANT_OK;
    for (int i = 0; i < job->family->linear_count; i++)
        if (matrix_bytes(job, i) > exchange->largest_bytes)
            exchange->largest_bytes = matrix_bytes(job, i);
    DECANT_TRY(decant_memory_allocate(exchange->largest_bytes + MARK_BYTES, "Fisher sums of a replica",
                                      (void **)&exchange->sum, err));
    DECANT_TRY(decant_memory_allocate(exchange->largest_bytes + MARK_BYTES, "Fisher sums of a replica",
                                      (void **)&exchange->part, err));
done:
    if (status != DECANT_OK)
        decant_replica_exchange_close(exchange);
    return status;
}

void decant_replica_exchange_close(decant_replica_exchange *exchange)
{
    decant_memory_free(exchange->sum);
    decant_memory_free(exchange->part);
    *exchange = (decant_replica_exchange){0};
}

/* This rank's sum of a matrix, into host memory. */
static void download(decant_replica_exchange *exchange, const float *device, size_t size_bytes, char *host,
                     decant_standing *standing)
{
    decant_backend *backend = exchange->job->backend;
    decant_error error;
    if (decant_standing_computes(standing))
        decant_standing_note(standing, backend->memory->download(backend, host, device, size_bytes, &error),
                             &error);
}

/* Not the owner: the sum goes to it, marked when there is none. */
static void give(decant_replica_exchange *exchange, const float *device, size_t size_bytes, int owner,
                 decant_standing *standing)
{
    decant_job *job = exchange->job;
    decant_message message = {0};
    decant_error error;
    download(exchange, device, size_bytes, exchange->part, standing);
    int64_t mark = !decant_standing_computes(standing);
    memcpy(exchange->part + size_bytes, &mark, MARK_BYTES);
    decant_standing_note(standing,
                         decant_ranks_send(job->ranks, decant_job_rank(job, job->stage, owner), TAG_FISHER,
                                           exchange->part, size_bytes + MARK_BYTES, &message, &error),
                         &error);
    decant_standing_note(standing, decant_message_complete(&message, &error), &error);
}

static void receive(decant_replica_exchange *exchange, int replica, size_t size_bytes, char *host,
                    decant_standing *standing)
{
    decant_job *job = exchange->job;
    decant_message message = {0};
    decant_error error;
    int64_t mark = 1;
    decant_standing_note(standing,
                         decant_ranks_receive(job->ranks, decant_job_rank(job, job->stage, replica), TAG_FISHER,
                                              host, size_bytes + MARK_BYTES, &message, &error),
                         &error);
    decant_standing_note(standing, decant_message_complete(&message, &error), &error);
    memcpy(&mark, host + size_bytes, MARK_BYTES);
    if (mark)
        standing->withdrawn = true;
}

/* The owner: first the sum of replica 0, then the others onto it. */
static void collect(decant_replica_exchange *exchange, float *device, size_t size_bytes,
                    decant_standing *standing)
{
    decant_job *job = exchange->job;
    decant_backend *backend = job->backend;
    decant_error error;
    float *sum = (float *)exchange->sum;
    const float *part = (const float *)exchange->part;
    for (int replica = 0; replica < job->grid.replicas; replica++) {
        char *host = replica == 0 ? exchange->sum : exchange->part;
        if (replica == job->replica)
            download(exchange, device, size_bytes, host, standing);
        else
            receive(exchange, replica, size_bytes, host, standing);
        for (size_t i = 0; replica > 0 && i < size_bytes / sizeof *sum; i++)
            sum[i] += part[i];
    }
    if (!decant_standing_computes(standing))
        return;
    decant_standing_note(standing, backend->memory->upload(backend, device, sum, size_bytes, &error), &error);
    decant_standing_note(standing, backend->memory->synchronize(backend, &error),
                         &error); /* `sum` is used again */
}

void decant_replica_exchange_add(decant_replica_exchange *exchange, decant_fisher_sums *fisher, int block,
                                 decant_standing *standing)
{
    decant_job *job = exchange->job;
    if (job->grid.replicas == 1)
        return;
    for (int i = 0; i < job->family->linear_count; i++) {
        int owner = decant_job_owner(job, block, i);
        float *device = decant_fisher_sums_at(fisher, block, i);
        if (owner == job->replica) {
            collect(exchange, device, matrix_bytes(job, i), standing);
        } else {
            give(exchange, device, matrix_bytes(job, i), owner, standing);
            decant_fisher_sums_release(fisher, block, i);
        }
    }
}
