/* `decant allocate`: the bit allocation solved again for other budgets, from the error table that a container
 * holds. */
#include "base/memory.h"
#include "pipeline/container_plan.h"
#include "pipeline/examine.h"
#include "pipeline/print_json.h"
#include "pipeline/sweep.h"
#include "stages/budget.h"

#include <string.h>

/* Counts what belongs to no quantized layer; context of count_rest. */
typedef struct rest_count {
    const decant_container_plan *plan;
    int64_t datasets, bytes;
} rest_count;

static decant_status count_rest(void *context, const char *path, decant_stored type, const decant_shape *shape,
                                decant_error *err)
{
    (void)err;
    rest_count *rest = context;
    for (int64_t i = 0; i < rest->plan->table.layers; i++) {
        size_t length = strlen(rest->plan->name[i]);
        if (strncmp(path + 1, rest->plan->name[i], length) == 0 && path[1 + length] == '/')
            return DECANT_OK;
    }
    if (strncmp(path, "/grids/", strlen("/grids/")) == 0)
        return DECANT_OK; /* another plan may take others: all are counted */
    int64_t bytes = (int64_t)decant_stored_bytes(type);
    for (int i = 0; i < shape->dimensions; i++)
        bytes *= shape->extent[i];
    rest->datasets++;
    rest->bytes += bytes;
    return DECANT_OK;
}

static decant_status print_plan(const decant_container_plan *plan, const decant_plan_summary *summary,
                                int64_t file_bytes, bool json, FILE *stream, decant_error *err)
{
    char warning[DECANT_BUDGET_WARNING_BYTES] = "";
    const char *predicted = plan->predicts_loss ? "predicted_loss_increase" : "error_times_weights";
    bool is_trusted =
        decant_budget_is_trusted(summary->bits, plan->predicts_loss ? summary->predicted : 0, warning);
    if (!json) {
        fprintf(stream, "%-24s %.6f\n%-24s %lld\n%-24s %lld\n%-24s %.6g\n", "bits", summary->bits,
                "quantized_bytes", (long long)summary->bytes, "file_bytes_at_most", (long long)file_bytes,
                predicted, summary->predicted);
        fprintf(stream, "%-24s %.6g\n%s%s%s\n", "predicted_lower_bound", summary->lower_bound,
                is_trusted ? "" : "warning: ", warning, is_trusted ? "" : "\n");
        decant_container_plan_print(plan, stream);
        return DECANT_OK;
    }
    cJSON *root = cJSON_CreateObject();
    cJSON_AddNumberToObject(root, "bits", summary->bits);
    cJSON_AddNumberToObject(root, "quantized_bytes", (double)summary->bytes);
    cJSON_AddNumberToObject(root, "file_bytes_at_most", (double)file_bytes);
    cJSON_AddNumberToObject(root, predicted, summary->predicted);
    cJSON_AddNumberToObject(root, "predicted_lower_bound", summary->lower_bound);
    cJSON_AddBoolToObject(root, "trusted", is_trusted);
    if (!is_trusted)
        cJSON_AddStringToObject(root, "warning", warning);
    cJSON_AddItemToObject(root, "layers", decant_container_plan_as_json(plan));
    return decant_print_json(root, stream, err);
}

static decant_status sweep(const decant_options *options, const decant_container_plan *plan, int64_t rest_bytes,
                           FILE *stream, decant_error *err)
{
    int count = decant_sweep_count(&options->sweep);
    decant_sweep_point *points = NULL;
    decant_status status;
    DECANT_TRY(decant_memory_allocate((size_t)count * sizeof *points, "the curve", (void **)&points, err));
    DECANT_TRY(decant_sweep_solve(&options->sweep, &plan->table, points, err));
    DECANT_TRY(decant_sweep_print(points, count, rest_bytes, plan->predicts_loss, options->json, stream, err));
done:
    decant_memory_free(points);
    return status;
}

decant_status decant_reallocate(const decant_options *options, FILE *stream, decant_error *err)
{
    decant_container *container = NULL;
    decant_container_plan plan = {0};
    rest_count rest = {.plan = &plan};
    decant_budget asked = {.bits = options->bits, .file_bytes = options->size_bytes};
    decant_plan_summary summary;
    int64_t weights, smallest, budget;
    decant_status status;
    DECANT_TRY(decant_container_open(options->container, &container, err));
    DECANT_TRY(decant_container_plan_read(container, options->container, &plan, err));
    DECANT_TRY(decant_container_each(container, count_rest, &rest, err));
    const decant_table_row *row = &plan.table.rows[0]; /* all layers have the same candidates */
    decant_budget_count_grids(row->candidate, row->candidates, &rest.datasets, &rest.bytes);
    asked.rest_bytes = decant_budget_rest(plan.table.layers, rest.datasets, rest.bytes);
    if (options->sweep.step > 0) {
        DECANT_TRY(sweep(options, &plan, asked.rest_bytes, stream, err));
        goto done;
    }
    decant_error_table_extent(&plan.table, &weights, &smallest);
    DECANT_TRY(decant_budget_bytes(&asked, weights, smallest, &budget, err));
    DECANT_TRY(decant_error_table_choose(&plan.table, budget, plan.chosen, &summary, err));
    DECANT_TRY(print_plan(&plan, &summary, summary.bytes + asked.rest_bytes, options->json, stream, err));
done:
    decant_container_plan_free(&plan);
    decant_container_close(&container);
    return status;
}
