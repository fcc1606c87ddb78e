/* See exported_tensors.h. */
#include "pipeline/exported_tensors.h"

#include "base/memory.h"
#include "stages/quantize.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static decant_status add_tensor(decant_exported_tensors *list, const char *name,
                                decant_exported_tensor **tensor, decant_error *err)
{
    decant_status status = decant_memory_grow(sizeof *list->tensors, list->count, &list->room,
                                              "the list of tensors", (void **)&list->tensors, err);
    if (status != DECANT_OK)
        return status;
    *tensor = &list->tensors[list->count++];
    **tensor = (decant_exported_tensor){0};
    snprintf((*tensor)->name, sizeof(*tensor)->name, "%s", name);
    return DECANT_OK;
}

static bool is_float(decant_stored type)
{
    return type == DECANT_STORED_F32 || type == DECANT_STORED_F16 || type == DECANT_STORED_BF16;
}

/* Datasets of floats at the root are the tensors that were not quantized. */
static decant_status note_dataset(void *context, const char *path, decant_stored type,
                                  const decant_shape *shape, decant_error *err)
{
    decant_exported_tensors *list = context;
    decant_exported_tensor *tensor;
    if (strchr(path + 1, '/') || !is_float(type))
        return DECANT_OK;
    decant_status status = add_tensor(list, path + 1, &tensor, err);
    if (status == DECANT_OK) {
        tensor->type = type;
        tensor->shape = *shape;
    }
    return status;
}

static decant_status read_layer(const decant_container *container, const char *name, decant_export_layer *layer,
                                decant_error *err)
{
    char group[DECANT_CONTAINER_PATH_BYTES + 1], method[32];
    int64_t bits = 0;
    decant_status status;
    snprintf(group, sizeof group, "/%s", name);
    snprintf(layer->name, sizeof layer->name, "%s", name);
    DECANT_TRY(decant_container_get_integer(container, group, "rows", &layer->rows, err));
    DECANT_TRY(decant_container_get_integer(container, group, "columns", &layer->columns, err));
    DECANT_TRY(decant_container_get_integer(container, group, "sparse_count", &layer->sparse_count, err));
    DECANT_TRY(decant_container_get_text(container, group, "method", method, sizeof method, err));
    if (layer->rows < 1 || layer->columns < 1 || layer->rows > INT32_MAX || layer->columns > INT32_MAX ||
        layer->sparse_count < 0 || layer->sparse_count > layer->rows * layer->columns)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: %s claims an impossible shape",
                    decant_container_path(container), name);
    if (strcmp(method, "kmeans") == 0 || strcmp(method, "guided") == 0) /* whose rows have levels */
        DECANT_TRY(decant_container_get_integer(container, group, "bits", &bits, err));
    layer->bits = bits >= DECANT_BITS_MINIMUM && bits <= DECANT_BITS_MAXIMUM ? (int)bits : 0;
done:
    return status;
}

static decant_status note_layers(const decant_container *container, decant_exported_tensors *list,
                                 decant_error *err)
{
    static const char path[] = "/errors/layers";
    char *names = NULL, *rest = NULL;
    decant_stored type;
    decant_shape shape;
    decant_exported_tensor *tensor;
    decant_status status;
    DECANT_TRY(decant_container_describe(container, path, &type, &shape, err));
    if (type != DECANT_STORED_U8 || shape.dimensions != 1)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: %s is no text", decant_container_path(container), path);
    DECANT_TRY(decant_memory_allocate((size_t)shape.extent[0] + 1, path, (void **)&names, err));
    DECANT_TRY(decant_container_read(container, path, type, &shape, names, err));
    for (char *name = strtok_r(names, "\n", &rest); name; name = strtok_r(NULL, "\n", &rest)) {
        DECANT_TRY(add_tensor(list, name, &tensor, err));
        tensor->is_layer = true;
        DECANT_TRY(read_layer(container, name, &tensor->layer, err));
    }
done:
    decant_memory_free(names);
    return status;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(((const decant_exported_tensor *)a)->name, ((const decant_exported_tensor *)b)->name);
}

decant_status decant_exported_tensors_list(const decant_container *container, decant_exported_tensors *list,
                                           decant_error *err)
{
    decant_status status;
    *list = (decant_exported_tensors){0};
    DECANT_TRY(decant_container_each(container, note_dataset, list, err));
    DECANT_TRY(note_layers(container, list, err));
    qsort(list->tensors, (size_t)list->count, sizeof *list->tensors, compare_names);
done:
    return status;
}

void decant_exported_tensors_free(decant_exported_tensors *list)
{
    decant_memory_free(list->tensors);
    *list = (decant_exported_tensors){0};
}

decant_element decant_exported_tensors_element(const decant_exported_tensors *list)
{
    int64_t weights[3] = {0};
    for (int64_t i = 0; i < list->count; i++) {
        const decant_exported_tensor *tensor = &list->tensors[i];
        int64_t count = tensor->is_layer ? 0 : 1;
        for (int d = 0; d < tensor->shape.dimensions; d++)
            count *= tensor->shape.extent[d];
        weights[tensor->type == DECANT_STORED_BF16 ? 0 : tensor->type == DECANT_STORED_F16 ? 1 : 2] += count;
    }
    return weights[0] > weights[1] && weights[0] >= weights[2] ? DECANT_BF16 : DECANT_F16;
}
