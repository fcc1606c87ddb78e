/* The product of a matrix on a grid with up to 32 rotated tokens, on tensor cores, where has_tiles accepts it.
 */
#ifndef DECANT_KERNELS_CUDA_GRID_TILES_H
#define DECANT_KERNELS_CUDA_GRID_TILES_H

#include "kernels/cuda/grid.cuh"
#include "kernels/cuda/operations.h"

bool decant_cuda_grid_has_tiles(decant_backend *backend, decant_matrix x, const decant_grid_matrix *matrix);

/* The bytes of scratch that the product takes. */
decant_status decant_cuda_grid_tiles_scratch(decant_backend *backend, decant_matrix x,
                                             const decant_grid_matrix *matrix, size_t *size_bytes,
                                             decant_error *err);

/* y = x ŵᵀ or y += x ŵᵀ. points: the grid's, on the device (grid.h). */
decant_status decant_cuda_grid_tiles(decant_backend *backend, decant_matrix x, const decant_grid_matrix *matrix,
                                     const float *points, void *scratch, bool accumulate, decant_matrix y,
                                     decant_error *err);

/* packed_tiles.cu: launches the product whose levels are points by the row's scale. */
struct tiles_call;
cudaError_t decant_launch_level_tiles(decant_cuda_context *context, const struct tiles_call *call);

#endif
