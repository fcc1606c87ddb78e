/* The grid operations of the CPU backend, one file each (kernels/backend.h says what they compute), and what
 * they share: the cells of the grids that were searched, and rows of codes packed and unpacked. */
#ifndef DECANT_KERNELS_CPU_GRID_H
#define DECANT_KERNELS_CPU_GRID_H

#include "kernels/cpu/cpu.h"
#include "kernels/grid_cells.h"

decant_status decant_cpu_grid_encode(decant_backend *backend, decant_matrix weight, const float *fisher,
                                     decant_grid_scale scale, decant_grid_matrix *matrix,
                                     decant_matrix_error *error, decant_error *err);
decant_status decant_cpu_grid_linear(decant_backend *backend, decant_matrix x, const decant_grid_matrix *matrix,
                                     bool accumulate, decant_matrix y, decant_error *err);
decant_status decant_cpu_grid_decode(decant_backend *backend, const decant_grid_matrix *matrix,
                                     decant_matrix weight, decant_error *err);
decant_status decant_cpu_add_noise(decant_backend *backend, decant_matrix weight, double t, uint64_t seed,
                                   decant_matrix noisy, decant_error *err);

/* ---- grid_cpu.c ---- */

/* The cells of a grid, made when it is first asked for and kept with the backend. */
decant_status decant_cpu_grid_cells(decant_backend *backend, const decant_grid_form *form,
                                    const decant_grid_cells **cells, decant_error *err);
void decant_cpu_grid_release(decant_cpu *cpu);

/* ---- grid_codes.c ---- */

/* Packs the codes of a row into its planes. codes [decant_grid_codes()]; planes of this row, whole words. */
void decant_grid_codes_pack(const uint16_t *codes, int64_t count, int code_bits, uint32_t *planes);

/* What a row stands for before it is rotated back: columns [first, first + count), where first is a multiple of
 * 32 · dimension.
 *   codes    scratch, [decant_grid_codes(count)]
 *   values   [count] */
void decant_grid_row_read(const decant_grid_matrix *matrix, int64_t row, int64_t first, int64_t count,
                          uint16_t *codes, float *values);

#endif
