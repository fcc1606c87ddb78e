/* The error table as a container keeps it: the datasets of /errors that list candidates and what they cost.
 * docs/container.md is the schema. */
#ifndef DECANT_STAGES_ERROR_TABLE_FILE_H
#define DECANT_STAGES_ERROR_TABLE_FILE_H

#include "io/container.h"
#include "stages/error_table.h"

/* Numbers of the datasets. */
typedef struct decant_error_table_datasets {
    int methods, code_bits, dimension, group, sparse, bytes, predicted, relative;
} decant_error_table_datasets;

/* Collective, as the define calls of the container are. */
decant_status decant_error_table_define(decant_container_writer *writer, const decant_error_table *table,
                                        decant_error_table_datasets *datasets, decant_error *err);

/* Local: one rank writes it all. */
decant_status decant_error_table_write(decant_container_writer *writer, const decant_error_table *table,
                                       const decant_error_table_datasets *datasets, decant_error *err);

/* Local. Reads the candidates of all layers; what the datasets do not hold (checksums, weights, sparse counts,
 * rotations) is 0. A container of schema version 1 has k-means alone. On failure the table is empty.
 * DECANT_ERROR_INPUT when shapes do not fit each other or a candidate is none that decant knows. */
decant_status decant_error_table_read(const decant_container *container, decant_error_table *table,
                                      decant_error *err);

#endif
