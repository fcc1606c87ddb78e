/* Guided quantization of a matrix: levels in closed form and codes, first by rounding with error feedback, then
 * by cyclic coordinate descent, in turn, each row by itself under its group's H + λ. Source: LNQ, algorithm 1
 * of arXiv 2505.07004; the feedback, which it does without, makes it begin nearer to the optimum.
 *
 * What is missing, δ = w − ŵ, is kept; the gradient δᵀ(H + λ) is computed for a block of columns as one
 * product, and within the block kept up to date code by code. So nearly all work is products. Rows go in tiles,
 * each of which one thread takes from beginning to end: neither the number of threads nor their timing can show
 * in the result. */
#include "kernels/cpu/guided_feedback.h"
#include "kernels/cpu/guided_levels.h"
#include "kernels/cpu/product.h"
#include "kernels/cpu/quantize.h"
#include "kernels/guided_order.h"
#include "kernels/guided_rows.h"

#include <string.h>

typedef struct guided_job {
    decant_matrix weight;
    const decant_guided_search *search;
    decant_packed_matrix *packed;
    float *feedback; /* [columns, columns] of the group at hand */
    int32_t *order;  /* [columns] */
} guided_job;

static size_t round_up(size_t size_bytes)
{
    return (size_bytes + 63) / 64 * 64;
}

/* Hands out size_bytes of memory; with memory NULL only counts them. */
static void *take(char *memory, size_t *used, int64_t count, size_t element_bytes)
{
    char *place = memory ? memory + *used : NULL;
    *used += round_up((size_t)count * element_bytes);
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

static int64_t block_length(const decant_guided_tile *tile, int64_t first)
{
    return tile->columns - first < DECANT_GUIDED_BLOCK ? tile->columns - first : DECANT_GUIDED_BLOCK;
}

static uint16_t *levels_of(const guided_job *job, const decant_guided_tile *tile, int64_t r)
{
    return job->packed->levels + ((tile->first + r) << job->packed->bits);
}

/* ---- beginning: nearest codes ---- */

static void load_row(const guided_job *job, decant_guided_tile *tile, int64_t r)
{
    const int64_t n = tile->columns;
    float *weight = tile->weight + r * n, *missing = tile->missing + r * n;
    uint8_t *codes = tile->codes + r * n, *is_sparse = tile->is_sparse + r * n;
    decant_code_book *book = &tile->books[r];
    const uint32_t *sparse;
    int64_t n_sparse = decant_cpu_sparse_columns(&job->packed->sparse, tile->first + r, &sparse);
    decant_cpu_read_row(job->weight, tile->first + r, 0, n, weight);
    decant_code_book_build(levels_of(job, tile, r), job->packed->bits, book);
    decant_code_book_find(book, weight, n, codes);
    memset(is_sparse, 0, (size_t)n);
    for (int64_t i = 0; i < n_sparse; i++)
        is_sparse[sparse[i]] = 1;
    for (int64_t j = 0; j < n; j++) {
        missing[j] = is_sparse[j] ? 0 : weight[j] - book->level[codes[j]];
        codes[j] = book->code[codes[j]];
    }
}

/* ---- products with H ---- */

/* gradient = δᵀ H for the columns of a block */
static void multiply_block(decant_guided_tile *tile, int64_t first, int64_t count)
{
    const decant_product product = {
        .m = tile->rows,
        .n = count,
        .k = tile->columns,
        .a = tile->missing,
        .a_stride = tile->columns,
        .b = tile->hessian + first * tile->columns,
        .b_stride = tile->columns,
        .b_transposed = true,
        .scale = 1.0f,
        .c = tile->gradient,
        .c_stride = DECANT_GUIDED_BLOCK,
    };
    decant_product_compute(&product);
}

/* objective[r] = δᵀ (H + λ) δ */
static void sum_objective(decant_guided_tile *tile, double damping, double *objective)
{
    memset(objective, 0, (size_t)tile->rows * sizeof *objective);
    for (int64_t first = 0; first < tile->columns; first += DECANT_GUIDED_BLOCK) {
        int64_t count = block_length(tile, first);
        multiply_block(tile, first, count);
        for (int64_t r = 0; r < tile->rows; r++) {
            const float *missing = tile->missing + r * tile->columns + first;
            for (int64_t j = 0; j < count; j++)
                objective[r] += (double)missing[j] * ((double)tile->gradient[r * DECANT_GUIDED_BLOCK + j] +
                                                      damping * (double)missing[j]);
        }
    }
}

/* ---- levels ---- */

/* level_sums[r, c, j] = Σ H[i, first + j] over the columns i whose code is c: a block of Pᵀ H */
static void sum_by_level(decant_guided_tile *tile, int bits, int64_t first, int64_t count)
{
    const int64_t n = tile->columns;
    memset(tile->level_sums, 0, (size_t)(tile->rows << bits) * DECANT_GUIDED_BLOCK * sizeof(float));
    for (int64_t i = 0; i < n; i++) {
        const float *hessian = tile->hessian + i * n + first;
        for (int64_t r = 0; r < tile->rows; r++) {
            if (tile->is_sparse[r * n + i])
                continue;
            float *sums = tile->level_sums + ((r << bits) + tile->codes[r * n + i]) * DECANT_GUIDED_BLOCK;
            if (count == DECANT_GUIDED_BLOCK) /* a length that the compiler knows */
                for (int64_t j = 0; j < DECANT_GUIDED_BLOCK; j++)
                    sums[j] += hessian[j];
            else
                for (int64_t j = 0; j < count; j++)
                    sums[j] += hessian[j];
        }
    }
}

/* Adds a block's part of Pᵀ(H + λ)P and Pᵀ(H + λ)δ of a row. */
static void add_normal_equations(decant_guided_tile *tile, int bits, int64_t r, int64_t first, int64_t count)
{
    const int64_t levels = (int64_t)1 << bits;
    const float *sums = tile->level_sums + (r << bits) * DECANT_GUIDED_BLOCK;
    double *normal = tile->normal + (r << bits) * levels, *right = tile->right + (r << bits);
    for (int64_t j = 0; j < count; j++) {
        int64_t at = r * tile->columns + first + j, code = tile->codes[at];
        double missing = tile->missing[at];
        if (tile->is_sparse[at])
            continue;
        for (int64_t c = 0; c < levels; c++) {
            normal[c * levels + code] += sums[c * DECANT_GUIDED_BLOCK + j];
            right[c] += missing * sums[c * DECANT_GUIDED_BLOCK + j];
        }
        normal[code * levels + code] += tile->damping;
        right[code] += missing * tile->damping;
    }
}

/* Rounding made the two halves of A differ in the last bits. */
static void make_symmetric(double *normal, int64_t levels)
{
    for (int64_t i = 0; i < levels; i++)
        for (int64_t j = i + 1; j < levels; j++)
            normal[i * levels + j] = normal[j * levels + i] =
                0.5 * (normal[i * levels + j] + normal[j * levels + i]);
}

static void solve_row(const guided_job *job, decant_guided_tile *tile, int64_t r, double stride)
{
    const int bits = job->packed->bits;
    const int64_t levels = (int64_t)1 << bits;
    uint16_t *stored = levels_of(job, tile, r);
    uint8_t places[DECANT_LEVELS_MAXIMUM];
    make_symmetric(tile->normal + (r << bits) * levels, levels);
    if (!decant_guided_levels_solve(tile->normal + (r << bits) * levels, tile->right + (r << bits), (int)levels,
                                    stride, stored, places))
        return;
    decant_code_book_build(stored, bits, &tile->books[r]);
    for (int64_t at = r * tile->columns; at < (r + 1) * tile->columns; at++) {
        tile->codes[at] = places[tile->codes[at]];
        if (!tile->is_sparse[at])
            tile->missing[at] = tile->weight[at] - decant_f16_to_f32(stored[tile->codes[at]]);
    }
}

static void improve_levels(const guided_job *job, decant_guided_tile *tile, double stride)
{
    const int bits = job->packed->bits;
    memset(tile->normal, 0, (size_t)(tile->rows << 2 * bits) * sizeof(double));
    memset(tile->right, 0, (size_t)(tile->rows << bits) * sizeof(double));
    for (int64_t first = 0; first < tile->columns; first += DECANT_GUIDED_BLOCK) {
        int64_t count = block_length(tile, first);
        sum_by_level(tile, bits, first, count);
        for (int64_t r = 0; r < tile->rows; r++)
            add_normal_equations(tile, bits, r, first, count);
    }
    for (int64_t r = 0; r < tile->rows; r++)
        solve_row(job, tile, r, stride);
}

/* ---- codes ---- */

/* One row's codes in a block, column after column. */
static bool descend_row(decant_guided_tile *tile, int bits, int64_t r, int64_t first, int64_t count)
{
    const int64_t n = tile->columns;
    const int thresholds = (1 << bits) - 1;
    const decant_code_book *book = &tile->books[r];
    const float *weight = tile->weight + r * n + first;
    float *missing = tile->missing + r * n + first, *gradient = tile->gradient + r * DECANT_GUIDED_BLOCK;
    uint8_t *codes = tile->codes + r * n + first;
    const uint8_t *is_sparse = tile->is_sparse + r * n + first;
    bool changed = false;
    for (int64_t j = 0; j < count; j++) {
        const float *hessian = tile->hessian + (first + j) * n + first;
        float curvature = hessian[j] + tile->damping;
        if (is_sparse[j] || !(curvature > 0))
            continue;
        float best = weight[j] - missing[j] + (gradient[j] + tile->damping * missing[j]) / curvature;
        int place = decant_guided_nearest_place(book, thresholds, best);
        float now = weight[j] - book->level[place];
        float step = now - missing[j];
        if (step == 0)
            continue;
        changed = true;
        codes[j] = book->code[place];
        missing[j] = now;
        for (int64_t t = j + 1; t < count; t++)
            gradient[t] += step * hessian[t];
    }
    return changed;
}

/* Every code of the tile once; false when none changed. */
static bool sweep_codes(decant_guided_tile *tile, int bits)
{
    bool changed = false;
    for (int64_t first = 0; first < tile->columns; first += DECANT_GUIDED_BLOCK) {
        int64_t count = block_length(tile, first);
        multiply_block(tile, first, count);
        for (int64_t r = 0; r < tile->rows; r++)
            changed |= descend_row(tile, bits, r, first, count);
    }
    return changed;
}

/* ---- end: what is stored, and its error ---- */

static void store_row(const guided_job *job, decant_guided_tile *tile, int64_t r, decant_guided_row *result)
{
    const int64_t n = tile->columns, words = (n + 31) / 32, row = tile->first + r;
    const decant_sparse_pattern *pattern = &job->packed->sparse;
    const uint16_t *levels = levels_of(job, tile, r);
    const uint32_t *sparse;
    int64_t n_sparse = decant_cpu_sparse_columns(pattern, row, &sparse);
    decant_code_book places = {.bits = job->packed->bits}; /* codes stand for themselves */
    for (int code = 0; code < 1 << places.bits; code++)
        places.code[code] = (uint8_t)code;
    decant_codes_pack(&places, tile->codes + r * n, n, words, job->packed->planes + row * places.bits * words);
    for (int64_t i = 0; i < n_sparse; i++) {
        int64_t at = r * n + sparse[i];
        float level = decant_f16_to_f32(levels[tile->codes[at]]);
        uint16_t remainder = decant_codes_remainder(tile->weight[at], level);
        job->packed->sparse_values[pattern->row_offsets[row] + i] = remainder;
        tile->missing[at] =
            (float)((double)tile->weight[at] - (double)level - (double)decant_f16_to_f32(remainder));
    }
    result->error = (decant_matrix_error){0};
    for (int64_t at = r * n; at < (r + 1) * n; at++) {
        result->error.squared += (double)tile->missing[at] * tile->missing[at];
        result->error.norm += (double)tile->weight[at] * tile->weight[at];
    }
}

/* Levels and codes by turns, codes by rounding with feedback. That may not lower the objective of a row; then
 * the row goes back to where it was. */
static void round_tile(const guided_job *job, decant_guided_tile *tile, const double *before)
{
    const int bits = job->packed->bits;
    const size_t levels_bytes = (size_t)tile->rows << (bits + 1);
    double objective[DECANT_GUIDED_ROWS];
    memcpy(tile->start, levels_of(job, tile, 0), levels_bytes);
    for (int pass = 0; pass < job->search->passes; pass++) {
        if (pass > 0)
            improve_levels(job, tile, pass < job->search->passes - 1 ? DECANT_GUIDED_STRIDE : 1);
        decant_guided_round_with_feedback(tile, bits);
    }
    sum_objective(tile, tile->damping, objective);
    for (int64_t r = 0; r < tile->rows; r++) {
        if (objective[r] < before[r])
            continue;
        memcpy(levels_of(job, tile, r), tile->start + (r << bits), sizeof(uint16_t) << bits);
        load_row(job, tile, r);
    }
}

static void guide_tile(const guided_job *job, decant_guided_tile *tile, decant_guided_row *results)
{
    const decant_guided_search *search = job->search;
    double objective[DECANT_GUIDED_ROWS];
    for (int64_t r = 0; r < tile->rows; r++) {
        decant_guided_levels_begin(levels_of(job, tile, r), 1 << job->packed->bits);
        load_row(job, tile, r);
    }
    sum_objective(tile, tile->damping, objective);
    for (int64_t r = 0; r < tile->rows; r++)
        results[r].before = objective[r];
    if (tile->feedback && search->rounds > 0)
        round_tile(job, tile, objective);
    for (int round = 0; round < search->rounds; round++) {
        improve_levels(job, tile, 1);
        for (int sweep = 0; sweep < search->sweeps; sweep++)
            if (!sweep_codes(tile, job->packed->bits))
                break;
    }
    sum_objective(tile, tile->damping, objective);
    for (int64_t r = 0; r < tile->rows; r++) {
        results[r].after = objective[r];
        store_row(job, tile, r, &results[r]);
    }
    sum_objective(tile, 0, objective);
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
        decant_guided_tile tile = {.hessian = hessian,
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
    const size_t result_bytes = round_up((size_t)weight.rows * sizeof(decant_guided_row));
    const size_t order_bytes = round_up(n * sizeof *job.order),
                 feedback_bytes = round_up(n * n * sizeof(float));
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
