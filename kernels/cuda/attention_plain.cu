/* Causal attention by plain products, for head dimensions without a kernel and for F32 activations: the scores
 * of some heads at a time are written out and cuBLAS multiplies. All of it runs in F32; BF16 activations are
 * converted on the way in and out. Not fast: T² scores a head pass through memory, half of them masked.
 *
 * Heads are taken in runs that share a key-value head, or, when each query head has its own, in runs of any
 * length, so that one strided product serves a run. Gradients of a shared key or value are added head by head,
 * in order. */
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/operations.h"

#include <cmath>

enum { THREADS = 256, SCORES_BYTES = 256 << 20 /* of one run, unless a single head needs more */ };

/* The arrays of one call, all F32; scores and products are for a run of heads. */
typedef struct plain_task {
    const decant_attention_shape *shape;
    int64_t query_stride, key_stride;
    float *q, *k, *v, *y, *dy, *dq, *dk, *dv;
    float *log_sum_exp, *delta;
    float *scores, *products; /* [run, T, T] */
    int64_t run;
    float scale;
} plain_task;

/* Some heads that one product serves. */
typedef struct head_run {
    int64_t head, key_head, count;
    int64_t key_batch; /* elements from a head's keys to the next head's: 0 when shared */
} head_run;

/* ---- the elementwise steps: one block a query of a head ---- */

/* The keys that a query sees: from its window's first to itself. */
static __device__ __forceinline__ int first_seen(int query, int64_t window)
{
    return window > 0 && query >= window ? (int)(query - window + 1) : 0;
}

/* scores → softmax over the keys seen, 0 elsewhere; keeps the log-sum-exp. */
__global__ void __launch_bounds__(THREADS)
    softmax_kernel(float *scores, int tokens, int64_t window, float *log_sum_exp)
{
    __shared__ float parts[THREADS / DECANT_WARP];
    const int query = blockIdx.x, begin = first_seen(query, window);
    const int64_t place = (int64_t)blockIdx.y * tokens + query;
    float *row = scores + place * tokens, maximum = -INFINITY, sum = 0;
    for (int key = begin + threadIdx.x; key <= query; key += THREADS)
        maximum = fmaxf(maximum, row[key]);
    maximum = decant_block_maximum(maximum, parts);
    for (int key = begin + threadIdx.x; key <= query; key += THREADS)
        sum += expf(row[key] - maximum);
    sum = decant_block_sum(sum, parts);
    for (int key = threadIdx.x; key < tokens; key += THREADS)
        row[key] = key >= begin && key <= query ? expf(row[key] - maximum) / sum : 0.0f;
    if (threadIdx.x == 0)
        log_sum_exp[place] = maximum + logf(sum);
}

/* scores → weights P = exp(score − log_sum_exp); products → dS = P ∘ (dP − delta). */
__global__ void __launch_bounds__(THREADS)
    differentiate_kernel(float *scores, float *products, int tokens, int64_t window, const float *log_sum_exp,
                         const float *delta)
{
    const int query = blockIdx.x, begin = first_seen(query, window);
    const int64_t place = (int64_t)blockIdx.y * tokens + query;
    float *row = scores + place * tokens, *product = products + place * tokens;
    for (int key = threadIdx.x; key < tokens; key += THREADS) {
        bool seen = key >= begin && key <= query;
        float weight = seen ? expf(row[key] - log_sum_exp[place]) : 0.0f;
        row[key] = weight;
        product[key] = seen ? weight * (product[key] - delta[place]) : 0.0f;
    }
}

/* ---- the products of a run ---- */

/* target [count, T, T] = scale · rows columnsᵀ, heads of [T, D] each. */
static decant_status multiply_heads(decant_backend *backend, const plain_task *task, const head_run *run,
                                    const float *rows, const float *columns, float scale, float *target,
                                    decant_error *err)
{
    const int64_t tokens = task->shape->tokens, d = task->shape->head_dimension;
    decant_cuda_product product = {
        .m = tokens,
        .n = tokens,
        .k = d,
        .element = DECANT_F32,
        .a = rows + run->head * d,
        .a_stride = task->query_stride,
        .b = columns + run->key_head * d,
        .b_stride = task->key_stride,
        .b_transposed = true,
        .scale = scale,
        .c = target,
        .c_element = DECANT_F32,
        .c_stride = tokens,
        .batch = run->count,
        .a_batch = d,
        .b_batch = run->key_batch,
        .c_batch = tokens * tokens,
    };
    return decant_cuda_multiply(backend, &product, "attention", err);
}

/* target (heads of queries) = scale · weights values (heads of keys). */
static decant_status gather_keys(decant_backend *backend, const plain_task *task, const head_run *run,
                                 const float *weights, const float *values, float scale, float *target,
                                 decant_error *err)
{
    const int64_t tokens = task->shape->tokens, d = task->shape->head_dimension;
    decant_cuda_product product = {
        .m = tokens,
        .n = d,
        .k = tokens,
        .element = DECANT_F32,
        .a = weights,
        .a_stride = tokens,
        .b = values + run->key_head * d,
        .b_stride = task->key_stride,
        .scale = scale,
        .c = target + run->head * d,
        .c_element = DECANT_F32,
        .c_stride = task->query_stride,
        .batch = run->count,
        .a_batch = tokens * tokens,
        .b_batch = run->key_batch,
        .c_batch = d,
    };
    return decant_cuda_multiply(backend, &product, "attention", err);
}

/* target (heads of keys) = or += scale · weightsᵀ values (heads of queries); heads of a shared key one after
 * the other. */
static decant_status gather_queries(decant_backend *backend, const plain_task *task, const head_run *run,
                                    const float *weights, const float *values, float scale, float *target,
                                    decant_error *err)
{
    const int64_t tokens = task->shape->tokens, d = task->shape->head_dimension;
    const int64_t group = task->shape->heads / task->shape->key_value_heads;
    const int64_t at_once = group == 1 ? run->count : 1;
    for (int64_t i = 0; i < run->count; i += at_once) {
        decant_cuda_product product = {
            .m = tokens,
            .n = d,
            .k = tokens,
            .element = DECANT_F32,
            .a = weights + i * tokens * tokens,
            .a_stride = tokens,
            .a_transposed = true,
            .b = values + (run->head + i) * d,
            .b_stride = task->query_stride,
            .scale = scale,
            .accumulate = (run->head + i) % group != 0,
            .c = target + run->key_head * d,
            .c_element = DECANT_F32,
            .c_stride = task->key_stride,
            .batch = at_once,
            .a_batch = tokens * tokens,
            .b_batch = d,
            .c_batch = d,
        };
        DECANT_RETURN_ON_FAILURE(decant_cuda_multiply(backend, &product, "attention_backward", err));
    }
    return DECANT_OK;
}

/* The run that begins at a head. */
static head_run run_at(const plain_task *task, int64_t head)
{
    const int64_t heads = task->shape->heads, group = heads / task->shape->key_value_heads;
    int64_t end = group == 1 ? heads : (head / group + 1) * group;
    int64_t count = end - head < task->run ? end - head : task->run;
    return {head, head / group, count, group == 1 ? task->shape->head_dimension : 0};
}

static decant_status run_forward(decant_backend *backend, const plain_task *task, const head_run *run,
                                 decant_error *err)
{
    const int64_t tokens = task->shape->tokens;
    dim3 blocks((unsigned)tokens, (unsigned)run->count);
    DECANT_RETURN_ON_FAILURE(
        multiply_heads(backend, task, run, task->q, task->k, task->scale, task->scores, err));
    softmax_kernel<<<blocks, THREADS, 0, decant_cuda_of(backend)->stream>>>(
        task->scores, (int)tokens, task->shape->window, task->log_sum_exp + run->head * tokens);
    DECANT_RETURN_ON_FAILURE(decant_cuda_launched(backend, "softmax", err));
    return gather_keys(backend, task, run, task->scores, task->v, 1.0f, task->y, err);
}

static decant_status run_backward(decant_backend *backend, const plain_task *task, const head_run *run,
                                  decant_error *err)
{
    const int64_t tokens = task->shape->tokens;
    dim3 blocks((unsigned)tokens, (unsigned)run->count);
    DECANT_RETURN_ON_FAILURE(
        multiply_heads(backend, task, run, task->q, task->k, task->scale, task->scores, err));
    DECANT_RETURN_ON_FAILURE(multiply_heads(backend, task, run, task->dy, task->v, 1.0f, task->products, err));
    differentiate_kernel<<<blocks, THREADS, 0, decant_cuda_of(backend)->stream>>>(
        task->scores, task->products, (int)tokens, task->shape->window, task->log_sum_exp + run->head * tokens,
        task->delta + run->head * tokens);
    DECANT_RETURN_ON_FAILURE(decant_cuda_launched(backend, "differentiate", err));
    DECANT_RETURN_ON_FAILURE(gather_queries(backend, task, run, task->scores, task->dy, 1.0f, task->dv, err));
    DECANT_RETURN_ON_FAILURE(
        gather_queries(backend, task, run, task->products, task->q, task->scale, task->dk, err));
    return gather_keys(backend, task, run, task->products, task->k, task->scale, task->dq, err);
}

/* ---- the arrays of a call ---- */

/* An activation that passes through F32, and where: its own array when it is F32 already. */
typedef struct plain_array {
    decant_matrix matrix;
    float **floats;
    size_t offset;
} plain_array;

static void reserve(decant_backend *backend, plain_array *arrays, int count, size_t *total_bytes)
{
    for (int i = 0; i < count; i++)
        if (backend->activation != DECANT_F32)
            arrays[i].offset = decant_scratch_reserve(
                total_bytes, (size_t)(arrays[i].matrix.rows * arrays[i].matrix.columns) * sizeof(float));
}

static void assign(decant_backend *backend, const plain_array *arrays, int count, char *scratch)
{
    for (int i = 0; i < count; i++)
        *arrays[i].floats = backend->activation == DECANT_F32 ? (float *)arrays[i].matrix.data
                                                              : (float *)(scratch + arrays[i].offset);
}

static decant_status convert_arrays(decant_backend *backend, const plain_array *arrays, int count,
                                    bool to_floats, decant_error *err)
{
    cudaStream_t stream = decant_cuda_of(backend)->stream;
    for (int i = 0; i < count && backend->activation != DECANT_F32; i++) {
        decant_matrix matrix = arrays[i].matrix;
        int64_t size = matrix.rows * matrix.columns;
        void *floats = *arrays[i].floats;
        DECANT_RETURN_ON_FAILURE(to_floats ? decant_cuda_convert(backend, stream, matrix.element, matrix.data,
                                                                 DECANT_F32, floats, size, err)
                                           : decant_cuda_convert(backend, stream, DECANT_F32, floats,
                                                                 matrix.element, matrix.data, size, err));
    }
    return DECANT_OK;
}

static plain_task task_of(const decant_attention_shape *shape, decant_matrix q, decant_matrix k)
{
    plain_task task = {};
    int64_t head_bytes = shape->tokens * shape->tokens * (int64_t)sizeof(float),
            fit = SCORES_BYTES / head_bytes;
    task.shape = shape;
    task.query_stride = q.columns;
    task.key_stride = k.columns;
    task.run = fit < 1 ? 1 : fit < shape->heads ? fit : shape->heads;
    task.scale = 1.0f / sqrtf((float)shape->head_dimension);
    return task;
}

static size_t scores_bytes(const plain_task *task)
{
    return (size_t)(task->run * task->shape->tokens * task->shape->tokens) * sizeof(float);
}

decant_status decant_cuda_attention_plain(decant_backend *backend, const decant_attention_shape *shape,
                                          decant_matrix q, decant_matrix k, decant_matrix v, decant_matrix y,
                                          float *log_sum_exp, decant_error *err)
{
    plain_task task = task_of(shape, q, k);
    plain_array inputs[] = {{q, &task.q, 0}, {k, &task.k, 0}, {v, &task.v, 0}}, outputs[] = {{y, &task.y, 0}};
    size_t total = 0, scores_at = decant_scratch_reserve(&total, scores_bytes(&task));
    reserve(backend, inputs, 3, &total);
    reserve(backend, outputs, 1, &total);
    void *memory;
    DECANT_RETURN_ON_FAILURE(decant_cuda_scratch(backend, total, &memory, err));
    char *scratch = (char *)memory;
    assign(backend, inputs, 3, scratch);
    assign(backend, outputs, 1, scratch);
    task.scores = (float *)(scratch + scores_at);
    task.log_sum_exp = log_sum_exp;
    DECANT_RETURN_ON_FAILURE(convert_arrays(backend, inputs, 3, true, err));
    for (int64_t head = 0; head < shape->heads;) {
        head_run run = run_at(&task, head);
        DECANT_RETURN_ON_FAILURE(run_forward(backend, &task, &run, err));
        head += run.count;
    }
    return convert_arrays(backend, outputs, 1, false, err);
}

decant_status decant_cuda_attention_plain_backward(decant_backend *backend, const decant_attention_shape *shape,
                                                   decant_matrix q, decant_matrix k, decant_matrix v,
                                                   decant_matrix y, const float *log_sum_exp, decant_matrix dy,
                                                   decant_matrix dq, decant_matrix dk, decant_matrix dv,
                                                   decant_error *err)
{
    plain_task task = task_of(shape, q, k);
    plain_array inputs[] = {{q, &task.q, 0}, {k, &task.k, 0}, {v, &task.v, 0}, {dy, &task.dy, 0}};
    plain_array outputs[] = {{dq, &task.dq, 0}, {dk, &task.dk, 0}, {dv, &task.dv, 0}};
    size_t total = 0, scores_at = decant_scratch_reserve(&total, scores_bytes(&task));
    size_t products_at = decant_scratch_reserve(&total, scores_bytes(&task));
    size_t delta_at = decant_scratch_reserve(&total, (size_t)(shape->heads * shape->tokens) * sizeof(float));
    reserve(backend, inputs, 4, &total);
    reserve(backend, outputs, 3, &total);
    void *memory;
    DECANT_RETURN_ON_FAILURE(decant_cuda_scratch(backend, total, &memory, err));
    char *scratch = (char *)memory;
    assign(backend, inputs, 4, scratch);
    assign(backend, outputs, 3, scratch);
    task.scores = (float *)(scratch + scores_at);
    task.products = (float *)(scratch + products_at);
    task.delta = (float *)(scratch + delta_at);
    task.log_sum_exp = (float *)log_sum_exp;
    DECANT_RETURN_ON_FAILURE(decant_cuda_attention_delta(backend, shape, y, dy, task.delta, err));
    DECANT_RETURN_ON_FAILURE(convert_arrays(backend, inputs, 4, true, err));
    for (int64_t head = 0; head < shape->heads;) {
        head_run run = run_at(&task, head);
        DECANT_RETURN_ON_FAILURE(run_backward(backend, &task, &run, err));
        head += run.count;
    }
    return convert_arrays(backend, outputs, 3, false, err);
}
