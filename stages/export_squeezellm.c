/* Export in the packing that SqueezeLLM published (squeezellm/quant.py, QuantLinearLUT.pack2): of a layer of
 * [rows, columns] weights, rows being output channels,
 *
 *   qweight       I32 [columns · bits / 32, rows]: the codes of an output channel are one column, a stream
 *                 of bits in which the code of input channel j takes bits j·bits … j·bits + bits − 1, bit k
 *                 of the stream being bit k % 32 of word k / 32
 *   lookup_table  F32 [rows, 2^bits]
 *   rows          I32 [rows + 1], cols I32 [count], vals F32 [count]: the sparse part, CSR by output channel;
 *                 added
 *
 * and, in the published checkpoint an integer, sparse_threshold.LAYER: count, by which a loader sizes cols and
 * vals. See export.h. */
#include "stages/export.h"

#include "base/memory.h"
#include "stages/decode.h"

#include <stdio.h>

static decant_status check_layer(const decant_export_layer *layer, decant_error *err)
{
    if (layer->bits == 0)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                            "%s: SqueezeLLM's packing holds layers of --method kmeans or guided; export it as "
                            "--format safetensors",
                            layer->name);
    if (layer->bits != 3 && layer->bits != 4)
        return DECANT_ERROR(
            err, DECANT_ERROR_INPUT,
            "%s: SqueezeLLM's packing holds codes of 3 or 4 bits, this layer has %d; quantize with "
            "--bit-widths 3 or 4",
            layer->name, layer->bits);
    if (layer->columns % 32 != 0)
        return DECANT_ERROR(
            err, DECANT_ERROR_INPUT,
            "%s: SqueezeLLM's packing takes multiples of 32 input channels, this layer has %lld", layer->name,
            (long long)layer->columns);
    if (layer->sparse_count > INT32_MAX)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: SqueezeLLM's packing counts sparse values in 31 bits",
                            layer->name);
    return DECANT_OK;
}

static decant_status list_squeezellm(const decant_export_layer *layer, decant_element element,
                                     decant_tensor_list *list, decant_error *err)
{
    (void)element; /* the packing fixes all types */
    const char *name = layer->name;
    int64_t rows = layer->rows, count = layer->sparse_count;
    char threshold[DECANT_TENSOR_NAME_BYTES];
    decant_status status;
    DECANT_TRY(check_layer(layer, err));
    DECANT_TRY(decant_tensor_list_add(list, name, "qweight", DECANT_STORED_I32,
                                      (decant_shape){2, {layer->columns / 32 * layer->bits, rows}}, err));
    DECANT_TRY(decant_tensor_list_add(list, name, "lookup_table", DECANT_STORED_F32,
                                      (decant_shape){2, {rows, (int64_t)1 << layer->bits}}, err));
    if (count == 0)
        goto done;
    DECANT_TRY(
        decant_tensor_list_add(list, name, "rows", DECANT_STORED_I32, (decant_shape){1, {rows + 1}}, err));
    DECANT_TRY(decant_tensor_list_add(list, name, "cols", DECANT_STORED_I32, (decant_shape){1, {count}}, err));
    DECANT_TRY(decant_tensor_list_add(list, name, "vals", DECANT_STORED_F32, (decant_shape){1, {count}}, err));
    snprintf(threshold, sizeof threshold, "sparse_threshold.%s", name);
    DECANT_TRY(decant_tensor_list_add(list, threshold, NULL, DECANT_STORED_I64, (decant_shape){0, {0}}, err));
done:
    return status;
}

/* words [columns / 32 · bits, rows] from the bit planes. */
static decant_status pack_codes(const decant_packed_matrix *host, uint32_t *words, decant_error *err)
{
    uint8_t *codes = NULL;
    int64_t count = host->columns / 32 * host->bits;
    decant_status status;
    DECANT_TRY(decant_memory_allocate((size_t)host->columns, "the codes of a row", (void **)&codes, err));
    for (int64_t row = 0; row < host->rows; row++) {
        uint64_t stream = 0;
        int filled = 0; /* bits of the stream that are in no word yet */
        decant_packed_row_codes(host, row, codes);
        for (int64_t j = 0, word = 0; word < count; word++) {
            for (; filled < 32; filled += host->bits)
                stream |= (uint64_t)codes[j++] << filled;
            words[word * host->rows + row] = (uint32_t)stream;
            stream >>= 32;
            filled -= 32;
        }
    }
done:
    decant_memory_free(codes);
    return status;
}

/* F16 as F32. */
static decant_status append_widened(decant_safetensors_writer *writer, const uint16_t *values, int64_t count,
                                    decant_error *err)
{
    float *wide = NULL;
    decant_status status;
    DECANT_TRY(decant_memory_allocate((size_t)count * sizeof *wide, "levels as F32", (void **)&wide, err));
    decant_elements_to_f32(DECANT_F16, values, count, wide);
    DECANT_TRY(decant_safetensors_writer_append(writer, wide, (size_t)count * sizeof *wide, err));
done:
    decant_memory_free(wide);
    return status;
}

static decant_status append_sparse(decant_safetensors_writer *writer, const decant_packed_matrix *host,
                                   decant_error *err)
{
    const decant_sparse_pattern *sparse = &host->sparse;
    decant_status status;
    DECANT_TRY(decant_safetensors_writer_append(writer, sparse->row_offsets,
                                                (size_t)(host->rows + 1) * sizeof *sparse->row_offsets, err));
    DECANT_TRY(decant_safetensors_writer_append(writer, sparse->columns,
                                                (size_t)sparse->count * sizeof *sparse->columns, err));
    DECANT_TRY(append_widened(writer, host->sparse_values, sparse->count, err));
    DECANT_TRY(decant_safetensors_writer_append(writer, &sparse->count, sizeof sparse->count, err));
done:
    return status;
}

static decant_status write_squeezellm(decant_backend *backend, const decant_export_layer *layer,
                                      const decant_packed_matrix *packed, const decant_grid_matrix *grid,
                                      decant_element element, decant_safetensors_writer *writer,
                                      decant_error *err)
{
    (void)element;
    (void)grid; /* list has refused it */
    decant_packed_matrix host = {0};
    uint32_t *words = NULL;
    size_t size_bytes = (size_t)(layer->columns / 32 * layer->bits * layer->rows) * sizeof *words;
    decant_status status;
    DECANT_TRY(decant_packed_download(backend, packed, &host, err));
    DECANT_TRY(decant_memory_allocate(size_bytes, layer->name, (void **)&words, err));
    DECANT_TRY(pack_codes(&host, words, err));
    DECANT_TRY(decant_safetensors_writer_append(writer, words, size_bytes, err));
    DECANT_TRY(append_widened(writer, host.levels, host.rows << host.bits, err));
    if (host.sparse.count > 0)
        DECANT_TRY(append_sparse(writer, &host, err));
done:
    decant_memory_free(words);
    decant_packed_host_free(&host);
    return status;
}

const decant_export_form decant_export_squeezellm = {
    .name = "squeezellm", .list = list_squeezellm, .write = write_squeezellm};
