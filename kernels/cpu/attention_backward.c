/* Causal grouped-query attention, backward. With P the probabilities, recomputed from the scores and
 * log_sum_exp:
 *
 *   dv = Pᵀ dy     dS = P ∘ (dy vᵀ − rowsum(dy ∘ y)) / sqrt(head_dimension)     dq = dS k     dk = dSᵀ q
 *
 * A task is one head and half of its query blocks (every second one, so that halves cost about the same). dk
 * and dv of a task go into its own partial sums, which are added up at the end in the order of heads and
 * halves: a key-value head gets the same bits however many threads there are. Source: the recomputation is
 * FlashAttention's (Dao et al., 2022). */
#include "kernels/cpu/attention.h"
#include "kernels/cpu/operations.h"
#include "kernels/cpu/product.h"
#include "kernels/cpu/row_math.h"

#include <math.h>
#include <string.h>

enum { PARTS = 2 };

typedef struct backward_task {
    const decant_attention_shape *shape;
    decant_matrix q, k, v, y, dy, dq;
    const float *log_sum_exp;
    float *partial_dk, *partial_dv; /* [heads, PARTS, T, head_dimension] */
} backward_task;

/* From scores to probabilities, and from dp = dy vᵀ to the scores' gradient, both in place. */
static void differentiate_softmax(const backward_task *task, const decant_query_block *block, int64_t head,
                                  float *scores, float *dp)
{
    const decant_attention_shape *shape = task->shape;
    float scale = (float)(1.0 / sqrt((double)shape->head_dimension));
    for (int64_t row = 0; row < block->count; row++) {
        int64_t begin, end, query = block->first + row;
        decant_query_sees(shape, block, row, &begin, &end);
        float *p = scores + row * block->key_count, *ds = dp + row * block->key_count;
        float shift = task->log_sum_exp[head * shape->tokens + query];
        decant_row_exponentials(p + begin, end - begin, shift, p + begin);
        memset(p, 0, (size_t)begin * sizeof *p);
        memset(p + end, 0, (size_t)(block->key_count - end) * sizeof *p);
        float mean = (float)decant_row_dot(decant_head_at(task->dy, query, head, shape->head_dimension),
                                           decant_head_at(task->y, query, head, shape->head_dimension),
                                           shape->head_dimension);
        for (int64_t key = 0; key < block->key_count; key++)
            ds[key] = p[key] * (ds[key] - mean) * scale;
    }
}

/* target [key_count, head_dimension] += matrixᵀ rows, for dv and dk. */
static void add_to_keys(const decant_query_block *block, int64_t dimension, const float *matrix,
                        const float *rows, int64_t rows_stride, float *target)
{
    decant_product product = {
        .m = block->key_count,
        .n = dimension,
        .k = block->count,
        .a = matrix,
        .a_stride = block->key_count,
        .a_transposed = true,
        .b = rows,
        .b_stride = rows_stride,
        .scale = 1.0f,
        .accumulate = true,
        .c = target + block->first_key * dimension,
        .c_stride = dimension,
    };
    decant_product_compute(&product);
}

static void differentiate_block(const backward_task *task, int64_t head, const decant_query_block *block,
                                float *dk, float *dv, float *scores, float *dp)
{
    const decant_attention_shape *shape = task->shape;
    int64_t dimension = shape->head_dimension, key_value_head = head / (shape->heads / shape->key_value_heads);
    const float *dy = decant_head_at(task->dy, block->first, head, dimension);
    decant_attention_scores(shape, block, head, task->q, task->k, scores);
    decant_product product = {
        .m = block->count,
        .n = block->key_count,
        .k = dimension,
        .a = dy,
        .a_stride = task->dy.columns,
        .b = decant_head_at(task->v, block->first_key, key_value_head, dimension),
        .b_stride = task->v.columns,
        .b_transposed = true,
        .scale = 1.0f,
        .c = dp,
        .c_stride = block->key_count,
    };
    decant_product_compute(&product);
    differentiate_softmax(task, block, head, scores, dp);
    add_to_keys(block, dimension, scores, dy, task->dy.columns, dv);
    add_to_keys(block, dimension, dp, decant_head_at(task->q, block->first, head, dimension), task->q.columns,
                dk);
    product = (decant_product){
        .m = block->count,
        .n = dimension,
        .k = block->key_count,
        .a = dp,
        .a_stride = block->key_count,
        .b = decant_head_at(task->k, block->first_key, key_value_head, dimension),
        .b_stride = task->k.columns,
        .scale = 1.0f,
        .c = decant_head_at(task->dq, block->first, head, dimension),
        .c_stride = task->dq.columns,
    };
    decant_product_compute(&product);
}

/* target[t, head] = the partial sums of the group's query heads, in order. */
static void sum_partials(decant_backend *backend, const decant_attention_shape *shape, const float *partial,
                         decant_matrix target)
{
    int64_t group = shape->heads / shape->key_value_heads, dimension = shape->head_dimension;
    int64_t partial_floats = shape->tokens * dimension;
    const int threads = decant_cpu_threads_for(backend, shape->heads * PARTS * partial_floats);
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2)
    for (int64_t head = 0; head < shape->key_value_heads; head++)
        for (int64_t t = 0; t < shape->tokens; t++) {
            float *sum = decant_head_at(target, t, head, dimension);
            const float *term = partial + head * group * PARTS * partial_floats + t * dimension;
            memcpy(sum, term, (size_t)dimension * sizeof *sum);
            for (int64_t index = 1; index < group * PARTS; index++)
                for (int64_t i = 0; i < dimension; i++)
                    sum[i] += term[index * partial_floats + i];
        }
}

/* One sequence's gradients. all_scores is scratch: two blocks' scores for each thread. */
static void differentiate_sequence(decant_backend *backend, const backward_task *task, decant_matrix dk,
                                   decant_matrix dv, float *all_scores)
{
    const decant_attention_shape *shape = task->shape;
    const int threads = decant_cpu_of(backend)->threads;
    int64_t scores_floats = DECANT_QUERY_BLOCK * shape->tokens, blocks = decant_query_blocks(shape);
    int64_t partial_floats = shape->tokens * shape->head_dimension, partials = (int64_t)shape->heads * PARTS;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t index = 0; index < partials; index++) {
        float *own_dk = task->partial_dk + index * partial_floats,
              *own_dv = task->partial_dv + index * partial_floats;
        float *scores = all_scores + decant_cpu_thread() * 2 * scores_floats;
        memset(own_dk, 0, (size_t)partial_floats * sizeof *own_dk);
        memset(own_dv, 0, (size_t)partial_floats * sizeof *own_dv);
        for (int64_t i = index % PARTS; i < blocks; i += PARTS) {
            decant_query_block block = decant_query_block_at(shape, i);
            differentiate_block(task, index / PARTS, &block, own_dk, own_dv, scores, scores + scores_floats);
        }
    }
    sum_partials(backend, shape, task->partial_dk, dk);
    sum_partials(backend, shape, task->partial_dv, dv);
}

decant_status decant_cpu_attention_backward(decant_backend *backend, const decant_attention_shape *shape,
                                            decant_matrix q, decant_matrix k, decant_matrix v, decant_matrix y,
                                            const float *log_sum_exp, decant_matrix dy, decant_matrix dq,
                                            decant_matrix dk, decant_matrix dv, decant_error *err)
{
    const int threads = decant_cpu_of(backend)->threads;
    const int64_t tokens = shape->tokens;
    int64_t partials_floats = (int64_t)shape->heads * PARTS * tokens * shape->head_dimension;
    size_t scratch_floats = (size_t)(2 * partials_floats + 2 * threads * DECANT_QUERY_BLOCK * tokens);
    void *scratch;
    decant_status status = decant_cpu_scratch(backend, scratch_floats * sizeof(float), &scratch, err);
    if (status != DECANT_OK)
        return status;
    float *partial_dk = scratch, *partial_dv = partial_dk + partials_floats;
    for (int64_t sequence = 0; sequence < decant_attention_sequences(shape); sequence++) {
        int64_t first = sequence * tokens;
        backward_task task = {
            .shape = shape,
            .q = decant_matrix_rows(q, first, tokens),
            .k = decant_matrix_rows(k, first, tokens),
            .v = decant_matrix_rows(v, first, tokens),
            .y = decant_matrix_rows(y, first, tokens),
            .dy = decant_matrix_rows(dy, first, tokens),
            .dq = decant_matrix_rows(dq, first, tokens),
            .log_sum_exp = log_sum_exp + first * shape->heads,
            .partial_dk = partial_dk,
            .partial_dv = partial_dv,
        };
        differentiate_sequence(backend, &task, decant_matrix_rows(dk, first, tokens),
                               decant_matrix_rows(dv, first, tokens), partial_dv + partials_floats);
    }
    return DECANT_OK;
}
