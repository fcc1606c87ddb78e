/* `decant inspect`: what a container says of itself, as text or as JSON. */
#include "pipeline/container_plan.h"
#include "pipeline/examine.h"
#include "pipeline/print_json.h"

#include <math.h>
#include <sys/stat.h>

static const char *const text_attributes[] = {"program_version", "device", "options"};
static const char *const integer_attributes[] = {"quantized_weights", "quantized_bytes", "model_crc32"};
static const char *const real_attributes[] = {"bits"};
/* Where the job calibrated, and where it had text to validate on. */
static const char *const optional_integers[] = {"calibration_sequences", "calibration_length",
                                                "calibration_crc32"};
static const char *const optional_reals[] = {
    "predicted_loss_increase", "predicted_lower_bound", "predicted_from_sums",
    "calibration_loss",        "perplexity_original",   "perplexity_quantized",
    "kl_divergence",           "top1_agreement",        "measured_loss_increase"};
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

/* What the container says of itself, into `root`. */
static decant_status add_attributes(const decant_container *container, cJSON *root, decant_error *err)
{
    char text[1024];
    int64_t integer;
    double real;
    decant_error absent;
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
    for (size_t i = 0; i < COUNT(optional_integers); i++)
        if (decant_container_get_integer(container, "/", optional_integers[i], &integer, &absent) == DECANT_OK)
            cJSON_AddNumberToObject(root, optional_integers[i], (double)integer);
    for (size_t i = 0; i < COUNT(optional_reals); i++)
        if (decant_container_get_real(container, "/", optional_reals[i], &real, &absent) == DECANT_OK)
            cJSON_AddNumberToObject(root, optional_reals[i], real);
done:
    return status;
}

/* A line a member: a text, a whole number, or a real one in six digits. */
static void print_members(const cJSON *object, const char *prefix, FILE *stream)
{
    const cJSON *item;
    char name[64];
    cJSON_ArrayForEach(item, object)
    {
        snprintf(name, sizeof name, "%s%s", prefix, item->string);
        if (cJSON_IsString(item))
            fprintf(stream, "%-24s %s\n", name, item->valuestring);
        else if (item->valuedouble == floor(item->valuedouble))
            fprintf(stream, "%-24s %.0f\n", name, item->valuedouble);
        else
            fprintf(stream, "%-24s %.6g\n", name, item->valuedouble);
    }
}

static void print_text(const decant_container_plan *plan, int64_t file_bytes, const cJSON *attributes,
                       const cJSON *sensitivity, FILE *stream)
{
    fprintf(stream, "%-24s %lld\n", "file_bytes", (long long)file_bytes);
    print_members(attributes, "", stream);
    print_members(sensitivity, "sensitivity_", stream);
    fprintf(stream, "\n");
    decant_container_plan_print(plan, stream);
}

/* Takes both objects over. */
static decant_status print_json(const decant_container_plan *plan, int64_t file_bytes, cJSON *attributes,
                                cJSON *sensitivity, FILE *stream, decant_error *err)
{
    cJSON_AddNumberToObject(attributes, "file_bytes", (double)file_bytes);
    if (sensitivity)
        cJSON_AddItemToObject(attributes, "sensitivity", sensitivity);
    cJSON_AddItemToObject(attributes, "layers", decant_container_plan_as_json(plan));
    return decant_print_json(attributes, stream, err);
}

decant_status decant_inspect(const decant_options *options, FILE *stream, decant_error *err)
{
    decant_container *container = NULL;
    decant_container_plan plan = {0};
    struct stat file = {0};
    cJSON *attributes = NULL, *sensitivity = NULL;
    decant_status status;
    DECANT_TRY(decant_container_open(options->container, &container, err));
    stat(options->container, &file);
    DECANT_TRY(decant_container_plan_read(container, options->container, &plan, err));
    attributes = cJSON_CreateObject();
    DECANT_TRY(add_attributes(container, attributes, err));
    sensitivity = sensitivity_as_json(container);
    if (options->json) {
        status = print_json(&plan, file.st_size, attributes, sensitivity, stream, err);
        attributes = sensitivity = NULL;
    } else {
        print_text(&plan, file.st_size, attributes, sensitivity, stream);
    }
done:
    cJSON_Delete(attributes);
    cJSON_Delete(sensitivity);
    decant_container_plan_free(&plan);
    decant_container_close(&container);
    return status;
}
