/* The quantize operations of the CPU backend, one file each; kernels/backend.h says what they compute. */
#ifndef DECANT_KERNELS_CPU_QUANTIZE_H
#define DECANT_KERNELS_CPU_QUANTIZE_H

#include "kernels/cpu/cpu.h"

decant_status decant_cpu_select_sparse(decant_backend *backend, decant_matrix weight, const float *fisher,
                                       int64_t n_sensitive, int64_t n_outliers, decant_sparse_pattern *pattern,
                                       decant_error *err);
decant_status decant_cpu_fit_levels(decant_backend *backend, decant_matrix weight, const float *fisher,
                                    const decant_sparse_pattern *pattern, decant_level_search search,
                                    uint64_t seed, const int *bits, int n_widths, uint16_t *const *levels,
                                    decant_error *err);
decant_status decant_cpu_measure(decant_backend *backend, decant_matrix weight, const float *fisher,
                                 const decant_sparse_pattern *pattern, int bits, const uint16_t *levels,
                                 decant_matrix_error *error, decant_error *err);
decant_status decant_cpu_encode(decant_backend *backend, decant_matrix weight, decant_packed_matrix *packed,
                                decant_error *err);
decant_status decant_cpu_weigh_errors(decant_backend *backend, decant_matrix weight, const float *fisher,
                                      const decant_packed_matrix *packed, float *cost, decant_error *err);
decant_status decant_cpu_guide(decant_backend *backend, decant_matrix weight,
                               const decant_guided_search *search, decant_packed_matrix *packed,
                               decant_matrix_error *error, decant_error *err);

/* Elements [first, first + count) of a row as F32. */
static inline void decant_cpu_read_row(decant_matrix matrix, int64_t row, int64_t first, int64_t count,
                                       float *target)
{
    size_t offset = (size_t)(row * matrix.columns + first) * decant_element_bytes(matrix.element);
    decant_elements_to_f32(matrix.element, (const char *)matrix.data + offset, count, target);
}

/* The columns of a row that are in the sparse part; pattern NULL: none. */
static inline int64_t decant_cpu_sparse_columns(const decant_sparse_pattern *pattern, int64_t row,
                                                const uint32_t **columns)
{
    *columns = NULL;
    if (!pattern || pattern->count == 0)
        return 0;
    *columns = pattern->columns + pattern->row_offsets[row];
    return (int64_t)pattern->row_offsets[row + 1] - (int64_t)pattern->row_offsets[row];
}

#endif
