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

/* ---- the arrays that a candidate may have ---- */

enum { LEVELS, PLANES, SPARSE_VALUES, OWN_ROWS, OWN_COLUMNS, ARRAYS };

static const char *const ARRAY_NAMES[ARRAYS] = {"levels", "planes", "sparse_values", "sparse_rows",
                                                "sparse_columns"};
static const decant_stored ARRAY_TYPES[ARRAYS] = {DECANT_STORED_F16, DECANT_STORED_U32, DECANT_STORED_F16,
                                                  DECANT_STORED_U32, DECANT_STORED_U32};

static void name_array(const decant_linear *linear, int array, int candidate,
                       char path[DECANT_CONTAINER_PATH_BYTES])
{
    char name[32];
    snprintf(name, sizeof name, "%s.%d", ARRAY_NAMES[array], candidate);
    name_dataset(linear, name, path);
}

/* No elements: the candidate has none.  has_own: a sparse pattern */
static decant_shape array_shape(const decant_linear *linear, const decant_candidate *candidate, bool has_own,
                                int array)
{
    int64_t bits = candidate->code_bits, sparse = candidate->sparse_count;
    bool is_guided = candidate->method == DECANT_METHOD_GUIDED;
    if (array == LEVELS && !decant_candidate_is_on_grid(candidate))
        return (decant_shape){2, {linear->rows, (int64_t)1 << bits}};
    if (array == PLANES && is_guided)
        return (decant_shape){3, {linear->rows, bits, (linear->columns + 31) / 32}};
    if (array == SPARSE_VALUES)
        return (decant_shape){1, {is_guided ? sparse : 0}};
    if (!has_own || sparse == 0)
        return (decant_shape){1, {0}};
    return (decant_shape){1, {array == OWN_ROWS ? linear->rows + 1 : array == OWN_COLUMNS ? sparse : 0}};
}

static int64_t elements_of(const decant_shape *shape)
{
    int64_t count = 1;
    for (int d = 0; d < shape->dimensions; d++)
        count *= shape->extent[d];
    return count;
}

static int *dataset_of(decant_quantized_datasets *datasets, int array, int candidate)
{
    int *const ids[ARRAYS] = {datasets->levels, datasets->planes, datasets->sparse_values, datasets->own_rows,
                              datasets->own_columns};
    return &ids[array][candidate];
}

static void **place_of(decant_quantized_layer *layer, int array, int candidate)
{
    void **const places[ARRAYS] = {(void **)&layer->levels[candidate], (void **)&layer->planes[candidate],
                                   (void **)&layer->sparse_values[candidate],
                                   (void **)&layer->own_sparse[candidate].row_offsets,
                                   (void **)&layer->own_sparse[candidate].columns};
    return places[array];
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
    int64_t sparse = decant_recipe_sparse_count(recipe, linear->rows, linear->columns);
    decant_candidate_list list;
    decant_status status;
    memset(datasets, -1, sizeof *datasets);
    DECANT_TRY(decant_recipe_offer(recipe, linear->rows, linear->columns, &list, err));
    DECANT_TRY(define(writer, linear, "source_crc32", DECANT_STORED_U32, (decant_shape){1, {1}},
                      &datasets->source, err));
    DECANT_TRY(define(writer, linear, "costs", DECANT_STORED_F64, (decant_shape){2, {list.count, COSTS}},
                      &datasets->costs, err));
    for (int i = 0; i < list.count * ARRAYS; i++) {
        char path[DECANT_CONTAINER_PATH_BYTES];
        int array = i % ARRAYS, candidate = i / ARRAYS;
        bool has_own = decant_candidate_has_own_sparse(recipe, &list.candidate[candidate]);
        decant_shape shape = array_shape(linear, &list.candidate[candidate], has_own, array);
        if (elements_of(&shape) == 0)
            continue;
        name_array(linear, array, candidate, path);
        DECANT_TRY(decant_container_define(writer, path, ARRAY_TYPES[array], &shape,
                                           dataset_of(datasets, array, candidate), err));
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

decant_status decant_quantized_file_write(decant_container_writer *writer, const decant_linear *linear,
                                          decant_quantized_datasets *datasets, decant_quantized_layer *layer,
                                          const decant_table_row *row, decant_error *err)
{
    double costs[DECANT_CANDIDATES][COSTS];
    decant_status status;
    for (int i = 0; i < layer->candidates; i++) {
        costs[i][0] = layer->candidate[i].from_sums;
        costs[i][1] = layer->candidate[i].relative;
    }
    DECANT_TRY(decant_container_write(writer, datasets->source, 0, 1, &row->source_checksum, err));
    DECANT_TRY(
        decant_container_write(writer, datasets->costs, 0, (int64_t)layer->candidates * COSTS, costs, err));
    for (int i = 0; i < layer->candidates * ARRAYS; i++) {
        int array = i % ARRAYS, candidate = i / ARRAYS;
        bool has_own = layer->own_sparse[candidate].count > 0;
        decant_shape shape = array_shape(linear, &layer->candidate[candidate], has_own, array);
        if (elements_of(&shape) > 0)
            DECANT_TRY(decant_container_write(writer, *dataset_of(datasets, array, candidate), 0,
                                              elements_of(&shape), *place_of(layer, array, candidate), err));
    }
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
    size_t size_bytes = (size_t)elements_of(&shape) * decant_stored_bytes(type);
    decant_status status = decant_memory_allocate(size_bytes, path, array, err);
    return status == DECANT_OK ? decant_container_read(file, path, type, &shape, *array, err) : status;
}

/* Seals and checksums say that somebody wrote it so; kernels index with it. */
static decant_status check_pattern(const decant_container *file, const decant_linear *linear,
                                   const decant_sparse_pattern *pattern, decant_error *err)
{
    if (pattern->count == 0 || decant_sparse_pattern_fits(pattern, linear->rows, linear->columns))
        return DECANT_OK;
    return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                        "%s: /%s has sparse indices that lie outside the matrix or do not ascend",
                        decant_container_path(file), linear->name);
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
    DECANT_TRY(check_pattern(file, linear, pattern, err));
done:
    return status;
}

/* The candidates' costs, and the arrays that they have. */
static decant_status read_candidates(const decant_container *file, const decant_recipe *recipe,
                                     const decant_linear *linear, decant_quantized_layer *layer,
                                     decant_error *err)
{
    double costs[DECANT_CANDIDATES][COSTS];
    char path[DECANT_CONTAINER_PATH_BYTES];
    decant_status status;
    name_dataset(linear, "costs", path);
    DECANT_TRY(decant_container_read(file, path, DECANT_STORED_F64,
                                     &(decant_shape){2, {layer->candidates, COSTS}}, costs, err));
    for (int i = 0; i < layer->candidates; i++) {
        decant_candidate *candidate = &layer->candidate[i];
        bool has_own = decant_candidate_has_own_sparse(recipe, candidate);
        candidate->predicted = candidate->from_sums = costs[i][0];
        candidate->relative = costs[i][1];
        for (int array = 0; array < ARRAYS; array++) {
            decant_shape shape = array_shape(linear, candidate, has_own, array);
            name_array(linear, array, i, path);
            if (elements_of(&shape) > 0)
                DECANT_TRY(read_array(file, path, ARRAY_TYPES[array], shape, place_of(layer, array, i), err));
        }
        layer->own_sparse[i].count = layer->own_sparse[i].columns ? candidate->sparse_count : 0;
        DECANT_TRY(check_pattern(file, linear, &layer->own_sparse[i], err));
    }
done:
    return status;
}

decant_status decant_quantized_file_read(const decant_container *file, const decant_recipe *recipe,
                                         const decant_linear *linear, decant_quantized_layer *layer,
                                         decant_table_row *row, decant_error *err)
{
    int64_t sparse = decant_recipe_sparse_count(recipe, linear->rows, linear->columns);
    char path[DECANT_CONTAINER_PATH_BYTES];
    decant_candidate_list list;
    decant_status status;
    *layer = (decant_quantized_layer){
        .rows = linear->rows, .columns = linear->columns, .seed = recipe->seed, .is_parked = true};
    *row = (decant_table_row){.weights = linear->rows * linear->columns};
    DECANT_TRY(decant_recipe_offer(recipe, linear->rows, linear->columns, &list, err));
    layer->candidates = list.count;
    memcpy(layer->candidate, list.candidate, sizeof layer->candidate);
    DECANT_TRY(read_candidates(file, recipe, linear, layer, err));
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
