/* Levels of all rows: each row is one weighted k-means problem of its own, solved by one thread from beginning
 * to end, so that neither the number of threads nor their timing can show in the result.
 *
 * Exact search: few levels come from one dynamic program for all widths, more from a search for a penalty,
 * which takes about the same time for 16 levels and for 256. The levels of one width do not depend on which
 * other widths are asked, not even by the choice among several optima: they may be fitted again, alone. */
#include "kernels/cpu/quantize.h"

#include "base/memory.h"
#include "kernels/cpu/kmeans_exact.h"
#include "kernels/cpu/kmeans_lagrangian.h"
#include "kernels/cpu/kmeans_lloyd.h"
#include "kernels/cpu/levels.h"

#include <inttypes.h>
#include <math.h>

enum {
    N_WIDTHS = DECANT_BITS_MAXIMUM - DECANT_BITS_MINIMUM + 1,
    TABLE_LEVELS = 8 /* up to here the dynamic program is faster */
};

typedef struct fit_job {
    decant_matrix weight;
    const float *fisher;
    const decant_sparse_pattern *pattern;
    decant_level_search search;
    uint64_t seed;
    int clusters[N_WIDTHS]; /* ascending */
    int n_widths;
    uint16_t *const *levels;
} fit_job;

/* What one thread works in. */
typedef struct workspace {
    float *row;
    decant_points points;
    int32_t *boundaries[N_WIDTHS];
    void *scratch;
} workspace;

/* The first thing wrong with the input; row is the number of rows when nothing is. */
typedef struct bad_element {
    int64_t row, column;
    bool is_fisher;
} bad_element;

static size_t maximum(size_t a, size_t b)
{
    return a > b ? a : b;
}

static size_t scratch_bytes(const fit_job *job)
{
    int64_t columns = job->weight.columns;
    if (job->search == DECANT_LEVELS_LLOYD)
        return decant_kmeans_lloyd_bytes(columns, job->clusters[job->n_widths - 1]);
    return maximum(decant_kmeans_exact_bytes(columns), decant_kmeans_lagrangian_bytes(columns));
}

/* Lays a workspace out in memory; with memory NULL only its size is of use. */
static size_t place_workspace(const fit_job *job, char *memory, workspace *space)
{
    int64_t columns = job->weight.columns;
    size_t used = 0;
    space->row = (float *)memory;
    used += decant_memory_aligned_bytes((size_t)columns * sizeof(float));
    if (memory)
        decant_points_place(columns, memory + used, &space->points);
    used += decant_memory_aligned_bytes(decant_points_bytes(columns));
    for (int i = 0; i < job->n_widths; i++) {
        space->boundaries[i] = memory ? (int32_t *)(memory + used) : NULL;
        used += decant_memory_aligned_bytes(((size_t)job->clusters[i] + 1) * sizeof(int32_t));
    }
    space->scratch = memory ? memory + used : NULL;
    return used + decant_memory_aligned_bytes(scratch_bytes(job));
}

static bool all_valid(const float *row, const float *fisher, int64_t columns)
{
    int bad = 0;
    for (int64_t j = 0; j < columns; j++)
        bad |= !(fabsf(row[j]) < INFINITY);
    if (fisher)
        for (int64_t j = 0; j < columns; j++)
            bad |= !(fisher[j] >= 0 && fisher[j] < INFINITY);
    return !bad;
}

static bad_element first_bad(const float *row, const float *fisher, int64_t row_index)
{
    int64_t j = 0;
    while (all_valid(row + j, fisher ? fisher + j : NULL, 1))
        j++;
    return (bad_element){row_index, j, isfinite(row[j])};
}

/* Every point its own cluster: there are no more points than levels. */
static void separate(const decant_points *points, int clusters, int32_t *boundaries)
{
    for (int c = 0; c <= clusters; c++)
        boundaries[c] = c < points->count ? c : points->count;
}

static void find_exact(const fit_job *job, int n_widths, workspace *space)
{
    const decant_points *points = &space->points;
    int n_table = 0;
    while (n_table < n_widths && job->clusters[n_table] <= TABLE_LEVELS)
        n_table++;
    if (n_table > 0)
        decant_kmeans_exact(points, TABLE_LEVELS, job->clusters, n_table, space->boundaries, space->scratch);
    for (int i = n_table; i < n_widths; i++)
        decant_kmeans_lagrangian(points, job->clusters[i], space->boundaries[i], space->scratch);
}

static void find_clusters(const fit_job *job, workspace *space)
{
    int n = 0; /* widths with fewer levels than there are points */
    while (n < job->n_widths && job->clusters[n] < space->points.count)
        n++;
    if (job->search == DECANT_LEVELS_EXACT)
        find_exact(job, n, space);
    else
        for (int i = 0; i < n; i++)
            decant_kmeans_lloyd(&space->points, job->clusters[i], job->seed, space->boundaries[i],
                                space->scratch);
    for (; n < job->n_widths; n++)
        separate(&space->points, job->clusters[n], space->boundaries[n]);
}

/* false when the row's input is bad, and *bad tells what. */
static bool fit_row(const fit_job *job, int64_t row, workspace *space, bad_element *bad)
{
    int64_t columns = job->weight.columns;
    const float *fisher = job->fisher ? job->fisher + row * columns : NULL;
    decant_cpu_read_row(job->weight, row, 0, columns, space->row);
    if (!all_valid(space->row, fisher, columns)) {
        *bad = first_bad(space->row, fisher, row);
        return false;
    }
    const uint32_t *excluded;
    int64_t n_excluded = decant_cpu_sparse_columns(job->pattern, row, &excluded);
    decant_points_build(space->row, fisher, columns, excluded, n_excluded, &space->points);
    find_clusters(job, space);
    for (int i = 0; i < job->n_widths; i++)
        decant_levels_of_clusters(&space->points, space->boundaries[i], job->clusters[i],
                                  job->levels[i] + row * job->clusters[i]);
    return true;
}

/* All rows before the first bad one are fitted, so that any number of threads finds the same one. */
static bad_element fit_rows(const fit_job *job, int threads, char *memory, size_t slice_bytes)
{
    bad_element worst = {.row = job->weight.rows};
#pragma omp parallel num_threads(threads)
    {
        workspace space;
        place_workspace(job, memory + (size_t)decant_cpu_thread() * slice_bytes, &space);
#pragma omp for schedule(dynamic, 4)
        for (int64_t row = 0; row < job->weight.rows; row++) {
            bad_element bad;
            int64_t worst_row;
#pragma omp atomic read
            worst_row = worst.row;
            if (row > worst_row || fit_row(job, row, &space, &bad))
                continue;
#pragma omp critical(decant_fit_levels)
            if (bad.row < worst.row) {
                worst.column = bad.column;
                worst.is_fisher = bad.is_fisher;
#pragma omp atomic write
                worst.row = bad.row;
            }
        }
    }
    return worst;
}

static decant_status check_widths(const int *bits, int n_widths, decant_error *err)
{
    if (n_widths < 1 || n_widths > N_WIDTHS)
        return DECANT_ERROR(err, DECANT_ERROR_BUG, "cannot fit %d bit widths at once", n_widths);
    for (int i = 0; i < n_widths; i++)
        if (bits[i] < DECANT_BITS_MINIMUM || bits[i] > DECANT_BITS_MAXIMUM || (i > 0 && bits[i] <= bits[i - 1]))
            return DECANT_ERROR(err, DECANT_ERROR_BUG, "bit widths must ascend from 2 to 8; number %d is %d", i,
                                bits[i]);
    return DECANT_OK;
}

decant_status decant_cpu_fit_levels(decant_backend *backend, decant_matrix weight, const float *fisher,
                                    const decant_sparse_pattern *pattern, decant_level_search search,
                                    uint64_t seed, const int *bits, int n_widths, uint16_t *const *levels,
                                    decant_error *err)
{
    decant_status status;
    DECANT_TRY(check_widths(bits, n_widths, err));
    if (weight.columns > INT32_MAX / 2)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "rows of %" PRId64 " weights are too long", weight.columns);
    fit_job job = {weight, fisher, pattern, search, seed, {0}, n_widths, levels};
    for (int i = 0; i < n_widths; i++)
        job.clusters[i] = 1 << bits[i];

    workspace unplaced;
    void *memory;
    const size_t slice_bytes = place_workspace(&job, NULL, &unplaced);
    const int threads = decant_cpu_of(backend)->threads;
    DECANT_TRY(decant_cpu_scratch(backend, (size_t)threads * slice_bytes, &memory, err));
    bad_element bad = fit_rows(&job, threads, memory, slice_bytes);
    if (bad.row < weight.rows)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s at row %" PRId64 ", column %" PRId64 " is not %s",
                    bad.is_fisher ? "the Fisher value" : "the weight", bad.row, bad.column,
                    bad.is_fisher ? "finite and at least 0" : "finite");
done:
    return status;
}
