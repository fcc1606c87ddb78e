/* Export as plain weights: what any program reads. See export.h. */
#include "stages/export.h"

#include "base/memory.h"
#include "stages/decode.h"

#include <math.h>

static decant_status list_dense(const decant_export_layer *layer, decant_element element,
                                decant_tensor_list *list, decant_error *err)
{
    return decant_tensor_list_add(list, layer->name, "weight", decant_stored_of_element(element),
                                  (decant_shape){2, {layer->rows, layer->columns}}, err);
}

static decant_status decode(decant_backend *backend, const decant_packed_matrix *packed,
                            const decant_grid_matrix *grid, float *weight, decant_error *err)
{
    decant_packed_matrix host = {0};
    if (grid)
        return decant_grid_decode(backend, grid, weight, err);
    decant_status status = decant_packed_download(backend, packed, &host, err);
    if (status == DECANT_OK)
        status = decant_packed_decode(&host, weight, err);
    decant_packed_host_free(&host);
    return status;
}

static decant_status check_range(const decant_export_layer *layer, decant_element element, const float *weight,
                                 decant_error *err)
{
    const float largest =
        element == DECANT_F16 ? 65519.99f : 3.3895e38f; /* above them rounding gives infinity */
    for (int64_t i = 0; i < layer->rows * layer->columns; i++)
        if (!(fabsf(weight[i]) <= largest))
            return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                                "%s: the weight at row %lld, column %lld is %g, which %s cannot hold%s",
                                layer->name, (long long)(i / layer->columns), (long long)(i % layer->columns),
                                (double)weight[i], decant_element_name(element),
                                element == DECANT_F16 ? "; try --element bf16" : "");
    return DECANT_OK;
}

static decant_status write_dense(decant_backend *backend, const decant_export_layer *layer,
                                 const decant_packed_matrix *packed, const decant_grid_matrix *grid,
                                 decant_element element, decant_safetensors_writer *writer, decant_error *err)
{
    int64_t count = layer->rows * layer->columns;
    float *weight = NULL;
    decant_status status;
    DECANT_TRY(decant_memory_allocate((size_t)count * sizeof *weight, layer->name, (void **)&weight, err));
    DECANT_TRY(decode(backend, packed, grid, weight, err));
    DECANT_TRY(check_range(layer, element, weight, err));
    /* In place: element i takes bytes that only floats up to the i-th lay in, and those have been read. */
    if (element != DECANT_F32)
        for (int64_t i = 0; i < count; i++) {
            uint16_t narrow =
                element == DECANT_F16 ? decant_f32_to_f16(weight[i]) : decant_f32_to_bf16(weight[i]);
            memcpy((char *)weight + 2 * i, &narrow, sizeof narrow);
        }
    DECANT_TRY(
        decant_safetensors_writer_append(writer, weight, (size_t)count * decant_element_bytes(element), err));
done:
    decant_memory_free(weight);
    return status;
}

const decant_export_form decant_export_dense = {
    .name = "safetensors", .list = list_dense, .write = write_dense};
