/* A quantized layer between evaluation and choice, in a container: what a job that goes on would else have to
 * measure again. Of a linear layer NAME
 *
 *   /NAME/source_crc32     U32 [1]: checksum of the original tensor's bytes
 *   /NAME/costs            F64 [candidates, 2]: predicted loss increase (by the sums) and relative error
 *   /NAME/levels.I         F16 [rows, 2^bits]: of candidate I, where it has levels
 *   /NAME/planes.I         U32 [rows, bits, ceil(columns / 32)]: of a guided one, with
 *   /NAME/sparse_values.I  F16 [count]; and where it has a pattern of its own
 *   /NAME/sparse_rows.I    U32 [rows + 1] and
 *   /NAME/sparse_columns.I U32 [count]
 *   /NAME/sparse_rows      U32 [rows + 1] and
 *   /NAME/sparse_columns   U32 [count]: the pattern that candidates share, where there is one
 *
 * What the candidates are follows from the recipe and the shape, which are those of the job. */
#ifndef DECANT_STAGES_QUANTIZED_FILE_H
#define DECANT_STAGES_QUANTIZED_FILE_H

#include "io/container.h"
#include "stages/error_table.h"
#include "stages/model.h"

/* Numbers of a linear layer's datasets; −1 where there is none. */
typedef struct decant_quantized_datasets {
    int source, costs, sparse_rows, sparse_columns;
    int levels[DECANT_CANDIDATES], planes[DECANT_CANDIDATES], sparse_values[DECANT_CANDIDATES];
    int own_rows[DECANT_CANDIDATES], own_columns[DECANT_CANDIDATES];
} decant_quantized_datasets;

/* Collective, as the define calls of the container are. */
decant_status decant_quantized_file_define(decant_container_writer *writer, const decant_recipe *recipe,
                                           const decant_linear *linear, decant_quantized_datasets *datasets,
                                           decant_error *err);

/* Local: the rank that quantized the layer writes it, from host memory.  layer  parked */
decant_status decant_quantized_file_write(decant_container_writer *writer, const decant_linear *linear,
                                          decant_quantized_datasets *datasets, decant_quantized_layer *layer,
                                          const decant_table_row *row, decant_error *err);

/* Local. Fills layer, parked, and row but for row->matrix. On failure the layer can be freed all the same.
 * DECANT_ERROR_INPUT when a dataset is missing, of another shape, or damaged. */
decant_status decant_quantized_file_read(const decant_container *file, const decant_recipe *recipe,
                                         const decant_linear *linear, decant_quantized_layer *layer,
                                         decant_table_row *row, decant_error *err);

#endif
