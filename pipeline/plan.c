/* See plan.h. Every candidate of grid and mode is laid out in full and judged by its bytes first, then its
 * seconds: there are few enough of them. */
#include "pipeline/plan.h"

#include "base/memory.h"
#include "pipeline/placement.h"
#include "pipeline/plan_seconds.h"

#include <stdio.h>
#include <string.h>

/* What the driver, the libraries' own allocations and a fragmented pool leave of memory. */
static const double USABLE_SHARE = 0.95;

/* More replicas are worth telling of when they save this share of calibration. */
static const double WORTH_TELLING = 0.2;

/* ---- the shape of things ---- */

static int64_t at_least(int64_t value, int64_t least)
{
    return value < least ? least : value;
}

static decant_job_shape resolve_shape(const decant_job_shape *asked)
{
    decant_job_shape shape = *asked;
    if (shape.micro_batch == 0)
        shape.micro_batch = decant_schedule_micro_batch_size(at_least(shape.window, 1));
    if (shape.calibrates && shape.micro_batch > shape.sequences)
        shape.micro_batch = at_least(shape.sequences, 1);
    if (shape.validation_batch == 0)
        shape.validation_batch = decant_schedule_micro_batch_size(at_least(shape.validation_window, 1));
    if (shape.validation_batch > shape.validation_windows)
        shape.validation_batch = at_least(shape.validation_windows, 1);
    return shape;
}

/* ---- one candidate ---- */

/* A grid and a mode to lay out. */
typedef struct plan_choice {
    decant_rank_grid grid;
    bool streamed, retain, on_disk;
} plan_choice;

static decant_rank_share share_of(const decant_plan *plan, const plan_choice *choice,
                                  const decant_layer_range *ranges, int rank)
{
    int stage = rank / plan->replicas;
    decant_rank_share share = {
        .layers = ranges[stage],
        .replica = rank % plan->replicas,
        .replicas = plan->replicas,
        .has_embedding = stage == 0,
        .has_head = stage == plan->active_stages - 1,
        .has_previous = stage > 0 && stage < plan->active_stages,
        .has_next = stage < plan->active_stages - 1,
        .retain = choice->retain,
        .streamed = choice->streamed,
        .boundaries_on_disk = choice->streamed && choice->on_disk,
    };
    int64_t first, batches = decant_schedule_micro_batches(plan->shape.sequences, plan->shape.micro_batch), own;
    decant_schedule_share(batches, plan->replicas, share.replica, &first, &own);
    int64_t end = (first + own) * plan->shape.micro_batch;
    share.sequences =
        (end < plan->shape.sequences ? end : plan->shape.sequences) - first * plan->shape.micro_batch;
    if (share.layers.count > 0)
        share.slots = decant_schedule_in_flight(plan->active_stages, stage, own);
    return share;
}

static bool is_within(int64_t bytes, int64_t limit)
{
    return limit == 0 || (double)bytes <= USABLE_SHARE * (double)limit;
}

/* The most of device and host that a rank holds before validation. */
static decant_memory_bytes working_peak(const decant_rank_memory *memory)
{
    decant_memory_bytes peak = {0};
    for (int stage = 0; stage < DECANT_STAGE_VALIDATE; stage++) {
        peak.device = at_least(peak.device, memory->at[stage].device);
        peak.host = at_least(peak.host, memory->at[stage].host);
    }
    return peak;
}

static void judge(const decant_plan_request *request, decant_plan *plan)
{
    plan->fits = plan->validation_fits = true;
    for (int rank = 0; rank < plan->ranks; rank++) {
        const decant_rank_memory *memory = &plan->rank[rank].memory;
        decant_memory_bytes peak = working_peak(memory);
        const decant_memory_bytes *validation = &memory->at[DECANT_STAGE_VALIDATE];
        if (!is_within(peak.device, request->device_bytes) || !is_within(peak.host, request->host_bytes))
            plan->fits = false;
        if (!is_within(validation->device, request->device_bytes) ||
            !is_within(validation->host, request->host_bytes))
            plan->validation_fits = false;
    }
}

/* Which replica of its stage has which matrix. */
static decant_status find_owners(decant_plan *plan, const decant_layer_range *ranges, decant_error *err)
{
    const decant_job_shape *shape = &plan->shape;
    int linears = shape->family->linear_count;
    decant_status status;
    DECANT_TRY(decant_memory_allocate((size_t)(shape->config->layers * linears) * sizeof *plan->owners,
                                      "the owners of matrices", (void **)&plan->owners, err));
    for (int s = 0; s < plan->active_stages; s++)
        DECANT_TRY(decant_placement_owners(shape->config, shape->family, ranges[s], plan->replicas,
                                           plan->owners + ranges[s].first * linears, err));
done:
    return status;
}

/* Lays out all ranks; the plan is empty before. */
static decant_status lay_out(const decant_plan_request *request, const decant_job_shape *shape,
                             const decant_linear_sizes *sizes, const plan_choice *choice, decant_plan *plan,
                             decant_error *err)
{
    decant_layer_range *ranges = NULL;
    decant_status status;
    *plan = (decant_plan){
        .shape = *shape,
        .ranks = choice->grid.stages * choice->grid.replicas,
        .replicas = choice->grid.replicas,
        .stages = choice->grid.stages,
        .streamed = choice->streamed,
        .retain = choice->retain,
    };
    DECANT_TRY(decant_memory_allocate((size_t)plan->stages * sizeof *ranges, "the layers of each stage",
                                      (void **)&ranges, err));
    DECANT_TRY(decant_memory_allocate((size_t)plan->ranks * sizeof *plan->rank, "the plan of each rank",
                                      (void **)&plan->rank, err));
    decant_placement_layers(shape->config, plan->stages, ranges);
    plan->active_stages = decant_schedule_active_stages(ranges, plan->stages);
    DECANT_TRY(find_owners(plan, ranges, err));
    for (int rank = 0; rank < plan->ranks; rank++) {
        plan->rank[rank].share = share_of(plan, choice, ranges, rank);
        decant_rank_memory_plan(shape, sizes, plan->owners, &plan->rank[rank].share, &plan->rank[rank].memory);
    }
    judge(request, plan);
done:
    decant_memory_free(ranges);
    if (status != DECANT_OK)
        decant_plan_free(plan);
    return status;
}

void decant_plan_free(decant_plan *plan)
{
    decant_memory_free(plan->rank);
    decant_memory_free(plan->owners);
    *plan = (decant_plan){0};
}

/* ---- choosing ---- */

enum { CHOICES_MAXIMUM = 4 };

/* The modes that the request allows on a grid, the preferred first. */
static int list_choices(const decant_plan_request *request, decant_rank_grid grid,
                        plan_choice choices[CHOICES_MAXIMUM])
{
    const bool calibrates = request->shape.calibrates;
    int count = 0;
    for (int retain = 1; retain >= 0; retain--)
        if ((request->memory != DECANT_MEMORY_STREAMED || !calibrates) &&
            request->retention != (retain ? DECANT_RETAIN_BOUNDARIES : DECANT_RETAIN_ALL))
            choices[count++] = (plan_choice){.grid = grid, .retain = retain};
    const bool asked =
        request->memory == DECANT_MEMORY_STREAMED && request->has_scratch; /* for both, so both it is */
    if (request->memory != DECANT_MEMORY_RESIDENT && calibrates && !asked)
        choices[count++] = (plan_choice){.grid = grid, .streamed = true};
    if (request->memory != DECANT_MEMORY_RESIDENT && calibrates && request->has_scratch)
        choices[count++] = (plan_choice){.grid = grid, .streamed = true, .on_disk = true};
    return count;
}

/* How far a plan is from fitting: the largest share of a limit that a rank takes. */
static double crowding(const decant_plan *plan, const decant_plan_request *request)
{
    double worst = 0;
    for (int rank = 0; rank < plan->ranks; rank++) {
        decant_memory_bytes peak = working_peak(&plan->rank[rank].memory);
        double device = request->device_bytes ? (double)peak.device / (double)request->device_bytes : 0;
        double host = request->host_bytes ? (double)peak.host / (double)request->host_bytes : 0;
        worst = device > worst ? device : worst;
        worst = host > worst ? host : worst;
    }
    return worst;
}

/* Lays out the first mode that fits; the least crowded one when none does. */
static decant_status lay_out_best(const decant_plan_request *request, const decant_job_shape *shape,
                                  const decant_linear_sizes *sizes, decant_rank_grid grid, decant_plan *plan,
                                  decant_error *err)
{
    plan_choice choices[CHOICES_MAXIMUM];
    int count = list_choices(request, grid, choices), roomiest = 0;
    double least = 0;
    for (int i = 0; i < count; i++) {
        decant_status status = lay_out(request, shape, sizes, &choices[i], plan, err);
        if (status != DECANT_OK || plan->fits)
            return status;
        double crowded = crowding(plan, request);
        if (i == 0 || crowded < least) {
            roomiest = i;
            least = crowded;
        }
        decant_plan_free(plan);
    }
    return lay_out(request, shape, sizes, &choices[roomiest], plan, err);
}

/* Only ratios matter for comparing, so unknown rates may be any. */
static decant_rates rates_for_comparing(const decant_plan_request *request)
{
    decant_rates rates = request->rates, measured = decant_rates_measured(&request->shape.recipe);
    if (rates.flop_s == 0)
        rates.flop_s = measured.flop_s;
    if (rates.read_bytes_s == 0)
        rates.read_bytes_s = measured.read_bytes_s;
    return rates;
}

/* Whether calibration would be much faster with other replicas, which is the user's to say. */
static decant_status find_faster(const decant_plan_request *request, const decant_linear_sizes *sizes,
                                 decant_plan *plan, decant_error *err)
{
    int64_t batches = decant_schedule_micro_batches(plan->shape.sequences, plan->shape.micro_batch);
    decant_rates rates = rates_for_comparing(request);
    double mine = 0, best = 0;
    int best_replicas = 0;
    if (request->replicas > 0 || !plan->fits || !plan->shape.calibrates)
        return DECANT_OK;
    for (int replicas = plan->replicas; replicas <= plan->ranks && replicas <= batches; replicas++) {
        decant_rank_grid grid;
        decant_plan other;
        if (!decant_schedule_grid(plan->ranks, plan->shape.config->layers, replicas, &grid))
            continue;
        decant_status status = lay_out_best(request, &plan->shape, sizes, grid, &other, err);
        if (status == DECANT_OK)
            status = decant_plan_calibration_seconds(&other, sizes, &rates, err);
        double seconds = other.seconds[DECANT_STAGE_CALIBRATE];
        bool other_fits = other.fits;
        decant_plan_free(&other);
        if (status != DECANT_OK)
            return status;
        if (replicas == plan->replicas)
            mine = best = seconds;
        if (other_fits && seconds < best) {
            best = seconds;
            best_replicas = replicas;
        }
    }
    if (best < (1 - WORTH_TELLING) * mine) {
        plan->faster_replicas = best_replicas;
        plan->faster_s = request->rates.flop_s > 0 ? best : 0;
    }
    return DECANT_OK;
}

/* ---- advice ---- */

/* Whether another request fits. */
static bool would_fit(const decant_plan_request *request, int ranks)
{
    decant_job_shape shape = resolve_shape(&request->shape);
    decant_linear_sizes sizes = {0};
    decant_rank_grid grid;
    decant_plan plan = {0};
    decant_error unused;
    bool found = false;
    if (decant_schedule_grid(ranks, shape.config->layers, request->replicas, &grid) &&
        decant_linear_sizes_create(&shape, &sizes, &unused) == DECANT_OK &&
        lay_out_best(request, &shape, &sizes, grid, &plan, &unused) == DECANT_OK)
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

static decant_plan_advice advise(const decant_plan_request *request, const decant_plan *plan)
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
        decant_memory_bytes peak = working_peak(&plan->rank[rank].memory);
        int64_t device = (int64_t)((double)peak.device / USABLE_SHARE) + 1;
        int64_t host = (int64_t)((double)peak.host / USABLE_SHARE) + 1;
        if (!is_within(peak.device, request->device_bytes))
            advice.device_bytes = at_least(advice.device_bytes, device);
        if (!is_within(peak.host, request->host_bytes))
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

/* ---- the plan ---- */

static decant_status find_grid(const decant_plan_request *request, const decant_job_shape *shape,
                               decant_rank_grid *grid, decant_error *err)
{
    int64_t batches = decant_schedule_micro_batches(shape->sequences, shape->micro_batch);
    if (!decant_schedule_grid(request->ranks, shape->config->layers, request->replicas, grid))
        return DECANT_ERROR(err, DECANT_ERROR_USAGE, "--replicas %d does not divide %d ranks",
                            request->replicas, request->ranks);
    if (request->replicas > 1 && shape->calibrates && request->replicas > batches)
        return DECANT_ERROR(err, DECANT_ERROR_USAGE,
                            "--replicas %d, but there are only %lld micro-batches to share out",
                            request->replicas, (long long)batches);
    return DECANT_OK;
}

decant_status decant_plan_choose(const decant_plan_request *request, decant_plan *plan, decant_error *err)
{
    decant_job_shape shape = resolve_shape(&request->shape);
    decant_linear_sizes sizes = {0};
    decant_rank_grid grid;
    decant_status status;
    *plan = (decant_plan){0};
    DECANT_TRY(find_grid(request, &shape, &grid, err));
    DECANT_TRY(decant_linear_sizes_create(&shape, &sizes, err));
    DECANT_TRY(lay_out_best(request, &shape, &sizes, grid, plan, err));
    DECANT_TRY(find_faster(request, &sizes, plan, err));
    DECANT_TRY(decant_plan_all_seconds(plan, &sizes, &request->rates, err));
    decant_plan_file_sizes(plan, &sizes);
    if (!plan->fits)
        plan->advice = advise(request, plan);
done:
    decant_linear_sizes_free(&sizes);
    if (status != DECANT_OK)
        decant_plan_free(plan);
    return status;
}
