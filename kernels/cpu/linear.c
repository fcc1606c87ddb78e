/* Linear layers: y = x weightᵀ and dx = dy weight.
 *
 * The output is cut into tiles of channels × tokens; a thread computes a tile from the first term of its sums
 * to the last, converting the weight to F32 a block at a time. A block holds the same values whatever type the
 * file has, so a model gives the same bits in F32 and in F16. */
#include "kernels/cpu/operations.h"
#include "kernels/cpu/product.h"

enum {
    CHANNEL_TILE = 256, /* output channels of a product: wide enough for OpenBLAS to reach its speed */
    TOKEN_TILE = 512,
    TERM_BLOCK = 1024, /* terms of a sum between conversions: bounds a thread's converted block to 1 MiB */
};

enum { BLOCK_FLOATS = CHANNEL_TILE * TERM_BLOCK };

/* Which of the weight's dimensions is summed over. */
typedef struct linear_task {
    decant_matrix weight;
    bool transposed; /* true: y = x weightᵀ sums over columns; false: dx = dy weight sums over rows */
    decant_matrix input, output;
    bool accumulate;
} linear_task;

static void compute_tile(const linear_task *task, int64_t first_token, int64_t tokens, int64_t first_channel,
                         int64_t channels, float *scratch)
{
    int64_t terms = task->input.columns;
    for (int64_t term = 0; term < terms; term += TERM_BLOCK) {
        int64_t count = terms - term < TERM_BLOCK ? terms - term : TERM_BLOCK;
        decant_weight_block block =
            task->transposed
                ? decant_weight_block_read(task->weight, first_channel, channels, term, count, scratch)
                : decant_weight_block_read(task->weight, term, count, first_channel, channels, scratch);
        decant_product product = {
            .m = tokens,
            .n = channels,
            .k = count,
            .a = (const float *)task->input.data + first_token * terms + term,
            .a_stride = terms,
            .b = block.data,
            .b_stride = block.stride,
            .b_transposed = task->transposed,
            .scale = 1.0f,
            .accumulate = task->accumulate || term > 0,
            .c = (float *)task->output.data + first_token * task->output.columns + first_channel,
            .c_stride = task->output.columns,
        };
        decant_product_compute(&product);
    }
}

static decant_status compute(decant_backend *backend, const linear_task *task, decant_error *err)
{
    const int64_t weights = task->weight.rows * task->weight.columns;
    const int threads = decant_cpu_threads_for_product(backend, task->input.rows, weights);
    void *scratch = NULL;
    if (task->weight.element != DECANT_F32) {
        size_t scratch_bytes = (size_t)decant_cpu_of(backend)->threads * BLOCK_FLOATS * sizeof(float);
        decant_status status = decant_cpu_scratch(backend, scratch_bytes, &scratch, err);
        if (status != DECANT_OK)
            return status;
    }
    decant_tiles channels = decant_tiles_cut(task->output.columns, CHANNEL_TILE);
    decant_tiles tokens = {task->output.rows, TOKEN_TILE, (task->output.rows + TOKEN_TILE - 1) / TOKEN_TILE};
#pragma omp parallel for num_threads(threads) schedule(dynamic) collapse(2)
    for (int64_t channel = 0; channel < channels.count; channel++)
        for (int64_t token = 0; token < tokens.count; token++) {
            float *own = scratch ? (float *)scratch + (int64_t)decant_cpu_thread() * BLOCK_FLOATS : NULL;
            compute_tile(task, decant_tiles_first(tokens, token), decant_tiles_length(tokens, token),
                         decant_tiles_first(channels, channel), decant_tiles_length(channels, channel), own);
        }
    return DECANT_OK;
}

decant_status decant_cpu_linear(decant_backend *backend, decant_matrix x, decant_matrix weight, bool accumulate,
                                decant_matrix y, decant_error *err)
{
    linear_task task = {weight, true, x, y, accumulate};
    return compute(backend, &task, err);
}

decant_status decant_cpu_linear_backward(decant_backend *backend, decant_matrix dy, decant_matrix weight,
                                         bool accumulate, decant_matrix dx, decant_error *err)
{
    linear_task task = {weight, false, dy, dx, accumulate};
    return compute(backend, &task, err);
}
