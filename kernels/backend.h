/* The one interface between the job and the arithmetic. A backend ("cpu", "cuda") is a value of decant_backend:
 * tables of functions, one a concern (memory, weights, model, quantize, grid, validate, steps, recordings), and
 * a state that only the backend knows.
 *
 * Rules that every implementation keeps:
 *   - Arrays named "device" live where the backend computes (host memory for the CPU backend) and come from
 *     memory->allocate or weights->place. Arrays named "host" are ordinary memory.
 *   - Work is issued in order and may still run when a function returns; memory->download, memory->synchronize
 *     and functions that return host values wait for it.
 *   - Sums are taken in an order that depends on the shapes alone, never on thread counts, timing or how many
 *     calls came before: the same input gives the same bits.
 *   - Activations have the element type `activation` of the backend; weights are in the type of the file unless
 *     said otherwise; statistics are F32.
 *   - Nothing here knows of MPI, files or layers' names, and nothing here is collective.
 *
 * Shapes: T is the number of tokens of one sequence. A linear layer has `weight` [out, in] as in the model file
 * and computes y = x weightᵀ; "row" means output channel. */
#ifndef DECANT_KERNELS_BACKEND_H
#define DECANT_KERNELS_BACKEND_H

#include "base/element.h"
#include "base/error.h"
#include "kernels/arranged_columns.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct decant_backend decant_backend;

/* ---- memory ---- */

typedef struct decant_memory_kernels {
    /* size_bytes of device memory, zeroed; `what` names it in the message when there is not enough.
     * Freed by release, which takes NULL too and sets the pointer to NULL. */
    decant_status (*allocate)(decant_backend *backend, size_t size_bytes, const char *what, void **device,
                              decant_error *err);
    void (*release)(decant_backend *backend, void **device);

    decant_status (*upload)(decant_backend *backend, void *device, const void *host, size_t size_bytes,
                            decant_error *err);
    decant_status (*download)(decant_backend *backend, void *host, const void *device, size_t size_bytes,
                              decant_error *err);
    decant_status (*copy)(decant_backend *backend, void *device_target, const void *device_source,
                          size_t size_bytes, decant_error *err);
    decant_status (*zero)(decant_backend *backend, void *device, size_t size_bytes, decant_error *err);

    /* Host memory that the device can write to by itself, for begin_download; of any content. Freed by
     * release_host, which takes NULL too and sets the pointer to NULL. */
    decant_status (*allocate_host)(decant_backend *backend, size_t size_bytes, const char *what, void **host,
                                   decant_error *err);
    void (*release_host)(decant_backend *backend, void **host);

    /* A download, behind all work issued before, that may still be under way when this returns.
     *   host  in memory from allocate_host; its bytes are there once finish_downloads has returned */
    decant_status (*begin_download)(decant_backend *backend, void *host, const void *device, size_t size_bytes,
                                    decant_error *err);
    /* Waits for the downloads begun so far; reports any failure of them. */
    decant_status (*finish_downloads)(decant_backend *backend, decant_error *err);

    /* An upload, behind all work issued before, that may still be under way when this returns.
     *   host  in memory from allocate_host; stays as it is until the upload is done */
    decant_status (*begin_upload)(decant_backend *backend, void *device, const void *host, size_t size_bytes,
                                  decant_error *err);

    /* A moment in the order of all work: mark puts it behind everything issued so far, and is_reached says,
     * without waiting, whether all that is done, or failed, which synchronize tells. A new one is reached.
     * Freed by release_moment, which takes NULL too and sets the pointer to NULL. */
    decant_status (*create_moment)(decant_backend *backend, void **moment, decant_error *err);
    void (*release_moment)(decant_backend *backend, void **moment);
    decant_status (*mark)(decant_backend *backend, void *moment, decant_error *err);
    bool (*is_reached)(decant_backend *backend, const void *moment);

    /* Waits for all issued work; reports any failure of it. */
    decant_status (*synchronize)(decant_backend *backend, decant_error *err);

    /* Device memory held through allocate and place, now and at the peak, and what the device has in all;
     * bytes. */
    void (*usage)(decant_backend *backend, int64_t *bytes, int64_t *peak_bytes, int64_t *device_bytes);
} decant_memory_kernels;

/* ---- weights ---- */

/* Which form a placed weight takes. */
typedef enum decant_placement {
    DECANT_PLACE_EXACT,   /* the file's element type, bit for bit: for quantizing */
    DECANT_PLACE_COMPUTE, /* the type the backend multiplies in: for forward and backward passes */
} decant_placement;

typedef struct decant_weight_kernels {
    /* Brings a weight from host memory (often the mapped file, which must stay mapped until unplace) to where
     * the backend computes. The CPU backend borrows host.data; the CUDA backend uploads it. */
    decant_status (*place)(decant_backend *backend, decant_matrix host, decant_placement placement,
                           const char *what, decant_matrix *device, decant_error *err);
    void (*unplace)(decant_backend *backend, decant_matrix *device); /* leaves data NULL; takes NULL data too */

    /* The two halves of place, for weights that travel while the device works on others. begin_place returns
     * at once, and host.data and *device are the backend's until finish_place: work issued from then on finds
     * the weight in place. When the way failed, finish_place leaves data NULL. unplace takes a weight that has
     * only begun; finish_place takes one that is in place. Several may be on their way; they arrive in the
     * order in which they began. */
    decant_status (*begin_place)(decant_backend *backend, decant_matrix host, decant_placement placement,
                                 const char *what, decant_matrix *device, decant_error *err);
    decant_status (*finish_place)(decant_backend *backend, decant_matrix *device, decant_error *err);
} decant_weight_kernels;

/* ---- model ---- */

typedef enum decant_fisher_form {
    DECANT_FISHER_SEQUENCE, /* F += (dYᵀ X)∘(dYᵀ X): the squared gradient of one sequence's loss */
    DECANT_FISHER_TOKEN,    /* F += (dY∘dY)ᵀ (X∘X): each token's contribution squared by itself */
} decant_fisher_form;

/* The first output channel of group `group` of `groups`; that of group `groups` is the number of channels.
 * Groups are consecutive and differ by one channel at most. */
static inline int64_t decant_hessian_group_first(int64_t rows, int groups, int group)
{
    return rows * group / groups;
}

/* Causal grouped-query attention, of one sequence or of several equally long ones at once. */
typedef struct decant_attention_shape {
    int64_t tokens; /* T, of one sequence */
    int heads;      /* query heads; a multiple of key_value_heads */
    int key_value_heads;
    int head_dimension;
    int64_t window;    /* keys a query sees, itself included; 0: all before it */
    int64_t sequences; /* S; 0 counts as 1. A sequence's rows follow those of the one before it */
} decant_attention_shape;

static inline int64_t decant_attention_sequences(const decant_attention_shape *shape)
{
    return shape->sequences > 0 ? shape->sequences : 1;
}

typedef struct decant_model_kernels {
    /* y[t, :] = table[tokens[t], :].  tokens: host [T], each in [0, table.rows); table: placed [vocabulary,
     * hidden]. */
    decant_status (*embed)(decant_backend *backend, const int32_t *tokens, decant_matrix table, decant_matrix y,
                           decant_error *err);

    /* y = x / sqrt(mean(x²) + epsilon) ∘ weight, row by row.
     *   x, y [T, hidden]; weight [1, hidden] placed; inverse_rms device F32 [T], kept for the backward pass. */
    decant_status (*rms_norm)(decant_backend *backend, decant_matrix x, decant_matrix weight, float epsilon,
                              decant_matrix y, float *inverse_rms, decant_error *err);
    /* dx += the gradient through rms_norm of dy. dx already holds the gradient that came around the norm. */
    decant_status (*rms_norm_backward)(decant_backend *backend, decant_matrix dy, decant_matrix x,
                                       decant_matrix weight, const float *inverse_rms, decant_matrix dx,
                                       decant_error *err);
    /* y = (x − mean(x)) / sqrt(variance(x) + epsilon) ∘ weight + bias, row by row; the variance is that of the
     * row itself, over hidden.
     *   x, y [T, hidden]; weight, bias [1, hidden] placed */
    decant_status (*layer_norm)(decant_backend *backend, decant_matrix x, decant_matrix weight,
                                decant_matrix bias, float epsilon, decant_matrix y, decant_error *err);
    /* dx = the gradient through layer_norm of dy, or dx += it when accumulate. Mean and variance are found
     * again from x. dx may be dy when not accumulate. */
    decant_status (*layer_norm_backward)(decant_backend *backend, decant_matrix dy, decant_matrix x,
                                         decant_matrix weight, float epsilon, bool accumulate, decant_matrix dx,
                                         decant_error *err);

    /* y = x weightᵀ, or y += x weightᵀ when accumulate.  x [T, in], weight [out, in] placed for compute, y [T,
     * out], of the activations' type or F32. */
    decant_status (*linear)(decant_backend *backend, decant_matrix x, decant_matrix weight, bool accumulate,
                            decant_matrix y, decant_error *err);
    /* dx = dy weight, or dx += dy weight when accumulate.  dy [T, out], dx [T, in]. */
    decant_status (*linear_backward)(decant_backend *backend, decant_matrix dy, decant_matrix weight,
                                     bool accumulate, decant_matrix dx, decant_error *err);
    /* y[t, :] += bias[t mod B, :]: a linear layer's bias for B = 1, learned positions of sequences of B tokens
     * else.  y [T, out], bias [B, out] placed, B >= 1. */
    decant_status (*add_bias)(decant_backend *backend, decant_matrix y, decant_matrix bias, decant_error *err);
    /* Adds one sequence to the Fisher sums of a linear layer.  dy [T, out], x [T, in], fisher device F32 [out,
     * in]. */
    decant_status (*fisher_add)(decant_backend *backend, decant_fisher_form form, decant_matrix dy,
                                decant_matrix x, float *fisher, decant_error *err);
    /* Adds rows to the Hessians that guided quantization takes: H_k += xᵀ diag(s_k) x with s_k[t] the mean of
     * dy[t]² over the output channels of group k (decant_hessian_group_first). H stays symmetric to the last
     * bit. Source: GuidedQuant (arXiv 2505.07004).
     *   dy [T, out], x [T, in], hessian device F32 [groups, in, in] */
    decant_status (*gram_add)(decant_backend *backend, decant_matrix dy, decant_matrix x, int groups,
                              float *hessian, decant_error *err);

    /* Rotates, in place, each head of x [T, heads · 2·half] by the angles whose cosines and sines are given:
     * component i of the first half pairs with component i of the second half.
     *   cosines, sines   device F32 [T, half]
     *   inverse          rotate back, which is the gradient's rotation */
    decant_status (*rotary)(decant_backend *backend, decant_matrix x, int heads, const float *cosines,
                            const float *sines, bool inverse, decant_error *err);

    /* y = softmax(q kᵀ / sqrt(head_dimension)) v for each head, causal. A sequence gets the same bits alone and
     * among others.
     *   q, y [S · T, heads · head_dimension]; k, v [S · T, key_value_heads · head_dimension]
     *   log_sum_exp device F32 [S, heads, T], kept for the backward pass */
    decant_status (*attention)(decant_backend *backend, const decant_attention_shape *shape, decant_matrix q,
                               decant_matrix k, decant_matrix v, decant_matrix y, float *log_sum_exp,
                               decant_error *err);
    /* dq, dk, dv (overwritten) from dy and what the forward pass kept. */
    decant_status (*attention_backward)(decant_backend *backend, const decant_attention_shape *shape,
                                        decant_matrix q, decant_matrix k, decant_matrix v, decant_matrix y,
                                        const float *log_sum_exp, decant_matrix dy, decant_matrix dq,
                                        decant_matrix dk, decant_matrix dv, decant_error *err);

    /* One more token of a sequence whose keys and values are kept: puts k and v into row *position of keys and
     * values, then attends, forward, over the rows up to it, the last shape->window of them.
     *   q, y [1, heads · head_dimension]; k, v [1, key_value_heads · head_dimension]
     *   keys, values [room, key_value_heads · head_dimension]; position device [1], below room */
    decant_status (*attention_step)(decant_backend *backend, const decant_attention_shape *shape,
                                    decant_matrix q, decant_matrix k, decant_matrix v, decant_matrix keys,
                                    decant_matrix values, const int32_t *position, decant_matrix y,
                                    decant_error *err);

    /* y = silu(gate) ∘ up, all [T, intermediate]. */
    decant_status (*silu_multiply)(decant_backend *backend, decant_matrix gate, decant_matrix up,
                                   decant_matrix y, decant_error *err);
    /* dgate may be gate, dup may be up. */
    decant_status (*silu_multiply_backward)(decant_backend *backend, decant_matrix gate, decant_matrix up,
                                            decant_matrix dy, decant_matrix dgate, decant_matrix dup,
                                            decant_error *err);

    /* x = max(x, 0), in place. */
    decant_status (*relu)(decant_backend *backend, decant_matrix x, decant_error *err);
    /* dx = dy where y, the result of relu, is above 0, else 0. dx may be dy. */
    decant_status (*relu_backward)(decant_backend *backend, decant_matrix y, decant_matrix dy, decant_matrix dx,
                                   decant_error *err);

    /* Mean cross-entropy of next-token prediction, and its gradient.
     *   logits [T, vocabulary], of the activations' type or F32: row t predicts tokens[t + 1]; replaced by the
     *          gradient of the mean over the T − 1 targets (last row zero) when `gradient`, left alone
     *          otherwise, and the last row is not read then
     *   tokens host [T];  loss host: the mean, natural logarithm */
    decant_status (*cross_entropy)(decant_backend *backend, decant_matrix logits, const int32_t *tokens,
                                   bool gradient, double *loss, decant_error *err);
} decant_model_kernels;

/* ---- quantize ---- */

/* Which weights of a matrix are taken out of the dense part, as the pattern of a CSR matrix (columns ascending
 * in a row); device arrays that the caller allocates for exactly `count` entries. count = 0: none, pointers may
 * be NULL. */
typedef struct decant_sparse_pattern {
    int64_t count;
    uint32_t *row_offsets; /* [rows + 1] */
    uint32_t *columns;     /* [count] */
} decant_sparse_pattern;

typedef enum decant_level_search {
    DECANT_LEVELS_EXACT, /* the optimum, at every width */
    DECANT_LEVELS_LLOYD, /* k-means++ start and Lloyd's iterations, seeded: to compare with */
} decant_level_search;

/* Codes and levels of one matrix, packed as the container stores them (docs/container.md); device arrays. */
typedef struct decant_packed_matrix {
    int64_t rows, columns;
    int bits;         /* 2 … 8 */
    uint32_t *planes; /* [rows, bits, ceil(columns / 32)]: bit j%32 of word j/32 of plane b of a row is
                         bit b of the code of column j; unused bits are zero */
    uint16_t *levels; /* F16 [rows, 2^bits], ascending in each row */
    decant_sparse_pattern sparse;
    uint16_t *sparse_values;  /* F16 [count]: added to the decoded level */
    uint32_t *sparse_entries; /* [count]: the same once more, a word each: column + (bits of the value << 16);
                                 NULL where nobody called validate->prepare, or it had no use for them */
    bool arranged;            /* the same planes, their words in an order that only the backend knows: see
                                 validate->prepare */
} decant_packed_matrix;

/* The error of one matrix under one candidate. */
typedef struct decant_matrix_error {
    double weighted; /* Σ F (w − ŵ)²; ŵ counts the sparse part */
    double squared;  /* Σ (w − ŵ)² */
    double norm;     /* Σ w² */
} decant_matrix_error;

enum { DECANT_BITS_MINIMUM = 2, DECANT_BITS_MAXIMUM = 8 };

/* How far guided quantization goes, and on which statistics. */
typedef struct decant_guided_search {
    int groups;           /* of output channels; see gram_add */
    const float *hessian; /* device F32 [groups, columns, columns] */
    double damping; /* λ = damping · mean of the diagonal of H_k is added to the diagonal for the search */
    int passes;     /* of rounding with error feedback, and closed-form codebooks between, before the rounds */
    int rounds; /* of a closed-form codebook followed by sweeps; 0: levels and nearest codes stay, no passes */
    int sweeps; /* of coordinate descent over a row's codes, a round */
} decant_guided_search;

typedef struct decant_quantize_kernels {
    /* Chooses n_sensitive weights with the largest Fisher value, then n_outliers of the rest with the largest
     * magnitude; among equals the lowest row-major index wins. Source: SqueezeLLM, section 4.2, with exact
     * counts.
     *   weight   placed exact [rows, columns]
     *   fisher   device F32 of the same shape; NULL: all ones
     *   pattern  count = n_sensitive + n_outliers, arrays allocated; filled */
    decant_status (*select_sparse)(decant_backend *backend, decant_matrix weight, const float *fisher,
                                   int64_t n_sensitive, int64_t n_outliers, decant_sparse_pattern *pattern,
                                   decant_error *err);

    /* What each weight adds to Σ F (w − ŵ)² of a packed matrix without a sparse part: cost = F (w − ŵ)², which
     * is what it would save to keep the weight apart.
     *   fisher, cost  device F32 [rows, columns]; fisher NULL: all ones */
    decant_status (*weigh_errors)(decant_backend *backend, decant_matrix weight, const float *fisher,
                                  const decant_packed_matrix *packed, float *cost, decant_error *err);

    /* Levels of every row that minimise Σ F (w − level)² over the weights not in the pattern, for several
     * widths at once. A row whose F is all zero counts every weight once. Rounded to F16, ascending; a row with
     * fewer distinct weights than levels repeats its last one.
     *   seed    used by Lloyd alone
     *   bits    [n_widths] ascending, each 2 … 8
     *   levels  [n_widths] device arrays F16 [rows, 2^bits[i]]
     * DECANT_ERROR_INPUT when a weight or F is not finite or F is negative, naming row and column. */
    decant_status (*fit_levels)(decant_backend *backend, decant_matrix weight, const float *fisher,
                                const decant_sparse_pattern *pattern, decant_level_search search, uint64_t seed,
                                const int *bits, int n_widths, uint16_t *const *levels, decant_error *err);

    /* The error of the nearest-level codes under these levels; what encode would store, measured without
     * storing. */
    decant_status (*measure)(decant_backend *backend, decant_matrix weight, const float *fisher,
                             const decant_sparse_pattern *pattern, int bits, const uint16_t *levels,
                             decant_matrix_error *error, decant_error *err);

    /* Fills packed->planes and packed->sparse_values from the weight, packed->levels and packed->sparse: each
     * code is the nearest level (the lower on a tie), each sparse value F16(w − level). */
    decant_status (*encode)(decant_backend *backend, decant_matrix weight, decant_packed_matrix *packed,
                            decant_error *err);

    /* Levels and codes that lower (w − ŵ)ᵀ (H_k + λ) (w − ŵ) in every row, k the row's group. In turn, a row's
     * levels become the least-squares solution under its codes, rounded to F16, and with up to 16 levels a row
     * to whole multiples of a power of two (kernels/level_grid.h; kept where that would raise the objective),
     * and its codes are made anew: in the passes by rounding with error feedback, column after column by
     * descending diagonal of H, in the rounds by cyclic coordinate descent from what they are. A row that the
     * passes have not lowered goes back to its start; where H + λ is not positive definite there are no passes;
     * in the rounds the objective never rises. Weights in the sparse part are exact and take no part. Sources:
     * LNQ, algorithm 1 of arXiv 2505.07004; GPTQ, arXiv 2210.17323.
     *   packed  levels are those to start from, the sparse pattern is filled; levels, planes and
     *           sparse_values are filled: codes need not be the nearest levels
     *   error   of what was filled; `weighted` is Σ (w − ŵ)ᵀ H (w − ŵ), without λ
     * DECANT_ERROR_BUG should the objective of a row have risen after all. */
    decant_status (*guide)(decant_backend *backend, decant_matrix weight, const decant_guided_search *search,
                           decant_packed_matrix *packed, decant_matrix_error *error, decant_error *err);
} decant_quantize_kernels;

/* ---- grids ---- */

/* How the weights of a matrix lie on one grid that all its rows share: HIGGS, round-to-nearest, NF4. With x the
 * row after rotation, the columns j·p … j·p + p − 1 are scale · points[code_j] + offset, where scale and offset
 * are those of the group of columns that column j·p lies in. Sources: arXiv 2411.17525 (HIGGS), 2305.14314
 * (NF4). */
typedef struct decant_grid_form {
    int dimension; /* p: columns that one code stands for, 1 … 4; a last, short tuple is filled with zeros */
    int code_bits; /* the grid has 2^code_bits points, 2 … 12 */
    const float *points; /* host [2^code_bits, p], borrowed; outlives the form */
    int64_t group;       /* consecutive columns that share a scale; the last group of a row may be shorter */
    bool has_offsets;    /* an offset beside each scale */
    int64_t rotation; /* rows are multiplied by random signs and, in pieces of this power of two, which divides
                         columns, by the orthonormal Walsh–Hadamard matrix before coding; 1: neither */
    uint64_t seed;    /* of the signs */
} decant_grid_form;

/* A matrix on a grid, packed as the container stores it; device arrays. Bit planes as in decant_packed_matrix,
 * over the ceil(columns / p) codes of a row. */
typedef struct decant_grid_matrix {
    int64_t rows, columns;
    decant_grid_form form;
    uint32_t *planes;  /* [rows, code_bits, ceil(codes of a row / 32)] */
    uint16_t *scales;  /* F16 [rows, ceil(columns / group)] */
    uint16_t *offsets; /* F16, the same shape; NULL without offsets */
    bool arranged;     /* the same bits as planes, in an order that only the backend knows: see prepare */
} decant_grid_matrix;

/* Where the scale of a group comes from. */
typedef enum decant_grid_scale {
    DECANT_SCALE_LEAST_ERROR, /* root mean square first, then refit to its codes: s = ⟨x, q⟩ / ⟨q, q⟩ */
    DECANT_SCALE_LARGEST,     /* the largest magnitude of the group becomes the grid's largest: NF4 */
    DECANT_SCALE_RANGE,       /* from the least to the largest value, with zero a point (needs offsets):
                                 round-to-nearest */
} decant_grid_scale;

typedef struct decant_grid_kernels {
    /* Fills planes, scales and offsets of `matrix`, whose shape, form and arrays the caller has set, and
     * measures what was stored (scales rounded to F16, codes the nearest point under the rounded scale, the
     * lowest code among equals). A group of zeros has scale 0.
     *   weight  placed exact
     *   fisher  device F32 of the same shape, or NULL: all ones, error->weighted then equals error->squared
     * DECANT_ERROR_INPUT when a weight is not finite, naming row and column; DECANT_ERROR_BUG for a form that
     * cannot be: a rotation that does not divide the columns, a range without offsets. */
    decant_status (*encode)(decant_backend *backend, decant_matrix weight, const float *fisher,
                            decant_grid_scale scale, decant_grid_matrix *matrix, decant_matrix_error *error,
                            decant_error *err);

    /* Once a matrix is filled, as validate->prepare: puts the planes into the order that the backend's products
     * read fastest, in place, where it has one; otherwise nothing changes. From then on only linear and decode
     * take the matrix, with the same results up to the order of sums. */
    decant_status (*prepare)(decant_backend *backend, decant_grid_matrix *matrix, decant_error *err);

    /* y = x ŵᵀ (or y += …) straight from the packed form, whose arrays are complete as those of packed_linear
     * are: the activations are rotated, not the weights. */
    decant_status (*linear)(decant_backend *backend, decant_matrix x, const decant_grid_matrix *matrix,
                            bool accumulate, decant_matrix y, decant_error *err);

    /* weight [rows, columns], of the caller's element type, = what the packed form stands for, rotated back. */
    decant_status (*decode)(decant_backend *backend, const decant_grid_matrix *matrix, decant_matrix weight,
                            decant_error *err);

    /* noisy = weight + t ‖weight‖_F / sqrt(rows · columns) · Σ, with Σ of independent standard normal numbers
     * that depend on seed, row and column alone (the same on every backend up to rounding). Algorithm 3 of
     * arXiv 2411.17525.  weight placed for compute, noisy a device array of the same shape and type. */
    decant_status (*add_noise)(decant_backend *backend, decant_matrix weight, double t, uint64_t seed,
                               decant_matrix noisy, decant_error *err);
} decant_grid_kernels;

/* ---- validate ---- */

/* What two models say about one sequence; sums over its T − 1 targets, natural logarithms. */
typedef struct decant_comparison {
    double loss_original; /* Σ −log p(target) */
    double loss_quantized;
    double divergence; /* Σ KL(original ‖ quantized) over the whole vocabulary */
    int64_t same_top;  /* positions where both rank the same token first (lowest index among equals) */
    int64_t targets;   /* T − 1 */
} decant_comparison;

/* y = x ŵᵀ by one of several packed matrices. */
typedef struct decant_packed_product {
    const decant_packed_matrix *packed; /* complete, as for packed_linear */
    decant_matrix y;                    /* [T, rows of packed] */
} decant_packed_product;

/* What packed products take: x itself, its root-mean-square norm, or its gated activation silu(x) ∘ up. */
typedef struct decant_packed_input {
    decant_matrix x;           /* [T, in] */
    decant_matrix norm_weight; /* [1, in] placed; data NULL: no norm */
    float epsilon;             /* of the norm */
    float *inverse_rms;        /* device F32 [T], room of the norm */
    decant_matrix up;          /* [T, in]; data NULL: not gated. Not beside a norm */
    decant_matrix made;        /* [T, in], room for what is made of x; no other of these */
} decant_packed_input;

typedef struct decant_validate_kernels {
    /* Once a matrix is filled: adds what its products are faster with, packed->sparse_entries, from
     * memory->allocate, which the caller owns with the other arrays, and puts the planes into the order that
     * they read fastest, in place or into another array instead of theirs; or nothing. Products are right
     * without. From then on only packed_linear, packed_products and steps->products take the matrix. */
    decant_status (*prepare)(decant_backend *backend, decant_packed_matrix *packed, decant_error *err);

    /* y = x ŵᵀ (or y += …) straight from the packed form, whose arrays are complete: whoever filled them has
     * called memory->synchronize since. A backend may read them before the work that was issued earlier is
     * done. */
    decant_status (*packed_linear)(decant_backend *backend, decant_matrix x, const decant_packed_matrix *packed,
                                   bool accumulate, decant_matrix y, decant_error *err);

    /* y = x ŵᵀ (or y += …) of `count` packed matrices for the same input, each as rms_norm or silu_multiply and
     * packed_linear compute it but for the order in which sums are added, and for what is rounded between: the
     * norm may be multiplied on at the end. The same bits at every call. What input->made and
     * input->inverse_rms hold afterwards is not said. The ys do not overlap, nor any of the input. */
    decant_status (*packed_products)(decant_backend *backend, const decant_packed_input *input,
                                     const decant_packed_product *products, int count, bool accumulate,
                                     decant_error *err);

    /* original, quantized: logits [T, vocabulary]; tokens host [T]. */
    decant_status (*compare)(decant_backend *backend, decant_matrix original, decant_matrix quantized,
                             const int32_t *tokens, decant_comparison *comparison, decant_error *err);
} decant_validate_kernels;

/* ---- steps ---- */

/* What the products of one token take: x itself, or its root-mean-square norm. */
typedef struct decant_step_input {
    decant_matrix x;           /* [1, in] */
    decant_matrix norm_weight; /* [1, in] placed; data NULL: no norm */
    float epsilon;             /* of the norm */
    decant_matrix normed;      /* [1, in], room for the normed x, which need not be written */
    float *inverse_rms;        /* device F32 [1], the same */
} decant_step_input;

/* y = x weightᵀ of one token, by a linear layer in whichever form it has. */
typedef struct decant_step_product {
    decant_matrix weight; /* [out, in] placed for compute; unused when one of those below is there */
    const decant_packed_matrix *packed; /* complete, as for packed_linear */
    const decant_grid_matrix *grid;
    decant_matrix y; /* [1, out], of the activations' type or, of a plain weight, F32 */
} decant_step_product;

/* What generating one token after the other is made of. Everything that differs from token to token is on the
 * device, so that one recording serves all of them. */
typedef struct decant_step_kernels {
    /* y = table[*index, :], or y += it when accumulate.  table [rows, columns] placed, or F32 on the device;
     * index device [1], in [0, rows); y [1, columns], of the activations' type or F32. */
    decant_status (*take_row)(decant_backend *backend, decant_matrix table, const int32_t *index,
                              bool accumulate, decant_matrix y, decant_error *err);

    /* The products of one token with `count` weights, as rms_norm, linear, packed_linear and the grid's linear
     * compute them; y += … when accumulate. No y is input->x. */
    decant_status (*products)(decant_backend *backend, const decant_step_input *input,
                              const decant_step_product *products, int count, bool accumulate,
                              decant_error *err);

    /* gate->y = silu(gate) ∘ up of these two products; up->y is room, of any content afterwards. */
    decant_status (*gated_products)(decant_backend *backend, const decant_step_input *input,
                                    const decant_step_product *gate, const decant_step_product *up,
                                    decant_error *err);

    /* rotary of q and k by the angles of *position, then attention_step. q and k are of any content afterwards.
     *   cosines, sines   device F32 [room, head_dimension / 2], of every position */
    decant_status (*attention)(decant_backend *backend, const decant_attention_shape *shape,
                               const float *cosines, const float *sines, decant_matrix q, decant_matrix k,
                               decant_matrix v, decant_matrix keys, decant_matrix values,
                               const int32_t *position, decant_matrix y, decant_error *err);

    /* *token = the place of the largest of the logits, the lowest among equals, undefined ones left out;
     * history[*position] = *token, or −1 where that says nothing: a logit is NaN or +∞, or all are −∞; then
     * *position goes up by one.
     *   logits F32 [1, vocabulary], at a multiple of 16 bytes; token, position device [1]; history device */
    decant_status (*choose)(decant_backend *backend, decant_matrix logits, int32_t *token, int32_t *position,
                            int32_t *history, decant_error *err);
} decant_step_kernels;

/* ---- recordings ---- */

/* A sequence of this table's operations that is issued again and again, with the same arguments each time. */
typedef struct decant_work {
    decant_status (*issue)(void *context, decant_error *err);
    void *context; /* lives as long as the recording */
} decant_work;

typedef struct decant_recording decant_recording;

typedef struct decant_recording_kernels {
    /* Issues the work once, and keeps it so that replay costs the host as little as the backend can. The work
     * neither allocates nor waits, and its operations have no host results. Where a backend cannot keep it,
     * replay issues it anew. */
    decant_status (*record)(decant_backend *backend, decant_work work, decant_recording **recording,
                            decant_error *err);
    /* Issues the recorded work. Other work may lie between record and replay only if it needs no more scratch
     * than what came before. */
    decant_status (*replay)(decant_backend *backend, const decant_recording *recording, decant_error *err);
    void (*drop)(decant_backend *backend, decant_recording **recording); /* takes NULL, sets NULL */
} decant_recording_kernels;

/* ---- a backend ---- */

struct decant_backend {
    const char *name;          /* "cpu" or "cuda" */
    decant_element activation; /* element type of x, y, dx, dy above */
    char device_name[128];     /* for the log and the report */
    bool leaves_host_free;     /* computes on a device of its own: the host's threads have time meanwhile */
    const decant_memory_kernels *memory;
    const decant_weight_kernels *weights;
    const decant_model_kernels *model;
    const decant_quantize_kernels *quantize;
    const decant_grid_kernels *grid;
    const decant_validate_kernels *validate;
    const decant_step_kernels *steps;
    const decant_recording_kernels *recordings;
    void (*destroy)(decant_backend *backend); /* behind decant_backend_destroy */
    void *state;                              /* the implementation's own */
};

/* Host memory, OpenMP, OpenBLAS; F32 activations. threads <= 0: as OpenMP decides. */
decant_status decant_backend_create_cpu(int threads, decant_backend **backend, decant_error *err);

/* One GPU.
 *   device       CUDA device number; the caller chooses it by the rank's place on its node
 *   full_floats  F32 activations and products instead of BF16 with F32 sums
 * DECANT_ERROR_DEVICE when there is no such device or decant was built without CUDA. */
decant_status decant_backend_create_cuda(int device, bool full_floats, decant_backend **backend,
                                         decant_error *err);

/* How many CUDA devices there are; 0 without a driver or when built without CUDA. */
int decant_backend_count_cuda(void);

/* Frees the backend and all it holds; takes NULL, sets the pointer to NULL. */
void decant_backend_destroy(decant_backend **backend);

#endif
