/* The sparse part of a packed matrix times some tokens: a pass of its own, for kernels that add it to their
 * sums, and the form of x that kernels take which do both parts. */
#ifndef DECANT_KERNELS_CUDA_TOKEN_SPARSE_H
#define DECANT_KERNELS_CUDA_TOKEN_SPARSE_H

#include "kernels/cuda/operations.h"

#include <cuda_bf16.h>

enum { DECANT_TOKEN_SPARSE_MAXIMUM = 32 /* tokens */ };

/* Bytes of x turned. */
size_t decant_turned_bytes(decant_matrix x);

/* turned BF16 [columns, 8, 16 or 32 tokens] = xᵀ, zeros beyond the last token. x is BF16, at most
 * DECANT_TOKEN_SPARSE_MAXIMUM tokens. */
decant_status decant_cuda_turn(decant_backend *backend, decant_matrix x, __nv_bfloat16 *turned,
                               decant_error *err);

/* Scratch that the product needs, bytes. */
size_t decant_token_sparse_bytes(decant_matrix x, const decant_packed_matrix *packed);

/* products F32 [tokens, rows] = x Sᵀ, S the sparse part; in `scratch`, of 256-byte alignment. x as above. */
decant_status decant_cuda_token_sparse(decant_backend *backend, decant_matrix x,
                                       const decant_packed_matrix *packed, void *scratch,
                                       const float **products, decant_error *err);

#endif
