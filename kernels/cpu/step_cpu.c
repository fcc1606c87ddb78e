/* The steps table of the CPU backend. */
#include "kernels/cpu/operations.h"
#include "kernels/step_products.h"

#include <math.h>

static decant_status take_row(decant_backend *backend, decant_matrix table, const int32_t *index,
                              bool accumulate, decant_matrix y, decant_error *err)
{
    void *scratch;
    decant_status status = decant_cpu_scratch(backend, (size_t)table.columns * sizeof(float), &scratch, err);
    if (status != DECANT_OK)
        return status;
    const float *row = scratch;
    float *target = y.data;
    decant_elements_to_f32(table.element, decant_matrix_rows(table, *index, 1).data, table.columns, scratch);
    for (int64_t i = 0; i < table.columns; i++)
        target[i] = accumulate ? target[i] + row[i] : row[i];
    return DECANT_OK;
}

static decant_status attention(decant_backend *backend, const decant_attention_shape *shape,
                               const float *cosines, const float *sines, decant_matrix q, decant_matrix k,
                               decant_matrix v, decant_matrix keys, decant_matrix values,
                               const int32_t *position, decant_matrix y, decant_error *err)
{
    const int64_t angles = (int64_t)*position * (shape->head_dimension / 2);
    decant_status status;
    DECANT_TRY(decant_cpu_rotary(backend, q, shape->heads, cosines + angles, sines + angles, false, err));
    DECANT_TRY(
        decant_cpu_rotary(backend, k, shape->key_value_heads, cosines + angles, sines + angles, false, err));
    DECANT_TRY(decant_cpu_attention_step(backend, shape, q, k, v, keys, values, position, y, err));
done:
    return status;
}

static decant_status choose(decant_backend *backend, decant_matrix logits, int32_t *token, int32_t *position,
                            int32_t *history, decant_error *err)
{
    const float *values = logits.data;
    float most = -INFINITY; /* an undefined logit is none */
    int32_t best = 0;
    bool is_sound = true;
    (void)backend, (void)err;
    for (int32_t i = 0; i < logits.columns; i++) {
        is_sound &= values[i] < INFINITY;
        if (values[i] > most) {
            most = values[i];
            best = i;
        }
    }
    *token = best;
    history[*position] = is_sound && most > -INFINITY ? best : -1;
    (*position)++;
    return DECANT_OK;
}

const decant_step_kernels decant_cpu_step_kernels = {
    .take_row = take_row,
    .products = decant_step_products,
    .gated_products = decant_step_gated_products,
    .attention = attention,
    .choose = choose,
};
