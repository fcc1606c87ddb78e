/* What the two orders of calibration, resident and streamed, share on a rank: which micro-batches it takes, the
 * channels to its neighbours, its losses, its standing, and where its time goes. */
#ifndef DECANT_PIPELINE_CALIBRATION_RUN_H
#define DECANT_PIPELINE_CALIBRATION_RUN_H

#include "pipeline/channel.h"
#include "pipeline/job.h"

/* Seconds of this rank, waiting for messages left out. */
typedef struct decant_calibration_times {
    double forward_s, backward_s; /* at work on micro-batches */
    double filling_s;             /* waiting for messages until the first backward pass can begin */
    double draining_s;            /* the same behind the last forward pass */
    double checkpoint_s;          /* saving what was finished */
    double elapsed_s;             /* from the first step to the last, waiting included, saving left out */
} decant_calibration_times;

typedef struct decant_calibration_run {
    decant_job *job;                  /* borrowed */
    const decant_token_array *tokens; /* borrowed */
    decant_fisher_sums *fisher;       /* of this rank's layers; borrowed */
    int64_t micro_batch;              /* sequences taken together */
    int64_t first_batch, batches;     /* this replica's share of the micro-batches, what is finished left out */
    int64_t finished;                 /* micro-batches of its share that an earlier job has done */
    int64_t finished_at_most;         /* the same of the replica with the most, which is the first */
    double *losses;                   /* [tokens->sequences]; filled where the head is, for this rank's share */
    decant_channels channels;         /* all of the following, each borrowed from here */
    decant_channel *from_previous, *to_next; /* activations; NULL at the model's ends */
    decant_channel *from_next, *to_previous; /* gradients */
    decant_standing standing;
    decant_calibration_times times;
} decant_calibration_run;

/* How many sequences are taken together: --micro-batch, or as many as the schedule says, or all. */
int64_t decant_calibration_micro_batch(const decant_options *options, const decant_token_array *tokens);

/* Local. Which sequences this rank takes; opens no channel yet. */
decant_status decant_calibration_run_create(decant_job *job, const decant_token_array *tokens,
                                            decant_fisher_sums *fisher, decant_calibration_run *run,
                                            decant_error *err);
/* Not collective, but the neighbours do the same. */
decant_status decant_calibration_run_connect(decant_calibration_run *run, decant_error *err);
/* Takes a run of zeros too. All messages must have been asked for or sent. */
void decant_calibration_run_free(decant_calibration_run *run);

/* The sequences of this rank's micro-batch `index`, 0 … run->batches − 1. */
decant_micro_batch decant_calibration_run_batch(const decant_calibration_run *run, int64_t index);

/* One message of a micro-batch's activations or gradients over one of the run's channels; nothing where the
 * channel is NULL. Failures and withdrawals are noted in the run's standing. */
void decant_calibration_run_receive(decant_calibration_run *run, decant_channel *channel, decant_matrix matrix);
void decant_calibration_run_send(decant_calibration_run *run, decant_channel *channel, decant_matrix matrix);

/* Lets this rank's messages move on; `run` is a decant_calibration_run *, for a decant_interlude. */
void decant_calibration_run_advance(void *run);

#endif
