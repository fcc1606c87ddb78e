/* See sweep.h. */
#include "pipeline/sweep.h"

#include "base/memory.h"
#include "pipeline/print_json.h"
#include "stages/budget.h"

#include <math.h>

static const double STEP_TOLERANCE = 1e-9; /* so that 2.5:5:0.25 ends with 5 */

int decant_sweep_count(const decant_sweep *sweep)
{
    return 1 + (int)floor((sweep->last - sweep->first) / sweep->step + STEP_TOLERANCE);
}

decant_status decant_sweep_solve(const decant_sweep *sweep, const decant_error_table *table,
                                 decant_sweep_point *points, decant_error *err)
{
    int *chosen = NULL;
    int64_t weights, smallest;
    decant_status status;
    DECANT_TRY(decant_memory_allocate((size_t)table->layers * sizeof *chosen, "the allocation",
                                      (void **)&chosen, err));
    decant_error_table_extent(table, &weights, &smallest);
    for (int i = 0; i < decant_sweep_count(sweep); i++) {
        points[i] = (decant_sweep_point){.budget_bits = sweep->first + i * sweep->step};
        decant_budget asked = {.bits = points[i].budget_bits};
        decant_error too_small;
        int64_t budget;
        points[i].is_kept = decant_budget_bytes(&asked, weights, smallest, &budget, &too_small) == DECANT_OK;
        if (points[i].is_kept)
            DECANT_TRY(decant_error_table_choose(table, budget, chosen, &points[i].summary, err));
    }
done:
    decant_memory_free(chosen);
    return status;
}

static decant_status print_json(const decant_sweep_point *points, int count, int64_t rest_bytes,
                                bool predicts_loss, FILE *stream, decant_error *err)
{
    cJSON *array = cJSON_CreateArray();
    char warning[DECANT_BUDGET_WARNING_BYTES];
    for (int i = 0; i < count; i++) {
        const decant_plan_summary *summary = &points[i].summary;
        cJSON *point = cJSON_CreateObject();
        cJSON_AddItemToArray(array, point);
        cJSON_AddNumberToObject(point, "budget_bits", points[i].budget_bits);
        cJSON_AddBoolToObject(point, "kept", points[i].is_kept);
        if (!points[i].is_kept)
            continue;
        cJSON_AddNumberToObject(point, "bits", summary->bits);
        cJSON_AddNumberToObject(point, "quantized_bytes", (double)summary->bytes);
        cJSON_AddNumberToObject(point, "file_bytes_at_most", (double)(summary->bytes + rest_bytes));
        cJSON_AddNumberToObject(point, predicts_loss ? "predicted_loss_increase" : "error_times_weights",
                                summary->predicted);
        cJSON_AddNumberToObject(point, "predicted_lower_bound", summary->lower_bound);
        cJSON_AddBoolToObject(
            point, "trusted",
            decant_budget_is_trusted(summary->bits, predicts_loss ? summary->predicted : 0, warning));
    }
    return decant_print_json(array, stream, err);
}

static void print_table(const decant_sweep_point *points, int count, int64_t rest_bytes, bool predicts_loss,
                        FILE *stream)
{
    char warning[DECANT_BUDGET_WARNING_BYTES];
    bool all_trusted = true;
    fprintf(stream, "%-8s %10s %16s %16s %12s %12s\n", "budget", "bits", "quantized bytes", "file, at most",
            "predicted", "lower bound");
    for (int i = 0; i < count; i++) {
        const decant_plan_summary *summary = &points[i].summary;
        if (!points[i].is_kept) {
            fprintf(stream, "%-8.4g %10s\n", points[i].budget_bits, "cannot be kept");
            continue;
        }
        bool is_trusted =
            decant_budget_is_trusted(summary->bits, predicts_loss ? summary->predicted : 0, warning);
        all_trusted = all_trusted && is_trusted;
        fprintf(stream, "%-8.4g %10.6f %16lld %16lld %12.5g %12.5g%s\n", points[i].budget_bits, summary->bits,
                (long long)summary->bytes, (long long)(summary->bytes + rest_bytes), summary->predicted,
                summary->lower_bound, is_trusted ? "" : " *");
    }
    if (!all_trusted)
        fprintf(stream,
                "* not to be trusted: losses add up over the layers only above %g bits and up to a predicted "
                "increase of %g\n",
                DECANT_BUDGET_TRUSTED_BITS, DECANT_BUDGET_TRUSTED_INCREASE);
}

decant_status decant_sweep_print(const decant_sweep_point *points, int count, int64_t rest_bytes,
                                 bool predicts_loss, bool json, FILE *stream, decant_error *err)
{
    if (json)
        return print_json(points, count, rest_bytes, predicts_loss, stream, err);
    print_table(points, count, rest_bytes, predicts_loss, stream);
    return DECANT_OK;
}
