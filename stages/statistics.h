/* The statistics file: Fisher sums kept for later runs. An HDF5 file like the container, with one dataset
 * /NAME/fisher F32 [rows, columns] a linear layer, with /NAME/hessian F32 [groups, columns, columns] beside it
 * where guided quantization was asked for, and at the root what they were made from. Files of disjoint
 * calibration parts are added by stages/merge.h. */
#ifndef DECANT_STAGES_STATISTICS_H
#define DECANT_STAGES_STATISTICS_H

#include "io/container.h"
#include "io/safetensors.h"
#include "stages/fisher_sums.h"

/* What the sums were made from. */
typedef struct decant_statistics_origin {
    decant_fisher_form form;
    int64_t sequences;   /* N */
    int64_t length;      /* tokens a sequence */
    int64_t micro_batch; /* sequences that were taken together: decides the order of sums */
    int64_t replicas;    /* that divided the sequences: their sums were added in order */
    double loss;         /* mean over the sequences; NaN when it is not known */
    uint32_t calibration_checksum;
    uint32_t model_checksum; /* of the weights of all linear layers: the container's model_crc32 */
} decant_statistics_origin;

/* Collective. Writes the sums of all matrices of the model, with Hessians of so many groups or, of 0, without;
 * each rank brings those that it holds, or an empty list, which tells of no groups. */
decant_status decant_statistics_write(decant_ranks *ranks, const char *path, bool overwrite,
                                      const decant_model_config *config, const decant_family *family,
                                      int hessian_groups, const decant_fisher_sums *fisher,
                                      const decant_statistics_origin *origin, decant_error *err);

/* Collective; rank 0 does the work. The same from the sums of another program (stages/gradients.h), one matrix
 * at a time. The checksum of the origin is that of the gradients. */
decant_status decant_statistics_import(decant_ranks *ranks, const char *path, bool overwrite,
                                       const decant_model_config *config, const decant_family *family,
                                       const decant_safetensors *gradients,
                                       const decant_statistics_origin *origin, decant_error *err);

/* Collective, with equal arguments. The root attributes of a statistics file. */
decant_status decant_statistics_set_origin(decant_container_writer *writer,
                                           const decant_statistics_origin *origin, decant_error *err);

/* Local. What the file was made from. DECANT_ERROR_INPUT when it is no statistics file. */
decant_status decant_statistics_open(const char *path, decant_container **file,
                                     decant_statistics_origin *origin, decant_error *err);

#endif
