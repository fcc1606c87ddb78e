/* The commands that compute: what `decant run`, `calibrate`, `validate` and `generate` do, in order. */
#ifndef DECANT_PIPELINE_JOB_H
#define DECANT_PIPELINE_JOB_H

#include "base/log.h"
#include "base/ranks.h"
#include "io/question_file.h"
#include "io/token_array.h"
#include "pipeline/options.h"
#include "pipeline/plan.h"
#include "pipeline/schedule.h"
#include "pipeline/work_directory.h"
#include "stages/question_passes.h"
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
    int threads; /* of this rank, on the CPU */
    decant_model_config config;
    const decant_family *family;
    decant_safetensors *model; /* NULL when only a container is at hand */
    decant_rank_grid grid;
    int stage, replica;         /* this rank's place in the grid */
    decant_layer_range *ranges; /* [grid.stages]: the layers of each stage */
    int stages;                 /* those with layers: the first ones */
    int *owners; /* [layers of this stage, linear_count]: the replica that quantizes and writes a matrix */
    const decant_token_array *text; /* what `run` will validate on, borrowed; NULL or empty: nothing */
    uint32_t model_checksum;        /* pipeline/model_fingerprint.h; 0 where nothing is tied to the model */
    bool knows_others;              /* others_checksum has been computed */
    uint32_t others_checksum;       /* of the tensors that model_checksum passes over */
    uint32_t *weight_checksums;     /* [linear layers of the model]: what it was made of; NULL: nothing */
    struct decant_reuse *reuse;     /* pipeline/reuse.h; NULL: nothing is taken over */
    decant_work_directory work;     /* pipeline/job_work.h */
    decant_plan plan;               /* once the tokens are known; pipeline/job_plan.h */
} decant_job;

/* This rank's layers; count 0 when there are more ranks than layers. */
decant_layer_range decant_job_layers(const decant_job *job);

/* The rank at a place of the grid. */
int decant_job_rank(const decant_job *job, int stage, int replica);

/* The replica of this stage that owns linear layer `linear` of block `block`, counted from the stage's first.
 */
int decant_job_owner(const decant_job *job, int block, int linear);

/* What becomes of a block's Fisher sums when layers are streamed; pipeline/streamed_blocks.h. */
typedef struct decant_block_sink {
    /* Local. Called once a block, counted from this rank's first, from the last to the first, with the sums of
     * the matrices that this rank owns; takes them off the device. */
    decant_status (*take)(void *context, decant_fisher_sums *fisher, int block, decant_error *err);
    /* Collective. Defines the datasets for what was made of a layer of the model. */
    decant_status (*define)(void *context, decant_container_writer *writer, int layer, decant_error *err);
    /* Local. Writes what this rank has of a block that was taken, into the datasets that were defined last … */
    decant_status (*write)(void *context, decant_container_writer *writer, const decant_fisher_sums *fisher,
                           int block, decant_error *err);
    /* … or reads it, in place of taking it. */
    decant_status (*read)(void *context, const decant_container *file, decant_fisher_sums *fisher, int block,
                          decant_error *err);
    void *context;
} decant_block_sink;

/* Collective. pipeline/calibration.c: fills `fisher` (created here, on failure empty) from the calibration
 * tokens: the sums of the matrices that this rank owns, or, when layers are streamed, what the sink left. */
decant_status decant_job_calibrate(decant_job *job, const decant_token_array *tokens,
                                   const decant_block_sink *sink, decant_fisher_sums *fisher,
                                   decant_statistics_origin *origin, decant_error *err);

/* What a container is measured on; text without sequences and a set without questions are none. */
typedef struct decant_validation_inputs {
    decant_token_array text;
    decant_question_set questions;
} decant_validation_inputs;

static inline bool decant_validation_inputs_are_empty(const decant_validation_inputs *inputs)
{
    return inputs->text.sequences == 0 && inputs->questions.question_count == 0;
}

/* What both models answered; [DECANT_VALIDATION_ORIGINAL] is all zero without an original. */
typedef struct decant_question_result {
    const decant_question_set *set;           /* borrowed; NULL: nothing was asked */
    double *scores[DECANT_VALIDATION_MODELS]; /* [choices of the set], log-likelihoods, natural; owned */
    decant_question_tally *subjects[DECANT_VALIDATION_MODELS]; /* [subjects of the set]; owned */
    decant_question_tally overall[DECANT_VALIDATION_MODELS];
    double seconds;
} decant_question_result;

/* Collective. pipeline/validation.c: the container at `path` and, where there is one, the model on windows of
 * text and on questions; the results are the same on every rank.
 *   questions   freed with decant_question_result_free, empty after a failure */
decant_status decant_job_validate(decant_job *job, const char *path, const decant_validation_inputs *inputs,
                                  decant_validation_result *result, decant_question_result *questions,
                                  decant_error *err);
void decant_question_result_free(decant_question_result *result); /* takes an empty one */

/* Tokens at once of the decode products that validation measures, ascending; pipeline/model_costs.c. */
extern const int DECANT_DECODE_BATCH[DECANT_DECODE_BATCHES];

/* Collective. The four commands. */
decant_status decant_job_run(decant_ranks *ranks, const decant_options *options, decant_log *log,
                             decant_error *err);

#endif
