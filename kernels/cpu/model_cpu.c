/* The model table of the CPU backend. */
#include "kernels/cpu/operations.h"

const decant_model_kernels decant_cpu_model_kernels = {
    .embed = decant_cpu_embed,
    .rms_norm = decant_cpu_rms_norm,
    .rms_norm_backward = decant_cpu_rms_norm_backward,
    .layer_norm = decant_cpu_layer_norm,
    .layer_norm_backward = decant_cpu_layer_norm_backward,
    .linear = decant_cpu_linear,
    .linear_backward = decant_cpu_linear_backward,
    .add_bias = decant_cpu_add_bias,
    .fisher_add = decant_cpu_fisher_add,
    .gram_add = decant_cpu_gram_add,
    .rotary = decant_cpu_rotary,
    .attention = decant_cpu_attention,
    .attention_backward = decant_cpu_attention_backward,
    .attention_step = decant_cpu_attention_step,
    .silu_multiply = decant_cpu_silu_multiply,
    .silu_multiply_backward = decant_cpu_silu_multiply_backward,
    .relu = decant_cpu_relu,
    .relu_backward = decant_cpu_relu_backward,
    .cross_entropy = decant_cpu_cross_entropy,
};
