/* See plan_advice.h. */
#include "pipeline/plan_advice.h"

#include "pipeline/plan_layout.h"

#include <stdio.h>

static int64_t at_least(int64_t value, int64_t least)
{
    return value < least ? least : value;
}

/* Whether another request fits. */
static bool would_fit(const decant_plan_request *request, int ranks)
{
    decant_job_shape shape = decant_plan_resolve_shape(&request->shape);
    decant_linear_sizes sizes = {0};
    decant_rank_grid grid;
    decant_plan plan = {0};
    decant_error unused;
    bool found = false;
    if (decant_schedule_grid(ranks, shape.config->layers, request->replicas, &grid) &&
        decant_linear_sizes_create(&shape, &sizes, &unused) == DECANT_OK &&
        decant_plan_lay_out(request, &shape, &sizes, grid, &plan, &unused) == DECANT_OK)
        found = plan.fits;
    decant_plan_free(&plan);
    decant_linear_sizes_free(&sizes);
    return found;
}

/* Halves *value of the request until the plan fits; 0 when it never does. */
static int64_t shrink(decant_plan_request *request, int64_t *value, int64_t from, int64_t least)
{
    for (*value = from / 2; *value >= least; *value /= 2)
        if (would_fit(request, request->ranks))
            return *value;
    return 0;
}

static int ranks_that_fit(decant_plan_request request)
{
    const int most = 4096;
    int replicas = request.replicas > 0 ? request.replicas : 1; /* more stages of as many replicas */
    request.replicas = replicas;
    for (int stages = request.ranks / replicas + 1; stages <= request.shape.config->layers; stages++) {
        int ranks = stages * replicas;
        if (ranks > most)
            break;
        if (would_fit(&request, ranks))
            return ranks;
    }
    return 0;
}

decant_plan_advice decant_plan_advise(const decant_plan_request *request, const decant_plan *plan)
{
    decant_plan_advice advice = {.ranks = ranks_that_fit(*request)};
    decant_plan_request other = *request;
    other.memory = DECANT_MEMORY_STREAMED;
    advice.streamed = request->memory == DECANT_MEMORY_RESIDENT && would_fit(&other, request->ranks);
    other = *request;
    other.retention = DECANT_RETAIN_BOUNDARIES;
    advice.recompute = request->retention == DECANT_RETAIN_ALL && would_fit(&other, request->ranks);
    other = *request;
    other.has_scratch = true;
    advice.scratch = !request->has_scratch && would_fit(&other, request->ranks);
    other = *request;
    advice.micro_batch = shrink(&other, &other.shape.micro_batch, plan->shape.micro_batch, 1);
    other = *request;
    other.shape.micro_batch = plan->shape.micro_batch;
    advice.window = shrink(&other, &other.shape.window, plan->shape.window, 64);
    for (int rank = 0; rank < plan->ranks; rank++) {
        decant_memory_bytes peak = decant_plan_working_peak(&plan->rank[rank].memory);
        int64_t device = (int64_t)((double)peak.device / DECANT_PLAN_USABLE_SHARE) + 1;
        int64_t host = (int64_t)((double)peak.host / DECANT_PLAN_USABLE_SHARE) + 1;
        if (!decant_plan_is_within(peak.device, request->device_bytes))
            advice.device_bytes = at_least(advice.device_bytes, device);
        if (!decant_plan_is_within(peak.host, request->host_bytes))
            advice.host_bytes = at_least(advice.host_bytes, host);
    }
    return advice;
}

void decant_plan_describe_advice(const decant_plan *plan, char *text, size_t size)
{
    const decant_plan_advice *advice = &plan->advice;
    size_t used = 0;
    text[0] = '\0';
#define ADD(...)                                                                                               \
    do {                                                                                                       \
        if (used < size)                                                                                       \
            used += (size_t)snprintf(text + used, size - used, "%s", used ? ", or " : "");                     \
        if (used < size)                                                                                       \
            used += (size_t)snprintf(text + used, size - used, __VA_ARGS__);                                   \
    } while (0)
    if (advice->ranks > 0)
        ADD("%d ranks", advice->ranks);
    if (advice->streamed)
        ADD("--memory streamed");
    if (advice->recompute)
        ADD("--activations recompute");
    if (advice->scratch)
        ADD("--scratch");
    if (advice->micro_batch > 0)
        ADD("--micro-batch %lld", (long long)advice->micro_batch);
    if (advice->window > 0)
        ADD("--window %lld", (long long)advice->window);
    if (advice->device_bytes > 0)
        ADD("%.1f GiB of device memory a rank", (double)advice->device_bytes / 0x1p30);
    if (advice->host_bytes > 0)
        ADD("%.1f GiB of host memory a rank", (double)advice->host_bytes / 0x1p30);
#undef ADD
}
