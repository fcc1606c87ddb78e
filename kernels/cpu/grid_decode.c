/* What a matrix on a grid stands for, rotated back, row by row. */
#include "kernels/cpu/grid.h"
#include "kernels/cpu/hadamard.h"

decant_status decant_cpu_grid_decode(decant_backend *backend, const decant_grid_matrix *matrix,
                                     decant_matrix weight, decant_error *err)
{
    if (weight.rows != matrix->rows || weight.columns != matrix->columns)
        return DECANT_ERROR(err, DECANT_ERROR_BUG, "the packed matrix has another shape than the weight");
    decant_status status = decant_grid_form_check(&matrix->form, matrix->columns, err);
    if (status != DECANT_OK)
        return status;
    const int threads = decant_cpu_of(backend)->threads;
    const int64_t columns = matrix->columns;
    const size_t row_bytes = (size_t)columns * (sizeof(float) + sizeof(uint16_t));
    void *scratch;
    status = decant_cpu_scratch(backend, (size_t)columns * sizeof(float) + (size_t)threads * row_bytes,
                                &scratch, err);
    if (status != DECANT_OK)
        return status;
    float *signs = scratch, *rows = signs + columns;
    uint16_t *codes = (uint16_t *)(rows + threads * columns);
    decant_rotation_signs(matrix->form.seed, columns, signs);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 16)
    for (int64_t row = 0; row < matrix->rows; row++) {
        float *own = rows + decant_cpu_thread() * columns;
        decant_grid_row_read(matrix, row, 0, columns, codes + decant_cpu_thread() * columns, own);
        decant_rotate_row_back(own, columns, matrix->form.rotation, signs);
        decant_elements_from_f32(weight.element, own, columns, decant_matrix_rows(weight, row, 1).data);
    }
    return DECANT_OK;
}
