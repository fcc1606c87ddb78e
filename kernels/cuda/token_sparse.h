/* The sparse part of a packed matrix times some tokens, in a pass of its own, for kernels that add it to their
 * sums. */
#ifndef DECANT_KERNELS_CUDA_TOKEN_SPARSE_H
#define DECANT_KERNELS_CUDA_TOKEN_SPARSE_H

#include "kernels/cuda/operations.h"

enum { DECANT_TOKEN_SPARSE_MAXIMUM = 32 /* tokens */ };

/* Scratch that the product needs, bytes. */
size_t decant_token_sparse_bytes(decant_matrix x, const decant_packed_matrix *packed);

/* products F32 [tokens, rows] = x Sᵀ, S the sparse part; in `scratch`, of 256-byte alignment. x is BF16, at
 * most DECANT_TOKEN_SPARSE_MAXIMUM tokens. */
decant_status decant_cuda_token_sparse(decant_backend *backend, decant_matrix x,
                                       const decant_packed_matrix *packed, void *scratch,
                                       const float **products, decant_error *err);

#endif
