/* Guided quantization of a matrix: levels in closed form and codes, first by rounding with error feedback, then
 * by cyclic coordinate descent, in turn, each row by itself under its group's H + λ. Source: LNQ, algorithm 1
 * of arXiv 2505.07004; the feedback, which it does without, makes it begin nearer to the optimum.
 *
 * What is missing, δ = w − ŵ, is kept; the gradient δᵀ(H + λ) is computed for a block of columns as one
 * product, and within the block kept up to date code by code. So nearly all work is products. Rows go in tiles,
 * each of which one thread takes from beginning to end: neither the number of threads nor their timing can show
 * in the result. */
#include "base/memory.h"
#include "kernels/cpu/guided_feedback.h"
#include "kernels/cpu/guided_levels.h"
#include "kernels/cpu/guided_tile.h"
#include "kernels/cpu/quantize.h"
#include "kernels/guided_order.h"

#include <string.h>

typedef struct guided_job {
    decant_matrix weight;
    const decant_guided_search *search;
    decant_packed_matrix *packed;
    float *feedback; /* [columns, columns] of the group at hand */
    int32_t *order;  /* [columns] */
} guided_job;

/* Hands out size_bytes of memory; with memory NULL only counts them. */
static void *take(char *memory, size_t *used, int64_t count, size_t element_bytes)
{
    char *place = memory ? memory + *used : NULL;
    *used += decant_memory_aligned_bytes((size_t)count * element_bytes);
    return place;
}

static size_t place_tile(const guided_job *job, char *memory, decant_guided_tile *tile)
{
    const int64_t n = job->weight.columns, levels = (int64_t)1 << job->packed->bits;
    size_t used = 0;
    tile->columns = n;
    tile->weight = take(memory, &used, DECANT_GUIDED_ROWS * n, sizeof(float));
    tile->missing = take(memory, &used, DECANT_GUIDED_ROWS * n, sizeof(float));
    tile->handed = take(memory, &used, DECANT_GUIDED_ROWS * n, sizeof(float));
    tile->gradient = take(memory, &used, DECANT_GUIDED_ROWS * DECANT_GUIDED_BLOCK, sizeof(float));
    tile->level_sums = take(memory, &used, DECANT_GUIDED_ROWS * levels * DECANT_GUIDED_BLOCK, sizeof(float));
    tile->normal = take(memory, &used, DECANT_GUIDED_ROWS * levels * levels, sizeof(double));
    tile->right = take(memory, &used, DECANT_GUIDED_ROWS * levels, sizeof(double));
    tile->start = take(memory, &used, DECANT_GUIDED_ROWS * levels, sizeof(uint16_t));
    tile->codes = take(memory, &used, DECANT_GUIDED_ROWS * n, 1);
    tile->is_sparse = take(memory, &used, DECANT_GUIDED_ROWS * n, 1);
    tile->books = take(memory, &used, DECANT_GUIDED_ROWS, sizeof(decant_code_book));
    return used;
}

/* Levels and codes by turns, codes by rounding with feedback. That may not lower the objective of a row; then
 * the row goes back to where it was. */
static void round_tile(const guided_job *job, decant_guided_tile *tile, const double *before)
{
    const int bits = tile->bits;
    const size_t levels_bytes = (size_t)tile->rows << (bits + 1);
    double objective[DECANT_GUIDED_ROWS];
    memcpy(tile->start, decant_guided_levels_of(tile, 0), levels_bytes);
    for (int pass = 0; pass < job->search->passes; pass++) {
        if (pass > 0)
            decant_guided_improve_levels(tile, pass < job->search->passes - 1 ? DECANT_GUIDED_STRIDE : 1);
        decant_guided_round_with_feedback(tile);
    }
    decant_guided_sum_objective(tile, tile->damping, objective);
    for (int64_t r = 0; r < tile->rows; r++) {
        if (objective[r] < before[r])
            continue;
        memcpy(decant_guided_levels_of(tile, r), tile->start + (r << bits), sizeof(uint16_t) << bits);
        decant_guided_load_row(tile, r);
    }
}

static void guide_tile(const guided_job *job, decant_guided_tile *tile, decant_guided_row *results)
{
    const decant_guided_search *search = job->search;
    double objective[DECANT_GUIDED_ROWS];
    for (int64_t r = 0; r < tile->rows; r++) {
        decant_guided_levels_begin(decant_guided_levels_of(tile, r), 1 << tile->bits);
        decant_guided_load_row(tile, r);
    }
    decant_guided_sum_objective(tile, tile->damping, objective);
    for (int64_t r = 0; r < tile->rows; r++)
        results[r].before = objective[r];
    if (tile->feedback && search->rounds > 0)
        round_tile(job, tile, objective);
    for (int round = 0; round < search->rounds; round++) {
        decant_guided_improve_levels(tile, 1);
        for (int sweep = 0; sweep < search->sweeps; sweep++)
            if (!decant_guided_sweep_codes(tile))
                break;
    }
    decant_guided_sum_objective(tile, tile->damping, objective);
    for (int64_t r = 0; r < tile->rows; r++) {
        results[r].after = objective[r];
        decant_guided_store_row(tile, r, &results[r]);
    }
    decant_guided_sum_objective(tile, 0, objective);
    for (int64_t r = 0; r < tile->rows; r++)
        results[r].error.weighted = objective[r];
}

/* ---- all rows ---- */

/* λ of a group */
static float damping_of(const decant_guided_search *search, const float *hessian, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += hessian[i * n + i];
    return (float)(search->damping * sum / (double)n);
}

/* Fills the job's order and feedback. false: errors cannot be handed on under this H. */
static decant_status make_feedback(const guided_job *job, const float *hessian, float damping, bool *can,
                                   decant_error *err)
{
    const int64_t n = job->weight.columns;
    *can = false;
    if (job->search->passes == 0 || job->search->rounds == 0)
        return DECANT_OK;
    for (int64_t i = 0; i < n; i++)
        job->feedback[i] = hessian[i * n + i];
    decant_status status = decant_guided_order(job->feedback, n, job->order, err);
    if (status == DECANT_OK)
        *can = decant_guided_feedback_factorize(hessian, n, damping, job->order, job->feedback);
    return status;
}

static decant_status guide_group(const guided_job *job, int threads, int group, char *memory,
                                 size_t slice_bytes, decant_guided_row *results, decant_error *err)
{
    const int64_t rows = job->weight.rows, n = job->weight.columns;
    const int64_t begin = decant_hessian_group_first(rows, job->search->groups, group);
    const int64_t end = decant_hessian_group_first(rows, job->search->groups, group + 1);
    const float *hessian = job->search->hessian + group * n * n;
    const float damping = damping_of(job->search, hessian, n);
    bool can;
    decant_status status = make_feedback(job, hessian, damping, &can, err);
    if (status != DECANT_OK)
        return status;
#pragma omp parallel num_threads(threads)
    {
        decant_guided_tile tile = {.source = job->weight,
                                   .packed = job->packed,
                                   .bits = job->packed->bits,
                                   .hessian = hessian,
                                   .feedback = can ? job->feedback : NULL,
                                   .order = job->order,
                                   .damping = damping};
        place_tile(job, memory + (size_t)decant_cpu_thread() * slice_bytes, &tile);
#pragma omp for schedule(dynamic)
        for (int64_t first = begin; first < end; first += DECANT_GUIDED_ROWS) {
            tile.first = first;
            tile.rows = end - first < DECANT_GUIDED_ROWS ? end - first : DECANT_GUIDED_ROWS;
            guide_tile(job, &tile, results + first);
        }
    }
    return DECANT_OK;
}

decant_status decant_cpu_guide(decant_backend *backend, decant_matrix weight,
                               const decant_guided_search *search, decant_packed_matrix *packed,
                               decant_matrix_error *error, decant_error *err)
{
    guided_job job = {.weight = weight, .search = search, .packed = packed};
    const int threads = decant_cpu_of(backend)->threads;
    decant_guided_tile unplaced;
    void *memory;
    decant_status status;
    if (weight.rows != packed->rows || weight.columns != packed->columns)
        DECANT_FAIL(err, DECANT_ERROR_BUG, "the packed matrix has another shape than the weight");
    const size_t slice_bytes = place_tile(&job, NULL, &unplaced), n = (size_t)weight.columns;
    const size_t result_bytes = decant_memory_aligned_bytes((size_t)weight.rows * sizeof(decant_guided_row));
    const size_t order_bytes = decant_memory_aligned_bytes(n * sizeof *job.order),
                 feedback_bytes = decant_memory_aligned_bytes(n * n * sizeof(float));
    DECANT_TRY(decant_cpu_scratch(
        backend, result_bytes + order_bytes + feedback_bytes + (size_t)threads * slice_bytes, &memory, err));
    job.order = (int32_t *)(void *)((char *)memory + result_bytes);
    job.feedback = (float *)(void *)((char *)memory + result_bytes + order_bytes);
    for (int group = 0; group < search->groups; group++)
        DECANT_TRY(guide_group(&job, threads, group,
                               (char *)memory + result_bytes + order_bytes + feedback_bytes, slice_bytes,
                               memory, err));
    DECANT_TRY(decant_guided_add_rows(memory, weight.rows, error, err));
done:
    return status;
}
