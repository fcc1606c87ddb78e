/* The original model and a container side by side over all ranks: every rank opens the container from disk, and
 * sequences of tokens stream through the stages, through both models. Where both models' layers do not fit a
 * rank's memory together, all sequences pass one layer after the other. What is asked of the logits at the end
 * is the caller's (validation.c, question_run.c). */
#ifndef DECANT_PIPELINE_PAIRED_MODELS_H
#define DECANT_PIPELINE_PAIRED_MODELS_H

#include "pipeline/job.h"

typedef struct decant_paired_models {
    decant_job *job; /* borrowed */
    decant_container *container;
    decant_container_source *source;
    decant_weight_source sources[DECANT_VALIDATION_MODELS];
    decant_model_part parts[DECANT_VALIDATION_MODELS]; /* that of the original is empty without a model */
    bool streamed;
} decant_paired_models;

/* Collective. Opens the container at `path` and loads this rank's layers of both models, which take up to
 * `rows` tokens at once; streamed: only outlines them. Closed with decant_paired_models_close, after a failure
 * too. */
decant_status decant_paired_models_open(decant_job *job, const char *path, int64_t rows, bool streamed,
                                        decant_paired_models *models, decant_error *err);
void decant_paired_models_close(decant_paired_models *models); /* local */

/* Sequences that pass together, one after the other. */
typedef struct decant_passage {
    const int32_t *tokens; /* [sequences, length] */
    int64_t sequences, length;
} decant_passage;

/* Everything that is to pass; the same on every rank. */
typedef struct decant_passages {
    void *context;
    int64_t count;
    int64_t largest;   /* most tokens of a passage */
    int64_t head_rows; /* most positions at once whose logits `measure` asks for */
    decant_passage (*at)(const void *context, int64_t index);
    /* Called on the rank with the head, when a passage has been through all layers; each passage ends on one
     * rank. seconds: for decant_validation_head. */
    decant_status (*measure)(void *context, decant_validation *validation, int64_t index, double *seconds,
                             decant_error *err);
} decant_passages;

/* Collective.
 *   seconds  [DECANT_VALIDATION_MODELS]: the time of this rank in passes of each model is added */
decant_status decant_paired_models_pass(decant_paired_models *models, const decant_passages *passages,
                                        double *seconds, decant_error *err);

#endif
