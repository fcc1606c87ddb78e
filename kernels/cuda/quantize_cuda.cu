/* The quantize table of the CUDA backend, and fitting levels to a matrix in batches of rows that fit a workspace.
 * Knows the order of the steps; what each does is in its own file.
 *
 * The workspace is part of the backend's scratch: what the rows of the matrix need, about 50 to 70 bytes a weight, and
 * WORKSPACE_BYTES at most (more only where a single row needs more). */
#include "kernels/cuda/quantize.cuh"

#include <climits>
#include <cmath>

static const size_t WORKSPACE_BYTES = (size_t)2 << 30;
enum { EXACT_BITS = 4 }; /* wider ones go to the refined search */

/* What fit_levels was asked for. */
struct request {
    decant_matrix weight;
    const float *fisher;
    const decant_sparse_pattern *pattern;
    decant_level_search search;
    uint64_t seed;
    const int *bits;
    int n_widths, n_exact; /* the first n_exact widths are for the exact search */
    uint16_t *const *levels;
};

/* The workspace of one batch. */
struct workspace {
    unsigned long long *bad; /* place of the lowest bad entry so far */
    decant_cuda_points points;
    void *step;              /* scratch of one step at a time */
};

/* Enough space between rows for one number more than there are columns, and for vectors. */
static int row_stride(int columns)
{
    return (columns + 8) / 8 * 8;
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static decant_status place_workspace(decant_backend *backend, const request &r, int rows, decant_cuda_arena *arena,
                                     workspace *w, decant_error *err)
{
    decant_cuda_points *points = &w->points;
    points->rows = rows;
    points->columns = (int)r.weight.columns;
    points->stride = row_stride(points->columns);
    const size_t all = (size_t)rows * (size_t)points->stride, each = (size_t)rows;
    w->bad = (unsigned long long *)decant_cuda_arena_take(arena, sizeof *w->bad);
    points->values = (float *)decant_cuda_arena_take(arena, all * sizeof(float));
    points->masses = (float *)decant_cuda_arena_take(arena, all * sizeof(float));
    points->before = (double2 *)decant_cuda_arena_take(arena, all * sizeof(double2));
    points->first_entry = (uint32_t *)decant_cuda_arena_take(arena, all * sizeof(uint32_t));
    points->entries = (uint32_t *)decant_cuda_arena_take(arena, each * sizeof(uint32_t));
    points->points = (uint32_t *)decant_cuda_arena_take(arena, each * sizeof(uint32_t));
    points->mean = (double *)decant_cuda_arena_take(arena, each * sizeof(double));

    size_t step_bytes = 0;
    DECANT_RETURN_ON_FAILURE(decant_cuda_sort_rows_bytes(backend, rows, points->columns, &step_bytes, err));
    if (r.n_exact > 0)
        step_bytes = larger(step_bytes, decant_cuda_kmeans_exact_bytes(backend, points, r.bits, r.n_exact));
    w->step = decant_cuda_arena_take(arena, step_bytes);
    return DECANT_OK;
}

/* How many rows a batch has: as many as fit the workspace, all batches about alike. */
static decant_status rows_of_batch(decant_backend *backend, const request &r, int64_t *rows, decant_error *err)
{
    decant_cuda_arena arena = {NULL, 0};
    workspace w;
    DECANT_RETURN_ON_FAILURE(place_workspace(backend, r, 1, &arena, &w, err));
    int64_t fitting = (int64_t)(WORKSPACE_BYTES / arena.used);
    if (fitting < 1)
        fitting = 1;
    const int64_t batches = (r.weight.rows + fitting - 1) / fitting;
    *rows = (r.weight.rows + batches - 1) / batches;
    return DECANT_OK;
}

/* The levels of the rows from `first` on, as many as the workspace has. */
static decant_status fit_batch(decant_backend *backend, const request &r, const workspace &w, int64_t first,
                               decant_error *err)
{
    uint16_t *levels[DECANT_BITS_MAXIMUM + 1];
    for (int i = 0; i < r.n_widths; i++)
        levels[i] = r.levels[i] + (first << r.bits[i]);
    const decant_cuda_rows rows = decant_cuda_rows_of(r.weight, r.fisher, r.pattern, first, w.points.rows);
    DECANT_RETURN_ON_FAILURE(decant_cuda_sort_rows(backend, &rows, w.step, w.bad, &w.points, err));
    DECANT_RETURN_ON_FAILURE(decant_cuda_sum_rows(backend, &w.points, err));
    if (r.n_exact > 0)
        DECANT_RETURN_ON_FAILURE(
            decant_cuda_kmeans_exact(backend, &w.points, w.step, r.bits, r.n_exact, levels, err));
    return DECANT_OK;
}

/* The error that names a bad entry. */
static decant_status name_bad_entry(decant_backend *backend, const request &r, unsigned long long place,
                                    decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    const size_t bytes = decant_element_bytes(r.weight.element);
    const long long row = (long long)(place / (unsigned long long)r.weight.columns);
    const long long column = (long long)(place % (unsigned long long)r.weight.columns);
    uint32_t bits = 0;
    float weight, fisher = 1;
    DECANT_RETURN_ON_FAILURE(
        decant_cuda_receive(context, &bits, (const char *)r.weight.data + place * bytes, bytes, err));
    decant_elements_to_f32(r.weight.element, &bits, 1, &weight);
    if (r.fisher)
        DECANT_RETURN_ON_FAILURE(decant_cuda_receive(context, &fisher, r.fisher + place, sizeof fisher, err));
    if (!std::isfinite(weight))
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "the weight at row %lld, column %lld is %g; only finite ones can be "
                            "quantized", row, column, (double)weight);
    return DECANT_ERROR(err, DECANT_ERROR_INPUT, "the Fisher sum at row %lld, column %lld is %g; it has to be finite and "
                        "not negative", row, column, (double)fisher);
}

static decant_status fit_request(decant_backend *backend, const request &r, decant_error *err)
{
    int64_t batch;
    DECANT_RETURN_ON_FAILURE(rows_of_batch(backend, r, &batch, err));
    decant_cuda_arena size = {NULL, 0};
    workspace w;
    DECANT_RETURN_ON_FAILURE(place_workspace(backend, r, (int)batch, &size, &w, err));
    decant_cuda_arena arena = {NULL, 0};
    void *memory;
    DECANT_RETURN_ON_FAILURE(decant_cuda_scratch(backend, size.used, &memory, err));
    arena.memory = (char *)memory;
    DECANT_RETURN_ON_FAILURE(place_workspace(backend, r, (int)batch, &arena, &w, err));
    unsigned long long bad = DECANT_CUDA_NOWHERE;
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(
        cudaMemsetAsync(w.bad, 0xff, sizeof bad, decant_cuda_of(backend)->stream), "fitting levels", err));
    for (int64_t first = 0; first < r.weight.rows; first += batch) {
        if (r.weight.rows - first < batch)
            w.points.rows = (int)(r.weight.rows - first);
        DECANT_RETURN_ON_FAILURE(fit_batch(backend, r, w, first, err));
    }
    DECANT_RETURN_ON_FAILURE(decant_cuda_receive(decant_cuda_context_of(backend), &bad, w.bad, sizeof bad, err));
    return bad == DECANT_CUDA_NOWHERE ? DECANT_OK : name_bad_entry(backend, r, bad, err);
}
