/* See examine.h. */
#include "pipeline/examine.h"

#include "base/memory.h"
#include "io/container.h"
#include "pipeline/sweep.h"
#include "stages/budget.h"
#include "stages/error_table.h"

#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- the tables of a container ---- */

typedef struct container_plan {
    decant_error_table table;
    int *chosen; /* [table.layers] */
    char *names; /* the names of the layers, a line each */
    char **name; /* [table.layers] into names */
} container_plan;

static void free_plan(container_plan *plan)
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
static decant_status split_names(container_plan *plan, decant_error *err)
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
    if (status == DECANT_OK)
        status = decant_container_get_integer(container, group, "sparse_count", &row->sparse_count, err);
    if (status == DECANT_OK && (rows < 1 || columns < 1 || rows > INT32_MAX || columns > INT32_MAX))
        status = DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s claims to have %lld rows and %lld columns", name,
                              (long long)rows, (long long)columns);
    if (status == DECANT_OK)
        row->weights = rows * columns;
    return status;
}

static decant_status read_rows(const decant_container *container, container_plan *plan, int64_t candidates,
                               decant_error *err)
{
    int64_t layers = plan->table.layers;
    decant_shape wide = {1, {candidates}}, all = {2, {layers, candidates}};
    int32_t *bits = NULL;
    int64_t *bytes = NULL;
    double *predicted = NULL, *relative = NULL;
    decant_status status;
    DECANT_TRY(read_array(container, "/errors/bits", DECANT_STORED_I32, wide, (void **)&bits, err));
    DECANT_TRY(read_array(container, "/errors/stored_bytes", DECANT_STORED_I64, all, (void **)&bytes, err));
    DECANT_TRY(read_array(container, "/errors/predicted", DECANT_STORED_F64, all, (void **)&predicted, err));
    DECANT_TRY(read_array(container, "/errors/relative", DECANT_STORED_F64, all, (void **)&relative, err));
    for (int64_t i = 0; i < layers * candidates; i++) {
        decant_table_row *row = &plan->table.rows[i / candidates];
        row->candidates = (int32_t)candidates;
        row->candidate[i % candidates] = (decant_candidate){.bits = bits[i % candidates],
                                                            .bytes = bytes[i],
                                                            .predicted = predicted[i],
                                                            .relative = relative[i]};
    }
    for (int64_t i = 0; i < layers; i++) {
        DECANT_TRY(read_layer_size(container, plan->name[i], &plan->table.rows[i], err));
        if (plan->chosen[i] < 0 || plan->chosen[i] >= candidates)
            DECANT_FAIL(err, DECANT_ERROR_INPUT, "/allocation/chosen has %d for %s, which has %lld candidates",
                        plan->chosen[i], plan->name[i], (long long)candidates);
    }
done:
    decant_memory_free(bits);
    decant_memory_free(bytes);
    decant_memory_free(predicted);
    decant_memory_free(relative);
    return status;
}

static decant_status read_plan(const decant_container *container, const char *path, container_plan *plan,
                               decant_error *err)
{
    char kind[32];
    decant_stored type;
    decant_shape names, table;
    decant_status status;
    DECANT_TRY(decant_container_get_text(container, "/", "kind", kind, sizeof kind, err));
    if (strcmp(kind, "model") != 0)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s holds %s, not a model", path, kind);
    DECANT_TRY(decant_container_describe(container, "/errors/layers", &type, &names, err));
    DECANT_TRY(decant_container_describe(container, "/errors/predicted", &type, &table, err));
    if (names.dimensions != 1 || table.dimensions != 2 || table.extent[0] < 1 || table.extent[1] < 1 ||
        table.extent[1] > DECANT_CANDIDATES)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s has an error table of an impossible shape", path);
    plan->table.layers = table.extent[0];
    DECANT_TRY(decant_memory_allocate((size_t)plan->table.layers * sizeof *plan->table.rows, "the error table",
                                      (void **)&plan->table.rows, err));
    DECANT_TRY(read_array(container, "/errors/layers", DECANT_STORED_U8, names, (void **)&plan->names, err));
    DECANT_TRY(split_names(plan, err));
    DECANT_TRY(read_array(container, "/allocation/chosen", DECANT_STORED_I32,
                          (decant_shape){1, {plan->table.layers}}, (void **)&plan->chosen, err));
    DECANT_TRY(read_rows(container, plan, table.extent[1], err));
done:
    return status;
}

/* ---- printing ---- */

static void print_layers(const container_plan *plan, FILE *stream)
{
    fprintf(stream, "%-44s %5s %9s %12s %12s\n", "layer", "bits", "stored", "relative", "predicted");
    for (int64_t i = 0; i < plan->table.layers; i++) {
        const decant_table_row *row = &plan->table.rows[i];
        const decant_candidate *choice = &row->candidate[plan->chosen[i]];
        fprintf(stream, "%-44s %5d %9.3f %12.3e %12.3e\n", plan->name[i], choice->bits,
                8.0 * (double)choice->bytes / (double)row->weights, choice->relative, choice->predicted);
    }
}

static cJSON *layers_as_json(const container_plan *plan)
{
    cJSON *layers = cJSON_CreateArray();
    for (int64_t i = 0; i < plan->table.layers; i++) {
        const decant_table_row *row = &plan->table.rows[i];
        const decant_candidate *choice = &row->candidate[plan->chosen[i]];
        cJSON *layer = cJSON_CreateObject();
        cJSON_AddStringToObject(layer, "name", plan->name[i]);
        cJSON_AddNumberToObject(layer, "bits", choice->bits);
        cJSON_AddNumberToObject(layer, "weights", (double)row->weights);
        cJSON_AddNumberToObject(layer, "stored_bytes", (double)choice->bytes);
        cJSON_AddNumberToObject(layer, "sparse_count", (double)row->sparse_count);
        cJSON_AddNumberToObject(layer, "relative_error", choice->relative);
        cJSON_AddNumberToObject(layer, "predicted_loss_increase", choice->predicted);
        cJSON_AddItemToArray(layers, layer);
    }
    return layers;
}

static void print_json(cJSON *object, FILE *stream)
{
    char *text = cJSON_Print(object);
    if (text)
        fprintf(stream, "%s\n", text);
    free(text);
    cJSON_Delete(object);
}

/* ---- inspect ---- */

static const char *const text_attributes[] = {"program_version", "device", "options"};
static const char *const integer_attributes[] = {"quantized_weights",     "quantized_bytes",
                                                 "calibration_sequences", "calibration_length",
                                                 "calibration_crc32",     "model_crc32"};
static const char *const real_attributes[] = {"bits", "predicted_loss_increase", "predicted_lower_bound",
                                              "calibration_loss"};
/* Where the job had text to validate on. */
static const char *const optional_attributes[] = {"perplexity_original", "perplexity_quantized",
                                                  "kl_divergence", "top1_agreement", "measured_loss_increase"};
#define COUNT(array) (sizeof(array) / sizeof *(array))

/* What was measured of the layers' sensitivities, and how well it was predicted; NULL when nothing was. */
static cJSON *sensitivity_as_json(const decant_container *container)
{
    static const char *const texts[] = {"kind", "measure", "precision"};
    static const char *const integers[] = {"sequences", "length", "random_tokens", "negatives", "compared"};
    static const char *const reals[] = {"predicted_sum", "measured_sum", "pearson"};
    static const char group[] = "/sensitivity";
    if (!decant_container_has(container, "/sensitivity/value"))
        return NULL;
    cJSON *found = cJSON_CreateObject();
    char text[64];
    int64_t integer;
    double real;
    decant_error absent;
    for (size_t i = 0; i < COUNT(texts); i++)
        if (decant_container_get_text(container, group, texts[i], text, sizeof text, &absent) == DECANT_OK)
            cJSON_AddStringToObject(found, texts[i], text);
    for (size_t i = 0; i < COUNT(integers); i++)
        if (decant_container_get_integer(container, group, integers[i], &integer, &absent) == DECANT_OK)
            cJSON_AddNumberToObject(found, integers[i], (double)integer);
    for (size_t i = 0; i < COUNT(reals); i++)
        if (decant_container_get_real(container, group, reals[i], &real, &absent) == DECANT_OK)
            cJSON_AddNumberToObject(found, reals[i], real);
    return found;
}

static void print_sensitivity(const decant_container *container, FILE *stream)
{
    cJSON *found = sensitivity_as_json(container);
    const cJSON *item;
    char name[64];
    cJSON_ArrayForEach(item, found)
    {
        snprintf(name, sizeof name, "sensitivity_%s", item->string);
        if (cJSON_IsString(item))
            fprintf(stream, "%-24s %s\n", name, item->valuestring);
        else
            fprintf(stream, "%-24s %.6g\n", name, item->valuedouble);
    }
    cJSON_Delete(found);
}

static decant_status inspect_as_json(const decant_container *container, const container_plan *plan,
                                     int64_t file_bytes, FILE *stream, decant_error *err)
{
    cJSON *root = cJSON_CreateObject();
    char text[1024];
    int64_t integer;
    double real;
    decant_status status = DECANT_OK;
    for (size_t i = 0; i < COUNT(text_attributes); i++) {
        DECANT_TRY(decant_container_get_text(container, "/", text_attributes[i], text, sizeof text, err));
        cJSON_AddStringToObject(root, text_attributes[i], text);
    }
    for (size_t i = 0; i < COUNT(integer_attributes); i++) {
        DECANT_TRY(decant_container_get_integer(container, "/", integer_attributes[i], &integer, err));
        cJSON_AddNumberToObject(root, integer_attributes[i], (double)integer);
    }
    for (size_t i = 0; i < COUNT(real_attributes); i++) {
        DECANT_TRY(decant_container_get_real(container, "/", real_attributes[i], &real, err));
        cJSON_AddNumberToObject(root, real_attributes[i], real);
    }
    decant_error absent;
    for (size_t i = 0; i < COUNT(optional_attributes); i++)
        if (decant_container_get_real(container, "/", optional_attributes[i], &real, &absent) == DECANT_OK)
            cJSON_AddNumberToObject(root, optional_attributes[i], real);
    cJSON_AddNumberToObject(root, "file_bytes", (double)file_bytes);
    cJSON *sensitivity = sensitivity_as_json(container);
    if (sensitivity)
        cJSON_AddItemToObject(root, "sensitivity", sensitivity);
    cJSON_AddItemToObject(root, "layers", layers_as_json(plan));
    print_json(root, stream);
    root = NULL;
done:
    cJSON_Delete(root);
    return status;
}

static decant_status inspect_as_text(const decant_container *container, const container_plan *plan,
                                     int64_t file_bytes, FILE *stream, decant_error *err)
{
    char text[1024];
    int64_t integer;
    double real;
    decant_status status = DECANT_OK;
    fprintf(stream, "%-24s %lld\n", "file_bytes", (long long)file_bytes);
    for (size_t i = 0; i < COUNT(text_attributes); i++) {
        DECANT_TRY(decant_container_get_text(container, "/", text_attributes[i], text, sizeof text, err));
        fprintf(stream, "%-24s %s\n", text_attributes[i], text);
    }
    for (size_t i = 0; i < COUNT(integer_attributes); i++) {
        DECANT_TRY(decant_container_get_integer(container, "/", integer_attributes[i], &integer, err));
        fprintf(stream, "%-24s %lld\n", integer_attributes[i], (long long)integer);
    }
    for (size_t i = 0; i < COUNT(real_attributes); i++) {
        DECANT_TRY(decant_container_get_real(container, "/", real_attributes[i], &real, err));
        fprintf(stream, "%-24s %.6g\n", real_attributes[i], real);
    }
    decant_error absent;
    for (size_t i = 0; i < COUNT(optional_attributes); i++)
        if (decant_container_get_real(container, "/", optional_attributes[i], &real, &absent) == DECANT_OK)
            fprintf(stream, "%-24s %.6g\n", optional_attributes[i], real);
    print_sensitivity(container, stream);
    fprintf(stream, "\n");
    print_layers(plan, stream);
done:
    return status;
}

static decant_status inspect(const decant_options *options, FILE *stream, decant_error *err)
{
    decant_container *container = NULL;
    container_plan plan = {0};
    struct stat file = {0};
    decant_status status;
    DECANT_TRY(decant_container_open(options->container, &container, err));
    stat(options->container, &file);
    DECANT_TRY(read_plan(container, options->container, &plan, err));
    if (options->json)
        DECANT_TRY(inspect_as_json(container, &plan, file.st_size, stream, err));
    else
        DECANT_TRY(inspect_as_text(container, &plan, file.st_size, stream, err));
done:
    free_plan(&plan);
    decant_container_close(&container);
    return status;
}

/* ---- allocate ---- */

/* Counts what belongs to no quantized layer; context of count_rest. */
typedef struct rest_count {
    const container_plan *plan;
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
    int64_t bytes = (int64_t)decant_stored_bytes(type);
    for (int i = 0; i < shape->dimensions; i++)
        bytes *= shape->extent[i];
    rest->datasets++;
    rest->bytes += bytes;
    return DECANT_OK;
}

static void print_plan(const container_plan *plan, const decant_plan_summary *summary, int64_t file_bytes,
                       bool json, FILE *stream)
{
    char warning[DECANT_BUDGET_WARNING_BYTES] = "";
    bool is_trusted = decant_budget_is_trusted(summary->bits, summary->predicted, warning);
    if (!json) {
        fprintf(stream, "%-24s %.6f\n%-24s %lld\n%-24s %lld\n%-24s %.6g\n", "bits", summary->bits,
                "quantized_bytes", (long long)summary->bytes, "file_bytes_at_most", (long long)file_bytes,
                "predicted_loss_increase", summary->predicted);
        fprintf(stream, "%-24s %.6g\n%s%s%s\n", "predicted_lower_bound", summary->lower_bound,
                is_trusted ? "" : "warning: ", warning, is_trusted ? "" : "\n");
        print_layers(plan, stream);
        return;
    }
    cJSON *root = cJSON_CreateObject();
    cJSON_AddNumberToObject(root, "bits", summary->bits);
    cJSON_AddNumberToObject(root, "quantized_bytes", (double)summary->bytes);
    cJSON_AddNumberToObject(root, "file_bytes_at_most", (double)file_bytes);
    cJSON_AddNumberToObject(root, "predicted_loss_increase", summary->predicted);
    cJSON_AddNumberToObject(root, "predicted_lower_bound", summary->lower_bound);
    cJSON_AddBoolToObject(root, "trusted", is_trusted);
    if (!is_trusted)
        cJSON_AddStringToObject(root, "warning", warning);
    cJSON_AddItemToObject(root, "layers", layers_as_json(plan));
    print_json(root, stream);
}

static decant_status sweep(const decant_options *options, const container_plan *plan, int64_t rest_bytes,
                           FILE *stream, decant_error *err)
{
    int count = decant_sweep_count(&options->sweep);
    decant_sweep_point *points = NULL;
    decant_status status;
    DECANT_TRY(decant_memory_allocate((size_t)count * sizeof *points, "the curve", (void **)&points, err));
    DECANT_TRY(decant_sweep_solve(&options->sweep, &plan->table, points, err));
    decant_sweep_print(points, count, rest_bytes, options->json, stream);
done:
    decant_memory_free(points);
    return status;
}

static decant_status allocate(const decant_options *options, FILE *stream, decant_error *err)
{
    decant_container *container = NULL;
    container_plan plan = {0};
    rest_count rest = {.plan = &plan};
    decant_budget asked = {.bits = options->bits, .file_bytes = options->size_bytes};
    decant_plan_summary summary;
    int64_t weights, smallest, budget;
    decant_status status;
    DECANT_TRY(decant_container_open(options->container, &container, err));
    DECANT_TRY(read_plan(container, options->container, &plan, err));
    DECANT_TRY(decant_container_each(container, count_rest, &rest, err));
    asked.rest_bytes = decant_budget_rest(plan.table.layers, rest.datasets, rest.bytes);
    if (options->sweep.step > 0) {
        DECANT_TRY(sweep(options, &plan, asked.rest_bytes, stream, err));
        goto done;
    }
    decant_error_table_extent(&plan.table, &weights, &smallest);
    DECANT_TRY(decant_budget_bytes(&asked, weights, smallest, &budget, err));
    DECANT_TRY(decant_error_table_choose(&plan.table, budget, plan.chosen, &summary, err));
    print_plan(&plan, &summary, summary.bytes + asked.rest_bytes, options->json, stream);
done:
    free_plan(&plan);
    decant_container_close(&container);
    return status;
}

/* ---- verify ---- */

static decant_status verify(const decant_options *options, FILE *stream, decant_error *err)
{
    decant_container *container = NULL;
    int64_t datasets = 0, bytes = 0;
    decant_status status;
    DECANT_TRY(decant_container_open(options->container, &container, err));
    DECANT_TRY(decant_container_verify(container, &datasets, &bytes, err));
    fprintf(stream, "%s: %lld datasets, %lld bytes, every checksum is right\n", options->container,
            (long long)datasets, (long long)bytes);
done:
    decant_container_close(&container);
    return status;
}

/* ---- compare ---- */

typedef struct comparison {
    const decant_container *mine, *other;
    const char *name;
    bool contents; /* compare what both have; false: only tell what the other lacks */
    int64_t differences;
    FILE *stream;
} comparison;

static void tell_difference(comparison *c, const char *path, const char *what, const char *where)
{
    fprintf(c->stream, "%s: %s%s\n", path, what, where);
    c->differences++;
}

static bool same_shape(const decant_shape *a, const decant_shape *b)
{
    bool same = a->dimensions == b->dimensions;
    for (int i = 0; same && i < a->dimensions; i++)
        same = a->extent[i] == b->extent[i];
    return same;
}

/* Contents are compared by the checksums that both files carry; `decant verify` tells whether these are true.
 */
static decant_status compare_dataset(void *context, const char *path, decant_stored type,
                                     const decant_shape *shape, decant_error *err)
{
    comparison *c = context;
    decant_stored other_type;
    decant_shape other_shape;
    int64_t checksum, other_checksum;
    decant_status status = DECANT_OK;
    if (!decant_container_has(c->other, path)) {
        tell_difference(c, path, "only in ", c->name);
        goto done;
    }
    if (!c->contents)
        goto done;
    DECANT_TRY(decant_container_describe(c->other, path, &other_type, &other_shape, err));
    DECANT_TRY(decant_container_get_integer(c->mine, path, "crc32", &checksum, err));
    DECANT_TRY(decant_container_get_integer(c->other, path, "crc32", &other_checksum, err));
    if (type != other_type || !same_shape(shape, &other_shape))
        tell_difference(c, path, "another type or shape", "");
    else if (checksum != other_checksum)
        tell_difference(c, path, "other contents", "");
done:
    return status;
}

static decant_status compare(const decant_options *options, FILE *stream, decant_error *err)
{
    decant_container *first = NULL, *second = NULL;
    decant_status status;
    DECANT_TRY(decant_container_open(options->container, &first, err));
    DECANT_TRY(decant_container_open(options->second_container, &second, err));
    comparison forth = {
        .mine = first, .other = second, .name = options->container, .contents = true, .stream = stream};
    comparison back = {.mine = second, .other = first, .name = options->second_container, .stream = stream};
    DECANT_TRY(decant_container_each(first, compare_dataset, &forth, err));
    DECANT_TRY(decant_container_each(second, compare_dataset, &back, err));
    int64_t differences = forth.differences + back.differences;
    if (differences > 0)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s and %s differ in %lld datasets", options->container,
                    options->second_container, (long long)differences);
    fprintf(stream, "the same contents\n");
done:
    decant_container_close(&first);
    decant_container_close(&second);
    return status;
}

decant_status decant_examine(const decant_options *options, FILE *stream, decant_error *err)
{
    switch (options->command) {
    case DECANT_COMMAND_INSPECT:
        return inspect(options, stream, err);
    case DECANT_COMMAND_ALLOCATE:
        return allocate(options, stream, err);
    case DECANT_COMMAND_VERIFY:
        return verify(options, stream, err);
    default:
        return compare(options, stream, err);
    }
}
