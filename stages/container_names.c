/* See container_names.h. A tensor that stays whole is a dataset of its name, a quantized layer a group; nothing
 * else can have a dataset's path, or lie beneath it. */
#include "stages/container_names.h"

#include "base/memory.h"
#include "io/container.h"
#include "stages/linear_weight.h"

#include <stdio.h>
#include <string.h>

/* A model and which of its tensors become layers; [tensors of the model]. */
typedef struct named_model {
    const decant_safetensors *model;
    bool *is_layer;
} named_model;

static void mark_layers(const named_model *named, const decant_model_config *config,
                        const decant_family *family)
{
    for (int i = 0; i < config->layers * family->linear_count; i++) {
        char name[DECANT_WEIGHT_NAME_BYTES];
        decant_linear linear;
        family->linear(config, i / family->linear_count, i % family->linear_count, &linear);
        decant_linear_weight_name(&linear, name);
        int64_t tensor = decant_safetensors_index(named->model, name);
        if (tensor >= 0)
            named->is_layer[tensor] = true;
    }
}

/* Is the first part of the path one of the container's own? */
static bool is_own_part(const char *path)
{
    static const char *const parts[] = {"config", "errors", "allocation", "grids", "sensitivity"};
    size_t length = strcspn(path, "/");
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (strlen(parts[i]) == length && strncmp(path, parts[i], length) == 0)
            return true;
    return false;
}

/* Does a layer, or a tensor that stays whole and is not `self`, have this path? */
static bool is_taken(const named_model *named, const char *path, int64_t self)
{
    char weight[DECANT_CONTAINER_PATH_BYTES + sizeof ".weight"];
    snprintf(weight, sizeof weight, "%s.weight", path);
    int64_t whole = decant_safetensors_index(named->model, path),
            layer = decant_safetensors_index(named->model, weight);
    return (whole >= 0 && whole != self && !named->is_layer[whole]) ||
           (layer >= 0 && layer != self && named->is_layer[layer]);
}

static decant_status check_tensor(const named_model *named, int64_t index, decant_error *err)
{
    const decant_tensor *tensor = decant_safetensors_at(named->model, index);
    char path[DECANT_CONTAINER_PATH_BYTES];
    snprintf(path, sizeof path, "%s", tensor->name);
    if (named->is_layer[index])
        path[strlen(path) - strlen(".weight")] = '\0';
    bool is_free = !is_own_part(path) && !is_taken(named, path, index);
    for (char *slash = strrchr(path, '/'); is_free && slash; slash = strrchr(path, '/')) {
        *slash = '\0';
        is_free = !is_taken(named, path, index);
    }
    if (is_free)
        return DECANT_OK;
    return DECANT_ERROR(
        err, DECANT_ERROR_INPUT,
        "%s: tensor %.128s cannot be in a container: its place there is another part's (%s); give it "
        "another name",
        tensor->file, tensor->name, path);
}

decant_status decant_container_check_names(const decant_safetensors *model, const decant_model_config *config,
                                           const decant_family *family, decant_error *err)
{
    named_model named = {.model = model};
    decant_status status;
    DECANT_TRY(decant_memory_allocate((size_t)decant_safetensors_count(model) * sizeof *named.is_layer,
                                      "names of tensors", (void **)&named.is_layer, err));
    mark_layers(&named, config, family);
    for (int64_t i = 0; i < decant_safetensors_count(model) && status == DECANT_OK; i++)
        status = check_tensor(&named, i, err);
done:
    decant_memory_free(named.is_layer);
    return status;
}
