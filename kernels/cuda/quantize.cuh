/* What the CUDA files on quantizing share: the rows of a matrix, the points that k-means sees of them, and the
 * steps from the one to the other. Only the files named here include it.
 *
 *   quantize_cuda.cu      the table of functions; levels in batches of rows that fit the workspace
 *   select_sparse.cu      which weights leave the dense part
 *   row_sort.cu           the entries of each row that count, sorted by value
 *   row_points.cu         equal values merged into points, prefix sums over them
 *   kmeans_exact.cu       the best clusters by dynamic programming, up to 16
 *   kmeans_lagrangian.cu  the best clusters, more of them
 *   kmeans_lloyd.cu       clusters by k-means++ and Lloyd's iterations
 *   levels.cu             clusters to levels
 *   codes.cu              nearest levels: measuring and packing
 *   weigh_errors.cu       what each weight's error costs
 *   guided*.cu            levels and codes under a Hessian; guided.cuh
 *
 * Each step issues its work on the backend's stream and does not wait for it. */
#ifndef DECANT_KERNELS_CUDA_QUANTIZE_CUH
#define DECANT_KERNELS_CUDA_QUANTIZE_CUH

#include "kernels/cuda/context.h"

#include <stddef.h>
#include <stdint.h>

/* Some consecutive rows of a matrix, with what belongs to them; device pointers to the first of these rows. */
typedef struct decant_cuda_rows {
    const void *weights;
    decant_element element;
    const float *fisher;         /* NULL: all ones */
    const uint32_t *row_offsets; /* of the sparse pattern, into pattern_columns; NULL: no pattern */
    const uint32_t *pattern_columns;
    int rows, columns;
    int64_t first_row; /* number of the first one in the whole matrix */
} decant_cuda_rows;

static inline decant_cuda_rows decant_cuda_rows_of(decant_matrix weight, const float *fisher,
                                                   const decant_sparse_pattern *pattern, int64_t first,
                                                   int64_t count)
{
    const bool sparse = pattern && pattern->count > 0;
    decant_cuda_rows rows;
    rows.weights = decant_matrix_rows(weight, first, count).data;
    rows.element = weight.element;
    rows.fisher = fisher ? fisher + first * weight.columns : NULL;
    rows.row_offsets = sparse ? pattern->row_offsets + first : NULL;
    rows.pattern_columns = sparse ? pattern->columns : NULL;
    rows.rows = (int)count;
    rows.columns = (int)weight.columns;
    rows.first_row = first;
    return rows;
}

/* The weighted points of each row, as one-dimensional k-means wants them. An entry is a weight with its mass
 * (its F); entries of equal value make one point. Sums over an interval of points are differences of `before`.
 * Arrays are [rows, stride]; row r is used up to the count that is given. */
typedef struct decant_cuda_points {
    int rows, columns, stride;
    float *values;     /* [entries] ascending, −0 never occurs */
    float *masses;     /* [entries] > 0 */
    uint32_t *entries; /* one number a row: how many entries count */
    uint32_t *points;  /* one number a row: how many different values they have */
    double *mean;      /* one number a row: the weighted mean */
    double2 *before;   /* [points + 1] sums over the points before: x of mass, y of mass · (value − mean) */
    uint32_t *first_entry; /* [points + 1] number of entries before the point */
} decant_cuda_points;

/* A block of memory handed out piece by piece. With memory NULL only the size is counted. */
typedef struct decant_cuda_arena {
    char *memory;
    size_t used;
} decant_cuda_arena;

static inline void *decant_cuda_arena_take(decant_cuda_arena *arena, size_t size_bytes)
{
    const size_t offset = decant_scratch_reserve(&arena->used, size_bytes);
    return arena->memory ? arena->memory + offset : NULL;
}

/* Where the lowest bad entry is, as row-major index into the whole matrix; this when there is none. */
#define DECANT_CUDA_NOWHERE 0xffffffffffffffffull

/* ---- row_sort.cu ---- */

/* Bytes of scratch to sort this many rows at once. */
decant_status decant_cuda_sort_rows_bytes(decant_backend *backend, int rows, int columns, size_t *size_bytes,
                                          decant_error *err);

/* Fills values, masses and entries of `points`: the entries outside the pattern with positive F; when there are
 * none, all entries outside the pattern, with mass 1. Lowers *bad to the place of any entry whose weight or F
 * is not finite or whose F is negative; such an entry does not count. */
decant_status decant_cuda_sort_rows(decant_backend *backend, const decant_cuda_rows *rows, void *scratch,
                                    unsigned long long *bad, const decant_cuda_points *points,
                                    decant_error *err);

/* ---- row_points.cu ---- */

/* Fills the other arrays of `points` from values, masses and entries. */
decant_status decant_cuda_sum_rows(decant_backend *backend, const decant_cuda_points *points,
                                   decant_error *err);

/* ---- the searches ---- */

/* Each finds the clusters of every row for several numbers of clusters, ascending powers of two:
 *   scratch     as many bytes as the function beside it says, for points->rows rows
 *   boundaries  [n_targets] device arrays [rows, clusters + 1]: cluster c of a row is its points from
 *               boundaries[c] to before boundaries[c + 1]
 * With no more points than clusters each point is a cluster, and the last ones are empty. */

/* The best clusters by dynamic programming, 4 to 16 of them. */
size_t decant_cuda_kmeans_exact_bytes(decant_backend *backend, const decant_cuda_points *points,
                                      const int *clusters, int n_targets);
decant_status decant_cuda_kmeans_exact(decant_backend *backend, const decant_cuda_points *points, void *scratch,
                                       const int *clusters, int n_targets, int32_t *const *boundaries,
                                       decant_error *err);

/* The best clusters through a price for each, 32 to 256 of them. */
size_t decant_cuda_kmeans_lagrangian_bytes(const decant_cuda_points *points);
decant_status decant_cuda_kmeans_lagrangian(decant_backend *backend, const decant_cuda_points *points,
                                            void *scratch, const int *clusters, int n_targets,
                                            int32_t *const *boundaries, decant_error *err);

/* A local optimum: k-means++ start, Lloyd's iterations; some clusters may be empty. */
size_t decant_cuda_kmeans_lloyd_bytes(const decant_cuda_points *points);
decant_status decant_cuda_kmeans_lloyd(decant_backend *backend, const decant_cuda_points *points, void *scratch,
                                       const int *clusters, int n_targets, uint64_t seed,
                                       int32_t *const *boundaries, decant_error *err);

/* ---- levels.cu ---- */

/* The means of the clusters that are not empty, F16 [rows, clusters], ascending, the last one repeated. */
decant_status decant_cuda_levels_of_clusters(decant_backend *backend, const decant_cuda_points *points,
                                             const int32_t *boundaries, int clusters, uint16_t *levels,
                                             decant_error *err);

/* ---- the operations of the table; kernels/backend.h says what they compute ---- */

decant_status decant_cuda_select_sparse(decant_backend *backend, decant_matrix weight, const float *fisher,
                                        int64_t n_sensitive, int64_t n_outliers, decant_sparse_pattern *pattern,
                                        decant_error *err);
decant_status decant_cuda_weigh_errors(decant_backend *backend, decant_matrix weight, const float *fisher,
                                       const decant_packed_matrix *packed, float *cost, decant_error *err);
decant_status decant_cuda_measure(decant_backend *backend, decant_matrix weight, const float *fisher,
                                  const decant_sparse_pattern *pattern, int bits, const uint16_t *levels,
                                  decant_matrix_error *error, decant_error *err);
decant_status decant_cuda_encode(decant_backend *backend, decant_matrix weight, decant_packed_matrix *packed,
                                 decant_error *err);
decant_status decant_cuda_guide(decant_backend *backend, decant_matrix weight,
                                const decant_guided_search *search, decant_packed_matrix *packed,
                                decant_matrix_error *error, decant_error *err);

#endif
