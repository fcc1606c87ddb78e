/* Fisher sums in a container: one dataset PREFIX/LAYER/fisher, F32 [rows, columns], a linear layer. What else
 * such a file says is stages/statistics.h's and pipeline/calibration_checkpoint.h's. */
#ifndef DECANT_STAGES_FISHER_FILE_H
#define DECANT_STAGES_FISHER_FILE_H

#include "io/container.h"
#include "stages/fisher_sums.h"

/* Collective. Defines the datasets of all linear layers of the model.
 *   prefix   "" or a group, as "/replica0"
 *   ids      [layers · linear_count]; filled */
decant_status decant_fisher_file_define(decant_container_writer *writer, const decant_model_config *config,
                                        const decant_family *family, const char *prefix, int *ids,
                                        decant_error *err);

/* Collective. The same for the linear layers of block `layer` of the model.  ids [linear_count]; filled */
decant_status decant_fisher_file_define_block(decant_container_writer *writer,
                                              const decant_model_config *config, const decant_family *family,
                                              int layer, const char *prefix, int *ids, decant_error *err);

/* Local. Writes the sums that this rank holds, one layer at a time through host memory; takes an empty list. */
decant_status decant_fisher_file_write(decant_container_writer *writer, const decant_fisher_sums *fisher,
                                       const int *ids, decant_error *err);

/* Local. The same for one block, counted from the list's first.  ids [linear_count] */
decant_status decant_fisher_file_write_block(decant_container_writer *writer, const decant_fisher_sums *fisher,
                                             int block, const int *ids, decant_error *err);

/* Local. Reads one sum into host memory, where none is yet: it is parked then. */
decant_status decant_fisher_file_read_parked(const decant_container *file, const char *prefix,
                                             decant_fisher_sums *fisher, int block, int linear,
                                             decant_error *err);

/* Local. Reads the sums for which there is room in `fisher`; takes an empty list. DECANT_ERROR_INPUT when a
 * dataset has not the bytes that it was written with. */
decant_status decant_fisher_file_read(const decant_container *file, const char *prefix,
                                      decant_fisher_sums *fisher, decant_error *err);

#endif
