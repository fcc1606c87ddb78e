/* See quantized_file.h. */
#include "stages/quantized_file.h"

#include "base/memory.h"

#include <stdio.h>
#include <string.h>

enum { COSTS = 2 }; /* of a candidate */

static void name_dataset(const decant_linear *linear, const char *name, char path[DECANT_CONTAINER_PATH_BYTES])
{
    snprintf(path, DECANT_CONTAINER_PATH_BYTES, "/%s/%s", linear->name, name);
}

static void name_levels(const decant_linear *linear, int candidate, char path[DECANT_CONTAINER_PATH_BYTES])
{
    char name[32];
    snprintf(name, sizeof name, "levels.%d", candidate);
    name_dataset(linear, name, path);
}

static bool has_levels(const decant_candidate *candidate)
{
    return !decant_candidate_is_on_grid(candidate);
}

static decant_shape levels_shape(const decant_linear *linear, const decant_candidate *candidate)
{
    return (decant_shape){2, {linear->rows, (int64_t)1 << candidate->code_bits}};
}

static int64_t sparse_count(const decant_recipe *recipe, const decant_linear *linear)
{
    return recipe->uses[DECANT_METHOD_KMEANS]
               ? decant_recipe_sparse_count(recipe, linear->rows, linear->columns)
               : 0;
}

/* ---- writing ---- */

static decant_status define(decant_container_writer *writer, const decant_linear *linear, const char *name,
                            decant_stored type, decant_shape shape, int *id, decant_error *err)
{
    char path[DECANT_CONTAINER_PATH_BYTES];
    name_dataset(linear, name, path);
    return decant_container_define(writer, path, type, &shape, id, err);
}

decant_status decant_quantized_file_define(decant_container_writer *writer, const decant_recipe *recipe,
                                           const decant_linear *linear, decant_quantized_datasets *datasets,
                                           decant_error *err)
{
    int64_t sparse = sparse_count(recipe, linear);
    decant_candidate_list list;
    decant_status status;
    memset(datasets, -1, sizeof *datasets);
    DECANT_TRY(decant_recipe_offer(recipe, linear->rows, linear->columns, &list, err));
    DECANT_TRY(define(writer, linear, "source_crc32", DECANT_STORED_U32, (decant_shape){1, {1}},
                      &datasets->source, err));
    DECANT_TRY(define(writer, linear, "costs", DECANT_STORED_F64, (decant_shape){2, {list.count, COSTS}},
                      &datasets->costs, err));
    for (int i = 0; i < list.count; i++) {
        char path[DECANT_CONTAINER_PATH_BYTES];
        if (!has_levels(&list.candidate[i]))
            continue;
        decant_shape shape = levels_shape(linear, &list.candidate[i]);
        name_levels(linear, i, path);
        DECANT_TRY(decant_container_define(writer, path, DECANT_STORED_F16, &shape, &datasets->levels[i], err));
    }
    if (sparse > 0) {
        DECANT_TRY(define(writer, linear, "sparse_rows", DECANT_STORED_U32,
                          (decant_shape){1, {linear->rows + 1}}, &datasets->sparse_rows, err));
        DECANT_TRY(define(writer, linear, "sparse_columns", DECANT_STORED_U32, (decant_shape){1, {sparse}},
                          &datasets->sparse_columns, err));
    }
done:
    return status;
}

decant_status decant_quantized_file_write(decant_container_writer *writer,
                                          const decant_quantized_datasets *datasets,
                                          const decant_quantized_layer *layer, const decant_table_row *row,
                                          decant_error *err)
{
    double costs[DECANT_CANDIDATES][COSTS];
    decant_status status;
    for (int i = 0; i < layer->candidates; i++) {
        costs[i][0] = layer->candidate[i].predicted;
        costs[i][1] = layer->candidate[i].relative;
    }
    DECANT_TRY(decant_container_write(writer, datasets->source, 0, 1, &row->source_checksum, err));
    DECANT_TRY(
        decant_container_write(writer, datasets->costs, 0, (int64_t)layer->candidates * COSTS, costs, err));
    for (int i = 0; i < layer->candidates; i++)
        if (datasets->levels[i] >= 0)
            DECANT_TRY(decant_container_write(writer, datasets->levels[i], 0,
                                              layer->rows << layer->candidate[i].code_bits, layer->levels[i],
                                              err));
    if (datasets->sparse_rows >= 0) {
        DECANT_TRY(decant_container_write(writer, datasets->sparse_rows, 0, layer->rows + 1,
                                          layer->sparse.row_offsets, err));
        DECANT_TRY(decant_container_write(writer, datasets->sparse_columns, 0, layer->sparse.count,
                                          layer->sparse.columns, err));
    }
done:
    return status;
}

/* ---- reading ---- */

static decant_status read_array(const decant_container *file, const char *path, decant_stored type,
                                decant_shape shape, void **array, decant_error *err)
{
    size_t count = 1;
    for (int d = 0; d < shape.dimensions; d++)
        count *= (size_t)shape.extent[d];
    decant_status status = decant_memory_allocate(count * decant_stored_bytes(type), path, array, err);
    return status == DECANT_OK ? decant_container_read(file, path, type, &shape, *array, err) : status;
}

static decant_status read_pattern(const decant_container *file, const decant_linear *linear, int64_t count,
                                  decant_sparse_pattern *pattern, decant_error *err)
{
    char path[DECANT_CONTAINER_PATH_BYTES];
    decant_status status;
    pattern->count = count;
    name_dataset(linear, "sparse_rows", path);
    DECANT_TRY(read_array(file, path, DECANT_STORED_U32, (decant_shape){1, {linear->rows + 1}},
                          (void **)&pattern->row_offsets, err));
    name_dataset(linear, "sparse_columns", path);
    DECANT_TRY(
        read_array(file, path, DECANT_STORED_U32, (decant_shape){1, {count}}, (void **)&pattern->columns, err));
done:
    return status;
}

/* The candidates' costs, and the levels of those that have some. */
static decant_status read_candidates(const decant_container *file, const decant_linear *linear,
                                     decant_quantized_layer *layer, decant_error *err)
{
    double costs[DECANT_CANDIDATES][COSTS];
    char path[DECANT_CONTAINER_PATH_BYTES];
    decant_status status;
    name_dataset(linear, "costs", path);
    DECANT_TRY(decant_container_read(file, path, DECANT_STORED_F64,
                                     &(decant_shape){2, {layer->candidates, COSTS}}, costs, err));
    for (int i = 0; i < layer->candidates; i++) {
        decant_candidate *candidate = &layer->candidate[i];
        candidate->predicted = costs[i][0];
        candidate->relative = costs[i][1];
        if (!has_levels(candidate))
            continue;
        name_levels(linear, i, path);
        DECANT_TRY(read_array(file, path, DECANT_STORED_F16, levels_shape(linear, candidate),
                              (void **)&layer->levels[i], err));
    }
done:
    return status;
}

decant_status decant_quantized_file_read(const decant_container *file, const decant_recipe *recipe,
                                         const decant_linear *linear, decant_quantized_layer *layer,
                                         decant_table_row *row, decant_error *err)
{
    int64_t sparse = sparse_count(recipe, linear);
    char path[DECANT_CONTAINER_PATH_BYTES];
    decant_candidate_list list;
    decant_status status;
    *layer = (decant_quantized_layer){
        .rows = linear->rows, .columns = linear->columns, .seed = recipe->seed, .is_parked = true};
    *row = (decant_table_row){.weights = linear->rows * linear->columns, .sparse_count = sparse};
    DECANT_TRY(decant_recipe_offer(recipe, linear->rows, linear->columns, &list, err));
    layer->candidates = list.count;
    memcpy(layer->candidate, list.candidate, sizeof layer->candidate);
    DECANT_TRY(read_candidates(file, linear, layer, err));
    if (sparse > 0)
        DECANT_TRY(read_pattern(file, linear, sparse, &layer->sparse, err));
    name_dataset(linear, "source_crc32", path);
    DECANT_TRY(decant_container_read(file, path, DECANT_STORED_U32, &(decant_shape){1, {1}},
                                     &row->source_checksum, err));
    row->candidates = layer->candidates;
    memcpy(row->candidate, layer->candidate, sizeof row->candidate);
done:
    return status;
}
