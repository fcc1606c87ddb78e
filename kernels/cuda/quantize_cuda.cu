/* The quantize table of the CUDA backend, and fitting levels to a matrix in batches of rows that fit a
 * workspace. Knows the order of the steps; what each does is in its own file.
 *
 * The workspace is part of the backend's scratch: what the rows of the matrix need, 45 to 75 bytes a weight,
 * and WORKSPACE_BYTES at most (more only where a single row needs more). */
#include "kernels/cuda/quantize.cuh"

#include <climits>
#include <cmath>

static const size_t WORKSPACE_BYTES = (size_t)2 << 30;

enum {
    MOST_WIDTHS = DECANT_BITS_MAXIMUM - DECANT_BITS_MINIMUM + 1,
    MOST_EXACT_CLUSTERS = 16, /* more of them are found through a penalty */
};

/* What fit_levels was asked for. */
struct fit_request {
    decant_matrix weight;
    const float *fisher;
    const decant_sparse_pattern *pattern;
    decant_level_search search;
    uint64_t seed;
    int n_widths, n_exact; /* the first n_exact are for the dynamic program */
    int clusters[MOST_WIDTHS];
    uint16_t *const *levels;
};

/* The workspace of one batch. */
struct fit_workspace {
    unsigned long long *bad; /* place of the lowest bad entry so far */
    decant_cuda_points points;
    int32_t *boundaries[MOST_WIDTHS];
    void *step; /* scratch of one step at a time */
};

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Scratch for the hungriest step. */
static decant_status step_bytes(decant_backend *backend, const fit_request &r, const decant_cuda_points *points,
                                size_t *size_bytes, decant_error *err)
{
    DECANT_RETURN_ON_FAILURE(
        decant_cuda_sort_rows_bytes(backend, points->rows, points->columns, size_bytes, err));
    if (r.search == DECANT_LEVELS_LLOYD) {
        *size_bytes = larger(*size_bytes, decant_cuda_kmeans_lloyd_bytes(points));
        return DECANT_OK;
    }
    if (r.n_exact > 0)
        *size_bytes =
            larger(*size_bytes, decant_cuda_kmeans_exact_bytes(backend, points, r.clusters, r.n_exact));
    if (r.n_exact < r.n_widths)
        *size_bytes = larger(*size_bytes, decant_cuda_kmeans_lagrangian_bytes(points));
    return DECANT_OK;
}

static decant_status place_workspace(decant_backend *backend, const fit_request &r, int rows,
                                     decant_cuda_arena *arena, fit_workspace *w, decant_error *err)
{
    decant_cuda_points *points = &w->points;
    points->rows = rows;
    points->columns = (int)r.weight.columns;
    points->stride = (points->columns + 8) / 8 * 8; /* room for one more, and whole vectors */
    const size_t all = (size_t)rows * (size_t)points->stride, each = (size_t)rows;
    w->bad = (unsigned long long *)decant_cuda_arena_take(arena, sizeof *w->bad);
    points->values = (float *)decant_cuda_arena_take(arena, all * sizeof(float));
    points->masses = (float *)decant_cuda_arena_take(arena, all * sizeof(float));
    points->before = (double2 *)decant_cuda_arena_take(arena, all * sizeof(double2));
    points->first_entry = (uint32_t *)decant_cuda_arena_take(arena, all * sizeof(uint32_t));
    points->entries = (uint32_t *)decant_cuda_arena_take(arena, each * sizeof(uint32_t));
    points->points = (uint32_t *)decant_cuda_arena_take(arena, each * sizeof(uint32_t));
    points->mean = (double *)decant_cuda_arena_take(arena, each * sizeof(double));
    for (int i = 0; i < r.n_widths; i++)
        w->boundaries[i] =
            (int32_t *)decant_cuda_arena_take(arena, each * ((size_t)r.clusters[i] + 1) * sizeof(int32_t));
    size_t bytes = 0;
    DECANT_RETURN_ON_FAILURE(step_bytes(backend, r, points, &bytes, err));
    w->step = decant_cuda_arena_take(arena, bytes);
    return DECANT_OK;
}

/* How many rows a batch has: as many as fit the workspace, all batches about alike. */
static decant_status rows_of_batch(decant_backend *backend, const fit_request &r, int64_t *rows,
                                   decant_error *err)
{
    decant_cuda_arena arena = {NULL, 0};
    fit_workspace w;
    DECANT_RETURN_ON_FAILURE(place_workspace(backend, r, 1, &arena, &w, err));
    const int64_t fitting = WORKSPACE_BYTES > arena.used ? (int64_t)(WORKSPACE_BYTES / arena.used) : 1;
    const int64_t batches = (r.weight.rows + fitting - 1) / fitting;
    *rows = (r.weight.rows + batches - 1) / batches;
    return DECANT_OK;
}

/* The levels of the rows from `first` on, as many as the workspace is placed for. */
static decant_status fit_batch(decant_backend *backend, const fit_request &r, const fit_workspace &w,
                               int64_t first, decant_error *err)
{
    const decant_cuda_points *points = &w.points;
    const int exact = r.n_exact, wide = r.n_widths - r.n_exact;
    const decant_cuda_rows rows = decant_cuda_rows_of(r.weight, r.fisher, r.pattern, first, points->rows);
    DECANT_RETURN_ON_FAILURE(decant_cuda_sort_rows(backend, &rows, w.step, w.bad, points, err));
    DECANT_RETURN_ON_FAILURE(decant_cuda_sum_rows(backend, points, err));
    if (r.search == DECANT_LEVELS_LLOYD)
        DECANT_RETURN_ON_FAILURE(decant_cuda_kmeans_lloyd(backend, points, w.step, r.clusters, r.n_widths,
                                                          r.seed, w.boundaries, err));
    if (r.search == DECANT_LEVELS_EXACT && exact > 0)
        DECANT_RETURN_ON_FAILURE(
            decant_cuda_kmeans_exact(backend, points, w.step, r.clusters, exact, w.boundaries, err));
    if (r.search == DECANT_LEVELS_EXACT && wide > 0)
        DECANT_RETURN_ON_FAILURE(decant_cuda_kmeans_lagrangian(backend, points, w.step, r.clusters + exact,
                                                               wide, w.boundaries + exact, err));
    for (int i = 0; i < r.n_widths; i++)
        DECANT_RETURN_ON_FAILURE(decant_cuda_levels_of_clusters(backend, points, w.boundaries[i], r.clusters[i],
                                                                r.levels[i] + first * r.clusters[i], err));
    return DECANT_OK;
}

/* The error that names a bad entry. */
static decant_status name_bad_entry(decant_backend *backend, const fit_request &r, unsigned long long place,
                                    decant_error *err)
{
    const size_t bytes = decant_element_bytes(r.weight.element);
    const unsigned long long columns = (unsigned long long)r.weight.columns;
    uint32_t bits = 0;
    float weight;
    DECANT_RETURN_ON_FAILURE(decant_cuda_receive(decant_cuda_context_of(backend), &bits,
                                                 (const char *)r.weight.data + place * bytes, bytes, err));
    decant_elements_to_f32(r.weight.element, &bits, 1, &weight);
    const bool is_fisher = std::isfinite(weight);
    return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s at row %llu, column %llu is not %s",
                        is_fisher ? "the Fisher value" : "the weight", place / columns, place % columns,
                        is_fisher ? "finite and at least 0" : "finite");
}

/* All rows, batch after batch in one workspace. */
static decant_status fit_rows(decant_backend *backend, const fit_request &r, decant_error *err)
{
    const cudaStream_t stream = decant_cuda_of(backend)->stream;
    int64_t batch;
    DECANT_RETURN_ON_FAILURE(rows_of_batch(backend, r, &batch, err));
    decant_cuda_arena size = {NULL, 0}, arena = {NULL, 0};
    fit_workspace w;
    void *memory;
    DECANT_RETURN_ON_FAILURE(place_workspace(backend, r, (int)batch, &size, &w, err));
    DECANT_RETURN_ON_FAILURE(decant_cuda_scratch(backend, size.used, &memory, err));
    arena.memory = (char *)memory;
    DECANT_RETURN_ON_FAILURE(place_workspace(backend, r, (int)batch, &arena, &w, err));
    unsigned long long bad = DECANT_CUDA_NOWHERE;
    DECANT_RETURN_ON_FAILURE(
        decant_cuda_check(cudaMemsetAsync(w.bad, 0xff, sizeof bad, stream), "fitting levels", err));
    for (int64_t first = 0; first < r.weight.rows; first += batch) {
        if (r.weight.rows - first < batch)
            w.points.rows = (int)(r.weight.rows - first);
        DECANT_RETURN_ON_FAILURE(fit_batch(backend, r, w, first, err));
    }
    DECANT_RETURN_ON_FAILURE(
        decant_cuda_receive(decant_cuda_context_of(backend), &bad, w.bad, sizeof bad, err));
    return bad == DECANT_CUDA_NOWHERE ? DECANT_OK : name_bad_entry(backend, r, bad, err);
}

static decant_status fit_levels(decant_backend *backend, decant_matrix weight, const float *fisher,
                                const decant_sparse_pattern *pattern, decant_level_search search, uint64_t seed,
                                const int *bits, int n_widths, uint16_t *const *levels, decant_error *err)
{
    if (n_widths < 1 || n_widths > MOST_WIDTHS || weight.columns > INT_MAX / 2)
        return DECANT_ERROR(err, DECANT_ERROR_BUG, "cannot fit %d widths to rows of %lld weights", n_widths,
                            (long long)weight.columns);
    fit_request r = {weight, fisher, pattern, search, seed, n_widths, 0, {}, levels};
    for (int i = 0; i < n_widths; i++) {
        if (bits[i] < DECANT_BITS_MINIMUM || bits[i] > DECANT_BITS_MAXIMUM || (i > 0 && bits[i] <= bits[i - 1]))
            return DECANT_ERROR(err, DECANT_ERROR_BUG, "bit widths must ascend from 2 to 8; number %d is %d", i,
                                bits[i]);
        r.clusters[i] = 1 << bits[i];
        r.n_exact += r.clusters[i] <= MOST_EXACT_CLUSTERS;
    }
    return weight.rows > 0 ? fit_rows(backend, r, err) : DECANT_OK;
}

extern const decant_quantize_kernels decant_cuda_quantize_kernels = {
    .select_sparse = decant_cuda_select_sparse,
    .weigh_errors = decant_cuda_weigh_errors,
    .fit_levels = fit_levels,
    .measure = decant_cuda_measure,
    .encode = decant_cuda_encode,
    .guide = decant_cuda_guide,
};
