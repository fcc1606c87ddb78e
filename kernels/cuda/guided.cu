/* Guided quantization of a matrix: levels in closed form and codes, first by rounding with error feedback, then
 * by cyclic coordinate descent, in turn, under H + λ of each row's group. Source: LNQ, algorithm 1 of arXiv
 * 2505.07004, and guided_feedback.cu. Here are the order of the steps, the workspace, and the products with H,
 * nearly all of the work. */
#include "kernels/cuda/guided.cuh"
#include "kernels/cuda/operations.h"

extern "C" {
#include "base/memory.h"
}

#include <climits>

/* ---- products with H ---- */

/* Figures of rows times a part of each group's H. */
struct grouped_product {
    decant_element element; /* of both factors */
    bool tf32;
    const void *rows; /* [rows, length] */
    int64_t stride;
    const void *hessian; /* [groups, columns, columns] */
    int from, length;    /* the columns that the figures are of */
    int first, count;    /* those that are wanted */
    float *target;       /* [rows, count], in rows of DECANT_GUIDED_PANEL */
    bool accumulate;
};

/* target = or += Σ_i rows[:, i] H[from + i, first …) */
static decant_status multiply_groups(decant_backend *backend, const decant_cuda_guided *g,
                                     const grouped_product &p, decant_error *err)
{
    const size_t bytes = decant_element_bytes(p.element);
    const int64_t columns = g->columns, offset = p.first * columns + p.from;
    decant_cuda_product product = {
        .n = p.count,
        .k = p.length,
        .element = p.element,
        .tf32 = p.tf32,
        .a_stride = p.stride,
        .b_stride = columns,
        .b_transposed = true, /* H is symmetric */
        .accumulate = p.accumulate,
        .c_element = DECANT_F32,
        .c_stride = DECANT_GUIDED_PANEL,
    };
    if (g->rows % g->groups == 0) { /* groups of a size are one batch */
        product.m = g->rows / g->groups;
        product.a = p.rows;
        product.b = (const char *)p.hessian + (size_t)offset * bytes;
        product.c = p.target;
        product.batch = g->groups;
        product.a_batch = product.m * p.stride;
        product.b_batch = columns * columns;
        product.c_batch = product.m * DECANT_GUIDED_PANEL;
        return decant_cuda_multiply(backend, &product, "guide", err);
    }
    for (int group = 0; group < g->groups; group++) {
        const int64_t row = decant_hessian_group_first(g->rows, g->groups, group);
        product.m = decant_hessian_group_first(g->rows, g->groups, group + 1) - row;
        product.a = (const char *)p.rows + (size_t)(row * p.stride) * bytes;
        product.b = (const char *)p.hessian + (size_t)(group * columns * columns + offset) * bytes;
        product.c = p.target + row * DECANT_GUIDED_PANEL;
        DECANT_RETURN_ON_FAILURE(decant_cuda_multiply(backend, &product, "guide", err));
    }
    return DECANT_OK;
}

decant_status decant_cuda_guided_exact_gradient(decant_backend *backend, const decant_cuda_guided *g, int first,
                                                int count, decant_error *err)
{
    const grouped_product product = {
        .element = DECANT_F32,
        .rows = g->missing,
        .stride = g->columns,
        .hessian = g->hessian,
        .length = g->columns,
        .first = first,
        .count = count,
        .target = g->gradient,
    };
    return multiply_groups(backend, g, product, err);
}

decant_status decant_cuda_guided_gradient(decant_backend *backend, const decant_cuda_guided *g, int first,
                                          int count, decant_error *err)
{
    static const int pairs[][2] = {{1, 0}, {0, 1}, {0, 0}}; /* parts of δ and H; the largest product last */
    const int64_t missing = (int64_t)g->rows * g->columns;
    const int64_t hessian = (int64_t)g->groups * g->columns * g->columns;
    for (int i = 0; i < 3; i++) {
        const grouped_product product = {
            .element = DECANT_BF16,
            .rows = g->missing_parts + pairs[i][0] * missing,
            .stride = g->columns,
            .hessian = g->hessian_parts + pairs[i][1] * hessian,
            .length = g->columns,
            .first = first,
            .count = count,
            .target = g->gradient,
            .accumulate = i > 0,
        };
        DECANT_RETURN_ON_FAILURE(multiply_groups(backend, g, product, err));
    }
    return DECANT_OK;
}

decant_status decant_cuda_guided_follow(decant_backend *backend, const decant_cuda_guided *g, int first, int at,
                                        int count, int length, decant_error *err)
{
    const grouped_product product = {
        .element = DECANT_F32,
        .tf32 = true,
        .rows = g->steps,
        .stride = DECANT_GUIDED_BLOCK,
        .hessian = g->hessian,
        .from = first - length,
        .length = length,
        .first = first,
        .count = count,
        .target = g->gradient + at,
        .accumulate = true,
    };
    return multiply_groups(backend, g, product, err);
}

decant_status decant_cuda_guided_hand_on(decant_backend *backend, const decant_cuda_guided *g, int first,
                                         int at, int count, int length, bool add, decant_error *err)
{
    const grouped_product product = {
        .element = DECANT_F32,
        .tf32 = true,
        .rows = g->handed + first - length,
        .stride = g->columns,
        .hessian = g->feedback,
        .from = first - length,
        .length = length,
        .first = first,
        .count = count,
        .target = g->gradient + at,
        .accumulate = add,
    };
    return multiply_groups(backend, g, product, err);
}

/* ---- the workspace ---- */

static int larger(int a, int b)
{
    return a > b ? a : b;
}

/* Rows of a group whose equations are made at once: batches are about alike. */
static int rows_at_once(const decant_cuda_guided *g)
{
    const int most = larger(1, DECANT_GUIDED_LEVEL_ROWS >> g->bits);
    const int of_group = (g->rows + g->groups - 1) / g->groups;
    const int batches = (of_group + most - 1) / most;
    return (of_group + batches - 1) / batches;
}

static void place_feedback(decant_cuda_arena *arena, decant_cuda_guided *g)
{
    const size_t groups = (size_t)g->groups, columns = (size_t)g->columns, block = DECANT_GUIDED_BLOCK;
    g->handed = (float *)g->missing_parts; /* which two BF16 numbers a weight have the room for */
    g->feedback = (float *)decant_cuda_arena_take(arena, groups * columns * columns * sizeof(float));
    g->order = (int *)decant_cuda_arena_take(arena, groups * columns * sizeof(int));
    g->inverse = (float *)decant_cuda_arena_take(arena, groups * block * block * sizeof(float));
    g->pivots = (float *)decant_cuda_arena_take(arena, groups * block * sizeof(float));
    g->eliminated = (float *)decant_cuda_arena_take(arena, groups * block * columns * sizeof(float));
    g->failed = (int *)decant_cuda_arena_take(arena, groups * sizeof(int));
}

static void place_workspace(decant_cuda_arena *arena, decant_cuda_guided *g)
{
    const size_t rows = (size_t)g->rows, all = rows * (size_t)g->columns, levels = (size_t)1 << g->bits;
    const size_t at_once = (size_t)g->at_once, columns = (size_t)g->columns;
    g->damping = (float *)decant_cuda_arena_take(arena, (size_t)g->groups * sizeof(float));
    g->missing = (float *)decant_cuda_arena_take(arena, all * sizeof(float));
    g->missing_parts = (__nv_bfloat16 *)decant_cuda_arena_take(arena, DECANT_GUIDED_PARTS * all * 2);
    g->hessian_parts = (__nv_bfloat16 *)decant_cuda_arena_take(arena, DECANT_GUIDED_PARTS * (size_t)g->groups *
                                                                          columns * columns * 2);
    g->codes = (uint8_t *)decant_cuda_arena_take(arena, all);
    g->marks = (uint32_t *)decant_cuda_arena_take(arena, rows * (size_t)g->words * sizeof(uint32_t));
    g->gradient = (float *)decant_cuda_arena_take(arena, rows * DECANT_GUIDED_PANEL * sizeof(float));
    g->steps = (float *)decant_cuda_arena_take(arena, rows * DECANT_GUIDED_BLOCK * sizeof(float));
    g->start = (uint16_t *)decant_cuda_arena_take(arena, rows * levels * sizeof(uint16_t));
    g->results = (decant_guided_row *)decant_cuda_arena_take(arena, rows * sizeof(decant_guided_row));
    g->one_hot = (__nv_bfloat16 *)decant_cuda_arena_take(arena, at_once * levels * columns * 2);
    g->level_sums =
        (float *)decant_cuda_arena_take(arena, at_once * levels * DECANT_GUIDED_PANEL * sizeof(float));
    g->normal = (double *)decant_cuda_arena_take(arena, at_once * levels * levels * sizeof(double));
    g->right = (double *)decant_cuda_arena_take(arena, at_once * levels * sizeof(double));
    g->places = (uint8_t *)decant_cuda_arena_take(arena, at_once * levels);
    if (g->passes > 0)
        place_feedback(arena, g);
}

/* ---- the operation ---- */

static decant_status make_passes(decant_backend *backend, const decant_cuda_guided *g, decant_error *err)
{
    DECANT_RETURN_ON_FAILURE(decant_cuda_guided_make_feedback(backend, g, err));
    for (int pass = 0; pass < g->passes; pass++) {
        if (pass > 0)
            DECANT_RETURN_ON_FAILURE(
                decant_cuda_guided_levels(backend, g, pass < g->passes - 1 ? DECANT_GUIDED_STRIDE : 1, err));
        DECANT_RETURN_ON_FAILURE(decant_cuda_guided_pass(backend, g, err));
    }
    return decant_cuda_guided_keep_better(backend, g, err);
}

static decant_status search_rows(decant_backend *backend, const decant_cuda_guided *g,
                                 const decant_guided_search *search, decant_error *err)
{
    DECANT_RETURN_ON_FAILURE(decant_cuda_guided_begin(backend, g, search->damping, err));
    DECANT_RETURN_ON_FAILURE(decant_cuda_guided_before(backend, g, err));
    if (g->passes > 0)
        DECANT_RETURN_ON_FAILURE(make_passes(backend, g, err));
    for (int round = 0; round < search->rounds; round++) {
        DECANT_RETURN_ON_FAILURE(decant_cuda_guided_levels(backend, g, 1, err));
        for (int sweep = 0; sweep < search->sweeps; sweep++)
            DECANT_RETURN_ON_FAILURE(decant_cuda_guided_sweep(backend, g, err));
    }
    return decant_cuda_guided_store(backend, g, err);
}

/* Waits for the figures of the rows and adds them. */
static decant_status finish(decant_backend *backend, const decant_cuda_guided *g, decant_matrix_error *error,
                            decant_error *err)
{
    const size_t bytes = (size_t)g->rows * sizeof(decant_guided_row);
    void *results;
    DECANT_RETURN_ON_FAILURE(decant_memory_allocate(bytes, "figures of rows", &results, err));
    decant_status status =
        decant_cuda_receive(decant_cuda_context_of(backend), results, g->results, bytes, err);
    if (status == DECANT_OK)
        status = decant_guided_add_rows((const decant_guided_row *)results, g->rows, error, err);
    decant_memory_free(results);
    return status;
}

decant_status decant_cuda_guide(decant_backend *backend, decant_matrix weight,
                                const decant_guided_search *search, decant_packed_matrix *packed,
                                decant_matrix_error *error, decant_error *err)
{
    *error = decant_matrix_error{0, 0, 0};
    if (weight.rows != packed->rows || weight.columns != packed->columns)
        return DECANT_ERROR(err, DECANT_ERROR_BUG, "the packed matrix has another shape than the weight");
    if (weight.columns > INT_MAX / 2 || weight.rows > INT_MAX >> packed->bits)
        return DECANT_ERROR(err, DECANT_ERROR_BUG, "guide: %lld rows of %lld weights are too many",
                            (long long)weight.rows, (long long)weight.columns);
    if (weight.rows == 0 || weight.columns == 0)
        return DECANT_OK;
    decant_cuda_guided g = {};
    g.weight = weight;
    g.packed = *packed;
    g.hessian = search->hessian;
    g.rows = (int)weight.rows;
    g.columns = (int)weight.columns;
    g.groups = search->groups;
    g.bits = packed->bits;
    g.words = (g.columns + 31) / 32;
    g.passes = search->rounds > 0 ? search->passes : 0;
    g.at_once = rows_at_once(&g);
    decant_cuda_arena size = {NULL, 0}, arena = {NULL, 0};
    void *memory;
    place_workspace(&size, &g);
    DECANT_RETURN_ON_FAILURE(decant_cuda_scratch(backend, size.used, &memory, err));
    arena.memory = (char *)memory;
    place_workspace(&arena, &g);
    DECANT_RETURN_ON_FAILURE(search_rows(backend, &g, search, err));
    return finish(backend, &g, error, err);
}
