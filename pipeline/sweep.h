/* The whole curve of a container's error table: the best plan at every budget from one average of bits to
 * another. */
#ifndef DECANT_PIPELINE_SWEEP_H
#define DECANT_PIPELINE_SWEEP_H

#include "pipeline/options.h"
#include "stages/error_table.h"

/* One point of the curve. */
typedef struct decant_sweep_point {
    double budget_bits;
    bool is_kept; /* false: even the smallest candidates take more; summary is then empty */
    decant_plan_summary summary;
} decant_sweep_point;

/* How many points a sweep has, both ends included as far as steps reach. */
int decant_sweep_count(const decant_sweep *sweep);

/* Solves the allocation at every point.  points [decant_sweep_count(sweep)] */
decant_status decant_sweep_solve(const decant_sweep *sweep, const decant_error_table *table,
                                 decant_sweep_point *points, decant_error *err);

/* Prints the points as a table, or as JSON, for which DECANT_ERROR_MEMORY is possible.
 *   rest_bytes   what the container takes besides its quantized layers, for the size of the file
 *   predicts_loss   false: what is predicted is a sum of relative errors times weights */
decant_status decant_sweep_print(const decant_sweep_point *points, int count, int64_t rest_bytes,
                                 bool predicts_loss, bool json, FILE *stream, decant_error *err);

#endif
