/* See decode.h. */
#include "stages/decode.h"

#include "base/memory.h"

static decant_status download(decant_backend *backend, const void *device, size_t size_bytes, const char *what,
                              void **host, decant_error *err)
{
    decant_status status = decant_memory_allocate(size_bytes, what, host, err);
    if (status != DECANT_OK || size_bytes == 0)
        return status;
    return backend->memory->download(backend, *host, device, size_bytes, err);
}

decant_status decant_packed_download(decant_backend *backend, const decant_packed_matrix *packed,
                                     decant_packed_matrix *host, decant_error *err)
{
    size_t rows = (size_t)packed->rows, words = ((size_t)packed->columns + 31) / 32;
    size_t count = (size_t)packed->sparse.count;
    decant_status status;
    *host = *packed;
    host->planes = NULL;
    host->levels = host->sparse_values = NULL;
    host->sparse.row_offsets = host->sparse.columns = host->sparse_entries = NULL;
    DECANT_TRY(download(backend, packed->planes, rows * (size_t)packed->bits * words * sizeof *host->planes,
                        "the codes of a layer", (void **)&host->planes, err));
    DECANT_TRY(download(backend, packed->levels, (rows << packed->bits) * sizeof *host->levels,
                        "the levels of a layer", (void **)&host->levels, err));
    if (count > 0) {
        const char *what = "the sparse part of a layer";
        DECANT_TRY(download(backend, packed->sparse.row_offsets, (rows + 1) * sizeof *host->sparse.row_offsets,
                            what, (void **)&host->sparse.row_offsets, err));
        DECANT_TRY(download(backend, packed->sparse.columns, count * sizeof *host->sparse.columns, what,
                            (void **)&host->sparse.columns, err));
        DECANT_TRY(download(backend, packed->sparse_values, count * sizeof *host->sparse_values, what,
                            (void **)&host->sparse_values, err));
    }
done:
    if (status != DECANT_OK)
        decant_packed_host_free(host);
    return status;
}

void decant_packed_host_free(decant_packed_matrix *host)
{
    decant_memory_free(host->planes);
    decant_memory_free(host->levels);
    decant_memory_free(host->sparse.row_offsets);
    decant_memory_free(host->sparse.columns);
    decant_memory_free(host->sparse_values);
    *host = (decant_packed_matrix){0};
}

void decant_packed_row_codes(const decant_packed_matrix *host, int64_t row, uint8_t *codes)
{
    int64_t words = (host->columns + 31) / 32;
    const uint32_t *planes = host->planes + row * host->bits * words;
    for (int64_t j = 0; j < host->columns; j++) {
        unsigned code = 0;
        for (int b = 0; b < host->bits; b++)
            code |= (planes[b * words + j / 32] >> (j % 32) & 1u) << b;
        codes[j] = (uint8_t)code;
    }
}

decant_status decant_packed_decode(const decant_packed_matrix *host, float *weight, decant_error *err)
{
    uint8_t *codes = NULL;
    float levels[1 << DECANT_BITS_MAXIMUM];
    decant_status status;
    DECANT_TRY(decant_memory_allocate((size_t)host->columns, "the codes of a row", (void **)&codes, err));
    for (int64_t row = 0; row < host->rows; row++) {
        float *values = weight + row * host->columns;
        decant_elements_to_f32(DECANT_F16, host->levels + (row << host->bits), (int64_t)1 << host->bits,
                               levels);
        decant_packed_row_codes(host, row, codes);
        for (int64_t j = 0; j < host->columns; j++)
            values[j] = levels[codes[j]];
        if (host->sparse.count > 0)
            for (uint32_t k = host->sparse.row_offsets[row]; k < host->sparse.row_offsets[row + 1]; k++)
                values[host->sparse.columns[k]] += decant_f16_to_f32(host->sparse_values[k]);
    }
done:
    decant_memory_free(codes);
    return status;
}

decant_status decant_grid_decode(decant_backend *backend, const decant_grid_matrix *grid, float *weight,
                                 decant_error *err)
{
    decant_matrix decoded = {.element = DECANT_F32, .rows = grid->rows, .columns = grid->columns};
    size_t size_bytes = decant_matrix_bytes(decoded);
    decant_status status;
    DECANT_TRY(backend->memory->allocate(backend, size_bytes, "a decoded layer", &decoded.data, err));
    DECANT_TRY(backend->grid->decode(backend, grid, decoded, err));
    DECANT_TRY(backend->memory->download(backend, weight, decoded.data, size_bytes, err));
done:
    backend->memory->release(backend, &decoded.data);
    return status;
}
