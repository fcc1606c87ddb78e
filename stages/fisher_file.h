/* Fisher sums in a container: one dataset PREFIX/LAYER/fisher, F32 [rows, columns], a linear layer, and beside
 * it, where guided quantization was asked for, PREFIX/LAYER/hessian, F32 [groups, columns, columns]. What else
 * such a file says is stages/statistics.h's and pipeline/calibration_checkpoint.h's. */
#ifndef DECANT_STAGES_FISHER_FILE_H
#define DECANT_STAGES_FISHER_FILE_H

#include "io/container.h"
#include "stages/fisher_sums.h"

enum { DECANT_FISHER_DATASETS = 2 }; /* a linear layer, at most: F and H */

/* Collective. Defines the datasets of all linear layers of the model.
 *   hessian_groups   of output channels; 0: no Hessians
 *   prefix           "" or a group, as "/replica0"
 *   ids              [layers · linear_count · DECANT_FISHER_DATASETS]; filled */
decant_status decant_fisher_file_define(decant_container_writer *writer, const decant_model_config *config,
                                        const decant_family *family, int hessian_groups, const char *prefix,
                                        int *ids, decant_error *err);

/* Collective. The same for the linear layers of block `layer` of the model.
 *   ids   [linear_count · DECANT_FISHER_DATASETS]; filled */
decant_status decant_fisher_file_define_block(decant_container_writer *writer,
                                              const decant_model_config *config, const decant_family *family,
                                              int layer, int hessian_groups, const char *prefix, int *ids,
                                              decant_error *err);

/* Local. Writes the sums that this rank holds, one layer at a time through host memory; takes an empty list.
 * fisher->hessian_groups is what the file was defined with. DECANT_ERROR_INPUT names the layer whose sums are
 * not finite. */
decant_status decant_fisher_file_write(decant_container_writer *writer, const decant_fisher_sums *fisher,
                                       const int *ids, decant_error *err);

/* Local. The same for one block, counted from the list's first.
 *   ids   [linear_count · DECANT_FISHER_DATASETS] */
decant_status decant_fisher_file_write_block(decant_container_writer *writer, const decant_fisher_sums *fisher,
                                             int block, const int *ids, decant_error *err);

/* Local. Reads the sums for which there is room in `fisher`; takes an empty list. DECANT_ERROR_INPUT when a
 * dataset has not the bytes that it was written with, or when there is room for Hessians and the file has none,
 * or other groups. */
decant_status decant_fisher_file_read(const decant_container *file, const char *prefix,
                                      decant_fisher_sums *fisher, decant_error *err);

/* Local. Reads the sums of one linear layer of a block into host memory, where none are yet: they are parked.
 */
decant_status decant_fisher_file_read_parked(const decant_container *file, const char *prefix,
                                             decant_fisher_sums *fisher, int block, int linear,
                                             decant_error *err);

#endif
