/* What a job would hold, move and take on a grid of ranks, and which grid and which mode of memory to take.
 * Pure: no MPI, CUDA or files; `decant plan` prints it, and a job asks it before it begins.
 *
 * Ranks form stages × replicas as pipeline/schedule.h says: a stage owns consecutive layers, a replica its
 * share of the calibration sequences, and rank = stage · replicas + replica. */
#ifndef DECANT_PIPELINE_PLAN_H
#define DECANT_PIPELINE_PLAN_H

#include "pipeline/memory_plan.h"

/* How fast things go; 0: not known, and the seconds that would follow from it are 0 too. */
typedef struct decant_rates {
    double
        flop_s; /* floating-point operations a second of a rank: forward, backward and Fisher sums together */
    double hessian_flop_s; /* the same of the Hessians that guided takes; 0: as flop_s */
    double quantized_s;    /* weights a second of a rank, at all widths asked for; but for guided's search */
    decant_guided_operations guided; /* operations a second of a rank; 0: quantized_s counts the search too */
    double read_bytes_s;             /* weights to where a rank computes */
    double write_bytes_s;            /* a rank to its share of the output */
    double message_bytes_s;          /* a rank to another one */
} decant_rates;

/* What was measured on one H100, and of guided on one H200 (tests/gpu/RESULTS.md), for this recipe. */
decant_rates decant_rates_measured(const decant_recipe *recipe);

typedef struct decant_plan_request {
    decant_job_shape shape; /* micro_batch and validation_batch 0: as many as make 2048 tokens */
    int ranks;
    int replicas;               /* 0: as decant_schedule_grid says */
    decant_memory_mode memory;  /* AUTO: choose */
    decant_retention retention; /* AUTO: choose */
    int64_t device_bytes;       /* device memory of a rank; 0: any */
    int64_t host_bytes;         /* host memory of a rank; 0: any */
    bool has_scratch;           /* a disk for boundary activations: those that host memory cannot take, all
                                   when streaming is asked for too */
    decant_rates rates;
} decant_plan_request;

typedef struct decant_rank_plan {
    decant_rank_share share;
    decant_rank_memory memory;
    int64_t sent_bytes;              /* activations, gradients, Fisher sums */
    int64_t written_bytes;           /* its share of the output */
    double flops;                    /* of calibration and validation */
    decant_guided_operations guided; /* of quantizing the matrices that it has */
    double seconds[DECANT_STAGES];   /* of its own work; see decant_plan.seconds */
    double idle;                     /* share of calibration that it waits for others */
} decant_rank_plan;

/* What would make a plan fit that does not; 0 and false where it would not help. */
typedef struct decant_plan_advice {
    int ranks;                        /* as many at least, with the same options */
    bool streamed;                    /* --memory streamed */
    bool recompute;                   /* --activations recompute */
    bool scratch;                     /* --scratch */
    int64_t micro_batch;              /* at most */
    int64_t window;                   /* at most */
    int64_t device_bytes, host_bytes; /* what the plan as it stands needs of them */
} decant_plan_advice;

typedef struct decant_plan {
    decant_job_shape shape; /* with the batches that were chosen */
    int ranks, replicas;
    int stages;        /* of a replica */
    int active_stages; /* those with layers */
    bool streamed, retain;
    int slack;                 /* of the schedule; see decant_schedule_in_flight */
    bool fits;                 /* up to the written file */
    bool validation_fits;      /* all of a rank's layers of both models at once; else one after the other */
    decant_plan_advice advice; /* when it does not fit */
    int faster_replicas; /* with so many, calibration would take `faster_s`; 0: with none it is much faster */
    double faster_s;
    int *owners;            /* [linear layers of the model], owned: which replica of its stage has a matrix */
    decant_rank_plan *rank; /* [ranks], owned */
    double seconds[DECANT_STAGES]; /* from the first rank's beginning to the last one's end */
    int64_t weights;               /* quantized */
    int64_t container_bytes, smallest_bytes,
        largest_bytes;        /* the container, as asked, and at the ends of --bit-widths */
    int64_t statistics_bytes; /* of a file of Fisher sums, with Hessians where there are any */
    int64_t hessian_bytes,
        block_hessian_bytes; /* of all blocks, and of one: as many are there at once as sums */
    int64_t work_bytes; /* OUTPUT.work at its largest, while a checkpoint is written; 0: nothing is saved */
} decant_plan;

/* Chooses the mode: of those that fit, resident rather than streamed, activations kept rather than computed
 * again. The grid is decant_schedule_grid's unless replicas are asked for, because their number, and nothing
 * else here, changes the bits of the Fisher sums. Where nothing fits, the plan that comes closest, with fits =
 * false and advice; that is no failure. DECANT_ERROR_USAGE when --replicas does not divide the ranks or exceeds
 * the micro-batches. Freed with decant_plan_free; on failure empty. */
decant_status decant_plan_choose(const decant_plan_request *request, decant_plan *plan, decant_error *err);
void decant_plan_free(decant_plan *plan);

#endif
