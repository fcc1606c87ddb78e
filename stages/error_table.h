/* The error table: for every linear layer of the model and every candidate, predicted loss increase, relative
 * error and exact bytes. Each rank measures its layers; all ranks hold the whole table after gathering. */
#ifndef DECANT_STAGES_ERROR_TABLE_H
#define DECANT_STAGES_ERROR_TABLE_H

#include "base/ranks.h"
#include "stages/quantize.h"

typedef struct decant_table_row {
    int64_t matrix;           /* its place among the linear layers of the model, in model order */
    uint32_t source_checksum; /* CRC-32 of the original tensor's bytes */
    int32_t candidates;
    int64_t weights; /* rows · columns */
    decant_candidate candidate[DECANT_CANDIDATES];
} decant_table_row;

typedef struct decant_error_table {
    int64_t layers;         /* linear layers of the whole model, in model order */
    decant_table_row *rows; /* owned */
} decant_error_table;

/* Collective. Joins the rows of all ranks, in model order. On failure empty. */
decant_status decant_error_table_gather(decant_ranks *ranks, const decant_table_row *part, int64_t part_rows,
                                        decant_error_table *table, decant_error *err);
void decant_error_table_free(decant_error_table *table);

/* What a choice of one candidate a layer comes to. */
typedef struct decant_plan_summary {
    int64_t weights;
    int64_t bytes;
    double bits;        /* 8 · bytes / weights */
    double predicted;   /* loss increase */
    double from_sums;   /* the same by Fisher sums or Hessians; 0 for a plan read from a container */
    double lower_bound; /* no choice within the budget predicts less */
} decant_plan_summary;

/* How many weights there are, and the bytes of all layers with their smallest candidates; pure. */
void decant_error_table_extent(const decant_error_table *table, int64_t *weights, int64_t *smallest_bytes);

/* Chooses a candidate for every layer within `budget_bytes`, which is not negative; pure. With one candidate a
 * layer there is nothing to choose, and budget_bytes < 0 means that there is no budget.
 *   chosen   [table->layers]; filled */
decant_status decant_error_table_choose(const decant_error_table *table, int64_t budget_bytes, int *chosen,
                                        decant_plan_summary *summary, decant_error *err);

#endif
