/* See job_plan.h. */
#include "pipeline/job_plan.h"

#include "base/memory.h"
#include "pipeline/plan_advice.h"
#include "pipeline/plan_request.h"
#include "stages/linear_weight.h"

#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* ---- before the work ---- */

/* Of this machine's memory, what one of its ranks may take. */
static int64_t host_share(const decant_job *job)
{
    int64_t pages = sysconf(_SC_PHYS_PAGES), page_bytes = sysconf(_SC_PAGESIZE);
    return job->options->host_bytes > 0 ? job->options->host_bytes : pages * page_bytes / job->ranks->node_size;
}

static int64_t device_share(const decant_job *job)
{
    int64_t held, peak, device_bytes;
    job->backend->memory->usage(job->backend, &held, &peak, &device_bytes);
    return job->options->device_bytes > 0 ? job->options->device_bytes : device_bytes / job->sharers;
}

/* The type of the first quantized tensor; they may differ, but then are of one size as a rule. */
static decant_element element_of_model(const decant_job *job)
{
    decant_linear linear;
    decant_linear_weight weight;
    decant_error unused;
    if (!job->model) /* only a container is at hand */
        return job->config.element;
    job->family->linear(&job->config, 0, 0, &linear);
    if (decant_linear_weight_find(job->model, &linear, &weight, &unused) != DECANT_OK)
        return job->config.element;
    return weight.host.element;
}

static decant_plan_request request_of(decant_job *job, const decant_token_array *calibration,
                                      const decant_token_array *text)
{
    bool cuda = strcmp(job->backend->name, "cuda") == 0;
    decant_plan_request request = decant_plan_request_of(job->options, &job->config, job->family, cuda);
    request.ranks = job->ranks->size;
    request.shape.element = element_of_model(job);
    request.shape.threads = job->threads;
    if (calibration) {
        request.shape.sequences = calibration->sequences;
        request.shape.window = calibration->length;
    }
    request.shape.validation_windows = text ? text->sequences : 0;
    request.shape.validation_window = text ? text->length : 0;
    request.device_bytes = cuda ? device_share(job) : 0;
    request.host_bytes = host_share(job);
    return request;
}

/* What the ranks with the least have, so that all plan alike. */
static decant_status agree_on_memory(decant_job *job, decant_plan_request *request, decant_error *err)
{
    int64_t least[] = {-request->device_bytes, -request->host_bytes, request->shape.threads};
    decant_status status = decant_ranks_maximum(job->ranks, least, 3, err);
    request->device_bytes = -least[0];
    request->host_bytes = -least[1];
    request->shape.threads = (int)least[2];
    return status;
}

static void log_plan(decant_job *job)
{
    const decant_plan *plan = &job->plan;
    for (int rank = 0; rank < plan->ranks; rank++) {
        const decant_rank_memory *memory = &plan->rank[rank].memory;
        decant_log_event(
            job->log, "plan",
            "\"rank\":%d,\"layers\":%d,\"sequences\":%lld,\"memory\":\"%s\",\"retain\":%s,\"on_disk\":%s,"
            "\"micro_batch\":%lld,\"device_bytes\":%lld,\"host_bytes\":%lld,\"process_bytes\":%lld,"
            "\"slack\":%d,\"idle_share\":%.4f",
            rank, plan->rank[rank].share.layers.count, (long long)plan->rank[rank].share.sequences,
            plan->streamed ? "streamed" : "resident", plan->retain ? "true" : "false",
            plan->rank[rank].share.boundaries_on_disk ? "true" : "false", (long long)plan->shape.micro_batch,
            (long long)memory->peak.device, (long long)memory->peak.host, (long long)memory->process_bytes,
            plan->slack, plan->rank[rank].idle);
    }
}

/* Local and the same on every rank. */
static decant_status choose(decant_job *job, const decant_plan_request *request, decant_error *err)
{
    char advice[DECANT_ERROR_MESSAGE_BYTES - 96];
    decant_plan_free(&job->plan);
    decant_status status = decant_plan_choose(request, &job->plan, err);
    if (status != DECANT_OK || job->plan.fits)
        return status;
    decant_plan_describe_advice(&job->plan, advice, sizeof advice);
    return DECANT_ERROR(err, DECANT_ERROR_MEMORY, "%d rank%s cannot hold this job; what would fit: %s",
                        job->ranks->size, job->ranks->size == 1 ? "" : "s", advice);
}

decant_status decant_job_plan(decant_job *job, const decant_token_array *calibration, decant_error *err)
{
    decant_plan_request request = request_of(job, calibration, job->text);
    decant_status status;
    request.shape.calibrates = calibration != NULL; /* else there are statistics already, or none are needed */
    DECANT_TRY(agree_on_memory(job, &request, err));
    DECANT_TRY(decant_ranks_agree(job->ranks, choose(job, &request, err), err));
    log_plan(job);
    if (job->plan.streamed)
        decant_log_say(job->log, "layers are streamed: one at a time is where it is computed with");
done:
    return status;
}

decant_status decant_job_plan_validation(decant_job *job, const decant_token_array *text, bool *streamed,
                                         decant_error *err)
{
    decant_plan_request request = request_of(job, NULL, text);
    decant_plan plan = {0};
    decant_status status;
    *streamed = job->options->memory == DECANT_MEMORY_STREAMED;
    if (job->options->memory != DECANT_MEMORY_AUTO)
        return DECANT_OK;
    request.shape.calibrates = false; /* that is over */
    request.replicas = job->grid.replicas;
    DECANT_TRY(agree_on_memory(job, &request, err));
    DECANT_TRY(decant_ranks_agree(job->ranks, decant_plan_choose(&request, &plan, err), err));
    *streamed = !plan.validation_fits;
    if (*streamed)
        decant_log_say(job->log, "both models do not fit together: one layer after the other is validated");
done:
    decant_plan_free(&plan);
    return status;
}

/* ---- after it ---- */

typedef struct rank_peaks {
    int64_t device_bytes, process_bytes;
} rank_peaks;

/* The largest resident size of this process so far. */
static int64_t process_peak_bytes(void)
{
    struct rusage usage;
    return getrusage(RUSAGE_SELF, &usage) == 0 ? (int64_t)usage.ru_maxrss * 1024 : 0;
}

/* The rank whose peak is the largest part of what was planned for it. */
static int fullest_rank(const decant_plan *plan, const rank_peaks *peaks)
{
    int fullest = 0;
    double most = 0;
    for (int rank = 0; rank < plan->ranks; rank++) {
        const decant_rank_memory *memory = &plan->rank[rank].memory;
        double part = plan->shape.cuda ? (double)peaks[rank].device_bytes / (double)memory->peak.device
                                       : (double)peaks[rank].process_bytes / (double)memory->process_bytes;
        if (part > most) {
            most = part;
            fullest = rank;
        }
    }
    return fullest;
}

void decant_job_report_memory(decant_job *job)
{
    const decant_plan *plan = &job->plan;
    int64_t unused;
    rank_peaks mine = {.process_bytes = process_peak_bytes()};
    void *all = NULL;
    size_t all_bytes;
    decant_error unused_error;
    if (!plan->rank)
        return;
    job->backend->memory->usage(job->backend, &unused, &mine.device_bytes, &unused);
    if (decant_ranks_gather(job->ranks, &mine, sizeof mine, &all, &all_bytes, &unused_error) != DECANT_OK)
        return;
    const rank_peaks *peaks = all;
    for (int rank = 0; rank < plan->ranks; rank++)
        decant_log_event(job->log, "memory",
                         "\"rank\":%d,\"planned_device_bytes\":%lld,\"device_bytes\":%lld,"
                         "\"planned_process_bytes\":%lld,\"process_bytes\":%lld",
                         rank, (long long)plan->rank[rank].memory.peak.device,
                         (long long)(plan->shape.cuda ? peaks[rank].device_bytes : 0),
                         (long long)plan->rank[rank].memory.process_bytes,
                         (long long)peaks[rank].process_bytes);
    int rank = fullest_rank(plan, peaks);
    const decant_rank_memory *memory = &plan->rank[rank].memory;
    if (plan->shape.cuda)
        decant_log_say(job->log, "device memory: planned %.2f GB, held %.2f GB at the peak (rank %d)",
                       (double)memory->peak.device / 1e9, (double)peaks[rank].device_bytes / 1e9, rank);
    decant_log_say(job->log,
                   "host memory: planned %.2f GB, %.2f GB at the peak (rank %d, mapped files included)",
                   (double)memory->process_bytes / 1e9, (double)peaks[rank].process_bytes / 1e9, rank);
    decant_memory_free(all);
}
