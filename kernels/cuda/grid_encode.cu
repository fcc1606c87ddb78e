/* A matrix onto its grid. A block takes a row: it rotates it in shared memory, finds the scale of each group,
 * packs the nearest points and measures what they stand for. Groups that are many are each a warp's work, few
 * ones the whole block's.
 *
 * Codes are not kept between the rounds of a scale: finding the nearest point again is cheaper than memory. */
#include "kernels/cuda/grid.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/weight_bits.cuh"

#include <climits>

enum { THREADS = 256, WARPS = THREADS / DECANT_WARP, REFITS = 2 /* as on the CPU */ };

#define NOWHERE 0xffffffffffffffffull

typedef struct encode_args {
    decant_grid_view view;
    decant_grid_cells cells;
    const void *weights; /* of the whole matrix */
    decant_element element;
    const float *fisher;
    decant_grid_scale scale;
    float lowest_point, highest_point, largest_point;
    int first_row; /* of this launch */
    decant_row_place place;
    double *figures; /* [3, rows]: weighted, squared, norm */
    unsigned long long *bad;
} encode_args;

/* ---- a team: the threads that share a group ---- */

template <bool BLOCK> static __device__ __forceinline__ int team_rank()
{
    return BLOCK ? threadIdx.x : threadIdx.x % DECANT_WARP;
}

template <bool BLOCK> static __device__ __forceinline__ double team_sum(double value, double *parts)
{
    return BLOCK ? decant_block_sum(value, parts) : decant_warp_sum(value);
}

template <bool BLOCK> static __device__ __forceinline__ float team_maximum(float value, float *parts)
{
    return BLOCK ? decant_block_maximum(value, parts) : decant_warp_maximum(value);
}

/* A group of the row that the block holds. */
struct row_group {
    const float *row;
    int first, end;  /* codes */
    int columns;     /* of the whole row */
    int own_columns; /* of the group */
    uint16_t scale, offset;
};

/* Σ x q and Σ q² over a group, and Σ x², which no scale changes. */
struct code_moments {
    double xx, xq, qq;
};

/* ---- one group ---- */

static __device__ __forceinline__ float half_value(uint16_t bits)
{
    return __half2float(__ushort_as_half(bits));
}

/* The nearest point to a tuple under a scale; 0 under scale 0, where all points are one. */
template <int P>
static __device__ __forceinline__ uint32_t find_code(const decant_grid_cells &cells, const float *tuple,
                                                     float scale, float inverse, float offset)
{
    if (scale == 0)
        return 0;
    float u[P];
#pragma unroll
    for (int i = 0; i < P; i++)
        u[i] = decant_times(decant_minus(tuple[i], offset), inverse);
    return decant_grid_nearest(&cells, u, P);
}

template <int P, bool BLOCK>
static __device__ code_moments measure_codes(const decant_grid_cells &cells, const row_group &group, double xx,
                                             double *parts)
{
    const float scale = half_value(group.scale), inverse = __frcp_rn(scale);
    double xq = 0, qq = 0;
    for (int j = group.first + team_rank<BLOCK>(); j < group.end; j += BLOCK ? THREADS : DECANT_WARP) {
        const float *tuple = group.row + j * P;
        const float *point = cells.points + find_code<P>(cells, tuple, scale, inverse, 0) * P;
#pragma unroll
        for (int i = 0; i < P; i++) {
            if (j * P + i >= group.columns)
                continue;
            xq += (double)tuple[i] * (double)point[i];
            qq += (double)point[i] * (double)point[i];
        }
    }
    return code_moments{xx, team_sum<BLOCK>(xq, parts), team_sum<BLOCK>(qq, parts)};
}

static __device__ __forceinline__ double error_under(const code_moments &m, uint16_t scale)
{
    const double s = half_value(scale);
    return m.xx - 2 * s * m.xq + s * s * m.qq;
}

template <int P, bool BLOCK>
static __device__ void fit_least_error(const decant_grid_cells &cells, row_group &group, double *parts)
{
    double square = 0;
    const int limit = min(group.end * P, group.columns);
    for (int i = group.first * P + team_rank<BLOCK>(); i < limit; i += BLOCK ? THREADS : DECANT_WARP)
        square += (double)group.row[i] * (double)group.row[i];
    square = team_sum<BLOCK>(square, parts);
    group.scale = finite_f16(sqrt(square / group.own_columns));
    code_moments moments = measure_codes<P, BLOCK>(cells, group, square, parts);
    for (int round = 0; round < REFITS && moments.qq > 0 && moments.xq > 0; round++) {
        row_group refit = group;
        refit.scale = finite_f16(moments.xq / moments.qq);
        if (refit.scale == group.scale || refit.scale == 0)
            break;
        const code_moments after = measure_codes<P, BLOCK>(cells, refit, square, parts);
        if (!(error_under(after, refit.scale) < error_under(moments, group.scale)))
            break;
        group.scale = refit.scale;
        moments = after;
    }
}

/* Largest and least value of the group from the same loop: NF4 wants magnitudes, round-to-nearest the range. */
template <int P, bool BLOCK>
static __device__ void fit_extremes(const encode_args &args, row_group &group, float *parts)
{
    const bool range = args.scale == DECANT_SCALE_RANGE;
    const int limit = min(group.end * P, group.columns);
    float high = -INFINITY, minus_low = -INFINITY;
    for (int i = group.first * P + team_rank<BLOCK>(); i < limit; i += BLOCK ? THREADS : DECANT_WARP) {
        const float x = range ? group.row[i] : fabsf(group.row[i]);
        high = fmaxf(high, x);
        minus_low = fmaxf(minus_low, -x);
    }
    high = team_maximum<BLOCK>(high, parts);
    if (!range) {
        group.scale = finite_f16((double)high / (double)args.largest_point);
        return;
    }
    const double low = -(double)team_maximum<BLOCK>(minus_low, parts);
    const double scale = (high - low) / ((double)args.highest_point - (double)args.lowest_point);
    group.scale = finite_f16(scale);
    group.offset = finite_f16(low - scale * (double)args.lowest_point);
}

template <int P, bool BLOCK>
static __device__ void fit_groups(const encode_args &args, const float *row_values, int row, double *parts)
{
    const decant_grid_view &view = args.view;
    const int step = BLOCK ? 1 : WARPS;
    for (int g = BLOCK ? 0 : threadIdx.x / DECANT_WARP; g < view.groups; g += step) {
        row_group group = {row_values, 0, 0, view.columns, 0, 0, 0};
        group.first = min((g * view.group + P - 1) / P, view.codes);
        group.end = g + 1 == view.groups ? view.codes : min(((g + 1) * view.group + P - 1) / P, view.codes);
        group.own_columns = min(group.end * P, view.columns) - group.first * P;
        if (group.first < group.end) {
            if (args.scale == DECANT_SCALE_LEAST_ERROR)
                fit_least_error<P, BLOCK>(args.cells, group, parts);
            else
                fit_extremes<P, BLOCK>(args, group, (float *)parts);
        }
        if (team_rank<BLOCK>() == 0) {
            const int64_t place = (int64_t)row * view.groups + g;
            view.scales[place] = __ushort_as_half(group.scale);
            if (view.offsets)
                view.offsets[place] = __ushort_as_half(group.offset);
        }
    }
}

/* ---- one row ---- */

/* Zeros stand behind the last column; a weight that is not finite lowers *bad to its place. */
static __device__ void load_row(const encode_args &args, int row, int filled, float *values)
{
    const int columns = args.view.columns;
    const int64_t start = (int64_t)row * columns;
    for (int j = threadIdx.x; j < filled; j += THREADS) {
        const uint32_t bits = j < columns ? weight_bits(args.weights, args.element, start + j) : 0;
        if (!bits_are_finite(bits, args.element))
            atomicMin(args.bad, (unsigned long long)(start + j));
        values[j] = weight_of_bits(bits, args.element);
    }
}

/* Packs the nearest points, 32 codes of a warp at a time, and leaves in the row what they stand for. */
template <int P> static __device__ void pack_row(const encode_args &args, int row, float *values)
{
    const decant_grid_view &view = args.view;
    const int lane = threadIdx.x % DECANT_WARP;
    uint32_t *planes = view.planes + (int64_t)row * view.code_bits * view.words;
    for (int word = threadIdx.x / DECANT_WARP; word < view.words; word += WARPS) {
        const int j = word * DECANT_WARP + lane;
        uint32_t code = 0, mine = 0;
        if (j < view.codes) {
            const float2 scale = decant_grid_scale_of(view, row, j);
            code = find_code<P>(args.cells, values + j * P, scale.x, __frcp_rn(scale.x), scale.y);
#pragma unroll
            for (int i = 0; i < P; i++)
                values[j * P + i] = decant_grid_value(args.cells.points[code * P + i], scale.x, scale.y);
        }
        for (int b = 0; b < view.code_bits; b++) { /* lane b keeps the word of plane b */
            const uint32_t plane = __ballot_sync(DECANT_ALL_LANES, code >> b & 1);
            mine = lane == b ? plane : mine;
        }
        if (lane < view.code_bits)
            planes[(int64_t)lane * view.words + word] = mine;
    }
}

static __device__ void measure_row(const encode_args &args, int row, const float *values, double *parts)
{
    const int64_t start = (int64_t)row * args.view.columns;
    double weighted = 0, squared = 0, norm = 0;
    for (int j = threadIdx.x; j < args.view.columns; j += THREADS) {
        const double weight = weight_at(args.weights, args.element, start + j), miss = weight - values[j];
        weighted += (args.fisher ? (double)args.fisher[start + j] : 1.0) * (miss * miss);
        squared += miss * miss;
        norm += weight * weight;
    }
    weighted = decant_block_sum(weighted, parts);
    squared = decant_block_sum(squared, parts);
    norm = decant_block_sum(norm, parts);
    if (threadIdx.x == 0) {
        args.figures[row] = weighted;
        args.figures[args.view.rows + row] = squared;
        args.figures[2 * (int64_t)args.view.rows + row] = norm;
    }
}

template <int P> __global__ void __launch_bounds__(THREADS) encode_kernel(const encode_args args)
{
    extern __shared__ float4 shared[];
    __shared__ double parts[WARPS];
    float *values = decant_row_of_block(args.place, (float *)shared);
    const int row = args.first_row + blockIdx.x;
    load_row(args, row, args.view.codes * P, values);
    decant_rotate(args.view, values);
    if (args.view.groups >= WARPS)
        fit_groups<P, false>(args, values, row, parts);
    else
        fit_groups<P, true>(args, values, row, parts);
    __syncthreads(); /* the scales are written */
    pack_row<P>(args, row, values);
    decant_rotate_back(args.view, values);
    measure_row(args, row, values, parts);
}

/* ---- all rows ---- */

static void measure_points(const decant_grid_form *form, encode_args *args)
{
    const int64_t count = (int64_t)form->dimension << form->code_bits;
    args->lowest_point = args->highest_point = form->points[0];
    for (int64_t i = 0; i < count; i++) {
        args->lowest_point = fminf(args->lowest_point, form->points[i]);
        args->highest_point = fmaxf(args->highest_point, form->points[i]);
    }
    args->largest_point = fmaxf(fabsf(args->lowest_point), fabsf(args->highest_point));
}

static decant_status encode_rows(decant_backend *backend, encode_args args, decant_error *err)
{
    return decant_by_dimension(args.view.dimension, [&](auto dimension) {
        const int P = decltype(dimension)::value;
        DECANT_RETURN_ON_FAILURE(decant_allow_shared(encode_kernel<P>, args.place, err));
        for (int64_t row = 0; row < args.view.rows; row += args.place.rows_at_once) {
            const int64_t left = args.view.rows - row;
            const unsigned blocks = (unsigned)(left < args.place.rows_at_once ? left : args.place.rows_at_once);
            args.first_row = (int)row;
            encode_kernel<P>
                <<<blocks, THREADS, args.place.shared_bytes, decant_cuda_of(backend)->stream>>>(args);
            DECANT_RETURN_ON_FAILURE(decant_cuda_launched(backend, "grid encode", err));
        }
        return DECANT_OK;
    });
}

decant_status decant_cuda_grid_encode(decant_backend *backend, decant_matrix weight, const float *fisher,
                                      decant_grid_scale scale, decant_grid_matrix *matrix,
                                      decant_matrix_error *error, decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    *error = decant_matrix_error{0, 0, 0};
    if (weight.rows != matrix->rows || weight.columns != matrix->columns || weight.columns > INT_MAX / 4)
        return DECANT_ERROR(err, DECANT_ERROR_BUG, "the packed matrix has another shape than the weight");
    DECANT_RETURN_ON_FAILURE(decant_grid_form_check(&matrix->form, weight.columns, err));
    DECANT_RETURN_ON_FAILURE(decant_grid_scale_check(&matrix->form, scale, err));
    if (weight.rows == 0 || weight.columns == 0)
        return DECANT_OK;
    encode_args args = {};
    DECANT_RETURN_ON_FAILURE(decant_cuda_grid_cells(backend, &matrix->form, &args.cells, err));
    args.view = decant_grid_view_of(matrix, args.cells.points);
    args.weights = weight.data;
    args.element = weight.element;
    args.fisher = fisher;
    args.scale = scale;
    measure_points(&matrix->form, &args);
    args.place = decant_row_place_for(backend, weight.rows, weight.columns);

    size_t scratch_bytes = 0;
    const size_t figures = decant_scratch_reserve(&scratch_bytes, 3 * (size_t)weight.rows * sizeof(double));
    const size_t sums = decant_scratch_reserve(&scratch_bytes, 3 * sizeof(double));
    const size_t bad = decant_scratch_reserve(&scratch_bytes, sizeof *args.bad);
    const size_t rows = decant_scratch_reserve(&scratch_bytes, decant_row_scratch_bytes(args.place));
    void *scratch;
    DECANT_RETURN_ON_FAILURE(decant_cuda_scratch(backend, scratch_bytes, &scratch, err));
    args.figures = (double *)((char *)scratch + figures);
    args.bad = (unsigned long long *)((char *)scratch + bad);
    args.place.scratch = args.place.shared_bytes > 0 ? NULL : (float *)((char *)scratch + rows);
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(
        cudaMemsetAsync(args.bad, 0xff, sizeof *args.bad, context->shared.stream), "grid encode", err));
    DECANT_RETURN_ON_FAILURE(encode_rows(backend, args, err));

    double totals[3];
    unsigned long long place;
    DECANT_RETURN_ON_FAILURE(decant_cuda_sum_rows(backend, args.figures, 3, weight.rows,
                                                  (double *)((char *)scratch + sums), totals, err));
    DECANT_RETURN_ON_FAILURE(decant_cuda_receive(context, &place, args.bad, sizeof place, err));
    if (place != NOWHERE)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "the weight at row %llu, column %llu is not finite",
                            place / (unsigned long long)weight.columns,
                            place % (unsigned long long)weight.columns);
    *error = decant_matrix_error{totals[0], totals[1], totals[2]};
    return DECANT_OK;
}
