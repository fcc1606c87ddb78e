/* When calibration saves its sums: all ranks agree, while micro-batches stream, after which of them they stop
 * for a moment and write a checkpoint together.
 *
 * Backward passes are in order on every stage, and only they add to the sums, so after the backward pass of
 * micro-batch i a stage holds the sums of 0 … i and of nothing else, whatever is on its way forward. Nothing
 * has to be drained. After each backward pass a rank begins a maximum of what the ranks wish for, and looks at
 * it `stages − 1` backward passes later, when the first stage, which is the last to pass that micro-batch
 * backward, has taken part in it too; so nobody waits. All ranks see the same wish after the same micro-batch.
 *
 * A rank can be at most one micro-batch ahead of the one that it sends to, as one-forward-one-backward has it,
 * and that message waits in its channel: a rank never waits here for one that waits for a message of its. */
#ifndef DECANT_PIPELINE_CHECKPOINT_ROUNDS_H
#define DECANT_PIPELINE_CHECKPOINT_ROUNDS_H

#include "pipeline/calibration_run.h"

typedef struct decant_checkpoint_rounds {
    decant_calibration_run *run; /* borrowed */
    int64_t rounds;              /* micro-batches that a checkpoint may follow: all but the last */
    int64_t largest;             /* micro-batches of a replica in all, with those finished before */
    int64_t lag;                 /* micro-batches between a wish and its effect */
    int64_t *wishes;             /* [lag + 1] */
    decant_message *messages;    /* [lag + 1] */
    int64_t last;                /* the round after which there was a checkpoint; −1: none */
    bool closed;                 /* a rank failed, or all leave: no more rounds */
} decant_checkpoint_rounds;

/* Local. The run must have its share of micro-batches. Signals are listened to from now on. */
decant_status decant_checkpoint_rounds_open(decant_calibration_run *run, decant_checkpoint_rounds *rounds,
                                            decant_error *err);

/* Collective: every rank calls it after its micro-batches 0, 1, … in order; a rank with fewer than others, or
 * with none, ends with decant_checkpoint_rounds_attend. Writes a checkpoint when the ranks agreed on one. When
 * a signal came, the run's standing becomes DECANT_INTERRUPTED on all ranks. A checkpoint that cannot be
 * written is told and does not end the job, unless it was to leave. */
void decant_checkpoint_rounds_pass(decant_checkpoint_rounds *rounds, int64_t batch);
void decant_checkpoint_rounds_attend(decant_checkpoint_rounds *rounds, int64_t first_batch);

/* Collective. Completes what was begun. Takes zeros. */
void decant_checkpoint_rounds_close(decant_checkpoint_rounds *rounds);

#endif
