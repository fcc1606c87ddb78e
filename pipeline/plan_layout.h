/* A job laid out over its ranks: who has what, what each holds, and whether that fits. For plan.c and
 * plan_advice.c, which ask it about many grids, modes and requests. Pure. */
#ifndef DECANT_PIPELINE_PLAN_LAYOUT_H
#define DECANT_PIPELINE_PLAN_LAYOUT_H

#include "pipeline/plan.h"

/* The share of a limit that may be planned with: what the driver, the libraries' own allocations and a
 * fragmented pool leave of memory. */
extern const double DECANT_PLAN_USABLE_SHARE;

/* The shape with its batches: those asked for, or as many sequences as make 2048 tokens, and no more than there
 * are. */
decant_job_shape decant_plan_resolve_shape(const decant_job_shape *asked);

/* Lays out the first mode that the request allows and that fits on the grid; the least crowded one when none
 * does. Fills shares, owners, memory and whether it fits; not the seconds, the sizes or the advice. Freed with
 * decant_plan_free; on failure empty.
 *   shape   the request's, resolved
 *   sizes   of the shape's linear layers */
decant_status decant_plan_lay_out(const decant_plan_request *request, const decant_job_shape *shape,
                                  const decant_linear_sizes *sizes, decant_rank_grid grid, decant_plan *plan,
                                  decant_error *err);

/* The most of device and host that a rank holds before validation. */
decant_memory_bytes decant_plan_working_peak(const decant_rank_memory *memory);

/* Whether so many bytes fit where there are `limit`; 0: any number does. */
bool decant_plan_is_within(int64_t bytes, int64_t limit);

#endif
