/* Causal grouped-query attention, forward. Each block of queries of each head is a task of its own, computed by
 * one thread: scores against the keys it can see (the causal half above them is never computed), softmax in
 * place, and the product with the values. */
#include "kernels/cpu/attention.h"
#include "kernels/cpu/operations.h"
#include "kernels/cpu/product.h"
#include "kernels/cpu/row_math.h"

#include <math.h>
#include <string.h>

void decant_attention_scores(const decant_attention_shape *shape, const decant_query_block *block, int64_t head,
                             decant_matrix q, decant_matrix k, float *scores)
{
    int64_t group = shape->heads / shape->key_value_heads;
    decant_product product = {
        .m = block->count,
        .n = block->key_count,
        .k = shape->head_dimension,
        .a = decant_head_at(q, block->first, head, shape->head_dimension),
        .a_stride = q.columns,
        .b = decant_head_at(k, block->first_key, head / group, shape->head_dimension),
        .b_stride = k.columns,
        .b_transposed = true,
        .scale = (float)(1.0 / sqrt((double)shape->head_dimension)),
        .c = scores,
        .c_stride = block->key_count,
    };
    decant_product_compute(&product);
}

/* Turns a block's scores into probabilities, zero where a query does not see a key. */
static void softmax(const decant_attention_shape *shape, const decant_query_block *block, float *scores,
                    float *log_sum_exp)
{
    for (int64_t row = 0; row < block->count; row++) {
        float *p = scores + row * block->key_count;
        int64_t begin, end;
        decant_query_sees(shape, block, row, &begin, &end);
        float maximum = decant_row_maximum(p + begin, end - begin);
        double sum = decant_row_exponentials(p + begin, end - begin, maximum, p + begin);
        float scale = (float)(1.0 / sum);
        for (int64_t key = begin; key < end; key++)
            p[key] *= scale;
        memset(p, 0, (size_t)begin * sizeof *p);
        memset(p + end, 0, (size_t)(block->key_count - end) * sizeof *p);
        log_sum_exp[block->first + row] = (float)(maximum + log(sum));
    }
}

static void attend(const decant_attention_shape *shape, int64_t head, const decant_query_block *block,
                   decant_matrix q, decant_matrix k, decant_matrix v, decant_matrix y, float *log_sum_exp,
                   float *scores)
{
    int64_t group = shape->heads / shape->key_value_heads, dimension = shape->head_dimension;
    decant_attention_scores(shape, block, head, q, k, scores);
    softmax(shape, block, scores, log_sum_exp + head * shape->tokens);
    decant_product product = {
        .m = block->count,
        .n = dimension,
        .k = block->key_count,
        .a = scores,
        .a_stride = block->key_count,
        .b = decant_head_at(v, block->first_key, head / group, dimension),
        .b_stride = v.columns,
        .scale = 1.0f,
        .c = decant_head_at(y, block->first, head, dimension),
        .c_stride = y.columns,
    };
    decant_product_compute(&product);
}

decant_status decant_cpu_attention(decant_backend *backend, const decant_attention_shape *shape,
                                   decant_matrix q, decant_matrix k, decant_matrix v, decant_matrix y,
                                   float *log_sum_exp, decant_error *err)
{
    const int threads = decant_cpu_of(backend)->threads;
    const int64_t tokens = shape->tokens, sequences = decant_attention_sequences(shape);
    int64_t scores_floats = DECANT_QUERY_BLOCK * tokens, blocks = decant_query_blocks(shape);
    void *scratch;
    size_t scratch_bytes = (size_t)threads * (size_t)scores_floats * sizeof(float);
    decant_status status = decant_cpu_scratch(backend, scratch_bytes, &scratch, err);
    if (status != DECANT_OK)
        return status;
#pragma omp parallel for num_threads(threads) schedule(dynamic) collapse(3)
    for (int64_t late = 0; late < blocks; late++)
        for (int64_t sequence = 0; sequence < sequences; sequence++)
            for (int64_t head = 0; head < shape->heads; head++) {
                /* The last blocks meet the most keys: taken first, they leave no thread waiting at the end. */
                decant_query_block block = decant_query_block_at(shape, blocks - 1 - late);
                int64_t first = sequence * tokens;
                attend(shape, head, &block, decant_matrix_rows(q, first, tokens),
                       decant_matrix_rows(k, first, tokens), decant_matrix_rows(v, first, tokens),
                       decant_matrix_rows(y, first, tokens), log_sum_exp + first * shape->heads,
                       (float *)scratch + decant_cpu_thread() * scores_floats);
            }
    return DECANT_OK;
}
