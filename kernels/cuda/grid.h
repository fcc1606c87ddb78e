/* The grid operations of the CUDA backend, one file each (kernels/backend.h says what they compute), and the
 * tables that they share. */
#ifndef DECANT_KERNELS_CUDA_GRID_H
#define DECANT_KERNELS_CUDA_GRID_H

#include "kernels/cuda/context.h"

extern "C" {
#include "kernels/grid_cells.h"
}

decant_status decant_cuda_grid_encode(decant_backend *backend, decant_matrix weight, const float *fisher,
                                      decant_grid_scale scale, decant_grid_matrix *matrix,
                                      decant_matrix_error *error, decant_error *err);
decant_status decant_cuda_grid_arrange(decant_backend *backend, decant_grid_matrix *matrix, decant_error *err);
decant_status decant_cuda_grid_linear(decant_backend *backend, decant_matrix x,
                                      const decant_grid_matrix *matrix, bool accumulate, decant_matrix y,
                                      decant_error *err);
decant_status decant_cuda_grid_decode(decant_backend *backend, const decant_grid_matrix *matrix,
                                      decant_matrix weight, decant_error *err);
decant_status decant_cuda_add_noise(decant_backend *backend, decant_matrix weight, double t, uint64_t seed,
                                    decant_matrix noisy, decant_error *err);

/* ---- grid_cuda.cu ---- */

/* The cells of a grid with their arrays on the device, made when it is first asked for and kept with the
 * backend. */
decant_status decant_cuda_grid_cells(decant_backend *backend, const decant_grid_form *form,
                                     decant_grid_cells *cells, decant_error *err);
void decant_cuda_grid_release(decant_cuda_context *context); /* what is kept on the host */

/* ---- grid_decode.cu ---- */

/* Rows [first, first + weight.rows) of what the matrix stands for, into weight; `back`: rotated back. */
decant_status decant_cuda_grid_read(decant_backend *backend, const decant_grid_matrix *matrix,
                                    const float *points, int64_t first, bool back, decant_matrix weight,
                                    decant_error *err);

/* ---- grid_vectors.cu ---- */

/* y = x ŵᵀ (or y += …) for few rows of an x that is rotated already: codes are looked up as they are read. For
 * more than four, decoding first is quicker on an H100 (bench_grids). */
enum { DECANT_GRID_VECTORS_MAXIMUM = 4 };
decant_status decant_cuda_grid_vectors(decant_backend *backend, decant_matrix x,
                                       const decant_grid_matrix *matrix, const float *points, bool accumulate,
                                       decant_matrix y, decant_error *err);

#endif
