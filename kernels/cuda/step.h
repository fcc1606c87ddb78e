/* The products of one token in one launch each way; step_cuda.cu chooses. */
#ifndef DECANT_KERNELS_CUDA_STEP_H
#define DECANT_KERNELS_CUDA_STEP_H

#include "kernels/cuda/context.h"

/* Products whose y go together: added to what is there, or y of the first = silu(first) ∘ second. */
typedef struct decant_step_group {
    const decant_step_input *input;
    const decant_step_product *products; /* [count] */
    int count;
    bool accumulate, gated;
} decant_step_group;

/* Whether the group is of BF16 weights, or of dense packed ones of the same width, that one launch can take. */
bool decant_cuda_step_has_dense(decant_backend *backend, const decant_step_group *group);
bool decant_cuda_step_has_parities(decant_backend *backend, const decant_step_group *group);

/* y = x weightᵀ for all of the group. */
decant_status decant_cuda_step_dense(decant_backend *backend, const decant_step_group *group,
                                     decant_error *err);
decant_status decant_cuda_step_parities(decant_backend *backend, const decant_step_group *group,
                                        decant_error *err);

/* As in decant_step_kernels. */
decant_status decant_cuda_step_attention(decant_backend *backend, const decant_attention_shape *shape,
                                         const float *cosines, const float *sines, decant_matrix q,
                                         decant_matrix k, decant_matrix v, decant_matrix keys,
                                         decant_matrix values, const int32_t *position, decant_matrix y,
                                         decant_error *err);
decant_status decant_cuda_take_row(decant_backend *backend, decant_matrix table, const int32_t *index,
                                   bool accumulate, decant_matrix y, decant_error *err);
decant_status decant_cuda_choose(decant_backend *backend, decant_matrix logits, int32_t *token,
                                 int32_t *position, int32_t *history, decant_error *err);

#endif
