/* The product of an arranged matrix on a grid with up to 32 tokens, rotation included, where has_boxes accepts
 * it. */
#ifndef DECANT_KERNELS_CUDA_GRID_BOXES_H
#define DECANT_KERNELS_CUDA_GRID_BOXES_H

#include "kernels/cuda/grid.cuh"

bool decant_cuda_grid_has_boxes(decant_backend *backend, decant_matrix x, const decant_grid_matrix *matrix);

/* y = x ŵᵀ or y += x ŵᵀ; x as it is, not rotated. points: the grid's, on the device (grid.h). */
decant_status decant_cuda_grid_boxes(decant_backend *backend, decant_matrix x, const decant_grid_matrix *matrix,
                                     const float *points, bool accumulate, decant_matrix y, decant_error *err);

#endif
