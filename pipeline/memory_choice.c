/* See memory_choice.h. */
#include "pipeline/memory_choice.h"

#include "pipeline/plan_request.h"

#include <string.h>
#include <unistd.h>

/* What each rank may take: what the options say, else its share of the device and of the machine; of all ranks
 * the least, because all take the same way. */
static decant_status find_limits(decant_job *job, int64_t *device_bytes, int64_t *host_bytes, decant_error *err)
{
    decant_backend *backend = job->backend;
    int64_t unused, device, machine = (int64_t)sysconf(_SC_PHYS_PAGES) * (int64_t)sysconf(_SC_PAGESIZE);
    backend->memory->usage(backend, &unused, &unused, &device);
    int64_t limits[2] = {job->options->device_bytes, job->options->host_bytes};
    if (limits[0] == 0)
        limits[0] = device / job->sharers;
    if (limits[1] == 0)
        limits[1] = machine / job->ranks->node_size;
    limits[0] = -limits[0];
    limits[1] = -limits[1];
    decant_status status = decant_ranks_maximum(job->ranks, limits, 2, err);
    *device_bytes = -limits[0];
    *host_bytes = -limits[1];
    return status;
}

static void tell(decant_job *job, const decant_plan *plan)
{
    char advice[256];
    for (int rank = 0; rank < plan->ranks; rank++)
        decant_log_event(job->log, "plan",
                         "\"stage\":\"calibrate\",\"rank\":%d,\"memory\":\"%s\",\"retain\":%s,\"on_disk\":%s,"
                         "\"device_peak_bytes\":%lld,\"host_peak_bytes\":%lld",
                         rank, plan->streamed ? "streamed" : "resident", plan->retain ? "true" : "false",
                         plan->rank[rank].share.boundaries_on_disk ? "true" : "false",
                         (long long)plan->rank[rank].memory.peak.device,
                         (long long)plan->rank[rank].memory.peak.host);
    if (plan->streamed)
        decant_log_say(job->log, "layers are streamed: one at a time is where it is computed with");
    if (plan->fits)
        return;
    decant_plan_describe_advice(plan, advice, sizeof advice);
    decant_log_say(job->log, "memory will hardly suffice; what would help: %s", advice);
}

decant_status decant_job_choose_memory(decant_job *job, const decant_token_array *tokens,
                                       decant_memory_choice *choice, decant_error *err)
{
    bool cuda = strcmp(job->backend->name, "cuda") == 0;
    int64_t device_bytes, host_bytes;
    decant_plan plan = {0};
    decant_plan_request request = decant_plan_request_of(job->options, &job->config, job->family, cuda);
    decant_status status;
    DECANT_TRY(find_limits(job, &device_bytes, &host_bytes, err));
    request.shape.sequences = tokens->sequences;
    request.shape.window = tokens->length;
    request.shape.validation_windows = 0; /* it is a later stage, and need not share this one's mode */
    request.ranks = job->ranks->size;
    request.replicas = job->options->replicas;
    request.device_bytes = cuda ? device_bytes : 0;
    request.host_bytes = host_bytes;
    DECANT_TRY(decant_ranks_agree(job->ranks, decant_plan_choose(&request, &plan, err), err));
    *choice = (decant_memory_choice){
        .streamed = plan.streamed,
        .on_disk = plan.rank[job->ranks->rank].share.boundaries_on_disk,
        .retain = plan.retain,
    };
    tell(job, &plan);
done:
    decant_plan_free(&plan);
    return status;
}
