/* See model_check.h. Layers are read with what reads them for validation, onto the CPU. */
#include "stages/model_check.h"

#include "base/memory.h"
#include "stages/quantize.h"
#include "stages/source.h"

#include <stdio.h>
#include <string.h>

decant_status decant_model_check_kind(const decant_container *container, const char *path, decant_error *err)
{
    char kind[32];
    decant_status status = decant_container_get_text(container, "/", "kind", kind, sizeof kind, err);
    if (status == DECANT_OK && strcmp(kind, "model") != 0)
        status = DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s holds %s, not a model", path, kind);
    return status;
}

decant_status decant_model_check_same(const char *container, const decant_model_config *own, const char *folder,
                                      const decant_model_config *config, decant_error *err)
{
    const char *key = decant_model_config_difference(own, config);
    if (!key)
        return DECANT_OK;
    return DECANT_ERROR(
        err, DECANT_ERROR_INPUT,
        "%s is not of the model %s: their configurations differ in %s; name the one that it was made "
        "of, or none",
        container, folder, key);
}

/* ---- shapes ---- */

static decant_status check_tensor(const decant_container *container, const char *name, int64_t rows,
                                  int64_t columns, decant_error *err)
{
    char path[DECANT_CONTAINER_PATH_BYTES];
    decant_stored type;
    decant_shape shape;
    snprintf(path, sizeof path, "/%s", name);
    decant_status status = decant_container_describe(container, path, &type, &shape, err);
    if (status != DECANT_OK)
        return status;
    bool is_vector = shape.dimensions == 1 && rows == 1 && shape.extent[0] == columns;
    bool is_matrix = shape.dimensions == 2 && shape.extent[0] == rows && shape.extent[1] == columns;
    if (is_vector || is_matrix)
        return DECANT_OK;
    return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                        "%s: %s is not [%lld, %lld], as the model's configuration says",
                        decant_container_path(container), name, (long long)rows, (long long)columns);
}

static decant_status read_extent(const decant_container *container, const char *name, int64_t *rows,
                                 int64_t *columns, decant_error *err)
{
    char group[DECANT_CONTAINER_PATH_BYTES];
    decant_status status;
    snprintf(group, sizeof group, "/%s", name);
    DECANT_TRY(decant_container_get_integer(container, group, "rows", rows, err));
    DECANT_TRY(decant_container_get_integer(container, group, "columns", columns, err));
    if (*rows < 1 || *columns < 1 || *rows > INT32_MAX || *columns > INT32_MAX)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: %s claims an impossible shape",
                    decant_container_path(container), name);
done:
    return status;
}

static decant_status check_linear(const decant_container *container, const decant_linear *linear,
                                  decant_error *err)
{
    int64_t rows, columns;
    decant_status status = read_extent(container, linear->name, &rows, &columns, err);
    if (status == DECANT_OK && (rows != linear->rows || columns != linear->columns))
        return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                            "%s: %s is [%lld, %lld], the model's configuration says [%lld, %lld]",
                            decant_container_path(container), linear->name, (long long)rows, (long long)columns,
                            (long long)linear->rows, (long long)linear->columns);
    return status;
}

static decant_status check_block(const decant_container *container, const decant_model_config *config,
                                 const decant_family *family, int block, decant_error *err)
{
    decant_status status = DECANT_OK;
    for (int i = 0; i < family->linear_count; i++) {
        decant_linear linear;
        family->linear(config, block, i, &linear);
        DECANT_TRY(check_linear(container, &linear, err));
    }
    for (int i = 0; i < DECANT_BLOCK_VECTORS; i++) {
        decant_vector vector;
        family->vector(family, config, block, i, &vector);
        if (vector.length > 0)
            DECANT_TRY(check_tensor(container, vector.name, 1, vector.length, err));
    }
done:
    return status;
}

decant_status decant_model_check_shapes(const decant_container *container, decant_error *err)
{
    decant_model_config config = {0};
    const decant_family *family;
    decant_error unknown;
    decant_status status =
        decant_container_config(container, decant_container_path(container), &config, &unknown);
    if (status == DECANT_OK)
        status = decant_family_find(&config, &family, &unknown);
    if (status != DECANT_OK) {
        decant_model_config_free(&config);
        return DECANT_OK;
    }
    for (int block = 0; block < config.layers; block++)
        DECANT_TRY(check_block(container, &config, family, block, err));
    for (int i = 0; i < DECANT_ENDS; i++) {
        decant_end_tensor tensor;
        family->end(&config, (decant_end)i, &tensor);
        if (tensor.rows > 0)
            DECANT_TRY(check_tensor(container, tensor.name, tensor.rows, tensor.columns, err));
    }
done:
    decant_model_config_free(&config);
    return status;
}

/* ---- layers ---- */

static decant_status check_layer(const decant_container *container, const decant_weight_source *source,
                                 decant_backend *backend, const char *name, decant_error *err)
{
    decant_packed_matrix *packed = NULL;
    decant_grid_matrix *grid = NULL;
    int64_t rows, columns;
    decant_status status;
    DECANT_TRY(read_extent(container, name, &rows, &columns, err));
    DECANT_TRY(source->packed(source->context, backend, name, rows, columns, &packed, err));
    if (!packed)
        DECANT_TRY(source->grid(source->context, backend, name, rows, columns, &grid, err));
done:
    if (packed)
        decant_packed_matrix_free(backend, packed);
    if (grid)
        decant_grid_matrix_free(backend, grid);
    decant_memory_free(packed);
    decant_memory_free(grid);
    return status;
}

/* Names of layers, a line each, cut up. */
static decant_status check_named(const decant_container *container, char *names, decant_error *err)
{
    decant_container_source *source = NULL;
    decant_backend *backend = NULL;
    char *rest = NULL;
    decant_status status;
    DECANT_TRY(decant_backend_create_cpu(1, &backend, err));
    DECANT_TRY(decant_container_source_create(container, &source, err));
    decant_container_source_skip_codes(source);
    decant_weight_source weights = decant_source_of_container(source);
    for (char *name = strtok_r(names, "\n", &rest); name; name = strtok_r(NULL, "\n", &rest))
        DECANT_TRY(check_layer(container, &weights, backend, name, err));
done:
    decant_container_source_destroy(&source);
    decant_backend_destroy(&backend);
    return status;
}

decant_status decant_model_check_layers(const decant_container *container, decant_error *err)
{
    static const char path[] = "/errors/layers";
    char *names = NULL;
    decant_stored type;
    decant_shape shape;
    decant_status status;
    DECANT_TRY(decant_container_describe(container, path, &type, &shape, err));
    if (type != DECANT_STORED_U8 || shape.dimensions != 1)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: %s is no text", decant_container_path(container), path);
    DECANT_TRY(decant_memory_allocate((size_t)shape.extent[0] + 1, path, (void **)&names, err));
    DECANT_TRY(decant_container_read(container, path, type, &shape, names, err));
    DECANT_TRY(check_named(container, names, err));
done:
    decant_memory_free(names);
    return status;
}
