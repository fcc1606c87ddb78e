/* See source.h. The dataset names are those of docs/container.md. */
#include "stages/source.h"

#include "base/memory.h"
#include "stages/grid_source.h"
#include "stages/level_bytes.h"
#include "stages/quantize.h"

#include <stdio.h>
#include <string.h>

/* ---- a folder of safetensors ---- */

static decant_status matrix_of_model(void *context, const char *name, int64_t rows, int64_t columns,
                                     decant_matrix *matrix, decant_error *err)
{
    return decant_safetensors_matrix(context, name, rows, columns, matrix, err);
}

static void expect_of_model(void *context, decant_matrix matrix)
{
    decant_safetensors_expect(context, matrix);
}

static void dismiss_of_model(void *context, decant_matrix matrix)
{
    decant_safetensors_dismiss(context, matrix);
}

decant_weight_source decant_source_of_model(const decant_safetensors *model)
{
    return (decant_weight_source){.context = (void *)model,
                                  .matrix = matrix_of_model,
                                  .expect = expect_of_model,
                                  .dismiss = dismiss_of_model};
}

/* ---- a container ---- */

struct decant_container_source {
    const decant_container *container;
    void **blocks; /* tensors read so far */
    int64_t count, room;
    decant_kept_grids grids;
    bool skips_codes;
};

decant_status decant_container_source_create(const decant_container *container,
                                             decant_container_source **source, decant_error *err)
{
    decant_status status =
        decant_memory_allocate(sizeof **source, "a container's tensors", (void **)source, err);
    if (status == DECANT_OK)
        (*source)->container = container;
    return status;
}

void decant_container_source_destroy(decant_container_source **source)
{
    if (!*source)
        return;
    for (int64_t i = 0; i < (*source)->count; i++)
        decant_memory_free((*source)->blocks[i]);
    decant_memory_free((*source)->blocks);
    decant_kept_grids_free(&(*source)->grids);
    decant_memory_free(*source);
    *source = NULL;
}

void decant_container_source_skip_codes(decant_container_source *source)
{
    source->skips_codes = true;
}

/* Memory that lives as long as the source. */
static decant_status keep_block(decant_container_source *source, size_t size_bytes, const char *what,
                                void **block, decant_error *err)
{
    decant_status status;
    DECANT_TRY(decant_memory_grow(sizeof *source->blocks, source->count, &source->room, "a container's tensors",
                                  (void **)&source->blocks, err));
    DECANT_TRY(decant_memory_allocate(size_bytes, what, block, err));
    source->blocks[source->count++] = *block;
done:
    return status;
}

static bool element_of_stored(decant_stored type, decant_element *element)
{
    *element = type == DECANT_STORED_F32 ? DECANT_F32 : type == DECANT_STORED_F16 ? DECANT_F16 : DECANT_BF16;
    return type == DECANT_STORED_F32 || type == DECANT_STORED_F16 || type == DECANT_STORED_BF16;
}

static decant_status matrix_of_container(void *context, const char *name, int64_t rows, int64_t columns,
                                         decant_matrix *matrix, decant_error *err)
{
    decant_container_source *source = context;
    char path[DECANT_CONTAINER_PATH_BYTES];
    snprintf(path, sizeof path, "/%s", name);
    decant_stored type;
    decant_shape shape;
    decant_status status;
    *matrix = (decant_matrix){.rows = rows, .columns = columns};
    DECANT_TRY(decant_container_describe(source->container, path, &type, &shape, err));
    bool is_vector = shape.dimensions == 1 && rows == 1 && shape.extent[0] == columns;
    bool is_matrix = shape.dimensions == 2 && shape.extent[0] == rows && shape.extent[1] == columns;
    if (!(is_vector || is_matrix) || !element_of_stored(type, &matrix->element))
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s in the container is no [%lld, %lld] array of floats", path,
                    (long long)rows, (long long)columns);
    DECANT_TRY(keep_block(source, decant_matrix_bytes(*matrix), name, &matrix->data, err));
    DECANT_TRY(decant_container_read(source->container, path, type, &shape, matrix->data, err));
done:
    return status;
}

decant_status decant_source_require(const decant_container *container, const char *group, const char *part,
                                    decant_stored type, decant_shape shape, decant_error *err)
{
    char path[DECANT_CONTAINER_PATH_BYTES];
    decant_stored found_type;
    decant_shape found;
    snprintf(path, sizeof path, "/%s/%s", group, part);
    decant_status status = decant_container_describe(container, path, &found_type, &found, err);
    if (status != DECANT_OK)
        return status;
    bool fits = found_type == type && found.dimensions == shape.dimensions;
    for (int d = 0; fits && d < shape.dimensions; d++)
        fits = found.extent[d] == shape.extent[d];
    if (!fits)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: %s has not the type and shape that its layer claims",
                            decant_container_path(container), path);
    return DECANT_OK;
}

decant_status decant_source_read_to_device(const decant_container *container, decant_backend *backend,
                                           const char *group, const char *part, decant_stored type,
                                           decant_shape shape, void *device, decant_error *err)
{
    char path[DECANT_CONTAINER_PATH_BYTES];
    snprintf(path, sizeof path, "/%s/%s", group, part);
    size_t size_bytes = decant_stored_bytes(type);
    for (int i = 0; i < shape.dimensions; i++)
        size_bytes *= (size_t)shape.extent[i];
    void *host = NULL;
    decant_status status;
    DECANT_TRY(decant_memory_allocate(size_bytes, path, &host, err));
    DECANT_TRY(decant_container_read(container, path, type, &shape, host, err));
    DECANT_TRY(backend->memory->upload(backend, device, host, size_bytes, err));
done:
    decant_memory_free(host);
    return status;
}

/* The row offsets and columns of a CSR part, checked: a kernel indexes with them. */
static decant_status read_pattern(const decant_container *container, decant_backend *backend, const char *group,
                                  decant_packed_matrix *packed, decant_error *err)
{
    int64_t rows = packed->rows, count = packed->sparse.count;
    bool narrow = decant_sparse_index_bytes(packed->columns) == 2;
    char path[DECANT_CONTAINER_PATH_BYTES];
    uint32_t *row_offsets = NULL, *columns = NULL;
    decant_status status;
    DECANT_TRY(decant_memory_allocate((size_t)(rows + 1) * 4, group, (void **)&row_offsets, err));
    DECANT_TRY(decant_memory_allocate((size_t)count * 4, group, (void **)&columns, err));
    snprintf(path, sizeof path, "/%s/sparse/row_offsets", group);
    DECANT_TRY(decant_container_read(container, path, DECANT_STORED_U32, &(decant_shape){1, {rows + 1}},
                                     row_offsets, err));
    snprintf(path, sizeof path, "/%s/sparse/columns", group);
    DECANT_TRY(decant_container_read(container, path, narrow ? DECANT_STORED_U16 : DECANT_STORED_U32,
                                     &(decant_shape){1, {count}}, columns, err));
    if (narrow) /* widen in place, from the end */
        for (int64_t i = count - 1; i >= 0; i--) {
            uint16_t column;
            memcpy(&column, (const char *)columns + 2 * i, sizeof column);
            columns[i] = column;
        }
    const decant_sparse_pattern read = {count, row_offsets, columns};
    if (!decant_sparse_pattern_fits(&read, rows, packed->columns))
        DECANT_FAIL(err, DECANT_ERROR_INPUT,
                    "%s: /%s has sparse indices that lie outside the matrix or do not ascend",
                    decant_container_path(container), group);
    DECANT_TRY(
        backend->memory->upload(backend, packed->sparse.row_offsets, row_offsets, (size_t)(rows + 1) * 4, err));
    DECANT_TRY(backend->memory->upload(backend, packed->sparse.columns, columns, (size_t)count * 4, err));
done:
    decant_memory_free(row_offsets);
    decant_memory_free(columns);
    return status;
}

/* Levels of a byte each, as F16 to the device. */
static decant_status read_byte_levels(const decant_container *container, decant_backend *backend,
                                      const char *name, const decant_packed_matrix *packed, decant_error *err)
{
    const int64_t rows = packed->rows, count = (int64_t)1 << packed->bits;
    char path[DECANT_CONTAINER_PATH_BYTES];
    uint8_t *bytes = NULL, *exponents = NULL;
    uint16_t *levels = NULL;
    decant_status status;
    DECANT_TRY(decant_memory_allocate((size_t)(rows * count), name, (void **)&bytes, err));
    DECANT_TRY(decant_memory_allocate((size_t)rows, name, (void **)&exponents, err));
    DECANT_TRY(decant_memory_allocate((size_t)(rows * count) * sizeof *levels, name, (void **)&levels, err));
    snprintf(path, sizeof path, "/%s/levels", name);
    DECANT_TRY(decant_container_read(container, path, DECANT_STORED_U8, &(decant_shape){2, {rows, count}},
                                     bytes, err));
    snprintf(path, sizeof path, "/%s/level_exponents", name);
    DECANT_TRY(
        decant_container_read(container, path, DECANT_STORED_U8, &(decant_shape){1, {rows}}, exponents, err));
    DECANT_TRY(decant_error_name(decant_levels_from_bytes(bytes, exponents, rows, (int)count, levels, err),
                                 name, err));
    DECANT_TRY(
        backend->memory->upload(backend, packed->levels, levels, (size_t)(rows * count) * sizeof *levels, err));
done:
    decant_memory_free(bytes);
    decant_memory_free(exponents);
    decant_memory_free(levels);
    return status;
}

static decant_status read_levels(const decant_container *container, decant_backend *backend, const char *name,
                                 const decant_packed_matrix *packed, decant_error *err)
{
    char path[DECANT_CONTAINER_PATH_BYTES];
    snprintf(path, sizeof path, "/%s/level_exponents", name);
    if (decant_container_has(container, path))
        return read_byte_levels(container, backend, name, packed, err);
    return decant_source_read_to_device(container, backend, name, "levels", DECANT_STORED_F16,
                                        (decant_shape){2, {packed->rows, (int64_t)1 << packed->bits}},
                                        packed->levels, err);
}

static decant_status read_packed(const decant_container_source *source, decant_backend *backend,
                                 const char *name, int64_t rows, int64_t columns, decant_packed_matrix *packed,
                                 decant_error *err)
{
    const decant_container *container = source->container;
    char group[DECANT_CONTAINER_PATH_BYTES], path[DECANT_CONTAINER_PATH_BYTES];
    snprintf(group, sizeof group, "/%s", name);
    int64_t bits, count = 0;
    decant_shape shape;
    decant_stored type;
    decant_status status;
    DECANT_TRY(decant_container_get_integer(container, group, "bits", &bits, err));
    if (bits < DECANT_BITS_MINIMUM || bits > DECANT_BITS_MAXIMUM)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s in the container has %lld bits", name, (long long)bits);
    snprintf(path, sizeof path, "/%s/sparse/values", name);
    if (decant_container_has(container, path)) {
        DECANT_TRY(decant_container_describe(container, path, &type, &shape, err));
        count = shape.dimensions == 1 ? shape.extent[0] : -1;
        if (count < 0 || count > rows * columns || count > UINT32_MAX)
            DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s in the container has an impossible shape", path);
    }
    const decant_shape codes = {3, {rows, bits, (columns + 31) / 32}};
    DECANT_TRY(decant_source_require(container, name, "codes", DECANT_STORED_U32, codes, err));
    DECANT_TRY(decant_packed_matrix_create(backend, rows, columns, (int)bits, count, packed, err));
    if (!source->skips_codes)
        DECANT_TRY(decant_source_read_to_device(container, backend, name, "codes", DECANT_STORED_U32, codes,
                                                packed->planes, err));
    DECANT_TRY(read_levels(container, backend, name, packed, err));
    if (count > 0) {
        DECANT_TRY(read_pattern(container, backend, name, packed, err));
        DECANT_TRY(decant_source_read_to_device(container, backend, name, "sparse/values", DECANT_STORED_F16,
                                                (decant_shape){1, {count}}, packed->sparse_values, err));
    }
    DECANT_TRY(backend->validate->prepare(backend, packed, err));
done:
    return status;
}

static decant_status packed_of_container(void *context, decant_backend *backend, const char *name, int64_t rows,
                                         int64_t columns, decant_packed_matrix **packed, decant_error *err)
{
    decant_container_source *source = context;
    bool is_on_grid = false;
    decant_status status;
    DECANT_TRY(decant_grid_source_has(source->container, name, &is_on_grid, err));
    if (is_on_grid)
        goto done;
    DECANT_TRY(decant_memory_allocate(sizeof **packed, name, (void **)packed, err));
    DECANT_TRY(read_packed(source, backend, name, rows, columns, *packed, err));
done:
    if (status != DECANT_OK && *packed) {
        decant_packed_matrix_free(backend, *packed);
        decant_memory_free(*packed);
        *packed = NULL;
    }
    return status;
}

static decant_status grid_of_container(void *context, decant_backend *backend, const char *name, int64_t rows,
                                       int64_t columns, decant_grid_matrix **grid, decant_error *err)
{
    decant_container_source *source = context;
    bool is_on_grid = false;
    decant_status status;
    DECANT_TRY(decant_grid_source_has(source->container, name, &is_on_grid, err));
    if (!is_on_grid)
        goto done;
    DECANT_TRY(decant_memory_allocate(sizeof **grid, name, (void **)grid, err));
    DECANT_TRY(decant_grid_source_read(source->container, backend, &source->grids, name, rows, columns,
                                       source->skips_codes, *grid, err));
    DECANT_TRY(backend->grid->prepare(backend, *grid, err));
done:
    if (status != DECANT_OK && *grid) {
        decant_grid_matrix_free(backend, *grid);
        decant_memory_free(*grid);
        *grid = NULL;
    }
    return status;
}

decant_weight_source decant_source_of_container(decant_container_source *source)
{
    return (decant_weight_source){.context = source,
                                  .matrix = matrix_of_container,
                                  .packed = packed_of_container,
                                  .grid = grid_of_container};
}

decant_status decant_container_config(const decant_container *container, const char *origin,
                                      decant_model_config *config, decant_error *err)
{
    decant_stored type;
    decant_shape shape;
    char *json = NULL;
    decant_status status;
    DECANT_TRY(decant_container_describe(container, "/config", &type, &shape, err));
    if (type != DECANT_STORED_U8 || shape.dimensions != 1)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: /config is no text", origin);
    DECANT_TRY(decant_memory_allocate((size_t)shape.extent[0] + 1, "the model's config", (void **)&json, err));
    DECANT_TRY(decant_container_read(container, "/config", type, &shape, json, err));
    DECANT_TRY(decant_model_config_parse(json, (size_t)shape.extent[0], origin, config, err));
done:
    decant_memory_free(json);
    return status;
}
