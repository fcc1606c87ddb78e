/* The commands that compute: what `decant run`, `calibrate` and `validate` do, in order. */
#ifndef DECANT_PIPELINE_JOB_H
#define DECANT_PIPELINE_JOB_H

#include "base/log.h"
#include "base/ranks.h"
#include "io/token_array.h"
#include "pipeline/options.h"
#include "pipeline/schedule.h"
#include "stages/sensitivity.h"
#include "stages/source.h"
#include "stages/statistics.h"
#include "stages/validate.h"

/* What every stage of a job works with; all of it is the same on every rank but `backend`. */
typedef struct decant_job {
    decant_ranks *ranks;           /* borrowed */
    const decant_options *options; /* borrowed */
    decant_log *log;               /* borrowed */
    decant_backend *backend;
    int sharers; /* ranks that share the backend's memory: all of this machine, or those of one GPU */
    decant_model_config config;
    const decant_family *family;
    decant_safetensors *model;  /* NULL when only a container is at hand */
    decant_layer_range *ranges; /* [ranks->size]: the layers of each rank */
    int stages;                 /* ranks with layers: the first ones */
} decant_job;

/* This rank's layers; count 0 when there are more ranks than layers. */
decant_layer_range decant_job_layers(const decant_job *job);

/* Collective. pipeline/calibration.c: fills `fisher` (created here, on failure empty) from the calibration
 * tokens. */
decant_status decant_job_calibrate(decant_job *job, const decant_token_array *tokens,
                                   decant_fisher_sums *fisher, decant_statistics_origin *origin,
                                   decant_error *err);

/* Collective. pipeline/sensitivity.c: refuses, before the work, a model that does not fit every rank's device
 * whole. */
decant_status decant_job_check_sensitivity(decant_job *job, int64_t tokens, decant_error *err);

/* Collective. pipeline/sensitivity.c: measures as --sensitivity noise|measured says and puts the predictions
 * that follow into the table. What is finished is noted in a journal beside the output, which stays until the
 * job is complete. tokens   what to measure on layers   this rank's quantized layers result   created here; on
 * failure empty */
decant_status decant_job_measure_sensitivity(decant_job *job, const decant_token_array *tokens,
                                             decant_quantized_layer *layers, decant_error_table *table,
                                             decant_sensitivity *result, decant_error *err);

/* pipeline/sensitivity.c: removes the journal of a job that is complete. */
void decant_job_forget_sensitivity(const decant_job *job);

/* Collective. pipeline/validation.c: the container at `path` against the model on windows of text; the result
 * is the same on every rank. */
decant_status decant_job_validate(decant_job *job, const char *path, const decant_token_array *tokens,
                                  decant_validation_result *result, decant_error *err);

/* Collective. The three commands. */
decant_status decant_job_run(decant_ranks *ranks, const decant_options *options, decant_log *log,
                             decant_error *err);

#endif
