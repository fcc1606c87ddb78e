/* A quantized layer back as plain numbers in host memory: its codes, or the weights that they stand for. The
 * schema is docs/container.md; examples/read_container.py says the same in NumPy. Knows nothing of files. */
#ifndef DECANT_STAGES_DECODE_H
#define DECANT_STAGES_DECODE_H

#include "kernels/backend.h"

/* A copy of a packed layer whose arrays are in host memory. On failure *host is empty; freed with
 * decant_packed_host_free, which takes an empty one too. */
decant_status decant_packed_download(decant_backend *backend, const decant_packed_matrix *packed,
                                     decant_packed_matrix *host, decant_error *err);
void decant_packed_host_free(decant_packed_matrix *host);

/* The codes of one row of a layer in host memory, out of its bit planes: codes [columns]. */
void decant_packed_row_codes(const decant_packed_matrix *host, int64_t row, uint8_t *codes);

/* weight F32 [rows, columns] of a layer in host memory: level by code, plus the sparse value where there is
 * one. */
decant_status decant_packed_decode(const decant_packed_matrix *host, float *weight, decant_error *err);

/* The same of a layer on a grid, by the backend's own decode. */
decant_status decant_grid_decode(decant_backend *backend, const decant_grid_matrix *grid, float *weight,
                                 decant_error *err);

#endif
