/* See plan.h. */
#include "pipeline/plan.h"

#include "base/memory.h"
#include "pipeline/plan_advice.h"
#include "pipeline/plan_layout.h"
#include "pipeline/plan_seconds.h"

/* More replicas are worth telling of when they save this share of calibration. */
static const double WORTH_TELLING = 0.2;

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
        decant_status status = decant_plan_lay_out(request, &plan->shape, sizes, grid, &other, err);
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
    decant_job_shape shape = decant_plan_resolve_shape(&request->shape);
    decant_linear_sizes sizes = {0};
    decant_rank_grid grid;
    decant_status status;
    *plan = (decant_plan){0};
    DECANT_TRY(find_grid(request, &shape, &grid, err));
    DECANT_TRY(decant_linear_sizes_create(&shape, &sizes, err));
    DECANT_TRY(decant_plan_lay_out(request, &shape, &sizes, grid, plan, err));
    DECANT_TRY(find_faster(request, &sizes, plan, err));
    DECANT_TRY(decant_plan_all_seconds(plan, &sizes, &request->rates, err));
    decant_plan_file_sizes(plan, &sizes);
    if (!plan->fits)
        plan->advice = decant_plan_advise(request, plan);
done:
    decant_linear_sizes_free(&sizes);
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
