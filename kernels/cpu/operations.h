/* The operations of the CPU backend, one file each; kernels/backend.h says what they compute. */
#ifndef DECANT_KERNELS_CPU_OPERATIONS_H
#define DECANT_KERNELS_CPU_OPERATIONS_H

#include "kernels/cpu/cpu.h"

decant_status decant_cpu_embed(decant_backend *backend, const int32_t *tokens, decant_matrix table,
                               decant_matrix y, decant_error *err);
decant_status decant_cpu_rms_norm(decant_backend *backend, decant_matrix x, decant_matrix weight, float epsilon,
                                  decant_matrix y, float *inverse_rms, decant_error *err);
decant_status decant_cpu_rms_norm_backward(decant_backend *backend, decant_matrix dy, decant_matrix x,
                                           decant_matrix weight, const float *inverse_rms, decant_matrix dx,
                                           decant_error *err);
decant_status decant_cpu_layer_norm(decant_backend *backend, decant_matrix x, decant_matrix weight,
                                    decant_matrix bias, float epsilon, decant_matrix y, decant_error *err);
decant_status decant_cpu_layer_norm_backward(decant_backend *backend, decant_matrix dy, decant_matrix x,
                                             decant_matrix weight, float epsilon, bool accumulate,
                                             decant_matrix dx, decant_error *err);
decant_status decant_cpu_linear(decant_backend *backend, decant_matrix x, decant_matrix weight, bool accumulate,
                                decant_matrix y, decant_error *err);
decant_status decant_cpu_linear_backward(decant_backend *backend, decant_matrix dy, decant_matrix weight,
                                         bool accumulate, decant_matrix dx, decant_error *err);
decant_status decant_cpu_fisher_add(decant_backend *backend, decant_fisher_form form, decant_matrix dy,
                                    decant_matrix x, float *fisher, decant_error *err);
decant_status decant_cpu_gram_add(decant_backend *backend, decant_matrix dy, decant_matrix x, int groups,
                                  float *hessian, decant_error *err);
decant_status decant_cpu_add_bias(decant_backend *backend, decant_matrix y, decant_matrix bias,
                                  decant_error *err);
decant_status decant_cpu_rotary(decant_backend *backend, decant_matrix x, int heads, const float *cosines,
                                const float *sines, bool inverse, decant_error *err);
decant_status decant_cpu_attention(decant_backend *backend, const decant_attention_shape *shape,
                                   decant_matrix q, decant_matrix k, decant_matrix v, decant_matrix y,
                                   float *log_sum_exp, decant_error *err);
decant_status decant_cpu_attention_step(decant_backend *backend, const decant_attention_shape *shape,
                                        decant_matrix q, decant_matrix k, decant_matrix v, decant_matrix keys,
                                        decant_matrix values, const int32_t *position, decant_matrix y,
                                        decant_error *err);
decant_status decant_cpu_attention_backward(decant_backend *backend, const decant_attention_shape *shape,
                                            decant_matrix q, decant_matrix k, decant_matrix v, decant_matrix y,
                                            const float *log_sum_exp, decant_matrix dy, decant_matrix dq,
                                            decant_matrix dk, decant_matrix dv, decant_error *err);
decant_status decant_cpu_silu_multiply(decant_backend *backend, decant_matrix gate, decant_matrix up,
                                       decant_matrix y, decant_error *err);
decant_status decant_cpu_silu_multiply_backward(decant_backend *backend, decant_matrix gate, decant_matrix up,
                                                decant_matrix dy, decant_matrix dgate, decant_matrix dup,
                                                decant_error *err);
decant_status decant_cpu_relu(decant_backend *backend, decant_matrix x, decant_error *err);
decant_status decant_cpu_relu_backward(decant_backend *backend, decant_matrix y, decant_matrix dy,
                                       decant_matrix dx, decant_error *err);
decant_status decant_cpu_cross_entropy(decant_backend *backend, decant_matrix logits, const int32_t *tokens,
                                       bool gradient, double *loss, decant_error *err);

decant_status decant_cpu_packed_linear(decant_backend *backend, decant_matrix x,
                                       const decant_packed_matrix *packed, bool accumulate, decant_matrix y,
                                       decant_error *err);
decant_status decant_cpu_packed_products(decant_backend *backend, const decant_packed_input *input,
                                         const decant_packed_product *products, int count, bool accumulate,
                                         decant_error *err);
decant_status decant_cpu_compare(decant_backend *backend, decant_matrix original, decant_matrix quantized,
                                 const int32_t *tokens, decant_comparison *comparison, decant_error *err);

#endif
