/* The order of work on one layer, and the memory of its packed forms; the methods are in stages/methods/, the
 * arithmetic is behind kernels/backend.h. */
#include "stages/quantize.h"

#include "base/memory.h"
#include "kernels/grid_form.h"
#include "stages/methods/methods.h"

#include <math.h>
#include <string.h>

/* ---- packed forms ---- */

decant_status decant_sparse_pattern_create(decant_backend *backend, int64_t rows, int64_t count,
                                           decant_sparse_pattern *pattern, decant_error *err)
{
    *pattern = (decant_sparse_pattern){.count = count};
    if (count == 0)
        return DECANT_OK;
    decant_status status = backend->memory->allocate(backend, (size_t)(rows + 1) * sizeof *pattern->row_offsets,
                                                     "sparse row offsets", (void **)&pattern->row_offsets, err);
    if (status != DECANT_OK)
        return status;
    return backend->memory->allocate(backend, (size_t)count * sizeof *pattern->columns, "sparse columns",
                                     (void **)&pattern->columns, err);
}

bool decant_sparse_pattern_fits(const decant_sparse_pattern *host, int64_t rows, int64_t columns)
{
    const uint32_t *offsets = host->row_offsets;
    if (offsets[0] != 0 || offsets[rows] != (uint64_t)host->count)
        return false;
    for (int64_t row = 0; row < rows; row++)
        if (offsets[row] > offsets[row + 1])
            return false;
    for (int64_t row = 0; row < rows; row++)
        for (uint32_t i = offsets[row]; i < offsets[row + 1]; i++)
            if (host->columns[i] >= (uint64_t)columns ||
                (i > offsets[row] && host->columns[i] <= host->columns[i - 1]))
                return false;
    return true;
}

size_t decant_planes_bytes(int64_t rows, int64_t columns, int bits)
{
    return (size_t)(rows * bits * ((columns + 31) / 32)) * sizeof(uint32_t);
}

static void free_pattern(decant_backend *backend, decant_sparse_pattern *pattern)
{
    backend->memory->release(backend, (void **)&pattern->row_offsets);
    backend->memory->release(backend, (void **)&pattern->columns);
    pattern->count = 0;
}

decant_status decant_packed_matrix_create(decant_backend *backend, int64_t rows, int64_t columns, int bits,
                                          int64_t sparse_count, decant_packed_matrix *packed, decant_error *err)
{
    decant_status status;
    *packed = (decant_packed_matrix){.rows = rows, .columns = columns, .bits = bits};
    DECANT_TRY(backend->memory->allocate(backend, decant_planes_bytes(rows, columns, bits), "code planes",
                                         (void **)&packed->planes, err));
    DECANT_TRY(backend->memory->allocate(backend, (size_t)rows << (bits + 1), "levels",
                                         (void **)&packed->levels, err));
    DECANT_TRY(decant_sparse_pattern_create(backend, rows, sparse_count, &packed->sparse, err));
    if (sparse_count > 0)
        DECANT_TRY(backend->memory->allocate(backend, (size_t)sparse_count * sizeof *packed->sparse_values,
                                             "sparse values", (void **)&packed->sparse_values, err));
done:
    if (status != DECANT_OK)
        decant_packed_matrix_free(backend, packed);
    return status;
}

void decant_packed_matrix_free(decant_backend *backend, decant_packed_matrix *packed)
{
    backend->memory->release(backend, (void **)&packed->planes);
    backend->memory->release(backend, (void **)&packed->levels);
    backend->memory->release(backend, (void **)&packed->sparse_values);
    backend->memory->release(backend, (void **)&packed->sparse_entries);
    free_pattern(backend, &packed->sparse);
}

decant_status decant_grid_matrix_create(decant_backend *backend, int64_t rows, int64_t columns,
                                        const decant_grid_form *form, decant_grid_matrix *grid,
                                        decant_error *err)
{
    decant_status status;
    int64_t words = decant_grid_words(columns, form->dimension);
    size_t scale_bytes = (size_t)(rows * decant_grid_groups(columns, form->group)) * sizeof *grid->scales;
    *grid = (decant_grid_matrix){.rows = rows, .columns = columns, .form = *form};
    DECANT_TRY(backend->memory->allocate(backend, (size_t)(rows * form->code_bits * words) * 4, "code planes",
                                         (void **)&grid->planes, err));
    DECANT_TRY(backend->memory->allocate(backend, scale_bytes, "scales", (void **)&grid->scales, err));
    if (form->has_offsets)
        DECANT_TRY(backend->memory->allocate(backend, scale_bytes, "offsets", (void **)&grid->offsets, err));
done:
    if (status != DECANT_OK)
        decant_grid_matrix_free(backend, grid);
    return status;
}

void decant_grid_matrix_free(decant_backend *backend, decant_grid_matrix *grid)
{
    backend->memory->release(backend, (void **)&grid->planes);
    backend->memory->release(backend, (void **)&grid->scales);
    backend->memory->release(backend, (void **)&grid->offsets);
    grid->form.points = NULL;
}

/* ---- a layer ---- */

/* The candidates of one method stand together: [first, end of the list) begins with a method's; returns where
 * they end. */
static int end_of_method(const decant_quantized_layer *layer, int first)
{
    int end = first;
    while (end < layer->candidates && layer->candidate[end].method == layer->candidate[first].method)
        end++;
    return end;
}

/* Grids are laid without a look at Fisher sums, but what they predict by sums that are no numbers is none. */
static decant_status check_predictions(const decant_quantized_layer *layer, int first, int end,
                                       decant_error *err)
{
    for (int i = first; i < end; i++)
        if (!isfinite(layer->candidate[i].predicted))
            return DECANT_ERROR(
                err, DECANT_ERROR_INPUT,
                "a Fisher sum is not finite, so no loss can be predicted: an embedding, norm, bias or "
                "weight of the model is no number or too large");
    return DECANT_OK;
}

static bool has_sparse_part(const decant_quantized_layer *layer)
{
    for (int i = 0; i < layer->candidates; i++)
        if (layer->candidate[i].sparse_count > 0)
            return true;
    return false;
}

/* Of a row of finite weights. What is kept apart is stored as what its level misses, and its level may be as
 * far away as any other weight of the row. */
static decant_status check_row(const float *row, int64_t columns, int64_t i, bool is_sparse, decant_error *err)
{
    const double largest = 65504;
    int64_t least = 0, most = 0;
    for (int64_t j = 0; j < columns; j++) {
        if (fabs((double)row[j]) > largest)
            return DECANT_ERROR(
                err, DECANT_ERROR_INPUT,
                "the weight at row %lld, column %lld is %g, beyond the 65504 of F16, in which levels "
                "are stored: such a matrix cannot be quantized",
                (long long)i, (long long)j, (double)row[j]);
        least = row[j] < row[least] ? j : least;
        most = row[j] > row[most] ? j : most;
    }
    /* What is larger by less than half of F16's last step is rounded to it. */
    if (!is_sparse || (double)row[most] - (double)row[least] < largest + 16)
        return DECANT_OK;
    return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                        "the weights at row %lld, columns %lld and %lld are %g and %g, farther apart than the "
                        "65504 of F16, in which what is kept apart is stored: quantize the model with "
                        "--sensitive 0 and --outliers 0, and --guided-sparse 0 if that is given, or another "
                        "--method",
                        (long long)i, (long long)least, (long long)most, (double)row[least], (double)row[most]);
}

/* Levels, scales and what outliers miss are F16, and kernels cut off what is larger. Of a matrix of a usual
 * norm it is known without a look that nothing is: two weights that far apart have at least half the square of
 * their distance. */
static decant_status check_range(decant_backend *backend, decant_matrix weight,
                                 const decant_quantized_layer *layer, decant_error *err)
{
    const double largest = 65504;
    const size_t row_bytes = decant_matrix_bytes(decant_matrix_rows(weight, 0, 1));
    const bool is_sparse = has_sparse_part(layer);
    void *stored = NULL;
    float *row = NULL;
    decant_status status = DECANT_OK;
    if (layer->norm <= 0.5 * largest * largest)
        return DECANT_OK;
    DECANT_TRY(decant_memory_allocate(row_bytes, "a row of weights", &stored, err));
    DECANT_TRY(
        decant_memory_allocate((size_t)weight.columns * sizeof *row, "a row of weights", (void **)&row, err));
    for (int64_t i = 0; i < weight.rows; i++) {
        DECANT_TRY(
            backend->memory->download(backend, stored, decant_matrix_rows(weight, i, 1).data, row_bytes, err));
        decant_elements_to_f32(weight.element, stored, weight.columns, row);
        DECANT_TRY(check_row(row, weight.columns, i, is_sparse, err));
    }
done:
    decant_memory_free(stored);
    decant_memory_free(row);
    return status;
}

decant_status decant_quantize_layer(decant_backend *backend, const decant_recipe *recipe, const char *name,
                                    decant_matrix weight, const float *fisher, decant_quantized_layer *layer,
                                    decant_error *err)
{
    decant_status status;
    decant_candidate_list list;
    *layer = (decant_quantized_layer){.rows = weight.rows, .columns = weight.columns, .seed = recipe->seed};
    DECANT_TRY(decant_recipe_offer(recipe, weight.rows, weight.columns, &list, err));
    layer->candidates = list.count;
    memcpy(layer->candidate, list.candidate, sizeof layer->candidate);
    for (int first = 0, end; first < list.count; first = end) {
        end = end_of_method(layer, first);
        const decant_method_operations *method =
            decant_method_operations_of((decant_method)layer->candidate[first].method);
        DECANT_TRY(method->evaluate(backend, recipe, weight, fisher, first, end - first, layer, err));
        DECANT_TRY(check_predictions(layer, first, end, err));
    }
    DECANT_TRY(check_range(backend, weight, layer, err));
done:
    if (status != DECANT_OK)
        decant_quantized_layer_free(backend, layer);
    return decant_error_name(status, name, err);
}

/* ---- between measuring and writing ---- */

/* An array of a layer, wherever it is. */
typedef struct layer_array {
    void **place;
    size_t size_bytes;
} layer_array;

enum { LAYER_ARRAYS = 5 * DECANT_CANDIDATES + 2 };

decant_sparse_pattern decant_quantized_layer_sparse(const decant_quantized_layer *layer, int candidate)
{
    if (layer->own_sparse[candidate].count > 0)
        return layer->own_sparse[candidate];
    return layer->candidate[candidate].sparse_count > 0 ? layer->sparse : (decant_sparse_pattern){0};
}

static int list_pattern(decant_sparse_pattern *pattern, int64_t rows, layer_array *arrays)
{
    int count = 0;
    if (pattern->row_offsets)
        arrays[count++] = (layer_array){(void **)&pattern->row_offsets, (size_t)(rows + 1) * 4};
    if (pattern->columns)
        arrays[count++] = (layer_array){(void **)&pattern->columns, (size_t)pattern->count * 4};
    return count;
}

/* Lists the arrays that the layer has; returns how many. */
static int list_arrays(decant_quantized_layer *layer, layer_array arrays[LAYER_ARRAYS])
{
    int count = 0;
    for (int i = 0; i < layer->candidates; i++) {
        int bits = layer->candidate[i].code_bits;
        if (layer->levels[i])
            arrays[count++] = (layer_array){(void **)&layer->levels[i], (size_t)layer->rows << (bits + 1)};
        if (layer->planes[i])
            arrays[count++] = (layer_array){(void **)&layer->planes[i],
                                            decant_planes_bytes(layer->rows, layer->columns, bits)};
        if (layer->sparse_values[i])
            arrays[count++] = (layer_array){(void **)&layer->sparse_values[i],
                                            (size_t)decant_quantized_layer_sparse(layer, i).count * 2};
        count += list_pattern(&layer->own_sparse[i], layer->rows, arrays + count);
    }
    return count + list_pattern(&layer->sparse, layer->rows, arrays + count);
}

decant_status decant_quantized_layer_park(decant_backend *backend, decant_quantized_layer *layer,
                                          decant_error *err)
{
    layer_array arrays[LAYER_ARRAYS];
    void *host[LAYER_ARRAYS] = {0};
    int count = list_arrays(layer, arrays);
    decant_status status = DECANT_OK;
    for (int i = 0; i < count; i++) {
        DECANT_TRY(decant_memory_allocate(arrays[i].size_bytes, "levels", &host[i], err));
        DECANT_TRY(backend->memory->download(backend, host[i], *arrays[i].place, arrays[i].size_bytes, err));
    }
    for (int i = 0; i < count; i++) {
        backend->memory->release(backend, arrays[i].place);
        *arrays[i].place = host[i];
        host[i] = NULL;
    }
    layer->is_parked = true;
done:
    for (int i = 0; i < count; i++)
        decant_memory_free(host[i]);
    return status;
}

decant_status decant_quantized_layer_unpark(decant_backend *backend, decant_quantized_layer *layer,
                                            decant_error *err)
{
    layer_array arrays[LAYER_ARRAYS];
    void *device[LAYER_ARRAYS] = {0};
    int count = list_arrays(layer, arrays);
    decant_status status = DECANT_OK;
    if (!layer->is_parked)
        return DECANT_OK;
    for (int i = 0; i < count; i++) {
        DECANT_TRY(backend->memory->allocate(backend, arrays[i].size_bytes, "levels", &device[i], err));
        DECANT_TRY(backend->memory->upload(backend, device[i], *arrays[i].place, arrays[i].size_bytes, err));
    }
    DECANT_TRY(backend->memory->synchronize(backend, err)); /* before the host's copies go */
    for (int i = 0; i < count; i++) {
        decant_memory_free(*arrays[i].place);
        *arrays[i].place = device[i];
        device[i] = NULL;
    }
    layer->is_parked = false;
done:
    for (int i = 0; i < count; i++)
        backend->memory->release(backend, &device[i]);
    return status;
}

static void free_parked(decant_quantized_layer *layer)
{
    layer_array arrays[LAYER_ARRAYS];
    int count = list_arrays(layer, arrays);
    for (int i = 0; i < count; i++) {
        decant_memory_free(*arrays[i].place);
        *arrays[i].place = NULL;
    }
    layer->is_parked = false;
}

static void release_candidate(decant_backend *backend, decant_quantized_layer *layer, int candidate)
{
    backend->memory->release(backend, (void **)&layer->levels[candidate]);
    backend->memory->release(backend, (void **)&layer->planes[candidate]);
    backend->memory->release(backend, (void **)&layer->sparse_values[candidate]);
    free_pattern(backend, &layer->own_sparse[candidate]);
}

void decant_quantized_layer_free(decant_backend *backend, decant_quantized_layer *layer)
{
    if (layer->is_parked)
        free_parked(layer);
    free_pattern(backend, &layer->sparse);
    for (int i = 0; i < DECANT_CANDIDATES; i++)
        release_candidate(backend, layer, i);
    layer->candidates = 0;
}

decant_status decant_quantized_layer_encode(decant_backend *backend, const decant_quantized_layer *layer,
                                            int candidate, decant_matrix weight, decant_encoded_layer *encoded,
                                            decant_error *err)
{
    const decant_method_operations *method =
        decant_method_operations_of((decant_method)layer->candidate[candidate].method);
    *encoded = (decant_encoded_layer){0};
    decant_status status = method->encode(backend, layer, candidate, weight, encoded, err);
    if (status != DECANT_OK)
        decant_encoded_layer_free(backend, encoded);
    return status;
}

void decant_encoded_layer_free(decant_backend *backend, decant_encoded_layer *encoded)
{
    decant_packed_matrix_free(backend, &encoded->packed);
    decant_grid_matrix_free(backend, &encoded->grid);
}
