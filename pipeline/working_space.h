/* How much working space the kernels ask of a backend, from shapes alone: the largest request of each stage of
 * a job. Each formula stands beside the name of the file that makes the request;
 * tests/pipeline/test_memory_plan.c holds the CPU ones against what the backend took. Pure: no kernels, MPI or
 * files. */
#ifndef DECANT_PIPELINE_WORKING_SPACE_H
#define DECANT_PIPELINE_WORKING_SPACE_H

#include "pipeline/options.h"
#include "stages/model.h"

/* What a job is made of, as far as bytes and seconds go; the same on all ranks. */
typedef struct decant_job_shape {
    const decant_model_config *config; /* borrowed */
    const decant_family *family;
    decant_element element; /* of the weights in the model's files */
    bool cuda;              /* device memory is not the host's */
    bool full_floats;       /* F32 activations on a GPU too; the CPU has them anyway */
    int threads;            /* of a rank, on the CPU */

    bool calibrates;     /* false: the Fisher sums come from a file */
    int64_t sequences;   /* of all replicas together */
    int64_t window;      /* tokens a sequence */
    int64_t micro_batch; /* sequences that pass through the model together, >= 1 */
    decant_fisher_form form;

    bool quantizes; /* false: the Fisher sums are all that is wanted */
    decant_bit_widths widths;
    double bits; /* 0: the largest width */
    double sensitive, outliers;
    decant_level_search search;

    int64_t validation_windows; /* 0: no validation */
    int64_t validation_window;  /* tokens each */
    int64_t validation_batch;   /* windows that pass through the model together, >= 1 */
} decant_job_shape;

/* Bytes of an activation, and of a weight that was placed for products. */
int64_t decant_activation_bytes(const decant_job_shape *shape);
int64_t decant_compute_bytes(const decant_job_shape *shape);

/* The largest working space of calibrating a part of the model; with its head or without. */
int64_t decant_calibration_working_bytes(const decant_job_shape *shape, int layer, bool has_head);

/* The largest working space of quantizing a matrix. */
int64_t decant_quantization_working_bytes(const decant_job_shape *shape, int64_t rows, int64_t columns);

/* The largest working space of validating a part of the model. */
int64_t decant_validation_working_bytes(const decant_job_shape *shape, bool has_head);

/* What the CUDA backend holds on the device from its first minute on: cuBLAS's workspace and the staging of
 * weights that change type on their way. 0 on the CPU. */
int64_t decant_backend_bytes(const decant_job_shape *shape);

#endif
