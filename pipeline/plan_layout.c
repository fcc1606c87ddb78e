/* See plan_layout.h. Every candidate of grid and mode is laid out in full: there are few enough of them. */
#include "pipeline/plan_layout.h"

#include "base/memory.h"
#include "pipeline/placement.h"

const double DECANT_PLAN_USABLE_SHARE = 0.95;
static const double FILLED_SHARE = 0.90; /* with what need not be there */

/* ---- the shape of things ---- */

static int64_t at_least(int64_t value, int64_t least)
{
    return value < least ? least : value;
}

decant_job_shape decant_plan_resolve_shape(const decant_job_shape *asked)
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
    int slack; /* of the schedule */
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
        share.slots = decant_schedule_in_flight(plan->active_stages, stage, choice->slack, own);
    return share;
}

bool decant_plan_is_within(int64_t bytes, int64_t limit)
{
    return limit == 0 || (double)bytes <= DECANT_PLAN_USABLE_SHARE * (double)limit;
}

decant_memory_bytes decant_plan_working_peak(const decant_rank_memory *memory)
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
        decant_memory_bytes peak = decant_plan_working_peak(memory);
        const decant_memory_bytes *validation = &memory->at[DECANT_STAGE_VALIDATE];
        if (!decant_plan_is_within(peak.device, request->device_bytes) ||
            !decant_plan_is_within(peak.host, request->host_bytes))
            plan->fits = false;
        if (!decant_plan_is_within(validation->device, request->device_bytes) ||
            !decant_plan_is_within(validation->host, request->host_bytes))
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

/* The memory of one rank. What a streamed rank has to keep between layers stays on its device as far as that
 * has room: copies to the host take longer than a layer's forward pass. A little is left free there, for memory
 * that the driver cannot use because it lies between blocks. */
static void plan_rank(const decant_plan_request *request, const decant_job_shape *shape,
                      const decant_linear_sizes *sizes, const int *owners, decant_rank_plan *rank)
{
    decant_rank_share *share = &rank->share;
    decant_rank_memory_plan(shape, sizes, owners, share, &rank->memory);
    if (!share->streamed || !shape->cuda || share->layers.count == 0)
        return;
    share->boundaries_on_device =
        decant_rank_boundaries_in(shape, share,
                                  (int64_t)(FILLED_SHARE * (double)request->device_bytes) -
                                      rank->memory.at[DECANT_STAGE_CALIBRATE].device);
    decant_rank_memory_plan(shape, sizes, owners, share, &rank->memory);
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
        .slack = choice->slack,
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
        plan_rank(request, shape, sizes, plan->owners, &plan->rank[rank]);
    }
    judge(request, plan);
done:
    decant_memory_free(ranges);
    if (status != DECANT_OK)
        decant_plan_free(plan);
    return status;
}

/* ---- the best of them ---- */

enum { CHOICES_MAXIMUM = 80 };

/* The modes that the request allows on a grid, the preferred first. Messages are sent while a device computes
 * only with slack in the schedule, so it gets as much as memory allows; a CPU sends them itself, and has none.
 */
static int list_choices(const decant_plan_request *request, decant_rank_grid grid,
                        plan_choice choices[CHOICES_MAXIMUM])
{
    const bool calibrates = request->shape.calibrates;
    int count = 0;
    for (int retain = 1; retain >= 0; retain--)
        if ((request->memory != DECANT_MEMORY_STREAMED || !calibrates) &&
            request->retention != (retain ? DECANT_RETAIN_BOUNDARIES : DECANT_RETAIN_ALL))
            for (int slack = request->shape.cuda && calibrates ? grid.stages - 1 : 0; slack >= 0;
                 slack = slack > 0 ? slack / 2 : -1)
                choices[count++] = (plan_choice){.grid = grid, .retain = retain, .slack = slack};
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
        decant_memory_bytes peak = decant_plan_working_peak(&plan->rank[rank].memory);
        double device = request->device_bytes ? (double)peak.device / (double)request->device_bytes : 0;
        double host = request->host_bytes ? (double)peak.host / (double)request->host_bytes : 0;
        worst = device > worst ? device : worst;
        worst = host > worst ? host : worst;
    }
    return worst;
}

decant_status decant_plan_lay_out(const decant_plan_request *request, const decant_job_shape *shape,
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
