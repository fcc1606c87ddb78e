/* What the CUDA files on guided quantization share: the state of a matrix under search and the steps on it.
 * Only the files named here include it.
 *
 *   guided.cu         the operation: the workspace, the order of the steps, products with H
 *   guided_rows.cu    the beginning (nearest codes), objectives, and what is stored in the end
 *   guided_levels.cu  the best levels under the codes of each row
 *   guided_feedback.cu  how errors are handed on, and passes of rounding with that
 *   guided_codes.cu   the codes of a block of columns, by coordinate descent or rounding with feedback
 *
 * What is missing, δ = w − ŵ, is kept; the gradient δᵀ H is computed for a panel of columns as one product, and
 * within the panel kept up to date block by block, by a product again, and within a block code by code. Each
 * step issues its work on the backend's stream and does not wait for it.
 *
 * Decisions are made under gradients and sums of tensor cores. Each factor of a gradient is cut into two BF16
 * numbers, and the product of the two small ones left out: a term is off by 2⁻¹⁵ of itself at most. Steps
 * within a panel are multiplied in TF32, which rounds what changes, not what is. The objective that is
 * reported, and must not rise, is a sum of F32 products. */
#ifndef DECANT_KERNELS_CUDA_GUIDED_CUH
#define DECANT_KERNELS_CUDA_GUIDED_CUH

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/quantize.cuh"
#include "kernels/cuda/weight_bits.cuh"

extern "C" {
#include "kernels/guided_rows.h"
}

enum {
    DECANT_GUIDED_BLOCK = 128,       /* columns whose codes are searched by one kernel */
    DECANT_GUIDED_PANEL = 1024,      /* columns whose gradient is computed by one product; whole blocks */
    DECANT_GUIDED_LEVEL_ROWS = 8192, /* rows times levels whose normal equations are made at once */
    DECANT_GUIDED_PARTS = 2,         /* BF16 numbers that stand for an F32 one, up to 2⁻¹⁷ of it */
};

/* A matrix under search; device arrays of the backend's scratch where nothing else is said. */
typedef struct decant_cuda_guided {
    decant_matrix weight;
    decant_packed_matrix packed;
    const float *hessian; /* [groups, columns, columns] */
    int rows, columns, groups, bits;
    int words;                    /* ceil(columns / 32) */
    float *damping;               /* λ, [groups] */
    float *missing;               /* δ, [rows, columns]; 0 in the sparse part */
    __nv_bfloat16 *missing_parts; /* the same, [DECANT_GUIDED_PARTS, rows, columns] */
    __nv_bfloat16 *hessian_parts; /* [DECANT_GUIDED_PARTS, groups, columns, columns] */
    uint8_t *codes;               /* [rows, columns] */
    uint32_t *marks;              /* [rows, words] bit j % 32 of word j / 32: column j is in the sparse part */
    float *gradient;              /* δᵀ H of a panel, [rows, DECANT_GUIDED_PANEL] */
    float *steps;                 /* what δ has changed by in a block, [rows, DECANT_GUIDED_BLOCK] */
    uint16_t *start;              /* levels to start from, [rows, levels] */
    decant_guided_row *results;   /* [rows] */

    /* rounding with feedback; without passes nothing of this is there */
    int passes;
    float *handed;     /* δ in the order of columns, [rows, columns]; in the memory of missing_parts */
    float *feedback;   /* how errors are handed on, [groups, columns, columns]; see guided_feedback.cu */
    int *order;        /* [groups, columns] of columns */
    float *inverse;    /* [groups, DECANT_GUIDED_BLOCK, DECANT_GUIDED_BLOCK] */
    float *pivots;     /* [groups, DECANT_GUIDED_BLOCK] */
    float *eliminated; /* [groups, DECANT_GUIDED_BLOCK, columns] */
    int *failed;       /* [groups] errors cannot be handed on */

    /* normal equations of `at_once` rows */
    int at_once;
    __nv_bfloat16 *one_hot; /* P, [at_once · levels, columns] */
    float *level_sums;      /* Pᵀ H of a panel, [at_once · levels, DECANT_GUIDED_PANEL] */
    double *normal;         /* [at_once, levels, levels] */
    double *right;          /* [at_once, levels] */
    uint8_t *places;        /* [at_once, levels] where each level has gone */
} decant_cuda_guided;

/* ---- guided.cu ---- */

/* gradient[:, 0 … count) = δᵀ H of the columns [first, first + count), each row under its group's H; by parts,
 * or in F32. */
decant_status decant_cuda_guided_gradient(decant_backend *backend, const decant_cuda_guided *g, int first,
                                          int count, decant_error *err);
decant_status decant_cuda_guided_exact_gradient(decant_backend *backend, const decant_cuda_guided *g, int first,
                                                int count, decant_error *err);

/* What is handed to the columns [first, first + count) of the order by the `length` columns before them; the
 * former begin at column `at` of the gradient's panel. Added, or in place of what was there. */
decant_status decant_cuda_guided_hand_on(decant_backend *backend, const decant_cuda_guided *g, int first,
                                         int at, int count, int length, bool add, decant_error *err);

/* Adds to the gradient of the columns [first, first + count), which begins at column `at` of the panel, what
 * the steps of the `length` columns before them change. */
decant_status decant_cuda_guided_follow(decant_backend *backend, const decant_cuda_guided *g, int first, int at,
                                        int count, int length, decant_error *err);

/* ---- guided_rows.cu ---- */

/* Fills damping, marks, codes, δ and the parts of H from the levels to start from. */
decant_status decant_cuda_guided_begin(decant_backend *backend, const decant_cuda_guided *g, double damping,
                                       decant_error *err);

/* results[].before = δᵀ (H + λ) δ */
decant_status decant_cuda_guided_before(decant_backend *backend, const decant_cuda_guided *g,
                                        decant_error *err);

/* δ of the codes and levels as they are. */
decant_status decant_cuda_guided_find_missing(decant_backend *backend, const decant_cuda_guided *g,
                                              decant_error *err);

/* Rows whose objective is not below results[].before get their levels to start from and the nearest codes. */
decant_status decant_cuda_guided_keep_better(decant_backend *backend, const decant_cuda_guided *g,
                                             decant_error *err);

/* Packs the codes, fills the sparse values and the other figures of the results. */
decant_status decant_cuda_guided_store(decant_backend *backend, const decant_cuda_guided *g, decant_error *err);

/* ---- guided_levels.cu ---- */

/* The best levels under the codes of every row, in ascending order; codes and δ follow. A row's levels stay
 * where rounding them to F16 would raise its objective, or its equations have no solution. They go `stride`
 * times as far as the solution is. */
decant_status decant_cuda_guided_levels(decant_backend *backend, const decant_cuda_guided *g, double stride,
                                        decant_error *err);

/* ---- guided_feedback.cu ---- */

/* Fills order, feedback and failed; waits for the diagonals of H. */
decant_status decant_cuda_guided_make_feedback(decant_backend *backend, const decant_cuda_guided *g,
                                               decant_error *err);

/* Every code anew under the levels as they are; δ follows. */
decant_status decant_cuda_guided_pass(decant_backend *backend, const decant_cuda_guided *g, decant_error *err);

/* ---- guided_codes.cu ---- */

/* The codes of the columns [first, first + count) of the order, to which what the gradient has from its column
 * `at` on is handed; fills their part of `handed`. Rows of groups that failed stay. */
decant_status decant_cuda_guided_round_block(decant_backend *backend, const decant_cuda_guided *g, int first,
                                             int at, int count, decant_error *err);

/* Every code once, column after column. */
decant_status decant_cuda_guided_sweep(decant_backend *backend, const decant_cuda_guided *g, decant_error *err);

/* ---- device code of several of these files ---- */

static __device__ __forceinline__ void decant_guided_split(float value, __nv_bfloat16 *first,
                                                           __nv_bfloat16 *second)
{
    *first = __float2bfloat16_rn(value);
    *second = __float2bfloat16_rn(value - __bfloat162float(*first));
}

/* δ at a place of [rows, columns], with its parts */
static __device__ __forceinline__ void decant_guided_set_missing(const decant_cuda_guided &g, int64_t place,
                                                                 float missing)
{
    g.missing[place] = missing;
    decant_guided_split(missing, &g.missing_parts[place],
                        &g.missing_parts[(int64_t)g.rows * g.columns + place]);
}

static __device__ __forceinline__ float decant_guided_level(const uint16_t *levels, int code)
{
    return __half2float(__ushort_as_half(levels[code]));
}

/* A value above this one has a higher code than `code`: thresholds counted or found by halving give the lowest
 * code among equal levels, and the lower of two levels as near. Rounded down, so that floats are divided as by
 * the exact middle. */
static __device__ __forceinline__ float decant_guided_threshold(const uint16_t *levels, int count, int code)
{
    const float level = decant_guided_level(levels, code);
    int next = code + 1;
    while (next < count && decant_guided_level(levels, next) == level)
        next++;
    if (next >= count)
        return INFINITY;
    return __double2float_rd(0.5 * ((double)level + (double)decant_guided_level(levels, next)));
}

#endif
