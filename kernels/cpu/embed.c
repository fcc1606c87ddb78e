/* The rows of the embedding table that the tokens name. */
#include "kernels/cpu/operations.h"

decant_status decant_cpu_embed(decant_backend *backend, const int32_t *tokens, decant_matrix table,
                               decant_matrix y, decant_error *err)
{
    (void)backend, (void)err;
    float *rows = y.data;
    for (int64_t t = 0; t < y.rows; t++)
        decant_elements_to_f32(table.element, decant_matrix_rows(table, tokens[t], 1).data, table.columns,
                               rows + t * y.columns);
    return DECANT_OK;
}
