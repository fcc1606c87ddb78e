/* Guided quantization's rounding with error feedback: column after column takes the level nearest to its weight
 * plus what the errors of the columns before it ask for, those after it being free to make up for the rest as
 * if they were not rounded. Columns go by descending diagonal of H. Sources: GPTQ (arXiv 2210.17323); as
 * successive conditional optima, Babai's nearest plane (arXiv 2507.18553).
 *
 * With the columns in that order and H + λ = Vᵀ D V, V lower triangular with ones on its diagonal,
 *
 *     δᵀ (H + λ) δ = Σ_j D_j (δ_j + Σ_{i < j} V_ji δ_i)²,
 *
 * so column j is rounded from w_j + Σ_{i < j} V_ji δ_i, and V, row by row, is what is kept as feedback.
 *
 * V comes of elimination from the last column to the first, in blocks: the block on the diagonal in shared
 * memory, with what brings the rows of the block to their elimination; these rows by a product; what they take
 * from the rows above by another, in F32. All groups are one batch. A pivot that is not positive marks its
 * group as failed. */
#include "kernels/cuda/guided.cuh"
#include "kernels/cuda/operations.h"

extern "C" {
#include "base/memory.h"
#include "kernels/guided_order.h"
}

enum {
    BLOCK = DECANT_GUIDED_BLOCK,
    THREADS = 256,
    TILE_THREADS = 1024,
    TILE_ROWS = TILE_THREADS / BLOCK, /* of a tile that are worked on at once */
    TILE_BYTES = 2 * BLOCK * BLOCK * (int)sizeof(float),
};

/* ---- the order of columns ---- */

static __global__ void __launch_bounds__(THREADS) diagonal_kernel(decant_cuda_guided g, float *diagonals)
{
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, n = g.columns;
    if (i < g.groups * n)
        diagonals[i] = g.hessian[i / n * n * n + i % n * (n + 1)];
}

static decant_status sort_columns(decant_backend *backend, const decant_cuda_guided *g, float *diagonals,
                                  int32_t *order, decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    const cudaStream_t stream = context->shared.stream;
    const size_t count = (size_t)g->groups * (size_t)g->columns;
    float *on_device = (float *)g->order; /* until the order is there */
    diagonal_kernel<<<(unsigned)((count + THREADS - 1) / THREADS), THREADS, 0, stream>>>(*g, on_device);
    DECANT_RETURN_ON_FAILURE(decant_cuda_launched(backend, "guide, diagonals", err));
    DECANT_RETURN_ON_FAILURE(decant_cuda_receive(context, diagonals, on_device, count * sizeof(float), err));
    for (int group = 0; group < g->groups; group++) {
        const int64_t first = (int64_t)group * g->columns;
        DECANT_RETURN_ON_FAILURE(decant_guided_order(diagonals + first, g->columns, order + first, err));
    }
    return decant_cuda_send(context, stream, g->order, order, count * sizeof(int32_t), err);
}

static decant_status find_order(decant_backend *backend, const decant_cuda_guided *g, decant_error *err)
{
    const size_t count = (size_t)g->groups * (size_t)g->columns;
    void *memory;
    DECANT_RETURN_ON_FAILURE(
        decant_memory_allocate(count * (sizeof(float) + sizeof(int32_t)), "orders of columns", &memory, err));
    decant_status status = sort_columns(backend, g, (float *)memory, (int32_t *)memory + count, err);
    decant_memory_free(memory);
    return status;
}

/* ---- elimination ---- */

/* feedback = H + λ in the order of columns, 0 behind the diagonal. A block a row; blockIdx.y is the group. */
static __global__ void __launch_bounds__(THREADS) gather_kernel(decant_cuda_guided g)
{
    const int64_t n = g.columns, group = blockIdx.y, j = blockIdx.x;
    const int *order = g.order + group * n;
    const float *source = g.hessian + (group * n + order[j]) * n;
    float *target = g.feedback + (group * n + j) * n;
    for (int64_t i = threadIdx.x; i < n; i += THREADS)
        target[i] = i > j ? 0 : source[order[i]] + (i == j ? g.damping[group] : 0);
}

/* The block on the diagonal that begins at column `first`, of `count` columns; a block of threads a group. The
 * tile becomes the rows of V, times their pivot; the inverse, with which the rows to the left will be
 * eliminated, goes through the same steps from the identity. */
static __global__ void __launch_bounds__(TILE_THREADS)
    eliminate_kernel(decant_cuda_guided g, int first, int count)
{
    extern __shared__ __align__(16) float shared[];
    float *tile = shared, *inverse = shared + BLOCK * BLOCK;
    const int column = (int)threadIdx.x % BLOCK, start = (int)threadIdx.x / BLOCK;
    const int64_t n = g.columns, group = blockIdx.x;
    float *feedback = g.feedback + (group * n + first) * n + first;
    bool failed = false;
    for (int row = start; row < BLOCK; row += TILE_ROWS) {
        tile[row * BLOCK + column] = row < count && column <= row ? feedback[row * n + column] : 0;
        inverse[row * BLOCK + column] = row == column;
    }
    __syncthreads();
    for (int j = count - 1; j >= 0; j--) {
        const float pivot = tile[j * BLOCK + j];
        const float reciprocal = pivot > 0 ? 1 / pivot : 0;
        failed |= !(pivot > 0);
        for (int row = start; row < j; row += TILE_ROWS) {
            const float factor = tile[j * BLOCK + row] * reciprocal;
            if (column <= row)
                tile[row * BLOCK + column] -= factor * tile[j * BLOCK + column];
            if (column >= j)
                inverse[row * BLOCK + column] -= factor * inverse[j * BLOCK + column];
        }
        __syncthreads();
    }
    for (int row = start; row < BLOCK; row += TILE_ROWS) {
        const float pivot = tile[row * BLOCK + row];
        if (row < count && column < row)
            feedback[row * n + column] = pivot > 0 ? tile[row * BLOCK + column] / pivot : 0;
        g.inverse[(group * BLOCK + row) * BLOCK + column] = inverse[row * BLOCK + column];
        if (column == row)
            g.pivots[group * BLOCK + row] = pivot;
    }
    if (failed && threadIdx.x == 0)
        g.failed[group] = 1;
}

/* Rows of V to the left of the block: those eliminated, by their pivots. blockIdx.y is the group. */
static __global__ void __launch_bounds__(THREADS) divide_kernel(decant_cuda_guided g, int first, int count)
{
    const int64_t n = g.columns, group = blockIdx.y, i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= first)
        return;
    for (int row = 0; row < count; row++) {
        const float pivot = g.pivots[group * BLOCK + row];
        g.feedback[(group * n + first + row) * n + i] =
            pivot > 0 ? g.eliminated[(group * BLOCK + row) * n + i] / pivot : 0;
    }
}

/* What the block takes from all rows above it. */
static decant_status update_above(decant_backend *backend, const decant_cuda_guided *g, int first, int count,
                                  decant_error *err)
{
    const int64_t n = g->columns;
    const cudaStream_t stream = decant_cuda_of(backend)->stream;
    float *rows = g->feedback + first * n;
    const decant_cuda_product eliminate = {.m = count,
                                           .n = first,
                                           .k = count,
                                           .element = DECANT_F32,
                                           .a = g->inverse,
                                           .a_stride = BLOCK,
                                           .b = rows,
                                           .b_stride = n,
                                           .c = g->eliminated,
                                           .c_element = DECANT_F32,
                                           .c_stride = n,
                                           .batch = g->groups,
                                           .a_batch = BLOCK * BLOCK,
                                           .b_batch = n * n,
                                           .c_batch = BLOCK * n};
    const decant_cuda_product update = {.m = first,
                                        .n = first,
                                        .k = count,
                                        .element = DECANT_F32,
                                        .a = g->eliminated,
                                        .a_stride = n,
                                        .a_transposed = true,
                                        .b = rows,
                                        .b_stride = n,
                                        .scale = -1,
                                        .accumulate = true,
                                        .c = g->feedback,
                                        .c_element = DECANT_F32,
                                        .c_stride = n,
                                        .batch = g->groups,
                                        .a_batch = BLOCK * n,
                                        .b_batch = n * n,
                                        .c_batch = n * n};
    const dim3 blocks((unsigned)((first + THREADS - 1) / THREADS), (unsigned)g->groups);
    DECANT_RETURN_ON_FAILURE(decant_cuda_multiply(backend, &eliminate, "guide, feedback", err));
    divide_kernel<<<blocks, THREADS, 0, stream>>>(*g, first, count);
    DECANT_RETURN_ON_FAILURE(decant_cuda_launched(backend, "guide, feedback", err));
    return decant_cuda_multiply(backend, &update, "guide, feedback", err);
}

decant_status decant_cuda_guided_make_feedback(decant_backend *backend, const decant_cuda_guided *g,
                                               decant_error *err)
{
    const cudaStream_t stream = decant_cuda_of(backend)->stream;
    const unsigned groups = (unsigned)g->groups;
    DECANT_RETURN_ON_FAILURE(find_order(backend, g, err));
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(
        cudaMemsetAsync(g->failed, 0, groups * sizeof *g->failed, stream), "guide, feedback", err));
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(
        cudaFuncSetAttribute(eliminate_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, TILE_BYTES),
        "guide, shared memory", err));
    gather_kernel<<<dim3((unsigned)g->columns, groups), THREADS, 0, stream>>>(*g);
    DECANT_RETURN_ON_FAILURE(decant_cuda_launched(backend, "guide, columns in order", err));
    for (int first = (g->columns - 1) / BLOCK * BLOCK; first >= 0; first -= BLOCK) {
        const int count = g->columns - first < BLOCK ? g->columns - first : BLOCK;
        eliminate_kernel<<<groups, TILE_THREADS, TILE_BYTES, stream>>>(*g, first, count);
        DECANT_RETURN_ON_FAILURE(decant_cuda_launched(backend, "guide, elimination", err));
        if (first > 0)
            DECANT_RETURN_ON_FAILURE(update_above(backend, g, first, count, err));
    }
    return DECANT_OK;
}

/* ---- a pass ---- */

decant_status decant_cuda_guided_pass(decant_backend *backend, const decant_cuda_guided *g, decant_error *err)
{
    for (int panel = 0; panel < g->columns; panel += DECANT_GUIDED_PANEL) {
        const int left = g->columns - panel, width = left < DECANT_GUIDED_PANEL ? left : DECANT_GUIDED_PANEL;
        if (panel > 0)
            DECANT_RETURN_ON_FAILURE(
                decant_cuda_guided_hand_on(backend, g, panel, 0, width, panel, false, err));
        else
            DECANT_RETURN_ON_FAILURE(decant_cuda_check(
                cudaMemsetAsync(g->gradient, 0, (size_t)g->rows * DECANT_GUIDED_PANEL * sizeof(float),
                                decant_cuda_of(backend)->stream),
                "guide, feedback", err));
        for (int at = 0; at < width; at += BLOCK) {
            const int count = width - at < BLOCK ? width - at : BLOCK, next = at + count;
            DECANT_RETURN_ON_FAILURE(decant_cuda_guided_round_block(backend, g, panel + at, at, count, err));
            if (next < width)
                DECANT_RETURN_ON_FAILURE(
                    decant_cuda_guided_hand_on(backend, g, panel + next, next, width - next, count, true, err));
        }
    }
    return decant_cuda_guided_find_missing(backend, g, err);
}
