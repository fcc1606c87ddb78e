/* See layer_file.h. */
#include "stages/layer_file.h"

#include "base/memory.h"
#include "kernels/grid_form.h"
#include "kernels/level_grid.h"
#include "stages/methods/methods.h"

#include <stdio.h>

static int64_t group_of(const decant_candidate *choice, int64_t columns)
{
    return choice->group == 0 || choice->group > columns ? columns : choice->group;
}

/* ---- datasets ---- */

static decant_status define_part(decant_container_writer *writer, const char *layer, const char *part,
                                 decant_stored type, decant_shape shape, int *id, decant_error *err)
{
    char path[DECANT_CONTAINER_PATH_BYTES];
    snprintf(path, sizeof path, "/%s/%s", layer, part);
    return decant_container_define(writer, path, type, &shape, id, err);
}

static decant_status define_sparse(decant_container_writer *writer, const decant_linear *linear, int64_t count,
                                   decant_layer_datasets *datasets, decant_error *err)
{
    const char *name = linear->name;
    decant_stored index_type =
        decant_sparse_index_bytes(linear->columns) == 2 ? DECANT_STORED_U16 : DECANT_STORED_U32;
    decant_status status;
    DECANT_TRY(define_part(writer, name, "sparse/row_offsets", DECANT_STORED_U32,
                           (decant_shape){1, {linear->rows + 1}}, &datasets->row_offsets, err));
    DECANT_TRY(define_part(writer, name, "sparse/columns", index_type, (decant_shape){1, {count}},
                           &datasets->columns, err));
    DECANT_TRY(define_part(writer, name, "sparse/values", DECANT_STORED_F16, (decant_shape){1, {count}},
                           &datasets->values, err));
done:
    return status;
}

static decant_status define_packed(decant_container_writer *writer, const decant_linear *linear,
                                   const decant_layer_facts *facts, decant_layer_datasets *datasets,
                                   decant_error *err)
{
    int bits = facts->choice->code_bits;
    int64_t rows = linear->rows, words = (linear->columns + 31) / 32;
    decant_status status;
    DECANT_TRY(define_part(writer, linear->name, "codes", DECANT_STORED_U32,
                           (decant_shape){3, {rows, bits, words}}, &datasets->codes, err));
    bool are_bytes = facts->choice->method == DECANT_METHOD_GUIDED && decant_levels_are_bytes(1 << bits);
    DECANT_TRY(define_part(writer, linear->name, "levels", are_bytes ? DECANT_STORED_U8 : DECANT_STORED_F16,
                           (decant_shape){2, {rows, (int64_t)1 << bits}}, &datasets->levels, err));
    if (are_bytes)
        DECANT_TRY(define_part(writer, linear->name, "level_exponents", DECANT_STORED_U8,
                               (decant_shape){1, {rows}}, &datasets->exponents, err));
    if (facts->choice->sparse_count > 0)
        DECANT_TRY(define_sparse(writer, linear, facts->choice->sparse_count, datasets, err));
done:
    return status;
}

static decant_status define_on_grid(decant_container_writer *writer, const decant_linear *linear,
                                    const decant_candidate *choice, decant_layer_datasets *datasets,
                                    decant_error *err)
{
    int64_t rows = linear->rows, words = decant_grid_words(linear->columns, choice->dimension);
    decant_shape scales = {2, {rows, decant_grid_groups(linear->columns, group_of(choice, linear->columns))}};
    decant_status status;
    DECANT_TRY(define_part(writer, linear->name, "codes", DECANT_STORED_U32,
                           (decant_shape){3, {rows, choice->code_bits, words}}, &datasets->codes, err));
    DECANT_TRY(define_part(writer, linear->name, "scales", DECANT_STORED_F16, scales, &datasets->scales, err));
    if (decant_method_operations_of((decant_method)choice->method)->has_offsets)
        DECANT_TRY(
            define_part(writer, linear->name, "offsets", DECANT_STORED_F16, scales, &datasets->offsets, err));
done:
    return status;
}

/* The dataset of the grid that a candidate lies on: "/grids/higgs_2_256", by method, dimension and points. */
static void name_grid_dataset(const decant_candidate *candidate, char path[DECANT_CONTAINER_PATH_BYTES])
{
    snprintf(path, DECANT_CONTAINER_PATH_BYTES, "/grids/%s_%d_%d",
             decant_method_name((decant_method)candidate->method), candidate->dimension,
             1 << candidate->code_bits);
}

/* ---- attributes ---- */

static decant_status set_grid_attributes(decant_container_writer *writer, const char *path,
                                         const decant_linear *linear, const decant_layer_facts *facts,
                                         decant_error *err)
{
    const decant_candidate *choice = facts->choice;
    char grid[DECANT_CONTAINER_PATH_BYTES];
    name_grid_dataset(choice, grid);
    decant_status status;
    DECANT_TRY(decant_container_set_integer(writer, path, "code_bits", choice->code_bits, err));
    DECANT_TRY(decant_container_set_integer(writer, path, "dimension", choice->dimension, err));
    DECANT_TRY(decant_container_set_text(writer, path, "grid", grid, err));
    DECANT_TRY(decant_container_set_integer(writer, path, "group", group_of(choice, linear->columns), err));
    DECANT_TRY(decant_container_set_integer(writer, path, "rotation", choice->rotation, err));
    if (choice->rotation > 1)
        DECANT_TRY(decant_container_set_integer(writer, path, "seed", (int64_t)facts->seed, err));
done:
    return status;
}

static decant_status set_attributes(decant_container_writer *writer, const decant_linear *linear,
                                    const decant_layer_facts *facts, decant_error *err)
{
    const decant_candidate *choice = facts->choice;
    char path[DECANT_CONTAINER_PATH_BYTES];
    snprintf(path, sizeof path, "/%s", linear->name);
    decant_status status;
    DECANT_TRY(decant_container_set_text(writer, path, "method",
                                         decant_method_name((decant_method)choice->method), err));
    DECANT_TRY(decant_container_set_text(writer, path, "packing", "bit planes", err));
    if (decant_candidate_is_on_grid(choice))
        DECANT_TRY(set_grid_attributes(writer, path, linear, facts, err));
    else
        DECANT_TRY(decant_container_set_integer(writer, path, "bits", choice->code_bits, err));
    DECANT_TRY(decant_container_set_integer(writer, path, "rows", linear->rows, err));
    DECANT_TRY(decant_container_set_integer(writer, path, "columns", linear->columns, err));
    DECANT_TRY(decant_container_set_integer(writer, path, "sparse_count", choice->sparse_count, err));
    DECANT_TRY(decant_container_set_integer(writer, path, "stored_bytes", choice->bytes, err));
    DECANT_TRY(decant_container_set_integer(writer, path, "source_crc32", facts->row->source_checksum, err));
    if (facts->predicts_loss)
        DECANT_TRY(decant_container_set_real(writer, path, "predicted_loss_increase", choice->predicted, err));
    DECANT_TRY(decant_container_set_real(writer, path, "relative_error", choice->relative, err));
done:
    return status;
}

/* ---- a layer ---- */

decant_status decant_layer_define(decant_container_writer *writer, const decant_linear *linear,
                                  const decant_layer_facts *facts, decant_layer_datasets *datasets,
                                  decant_error *err)
{
    decant_status status;
    *datasets = (decant_layer_datasets){-1, -1, -1, -1, -1, -1, -1, -1};
    if (decant_candidate_is_on_grid(facts->choice))
        DECANT_TRY(define_on_grid(writer, linear, facts->choice, datasets, err));
    else
        DECANT_TRY(define_packed(writer, linear, facts, datasets, err));
    DECANT_TRY(set_attributes(writer, linear, facts, err));
done:
    return status;
}

/* Column indices are U32 on the device and, where they fit, U16 in the file. */
static void depart_packed(decant_departure *departure, const decant_layer_datasets *ids,
                          const decant_packed_matrix *packed)
{
    int64_t rows = packed->rows, words = (packed->columns + 31) / 32, count = packed->sparse.count;
    bool is_narrowed = decant_sparse_index_bytes(packed->columns) == 2;
    const decant_departing_array arrays[] = {
        {ids->codes, packed->planes, rows * packed->bits * words, 4, false, 0, -1},
        {ids->levels, packed->levels, rows << packed->bits, 2, false,
         ids->exponents < 0 ? 0 : 1 << packed->bits, ids->exponents},
        {ids->row_offsets, packed->sparse.row_offsets, rows + 1, 4, false, 0, -1},
        {ids->columns, packed->sparse.columns, count, 4, is_narrowed, 0, -1},
        {ids->values, packed->sparse_values, count, 2, false, 0, -1},
    };
    size_t dense = 2, all = sizeof arrays / sizeof *arrays;
    for (size_t i = 0; i < (count > 0 ? all : dense); i++)
        decant_departure_add(departure, arrays[i]);
}

static void depart_grid(decant_departure *departure, const decant_layer_datasets *ids,
                        const decant_grid_matrix *grid)
{
    int64_t words = decant_grid_words(grid->columns, grid->form.dimension);
    int64_t scales = grid->rows * decant_grid_groups(grid->columns, grid->form.group);
    decant_departure_add(departure,
                         (decant_departing_array){ids->codes, grid->planes,
                                                  grid->rows * grid->form.code_bits * words, 4, false, 0, -1});
    decant_departure_add(departure,
                         (decant_departing_array){ids->scales, grid->scales, scales, 2, false, 0, -1});
    if (grid->form.has_offsets)
        decant_departure_add(departure,
                             (decant_departing_array){ids->offsets, grid->offsets, scales, 2, false, 0, -1});
}

void decant_layer_depart(decant_departure *departure, const decant_layer_datasets *datasets,
                         const decant_encoded_layer *encoded)
{
    if (encoded->grid.form.points)
        depart_grid(departure, datasets, &encoded->grid);
    else
        depart_packed(departure, datasets, &encoded->packed);
}

/* ---- a layer of an earlier container ---- */

/* Reading checks that the earlier dataset has the type and the shape of the new one. */
static decant_status copy_dataset(decant_container_writer *writer, const decant_container *earlier,
                                  const char *path, int id, decant_error *err)
{
    decant_stored type;
    decant_shape shape;
    void *data = NULL;
    int64_t count = 1;
    decant_status status;
    decant_container_defined(writer, id, &type, &shape);
    for (int i = 0; i < shape.dimensions; i++)
        count *= shape.extent[i];
    DECANT_TRY(decant_memory_allocate((size_t)count * decant_stored_bytes(type), path, &data, err));
    DECANT_TRY(decant_container_read(earlier, path, type, &shape, data, err));
    DECANT_TRY(decant_container_write(writer, id, 0, count, data, err));
done:
    decant_memory_free(data);
    return status;
}

decant_status decant_layer_copy(decant_container_writer *writer, const decant_container *earlier,
                                const decant_linear *linear, const decant_layer_datasets *datasets,
                                decant_error *err)
{
    const struct {
        const char *part;
        int id;
    } parts[] = {
        {"codes", datasets->codes},
        {"levels", datasets->levels},
        {"level_exponents", datasets->exponents},
        {"sparse/row_offsets", datasets->row_offsets},
        {"sparse/columns", datasets->columns},
        {"sparse/values", datasets->values},
        {"scales", datasets->scales},
        {"offsets", datasets->offsets},
    };
    decant_status status = DECANT_OK;
    for (size_t i = 0; status == DECANT_OK && i < sizeof parts / sizeof *parts; i++) {
        char path[DECANT_CONTAINER_PATH_BYTES];
        if (parts[i].id < 0)
            continue;
        snprintf(path, sizeof path, "/%s/%s", linear->name, parts[i].part);
        status = copy_dataset(writer, earlier, path, parts[i].id, err);
    }
    return status;
}

/* ---- grids ---- */

static decant_shape grid_shape(const decant_candidate *candidate)
{
    return (decant_shape){2, {(int64_t)1 << candidate->code_bits, candidate->dimension}};
}

/* In the order of the candidates, which all layers share. */
static void list_grids(const decant_error_table *table, const int *chosen, decant_grid_datasets *grids)
{
    bool is_chosen[DECANT_CANDIDATES] = {false};
    for (int64_t i = 0; i < table->layers; i++)
        is_chosen[chosen[i]] = true;
    grids->count = 0;
    for (int i = 0; i < table->rows[0].candidates; i++) {
        const decant_candidate *candidate = &table->rows[0].candidate[i];
        if (!is_chosen[i] || !decant_candidate_is_on_grid(candidate))
            continue;
        int place = 0;
        while (place < grids->count && !decant_candidates_share_grid(&grids->candidate[place], candidate))
            place++;
        grids->candidate[place] = *candidate;
        grids->count += place == grids->count;
    }
}

decant_status decant_grids_define(decant_container_writer *writer, const decant_error_table *table,
                                  const int *chosen, decant_grid_datasets *grids, decant_error *err)
{
    list_grids(table, chosen, grids);
    for (int i = 0; i < grids->count; i++) {
        char path[DECANT_CONTAINER_PATH_BYTES];
        decant_shape shape = grid_shape(&grids->candidate[i]);
        name_grid_dataset(&grids->candidate[i], path);
        decant_status status =
            decant_container_define(writer, path, DECANT_STORED_F32, &shape, &grids->id[i], err);
        if (status != DECANT_OK)
            return status;
    }
    return DECANT_OK;
}

decant_status decant_grids_write(decant_container_writer *writer, const decant_grid_datasets *grids,
                                 decant_error *err)
{
    for (int i = 0; i < grids->count; i++) {
        const decant_candidate *candidate = &grids->candidate[i];
        const float *points = decant_method_operations_of((decant_method)candidate->method)->points(candidate);
        decant_shape shape = grid_shape(candidate);
        decant_status status =
            decant_container_write(writer, grids->id[i], 0, shape.extent[0] * shape.extent[1], points, err);
        if (status != DECANT_OK)
            return status;
    }
    return DECANT_OK;
}
