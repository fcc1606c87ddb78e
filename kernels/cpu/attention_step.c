/* Attention of one more token over keys and values that were kept. A head is one thread's work,
 * its sums in the keys' order. */
#include "kernels/cpu/attention.h"
#include "kernels/cpu/operations.h"
#include "kernels/cpu/row_math.h"

#include <math.h>
#include <string.h>

/* scores [keys.rows] is scratch. */
static void attend(const decant_attention_shape *shape, int64_t head, decant_matrix q, decant_matrix keys,
                   decant_matrix values, decant_matrix y, float *scores)
{
    const int64_t dimension = shape->head_dimension, shared = head / (shape->heads / shape->key_value_heads);
    const float *query = decant_head_at(q, 0, head, dimension);
    float *target = decant_head_at(y, 0, head, dimension);
    double scale = 1.0 / sqrt((double)dimension);
    for (int64_t t = 0; t < keys.rows; t++)
        scores[t] =
            (float)(scale * decant_row_dot(query, decant_head_at(keys, t, shared, dimension), dimension));
    float maximum = decant_row_maximum(scores, keys.rows);
    double sum = decant_row_exponentials(scores, keys.rows, maximum, scores);
    memset(target, 0, (size_t)dimension * sizeof *target);
    for (int64_t t = 0; t < keys.rows; t++) {
        const float *value = decant_head_at(values, t, shared, dimension);
        float p = (float)(scores[t] / sum);
        for (int64_t i = 0; i < dimension; i++)
            target[i] += p * value[i];
    }
}

decant_status decant_cpu_attention_step(decant_backend *backend, const decant_attention_shape *shape,
                                        decant_matrix q, decant_matrix k, decant_matrix v, decant_matrix keys,
                                        decant_matrix values, const int32_t *position, decant_matrix y,
                                        decant_error *err)
{
    const int64_t first = decant_first_key(shape, *position), count = *position + 1 - first;
    const int threads = decant_cpu_threads_for(backend, count * q.columns);
    void *scratch;
    size_t scratch_bytes = (size_t)(threads * count) * sizeof(float);
    decant_status status = decant_cpu_scratch(backend, scratch_bytes, &scratch, err);
    if (status != DECANT_OK)
        return status;
    memcpy(decant_matrix_rows(keys, *position, 1).data, k.data, decant_matrix_bytes(k));
    memcpy(decant_matrix_rows(values, *position, 1).data, v.data, decant_matrix_bytes(v));
    decant_matrix seen_keys = decant_matrix_rows(keys, first, count);
    decant_matrix seen_values = decant_matrix_rows(values, first, count);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t head = 0; head < shape->heads; head++)
        attend(shape, head, q, seen_keys, seen_values, y, (float *)scratch + decant_cpu_thread() * count);
    return DECANT_OK;
}
