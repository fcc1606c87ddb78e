/* See grid_source.h. */
#include "stages/grid_source.h"

#include "base/memory.h"
#include "kernels/grid_form.h"
#include "stages/quantize.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- grids ---- */

void decant_kept_grids_free(decant_kept_grids *kept)
{
    for (int64_t i = 0; i < kept->count; i++)
        decant_memory_free(kept->grids[i].points);
    decant_memory_free(kept->grids);
    *kept = (decant_kept_grids){0};
}

static bool are_finite(const float *points, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        if (!isfinite(points[i]))
            return false;
    return true;
}

/* Reads a grid and keeps it. */
static decant_status keep_grid(const decant_container *container, const char *path, int dimension,
                               int code_bits, decant_kept_grids *kept, decant_error *err)
{
    decant_kept_grid grid = {.dimension = dimension, .code_bits = code_bits};
    decant_shape shape = {2, {(int64_t)1 << code_bits, dimension}};
    size_t count = (size_t)dimension << code_bits;
    decant_status status;
    snprintf(grid.path, sizeof grid.path, "%s", path);
    DECANT_TRY(decant_memory_allocate(count * sizeof *grid.points, path, (void **)&grid.points, err));
    DECANT_TRY(decant_container_read(container, path, DECANT_STORED_F32, &shape, grid.points, err));
    if (!are_finite(grid.points, (int64_t)count))
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s in the container has points that are not finite", path);
    DECANT_TRY(decant_memory_resize((size_t)(kept->count + 1) * sizeof *kept->grids, "grids",
                                    (void **)&kept->grids, err));
    kept->grids[kept->count++] = grid;
    grid.points = NULL;
done:
    decant_memory_free(grid.points);
    return status;
}

static decant_status find_grid(const decant_container *container, const char *path, decant_grid_form *form,
                               decant_kept_grids *kept, decant_error *err)
{
    int64_t i = 0;
    while (i < kept->count &&
           (strcmp(kept->grids[i].path, path) != 0 || kept->grids[i].dimension != form->dimension ||
            kept->grids[i].code_bits != form->code_bits))
        i++;
    if (i == kept->count) {
        decant_status status = keep_grid(container, path, form->dimension, form->code_bits, kept, err);
        if (status != DECANT_OK)
            return status;
    }
    form->points = kept->grids[i].points;
    return DECANT_OK;
}

/* ---- a layer ---- */

decant_status decant_grid_source_has(const decant_container *container, const char *name, bool *is_on_grid,
                                     decant_error *err)
{
    char group[DECANT_CONTAINER_PATH_BYTES], text[32];
    decant_method method;
    decant_status status;
    snprintf(group, sizeof group, "/%s", name);
    DECANT_TRY(decant_container_get_text(container, group, "method", text, sizeof text, err));
    if (!decant_method_find(text, &method))
        DECANT_FAIL(err, DECANT_ERROR_INPUT,
                    "%s in the container was quantized by '%s', which is no method that "
                    "this decant knows",
                    name, text);
    *is_on_grid = decant_method_is_on_grid(method);
done:
    return status;
}

static decant_status read_form(const decant_container *container, const char *group, int64_t columns,
                               decant_kept_grids *kept, decant_grid_form *form, decant_error *err)
{
    char path[DECANT_CONTAINER_PATH_BYTES], offsets[DECANT_CONTAINER_PATH_BYTES + sizeof "/offsets"];
    int64_t code_bits, dimension, seed = 0;
    decant_status status;
    DECANT_TRY(decant_container_get_integer(container, group, "code_bits", &code_bits, err));
    DECANT_TRY(decant_container_get_integer(container, group, "dimension", &dimension, err));
    DECANT_TRY(decant_container_get_integer(container, group, "group", &form->group, err));
    DECANT_TRY(decant_container_get_integer(container, group, "rotation", &form->rotation, err));
    DECANT_TRY(decant_container_get_text(container, group, "grid", path, sizeof path, err));
    if (code_bits < DECANT_GRID_BITS_MINIMUM || code_bits > DECANT_GRID_BITS_MAXIMUM || dimension < 1 ||
        dimension > DECANT_GRID_DIMENSION_MAXIMUM)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s in the container has codes of %lld bits for %lld columns",
                    group, (long long)code_bits, (long long)dimension);
    if (form->group < 1 || form->group > columns)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s in the container has groups of %lld of its %lld columns",
                    group, (long long)form->group, (long long)columns);
    if (form->rotation < 1 || form->rotation > DECANT_ROTATION_MAXIMUM ||
        (form->rotation & (form->rotation - 1)) != 0 || columns % form->rotation != 0)
        DECANT_FAIL(
            err, DECANT_ERROR_INPUT,
            "%s in the container is rotated in pieces of %lld, which is no power of two that divides its "
            "%lld columns",
            group, (long long)form->rotation, (long long)columns);
    if (form->rotation > 1)
        DECANT_TRY(decant_container_get_integer(container, group, "seed", &seed, err));
    form->code_bits = (int)code_bits;
    form->dimension = (int)dimension;
    form->seed = (uint64_t)seed;
    snprintf(offsets, sizeof offsets, "%s/offsets", group);
    form->has_offsets = decant_container_has(container, offsets);
    DECANT_TRY(find_grid(container, path, form, kept, err));
done:
    return status;
}

decant_status decant_grid_source_read(const decant_container *container, decant_backend *backend,
                                      decant_kept_grids *kept, const char *name, int64_t rows, int64_t columns,
                                      bool skips_codes, decant_grid_matrix *grid, decant_error *err)
{
    char group[DECANT_CONTAINER_PATH_BYTES];
    decant_grid_form form = {0};
    decant_status status;
    snprintf(group, sizeof group, "/%s", name);
    DECANT_TRY(read_form(container, group, columns, kept, &form, err));
    decant_shape scales = {2, {rows, decant_grid_groups(columns, form.group)}};
    decant_shape codes = {3, {rows, form.code_bits, decant_grid_words(columns, form.dimension)}};
    DECANT_TRY(decant_source_require(container, name, "codes", DECANT_STORED_U32, codes, err));
    DECANT_TRY(decant_source_require(container, name, "scales", DECANT_STORED_F16, scales, err));
    DECANT_TRY(decant_grid_matrix_create(backend, rows, columns, &form, grid, err));
    if (!skips_codes)
        DECANT_TRY(decant_source_read_to_device(container, backend, name, "codes", DECANT_STORED_U32, codes,
                                                grid->planes, err));
    DECANT_TRY(decant_source_read_to_device(container, backend, name, "scales", DECANT_STORED_F16, scales,
                                            grid->scales, err));
    if (form.has_offsets)
        DECANT_TRY(decant_source_read_to_device(container, backend, name, "offsets", DECANT_STORED_F16, scales,
                                                grid->offsets, err));
done:
    return status;
}
