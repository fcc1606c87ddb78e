/* What the two kernels of attention_wgmma_backward.cu are given. */
#ifndef DECANT_KERNELS_CUDA_ATTENTION_WGMMA_BACKWARD_CUH
#define DECANT_KERNELS_CUDA_ATTENTION_WGMMA_BACKWARD_CUH

#include "kernels/cuda/attention_wgmma.cuh"

/* Two figures of each query. Of a head's queries, padded to whole tiles of both kernels: log2(e) · log_sum_exp
 * and D. What is beyond the last query has weight 2^−∞. */
typedef struct decant_query_figures {
    float *log_sum_exp_log2, *delta; /* [S, heads, padded] */
    int padded;
} decant_query_figures;

/* The arrays of a call. */
typedef struct decant_attention_gradients {
    decant_matrix q, k, v, y, dy, dq, dk, dv;
    const float *log_sum_exp;
} decant_attention_gradients;

/* dk and dv (attention_wgmma_keys.cu). */
decant_status decant_cuda_attention_keys(decant_backend *backend, const decant_attention_shape *shape,
                                         const decant_attention_gradients &arrays,
                                         const decant_query_figures &figures, decant_error *err);

/* dq (attention_wgmma_queries.cu). */
decant_status decant_cuda_attention_queries(decant_backend *backend, const decant_attention_shape *shape,
                                            const decant_attention_gradients &arrays,
                                            const decant_query_figures &figures, decant_error *err);

#endif
