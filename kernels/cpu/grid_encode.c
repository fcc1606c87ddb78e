/* A matrix onto its grid: each row is rotated, each group of it gets a scale, each tuple the nearest point. A
 * row is one thread's work and rows are added up in their order.
 *
 * The scale of least error starts at the root mean square, as the grids are made for variance 1, and is refit
 * to its codes, s = ⟨x, q⟩ / ⟨q, q⟩, which minimises the error under these codes; then the codes are found
 * again. A refit that does not lower the error (the scale is rounded to F16) is not taken. */
#include "kernels/cpu/grid.h"
#include "kernels/cpu/hadamard.h"
#include "kernels/cpu/levels.h"
#include "kernels/cpu/quantize.h"

#include <inttypes.h>
#include <math.h>

enum {
    REFITS = 2,                            /* a third one gains less than a thousandth of the error */
    EXTRA = DECANT_GRID_DIMENSION_MAXIMUM, /* zeros behind a row, which fill its last tuple */
};

typedef struct encode_job {
    decant_matrix weight;
    const float *fisher;
    decant_grid_scale scale;
    decant_grid_matrix *matrix;
    const decant_grid_cells *cells;
    const float *signs;
    float lowest_point, highest_point, largest_point; /* of all coordinates; the last by magnitude */
} encode_job;

/* What a row came to. */
typedef struct row_result {
    decant_matrix_error error;
    int64_t bad_column; /* −1: all weights are finite */
} row_result;

/* A thread's working space. */
typedef struct row_space {
    float *weights; /* [columns] as they are */
    float *rotated; /* [columns + EXTRA] */
    float *scaled;  /* [columns + EXTRA] a group on the grid's scale; in the end what the row stands for */
    uint16_t *codes, *trial; /* [columns] */
} row_space;

/* A group of a row: its tuples, and how they are stored. */
typedef struct row_group {
    const float *x;         /* [codes · dimension] */
    int64_t codes, columns; /* the last group's last tuple may have fewer columns */
    uint16_t scale, offset; /* F16 */
} row_group;

/* ---- one group ---- */

static double mean_square(const row_group *group)
{
    double sums[4] = {0};
    int64_t j = 0;
    for (; j + 4 <= group->columns; j += 4)
        for (int i = 0; i < 4; i++)
            sums[i] += (double)group->x[j + i] * (double)group->x[j + i];
    for (; j < group->columns; j++)
        sums[0] += (double)group->x[j] * (double)group->x[j];
    return group->columns > 0 ? ((sums[0] + sums[1]) + (sums[2] + sums[3])) / (double)group->columns : 0;
}

/* The nearest points under the group's scale; with scale 0 all points are one, and the code is 0. */
static void find_codes(const decant_grid_cells *cells, const row_group *group, float *scaled, uint16_t *codes)
{
    const int p = cells->dimension;
    const float scale = decant_f16_to_f32(group->scale), offset = decant_f16_to_f32(group->offset);
    if (scale == 0) {
        memset(codes, 0, (size_t)group->codes * sizeof *codes);
        return;
    }
    const float inverse = 1.0f / scale;
    for (int64_t j = 0; j < group->codes * p; j++)
        scaled[j] = (group->x[j] - offset) * inverse;
#define FIND_CODES(DIMENSION)                                                                                  \
    for (int64_t j = 0; j < group->codes; j++)                                                                 \
    codes[j] = (uint16_t)decant_grid_nearest(cells, scaled + j * (DIMENSION), (DIMENSION))
    switch (p) {
    case 1:
        FIND_CODES(1);
        break;
    case 2:
        FIND_CODES(2);
        break;
    case 3:
        FIND_CODES(3);
        break;
    default:
        FIND_CODES(4);
    }
#undef FIND_CODES
}

/* Σ x², Σ x q and Σ q² over a group's columns, q the points of the codes. */
typedef struct code_moments {
    double xx, xq, qq;
} code_moments;

static code_moments measure_codes(const decant_grid_cells *cells, const row_group *group, const uint16_t *codes)
{
    const int p = cells->dimension;
    code_moments moments = {0, 0, 0};
    for (int64_t j = 0; j < group->codes; j++)
        for (int i = 0; i < p && j * p + i < group->columns; i++) {
            const double x = group->x[j * p + i], q = cells->points[codes[j] * p + i];
            moments.xx += x * x;
            moments.xq += x * q;
            moments.qq += q * q;
        }
    return moments;
}

/* Σ (x − s q)², which the moments give without another pass. */
static double error_under(code_moments m, uint16_t scale)
{
    const double s = decant_f16_to_f32(scale);
    return m.xx - 2 * s * m.xq + s * s * m.qq;
}

static void fit_least_error(const encode_job *job, row_group *group, float *scaled, uint16_t *codes,
                            uint16_t *trial)
{
    group->scale = decant_finite_f16(sqrt(mean_square(group)));
    find_codes(job->cells, group, scaled, codes);
    code_moments moments = measure_codes(job->cells, group, codes);
    for (int round = 0; round < REFITS && moments.qq > 0 && moments.xq > 0; round++) {
        row_group refit = *group;
        refit.scale = decant_finite_f16(moments.xq / moments.qq);
        if (refit.scale == group->scale || refit.scale == 0)
            break;
        find_codes(job->cells, &refit, scaled, trial);
        code_moments after = measure_codes(job->cells, &refit, trial);
        if (!(error_under(after, refit.scale) < error_under(moments, group->scale)))
            break;
        memcpy(codes, trial, (size_t)group->codes * sizeof *codes);
        group->scale = refit.scale;
        moments = after;
    }
}

static void fit_range(const encode_job *job, row_group *group)
{
    float low = group->x[0], high = low;
    for (int64_t j = 1; j < group->columns; j++) {
        low = fminf(low, group->x[j]);
        high = fmaxf(high, group->x[j]);
    }
    double scale = ((double)high - (double)low) / ((double)job->highest_point - (double)job->lowest_point);
    group->scale = decant_finite_f16(scale);
    group->offset = decant_finite_f16((double)low - scale * (double)job->lowest_point);
}

static void fit_largest(const encode_job *job, row_group *group)
{
    float largest = 0;
    for (int64_t j = 0; j < group->columns; j++)
        largest = fmaxf(largest, fabsf(group->x[j]));
    group->scale = decant_finite_f16((double)largest / (double)job->largest_point);
}

static void encode_group(const encode_job *job, row_group *group, float *scaled, uint16_t *codes,
                         uint16_t *trial)
{
    group->scale = group->offset = 0;
    if (group->codes == 0)
        return;
    if (job->scale == DECANT_SCALE_LEAST_ERROR) {
        fit_least_error(job, group, scaled, codes, trial);
        return;
    }
    if (job->scale == DECANT_SCALE_RANGE)
        fit_range(job, group);
    else
        fit_largest(job, group);
    find_codes(job->cells, group, scaled, codes);
}

/* ---- one row ---- */

static int64_t find_bad(const float *row, int64_t columns)
{
    for (int64_t j = 0; j < columns; j++)
        if (!isfinite(row[j]))
            return j;
    return -1;
}

static void encode_groups(const encode_job *job, int64_t row, const row_space *space)
{
    decant_grid_matrix *matrix = job->matrix;
    const decant_grid_form *form = &matrix->form;
    const int64_t columns = matrix->columns, groups = decant_grid_groups(columns, form->group);
    for (int64_t g = 0; g < groups; g++) {
        const int64_t first = decant_grid_first_code(columns, form->dimension, form->group, g);
        const int64_t end = decant_grid_first_code(columns, form->dimension, form->group, g + 1);
        const int64_t column = first * form->dimension, limit = end * form->dimension;
        row_group group = {.x = space->rotated + column, .codes = end - first};
        group.columns = (limit < columns ? limit : columns) - (column < columns ? column : columns);
        encode_group(job, &group, space->scaled + column, space->codes + first, space->trial + first);
        matrix->scales[row * groups + g] = group.scale;
        if (form->has_offsets)
            matrix->offsets[row * groups + g] = group.offset;
    }
}

/* The error of what was stored, against the weights as they are. */
static decant_matrix_error measure_row(const encode_job *job, int64_t row, const row_space *space)
{
    const int64_t columns = job->matrix->columns;
    const float *fisher = job->fisher ? job->fisher + row * columns : NULL;
    decant_matrix_error error = {0, 0, 0};
    decant_grid_row_read(job->matrix, row, 0, columns, space->trial, space->scaled);
    decant_rotate_row_back(space->scaled, columns, job->matrix->form.rotation, job->signs);
    for (int64_t j = 0; j < columns; j++) {
        const double weight = space->weights[j], miss = weight - (double)space->scaled[j];
        error.weighted += (fisher ? (double)fisher[j] : 1.0) * (miss * miss);
        error.squared += miss * miss;
        error.norm += weight * weight;
    }
    return error;
}

static row_result encode_row(const encode_job *job, int64_t row, const row_space *space)
{
    decant_grid_matrix *matrix = job->matrix;
    const decant_grid_form *form = &matrix->form;
    const int64_t columns = matrix->columns, codes = decant_grid_codes(columns, form->dimension);
    row_result result = {.bad_column = -1};
    decant_cpu_read_row(job->weight, row, 0, columns, space->weights);
    result.bad_column = find_bad(space->weights, columns);
    if (result.bad_column >= 0)
        return result;
    memcpy(space->rotated, space->weights, (size_t)columns * sizeof(float));
    memset(space->rotated + columns, 0, EXTRA * sizeof(float));
    decant_rotate_row(space->rotated, columns, form->rotation, job->signs);
    encode_groups(job, row, space);
    decant_grid_codes_pack(space->codes, codes, form->code_bits,
                           matrix->planes + row * form->code_bits * ((codes + 31) / 32));
    result.error = measure_row(job, row, space);
    return result;
}

/* ---- all rows ---- */

static void measure_points(encode_job *job)
{
    const int64_t count = (int64_t)job->cells->dimension << job->cells->code_bits;
    job->lowest_point = job->highest_point = job->cells->points[0];
    for (int64_t i = 0; i < count; i++) {
        job->lowest_point = fminf(job->lowest_point, job->cells->points[i]);
        job->highest_point = fmaxf(job->highest_point, job->cells->points[i]);
    }
    job->largest_point = fmaxf(fabsf(job->lowest_point), fabsf(job->highest_point));
}

/* A thread's floats and codes, of a scratch that starts at `floats` and `codes`. */
static row_space space_of_thread(float *floats, uint16_t *codes, int64_t columns)
{
    const int64_t thread = decant_cpu_thread(), stride = columns + EXTRA;
    float *own = floats + thread * 3 * stride;
    uint16_t *own_codes = codes + thread * 2 * columns;
    return (row_space){own, own + stride, own + 2 * stride, own_codes, own_codes + columns};
}

static decant_status add_rows(const encode_job *job, const row_result *results, decant_matrix_error *error,
                              decant_error *err)
{
    *error = (decant_matrix_error){0, 0, 0};
    for (int64_t row = 0; row < job->weight.rows; row++) {
        if (results[row].bad_column >= 0)
            return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                                "the weight at row %" PRId64 ", column %" PRId64 " is not finite", row,
                                results[row].bad_column);
        error->weighted += results[row].error.weighted;
        error->squared += results[row].error.squared;
        error->norm += results[row].error.norm;
    }
    return DECANT_OK;
}

decant_status decant_cpu_grid_encode(decant_backend *backend, decant_matrix weight, const float *fisher,
                                     decant_grid_scale scale, decant_grid_matrix *matrix,
                                     decant_matrix_error *error, decant_error *err)
{
    decant_status status;
    void *scratch;
    encode_job job = {.weight = weight, .fisher = fisher, .scale = scale, .matrix = matrix};
    const int threads = decant_cpu_of(backend)->threads;
    const int64_t rows = weight.rows, columns = weight.columns;
    if (rows != matrix->rows || columns != matrix->columns)
        DECANT_FAIL(err, DECANT_ERROR_BUG, "the packed matrix has another shape than the weight");
    DECANT_TRY(decant_grid_form_check(&matrix->form, columns, err));
    DECANT_TRY(decant_grid_scale_check(&matrix->form, scale, err));
    DECANT_TRY(decant_cpu_grid_cells(backend, &matrix->form, &job.cells, err));
    measure_points(&job);
    const size_t floats = (size_t)columns + (size_t)threads * 3 * (size_t)(columns + EXTRA);
    DECANT_TRY(decant_cpu_scratch(backend,
                                  (size_t)rows * sizeof(row_result) + floats * sizeof(float) +
                                      (size_t)threads * 2 * (size_t)columns * sizeof(uint16_t),
                                  &scratch, err));
    row_result *results = scratch;
    float *signs = (float *)(results + rows);
    uint16_t *codes = (uint16_t *)(signs + floats);
    decant_rotation_signs(matrix->form.seed, columns, signs);
    job.signs = signs;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4)
    for (int64_t row = 0; row < rows; row++) {
        row_space space = space_of_thread(signs + columns, codes, columns);
        results[row] = encode_row(&job, row, &space);
    }
    DECANT_TRY(add_rows(&job, results, error, err));
done:
    return status;
}
