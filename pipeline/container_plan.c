/* See container_plan.h. */
#include "pipeline/container_plan.h"

#include "base/memory.h"
#include "stages/error_table_file.h"
#include "stages/model_check.h"

#include <string.h>

/* ---- reading ---- */

void decant_container_plan_free(decant_container_plan *plan)
{
    decant_error_table_free(&plan->table);
    decant_memory_free(plan->chosen);
    decant_memory_free(plan->names);
    decant_memory_free(plan->name);
}

static decant_status read_array(const decant_container *container, const char *path, decant_stored type,
                                decant_shape shape, void **array, decant_error *err)
{
    size_t count = 1;
    for (int i = 0; i < shape.dimensions; i++)
        count *= (size_t)shape.extent[i];
    decant_status status = decant_memory_allocate(count * decant_stored_bytes(type) + 1, path, array, err);
    if (status != DECANT_OK)
        return status;
    return decant_container_read(container, path, type, &shape, *array, err);
}

/* Cuts the names at their newlines; there must be one a layer. */
static decant_status split_names(decant_container_plan *plan, decant_error *err)
{
    decant_status status = decant_memory_allocate((size_t)plan->table.layers * sizeof *plan->name, "names",
                                                  (void **)&plan->name, err);
    char *rest = plan->names;
    for (int64_t i = 0; status == DECANT_OK && i < plan->table.layers; i++) {
        char *end = strchr(rest, '\n');
        if (!end)
            return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                                "/errors/layers names fewer layers than the tables have");
        *end = '\0';
        plan->name[i] = rest;
        rest = end + 1;
    }
    return status;
}

/* Weights that a candidate keeps apart: from what it stores. */
static int64_t sparse_count_of(const decant_candidate *candidate, int64_t rows, int64_t columns)
{
    if (decant_candidate_is_on_grid(candidate))
        return 0;
    const int64_t dense = candidate->method == DECANT_METHOD_GUIDED
                              ? decant_guided_bytes(rows, columns, candidate->code_bits, 0)
                              : decant_packed_bytes(rows, columns, candidate->code_bits, 0);
    const int64_t sparse = candidate->bytes - dense;
    return sparse <= 0 ? 0 : (sparse - (rows + 1) * 4) / (decant_sparse_index_bytes(columns) + 2);
}

/* What a layer's own attributes say of its size. */
static decant_status read_layer_size(const decant_container *container, const char *name, decant_table_row *row,
                                     decant_error *err)
{
    char group[DECANT_CONTAINER_PATH_BYTES];
    int64_t rows, columns;
    snprintf(group, sizeof group, "/%s", name);
    decant_status status = decant_container_get_integer(container, group, "rows", &rows, err);
    if (status == DECANT_OK)
        status = decant_container_get_integer(container, group, "columns", &columns, err);
    if (status == DECANT_OK && (rows < 1 || columns < 1 || rows > INT32_MAX || columns > INT32_MAX))
        status = DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s claims to have %lld rows and %lld columns", name,
                              (long long)rows, (long long)columns);
    if (status != DECANT_OK)
        return status;
    row->weights = rows * columns;
    for (int i = 0; i < row->candidates; i++)
        row->candidate[i].sparse_count = sparse_count_of(&row->candidate[i], rows, columns);
    return DECANT_OK;
}

/* Shapes of the layers, and whether the choices are among the candidates. */
static decant_status complete_rows(const decant_container *container, decant_container_plan *plan,
                                   decant_error *err)
{
    for (int64_t i = 0; i < plan->table.layers; i++) {
        decant_table_row *row = &plan->table.rows[i];
        decant_status status = read_layer_size(container, plan->name[i], row, err);
        if (status != DECANT_OK)
            return status;
        if (plan->chosen[i] < 0 || plan->chosen[i] >= row->candidates)
            return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                                "/allocation/chosen has %d for %s, which has %d candidates", plan->chosen[i],
                                plan->name[i], row->candidates);
    }
    return DECANT_OK;
}

decant_status decant_container_plan_read(const decant_container *container, const char *path,
                                         decant_container_plan *plan, decant_error *err)
{
    decant_stored type;
    decant_shape names;
    decant_status status;
    DECANT_TRY(decant_model_check_kind(container, path, err));
    DECANT_TRY(decant_container_describe(container, "/errors/layers", &type, &names, err));
    if (names.dimensions != 1)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s has an error table of an impossible shape", path);
    DECANT_TRY(decant_error_table_read(container, &plan->table, err));
    DECANT_TRY(read_array(container, "/errors/layers", DECANT_STORED_U8, names, (void **)&plan->names, err));
    DECANT_TRY(split_names(plan, err));
    DECANT_TRY(read_array(container, "/allocation/chosen", DECANT_STORED_I32,
                          (decant_shape){1, {plan->table.layers}}, (void **)&plan->chosen, err));
    DECANT_TRY(complete_rows(container, plan, err));
    decant_error absent;
    double unread;
    plan->predicts_loss =
        decant_container_get_real(container, "/", "predicted_loss_increase", &unread, &absent) == DECANT_OK;
done:
    return status;
}

/* ---- printing ---- */

void decant_container_plan_print(const decant_container_plan *plan, FILE *stream)
{
    fprintf(stream, "%-44s %-16s %9s %12s %12s\n", "layer", "method", "stored", "relative", "predicted");
    for (int64_t i = 0; i < plan->table.layers; i++) {
        const decant_table_row *row = &plan->table.rows[i];
        const decant_candidate *choice = &row->candidate[plan->chosen[i]];
        char method[64];
        decant_candidate_describe(choice, method, sizeof method);
        fprintf(stream, "%-44s %-16s %9.3f %12.3e %12.3e\n", plan->name[i], method,
                8.0 * (double)choice->bytes / (double)row->weights, choice->relative, choice->predicted);
    }
}

cJSON *decant_container_plan_as_json(const decant_container_plan *plan)
{
    cJSON *layers = cJSON_CreateArray();
    for (int64_t i = 0; i < plan->table.layers; i++) {
        const decant_table_row *row = &plan->table.rows[i];
        const decant_candidate *choice = &row->candidate[plan->chosen[i]];
        cJSON *layer = cJSON_CreateObject();
        cJSON_AddStringToObject(layer, "name", plan->name[i]);
        cJSON_AddStringToObject(layer, "method", decant_method_name((decant_method)choice->method));
        cJSON_AddNumberToObject(layer, "bits", decant_candidate_width(choice));
        cJSON_AddNumberToObject(layer, "dimension", choice->dimension);
        cJSON_AddNumberToObject(layer, "group", (double)choice->group);
        cJSON_AddNumberToObject(layer, "weights", (double)row->weights);
        cJSON_AddNumberToObject(layer, "stored_bytes", (double)choice->bytes);
        cJSON_AddNumberToObject(layer, "sparse_count", (double)choice->sparse_count);
        cJSON_AddNumberToObject(layer, "relative_error", choice->relative);
        cJSON_AddNumberToObject(layer, plan->predicts_loss ? "predicted_loss_increase" : "error_times_weights",
                                choice->predicted);
        cJSON_AddItemToArray(layers, layer);
    }
    return layers;
}
