/* The order of work on one layer; the arithmetic is behind kernels/backend.h. */
#include "stages/quantize.h"

#include "base/memory.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static int64_t words_of(int64_t columns)
{
    return (columns + 31) / 32;
}

int decant_sparse_index_bytes(int64_t columns)
{
    return columns <= 65536 ? 2 : 4;
}

int64_t decant_packed_bytes(int64_t rows, int64_t columns, int bits, int64_t sparse_count)
{
    int64_t bytes = rows * bits * words_of(columns) * 4 + rows * ((int64_t)1 << bits) * 2;
    if (sparse_count > 0)
        bytes += (rows + 1) * 4 + sparse_count * (decant_sparse_index_bytes(columns) + 2);
    return bytes;
}

int64_t decant_fraction_count(double fraction, int64_t rows, int64_t columns)
{
    return (int64_t)llround(fraction * (double)rows * (double)columns);
}

static decant_status create_pattern(decant_backend *backend, int64_t rows, int64_t count,
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

static void free_pattern(decant_backend *backend, decant_sparse_pattern *pattern)
{
    backend->memory->release(backend, (void **)&pattern->row_offsets);
    backend->memory->release(backend, (void **)&pattern->columns);
    pattern->count = 0;
}

static decant_status measure_candidate(decant_backend *backend, const decant_recipe *recipe,
                                       decant_matrix weight, const float *fisher, decant_quantized_layer *layer,
                                       int index, decant_error *err)
{
    int bits = recipe->bits[index];
    decant_matrix_error error;
    decant_status status = backend->quantize->measure(backend, weight, fisher, &layer->sparse, bits,
                                                      layer->levels[index], &error, err);
    if (status != DECANT_OK)
        return status;
    layer->candidate[index] = (decant_candidate){
        .bits = bits,
        .bytes = decant_packed_bytes(layer->rows, layer->columns, bits, layer->sparse.count),
        .predicted = 0.5 * recipe->curvature * error.weighted,
        .relative = error.norm > 0 ? error.squared / error.norm : 0,
    };
    return DECANT_OK;
}

/* Puts the layer's name in front of what a kernel said, which knows only rows and columns. */
static decant_status name_failure(decant_status status, const char *name, decant_error *err)
{
    if (status == DECANT_OK)
        return status;
    char message[DECANT_ERROR_MESSAGE_BYTES];
    snprintf(message, sizeof message, "%s: %.*s", name, (int)(sizeof message - strlen(name) - 3), err->message);
    memcpy(err->message, message, sizeof message);
    return status;
}

decant_status decant_quantize_layer(decant_backend *backend, const decant_recipe *recipe, const char *name,
                                    decant_matrix weight, const float *fisher, decant_quantized_layer *layer,
                                    decant_error *err)
{
    decant_status status;
    int64_t rows = weight.rows, columns = weight.columns;
    int64_t sensitive = decant_fraction_count(recipe->sensitive, rows, columns);
    int64_t outliers = decant_fraction_count(recipe->outliers, rows, columns);
    *layer = (decant_quantized_layer){.rows = rows, .columns = columns, .candidates = recipe->widths};
    DECANT_TRY(create_pattern(backend, rows, sensitive + outliers, &layer->sparse, err));
    for (int i = 0; i < recipe->widths; i++)
        DECANT_TRY(backend->memory->allocate(backend, (size_t)rows << (recipe->bits[i] + 1), "levels",
                                             (void **)&layer->levels[i], err));
    if (layer->sparse.count > 0)
        DECANT_TRY(backend->quantize->select_sparse(backend, weight, fisher, sensitive, outliers,
                                                    &layer->sparse, err));
    DECANT_TRY(backend->quantize->fit_levels(backend, weight, fisher, &layer->sparse, recipe->search,
                                             recipe->seed, recipe->bits, recipe->widths, layer->levels, err));
    for (int i = 0; i < recipe->widths; i++)
        DECANT_TRY(measure_candidate(backend, recipe, weight, fisher, layer, i, err));
done:
    if (status != DECANT_OK)
        decant_quantized_layer_free(backend, layer);
    return name_failure(status, name, err);
}

/* An array of a layer, wherever it is. */
typedef struct layer_array {
    void **place;
    size_t size_bytes;
} layer_array;

enum { LAYER_ARRAYS = DECANT_CANDIDATES + 2 };

/* Lists the arrays that the layer has; returns how many. */
static int list_arrays(decant_quantized_layer *layer, layer_array arrays[LAYER_ARRAYS])
{
    int count = 0;
    for (int i = 0; i < layer->candidates; i++)
        if (layer->levels[i])
            arrays[count++] = (layer_array){(void **)&layer->levels[i],
                                            (size_t)layer->rows << (layer->candidate[i].bits + 1)};
    if (layer->sparse.row_offsets)
        arrays[count++] = (layer_array){(void **)&layer->sparse.row_offsets, (size_t)(layer->rows + 1) * 4};
    if (layer->sparse.columns)
        arrays[count++] = (layer_array){(void **)&layer->sparse.columns, (size_t)layer->sparse.count * 4};
    return count;
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

void decant_quantized_layer_free(decant_backend *backend, decant_quantized_layer *layer)
{
    if (layer->is_parked)
        free_parked(layer);
    free_pattern(backend, &layer->sparse);
    for (int i = 0; i < DECANT_CANDIDATES; i++)
        backend->memory->release(backend, (void **)&layer->levels[i]);
    layer->candidates = 0;
}

decant_status decant_packed_matrix_create(decant_backend *backend, int64_t rows, int64_t columns, int bits,
                                          int64_t sparse_count, decant_packed_matrix *packed, decant_error *err)
{
    decant_status status;
    *packed = (decant_packed_matrix){.rows = rows, .columns = columns, .bits = bits};
    DECANT_TRY(backend->memory->allocate(backend, (size_t)(rows * bits * words_of(columns)) * 4, "code planes",
                                         (void **)&packed->planes, err));
    DECANT_TRY(backend->memory->allocate(backend, (size_t)rows << (bits + 1), "levels",
                                         (void **)&packed->levels, err));
    DECANT_TRY(create_pattern(backend, rows, sparse_count, &packed->sparse, err));
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
    free_pattern(backend, &packed->sparse);
}

decant_status decant_quantized_layer_encode(decant_backend *backend, decant_quantized_layer *layer,
                                            int candidate, decant_matrix weight, decant_packed_matrix *packed,
                                            decant_error *err)
{
    int bits = layer->candidate[candidate].bits;
    int64_t count = layer->sparse.count;
    decant_status status;
    DECANT_TRY(decant_packed_matrix_create(backend, layer->rows, layer->columns, bits, count, packed, err));
    DECANT_TRY(backend->memory->copy(backend, packed->levels, layer->levels[candidate],
                                     (size_t)layer->rows << (bits + 1), err));
    if (count > 0) {
        DECANT_TRY(backend->memory->copy(backend, packed->sparse.row_offsets, layer->sparse.row_offsets,
                                         (size_t)(layer->rows + 1) * 4, err));
        DECANT_TRY(backend->memory->copy(backend, packed->sparse.columns, layer->sparse.columns,
                                         (size_t)count * 4, err));
    }
    DECANT_TRY(backend->quantize->encode(backend, weight, packed, err));
done:
    if (status != DECANT_OK)
        decant_packed_matrix_free(backend, packed);
    return status;
}
