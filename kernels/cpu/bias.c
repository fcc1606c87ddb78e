/* The bias of a linear layer, added to every row of its output, and learned positions, whose rows are taken in
 * turn. */
#include "kernels/cpu/operations.h"

/* Columns of a bias that are converted at a time and then added to all of its rows. */
enum { CHUNK = 256 };

decant_status decant_cpu_add_bias(decant_backend *backend, decant_matrix y, decant_matrix bias,
                                  decant_error *err)
{
    (void)err;
    const size_t element_bytes = decant_element_bytes(bias.element);
    const int64_t chunks = (y.columns + CHUNK - 1) / CHUNK;
#pragma omp parallel for num_threads(decant_cpu_threads_for(backend, y.rows *y.columns)) schedule(static)
    for (int64_t task = 0; task < bias.rows * chunks; task++) {
        int64_t of = task / chunks, first = task % chunks * CHUNK;
        int64_t count = y.columns - first < CHUNK ? y.columns - first : CHUNK;
        float addends[CHUNK];
        decant_elements_to_f32(bias.element,
                               (const char *)bias.data + (size_t)(of * y.columns + first) * element_bytes,
                               count, addends);
        for (int64_t t = of; t < y.rows; t += bias.rows) {
            float *row = (float *)y.data + t * y.columns + first;
            for (int64_t i = 0; i < count; i++)
                row[i] += addends[i];
        }
    }
    return DECANT_OK;
}
