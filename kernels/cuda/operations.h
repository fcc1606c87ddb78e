/* The model and validation operations of the CUDA backend, one file each; kernels/backend.h says what they
 * compute. */
#ifndef DECANT_KERNELS_CUDA_OPERATIONS_H
#define DECANT_KERNELS_CUDA_OPERATIONS_H

#include "kernels/cuda/context.h"

/* ---- the model's table ---- */

decant_status decant_cuda_embed(decant_backend *backend, const int32_t *tokens, decant_matrix table,
                                decant_matrix y, decant_error *err);
decant_status decant_cuda_rms_norm(decant_backend *backend, decant_matrix x, decant_matrix weight,
                                   float epsilon, decant_matrix y, float *inverse_rms, decant_error *err);
decant_status decant_cuda_rms_norm_backward(decant_backend *backend, decant_matrix dy, decant_matrix x,
                                            decant_matrix weight, const float *inverse_rms, decant_matrix dx,
                                            decant_error *err);
decant_status decant_cuda_layer_norm(decant_backend *backend, decant_matrix x, decant_matrix weight,
                                     decant_matrix bias, float epsilon, decant_matrix y, decant_error *err);
decant_status decant_cuda_layer_norm_backward(decant_backend *backend, decant_matrix dy, decant_matrix x,
                                              decant_matrix weight, float epsilon, bool accumulate,
                                              decant_matrix dx, decant_error *err);
decant_status decant_cuda_linear(decant_backend *backend, decant_matrix x, decant_matrix weight,
                                 bool accumulate, decant_matrix y, decant_error *err);
decant_status decant_cuda_linear_backward(decant_backend *backend, decant_matrix dy, decant_matrix weight,
                                          bool accumulate, decant_matrix dx, decant_error *err);
decant_status decant_cuda_fisher_add(decant_backend *backend, decant_fisher_form form, decant_matrix dy,
                                     decant_matrix x, float *fisher, decant_error *err);
decant_status decant_cuda_gram_add(decant_backend *backend, decant_matrix dy, decant_matrix x, int groups,
                                   float *hessian, decant_error *err);
decant_status decant_cuda_add_bias(decant_backend *backend, decant_matrix y, decant_matrix bias,
                                   decant_error *err);
decant_status decant_cuda_rotary(decant_backend *backend, decant_matrix x, int heads, const float *cosines,
                                 const float *sines, bool inverse, decant_error *err);
decant_status decant_cuda_attention(decant_backend *backend, const decant_attention_shape *shape,
                                    decant_matrix q, decant_matrix k, decant_matrix v, decant_matrix y,
                                    float *log_sum_exp, decant_error *err);
decant_status decant_cuda_attention_step(decant_backend *backend, const decant_attention_shape *shape,
                                         decant_matrix q, decant_matrix k, decant_matrix v, decant_matrix keys,
                                         decant_matrix values, const int32_t *position, decant_matrix y,
                                         decant_error *err);
decant_status decant_cuda_attention_backward(decant_backend *backend, const decant_attention_shape *shape,
                                             decant_matrix q, decant_matrix k, decant_matrix v, decant_matrix y,
                                             const float *log_sum_exp, decant_matrix dy, decant_matrix dq,
                                             decant_matrix dk, decant_matrix dv, decant_error *err);
decant_status decant_cuda_silu_multiply(decant_backend *backend, decant_matrix gate, decant_matrix up,
                                        decant_matrix y, decant_error *err);
decant_status decant_cuda_silu_multiply_backward(decant_backend *backend, decant_matrix gate, decant_matrix up,
                                                 decant_matrix dy, decant_matrix dgate, decant_matrix dup,
                                                 decant_error *err);
decant_status decant_cuda_relu(decant_backend *backend, decant_matrix x, decant_error *err);
decant_status decant_cuda_relu_backward(decant_backend *backend, decant_matrix y, decant_matrix dy,
                                        decant_matrix dx, decant_error *err);
decant_status decant_cuda_cross_entropy(decant_backend *backend, decant_matrix logits, const int32_t *tokens,
                                        bool gradient, double *loss, decant_error *err);

/* ---- the validation table ---- */

decant_status decant_cuda_packed_prepare(decant_backend *backend, decant_packed_matrix *packed,
                                         decant_error *err);
decant_status decant_cuda_arrange_planes(decant_backend *backend, decant_packed_matrix *packed,
                                         decant_error *err);
decant_status decant_cuda_join_entries(decant_backend *backend, decant_packed_matrix *packed,
                                       decant_error *err);
decant_status decant_cuda_packed_linear(decant_backend *backend, decant_matrix x,
                                        const decant_packed_matrix *packed, bool accumulate, decant_matrix y,
                                        decant_error *err);
decant_status decant_cuda_packed_products(decant_backend *backend, const decant_packed_input *input,
                                          const decant_packed_product *products, int count, bool accumulate,
                                          decant_error *err);
decant_status decant_cuda_compare(decant_backend *backend, decant_matrix original, decant_matrix quantized,
                                  const int32_t *tokens, decant_comparison *comparison, decant_error *err);

/* ---- what they are made of ---- */

/* c [m, n] = scale · a b, or c += scale · a b, row-major; sums are in F32. `batch` such products of the same
 * shape, whose operands lie a, b and c_batch elements apart (0: the same operand for all). Fields left zero:
 * batch is 1, scale is 1. */
typedef struct decant_cuda_product {
    int64_t m, n, k;
    decant_element element; /* of a and b */
    bool tf32;              /* F32 factors may be rounded to TF32 */
    const void *a;          /* [m, k], or [k, m] when a_transposed */
    int64_t a_stride;       /* elements from a row to the next as stored, likewise below */
    bool a_transposed;
    const void *b; /* [k, n], or [n, k] when b_transposed */
    int64_t b_stride;
    bool b_transposed;
    float scale;
    bool accumulate;
    void *c;
    decant_element c_element;
    int64_t c_stride;
    int64_t batch, a_batch, b_batch, c_batch;
} decant_cuda_product;

decant_status decant_cuda_multiply(decant_backend *backend, const decant_cuda_product *product,
                                   const char *what, decant_error *err);

/* sums[i] = Σ figures[i, :] for `arrays` arrays of `rows` figures; waits for them. device_sums [arrays] is
 * scratch. */
decant_status decant_cuda_sum_rows(decant_backend *backend, const double *figures, int arrays, int64_t rows,
                                   double *device_sums, double *sums, decant_error *err);

/* The attention of heads whose dimension has no kernel of its own, and of F32 activations: scores are written
 * out, head by head, and cuBLAS multiplies. */
decant_status decant_cuda_attention_plain(decant_backend *backend, const decant_attention_shape *shape,
                                          decant_matrix q, decant_matrix k, decant_matrix v, decant_matrix y,
                                          float *log_sum_exp, decant_error *err);
decant_status decant_cuda_attention_plain_backward(decant_backend *backend, const decant_attention_shape *shape,
                                                   decant_matrix q, decant_matrix k, decant_matrix v,
                                                   decant_matrix y, const float *log_sum_exp, decant_matrix dy,
                                                   decant_matrix dq, decant_matrix dk, decant_matrix dv,
                                                   decant_error *err);

/* Attention on tensor cores, BF16 and head dimensions of 64 and 128: on those of any device, one sequence; and
 * on Hopper's, all sequences of the shape. */
decant_status decant_cuda_attention_mma(decant_backend *backend, const decant_attention_shape *shape,
                                        decant_matrix q, decant_matrix k, decant_matrix v, decant_matrix y,
                                        float *log_sum_exp, decant_error *err);
decant_status decant_cuda_attention_mma_backward(decant_backend *backend, const decant_attention_shape *shape,
                                                 decant_matrix q, decant_matrix k, decant_matrix v,
                                                 decant_matrix y, const float *log_sum_exp, decant_matrix dy,
                                                 decant_matrix dq, decant_matrix dk, decant_matrix dv,
                                                 decant_error *err);
decant_status decant_cuda_attention_wgmma(decant_backend *backend, const decant_attention_shape *shape,
                                          decant_matrix q, decant_matrix k, decant_matrix v, decant_matrix y,
                                          float *log_sum_exp, decant_error *err);
decant_status decant_cuda_attention_wgmma_backward(decant_backend *backend, const decant_attention_shape *shape,
                                                   decant_matrix q, decant_matrix k, decant_matrix v,
                                                   decant_matrix y, const float *log_sum_exp, decant_matrix dy,
                                                   decant_matrix dq, decant_matrix dk, decant_matrix dv,
                                                   decant_error *err);

/* delta [heads, T] = Σ over a head's components of y ∘ dy; the gradients of both kinds of attention start from
 * it. */
decant_status decant_cuda_attention_delta(decant_backend *backend, const decant_attention_shape *shape,
                                          decant_matrix y, decant_matrix dy, float *delta, decant_error *err);

/* y = x ŵᵀ (or y += …) for few tokens: the codes are looked up as they are read. sparse: its part is added too.
 */
enum { DECANT_PACKED_VECTORS_MAXIMUM = 16 };
decant_status decant_cuda_packed_vectors(decant_backend *backend, decant_matrix x,
                                         const decant_packed_matrix *packed, bool sparse, bool accumulate,
                                         decant_matrix y, decant_error *err);

/* The same on tensor cores, for codes of five bits and more and the x that has_mma accepts. */
bool decant_cuda_packed_has_mma(decant_matrix x, const decant_packed_matrix *packed);
decant_status decant_cuda_packed_mma(decant_backend *backend, decant_matrix x,
                                     const decant_packed_matrix *packed, bool sparse, bool accumulate,
                                     decant_matrix y, decant_error *err);

/* The same with tables of pairs of levels on sparse tensor cores, for codes of up to four bits: the products of
 * one to DECANT_PAIRS_MATRICES matrices in one launch, where has_pairs accepts them and x. They have the same
 * columns and bits, and either all of them a sparse part or none. */
enum { DECANT_PAIRS_MATRICES = 3 };
bool decant_cuda_packed_has_pairs(decant_backend *backend, decant_matrix x,
                                  const decant_packed_product *products, int count);
/* Whether each of their blocks has rows of its own. */
bool decant_cuda_packed_pairs_own_rows(decant_backend *backend, const decant_packed_product *products,
                                       int count);
/* Whether they can be of what the input makes of x, too, which is not written then; products are alike. */
bool decant_cuda_packed_pairs_make_x(const decant_packed_input *input, const decant_packed_product *products);
decant_status decant_cuda_packed_pairs(decant_backend *backend, const decant_packed_input *input,
                                       const decant_packed_product *products, int count, bool sparse,
                                       bool accumulate, decant_error *err);

/* The same with levels in registers, for codes of up to four bits, where has_tiles accepts x. */
bool decant_cuda_packed_has_tiles(decant_backend *backend, decant_matrix x, const decant_packed_matrix *packed);
decant_status decant_cuda_packed_tiles(decant_backend *backend, decant_matrix x,
                                       const decant_packed_matrix *packed, bool sparse, bool accumulate,
                                       decant_matrix y, decant_error *err);

/* The same by parities on binary tensor cores, for the x and the packed matrices that has_parities accepts. */
bool decant_cuda_packed_has_parities(decant_backend *backend, decant_matrix x,
                                     const decant_packed_matrix *packed);
decant_status decant_cuda_packed_parities(decant_backend *backend, decant_matrix x,
                                          const decant_packed_matrix *packed, bool sparse, bool accumulate,
                                          decant_matrix y, decant_error *err);

/* y += x Sᵀ with S the sparse part of the packed matrix, by cuSPARSE. */
decant_status decant_cuda_sparse_linear(decant_backend *backend, decant_matrix x,
                                        const decant_packed_matrix *packed, decant_matrix y, decant_error *err);

#endif
