/* The model and validation tables of the CUDA backend. */
#include "kernels/cuda/operations.h"

extern const decant_model_kernels decant_cuda_model_kernels = {
    .embed = decant_cuda_embed,
    .rms_norm = decant_cuda_rms_norm,
    .rms_norm_backward = decant_cuda_rms_norm_backward,
    .layer_norm = decant_cuda_layer_norm,
    .layer_norm_backward = decant_cuda_layer_norm_backward,
    .linear = decant_cuda_linear,
    .linear_backward = decant_cuda_linear_backward,
    .add_bias = decant_cuda_add_bias,
    .fisher_add = decant_cuda_fisher_add,
    .gram_add = decant_cuda_gram_add,
    .rotary = decant_cuda_rotary,
    .attention = decant_cuda_attention,
    .attention_backward = decant_cuda_attention_backward,
    .attention_step = decant_cuda_attention_step,
    .silu_multiply = decant_cuda_silu_multiply,
    .silu_multiply_backward = decant_cuda_silu_multiply_backward,
    .relu = decant_cuda_relu,
    .relu_backward = decant_cuda_relu_backward,
    .cross_entropy = decant_cuda_cross_entropy,
};

extern const decant_validate_kernels decant_cuda_validate_kernels = {
    .prepare = decant_cuda_packed_prepare,
    .packed_linear = decant_cuda_packed_linear,
    .packed_products = decant_cuda_packed_products,
    .compare = decant_cuda_compare,
};
