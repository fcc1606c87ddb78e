/* The bit allocator's candidates in whole numbers, and its problem relaxed: a layer may take a mixture of two
 * candidates. The relaxed optimum bounds all solutions from below; it equals the Lagrangian bound at the best
 * multiplier. For allocate.c alone; all results are exact, no rounding enters after the errors became whole. */
#ifndef DECANT_STAGES_RELAXATION_H
#define DECANT_STAGES_RELAXATION_H

#include "stages/allocate.h"

#include <stdbool.h>
#include <stdint.h>

__extension__ typedef __int128 decant_wide; /* products of bytes and errors */

/* The largest error that matters has less than 2^61 units, so that two of them fit 63 bits. */
enum { DECANT_RELAXATION_ERROR_LOG2 = 61 };

#define DECANT_RELAXATION_BYTES_MAXIMUM (INT64_C(1) << 60) /* of all layers together */

typedef struct decant_whole_choice {
    int64_t bytes;
    int64_t error; /* in units */
    int index;     /* in the caller's list for the layer */
} decant_whole_choice;

/* Layer l has the candidates first[l] … first[l + 1] − 1, ascending in bytes and descending in error. */
typedef struct decant_choice_table {
    int64_t layers;
    int64_t *first;  /* [layers + 1] */
    int64_t *number; /* [layers]: which of the caller's layers it is */
    decant_whole_choice *candidates;
} decant_choice_table;

/* From one candidate to a later one on the convex hull of its layer: so many bytes more, so much error less. */
typedef struct decant_exchange {
    int64_t bytes, error; /* both > 0 */
    int64_t layer;        /* in the table that it comes from */
} decant_exchange;

typedef struct decant_relaxation {
    decant_exchange rate; /* a byte is worth rate.error / rate.bytes at the budget; 0 / 1 when all is bought */
    decant_wide bound;    /* the relaxed optimum's error, times rate.bytes */
    int64_t error;        /* of a solution within the budget that rounding finds; INT64_MAX when larger */
} decant_relaxation;

/* DECANT_ERROR_INPUT when a layer has no candidates, or one whose numbers no allocation can count with;
 * DECANT_ERROR_USAGE when the smallest candidates exceed the budget. */
decant_status decant_relaxation_check(const decant_choice *choices, const int64_t *offsets, int64_t layers,
                                      int64_t budget, decant_error *err);

/* Fills the table with the candidates of all layers, without dominated ones. The unit of errors is chosen so
 * that `ceiling` has between 2^60 and 2^61 of them; candidates above the ceiling are left out.
 *
 *   ceiling   a sum of errors that some solution within the budget does not exceed; as errors are not negative,
 *             no better solution has a candidate above it
 *   table     layers set, arrays large enough for all choices; filled
 *
 * Returns the exponent x of the unit 2^x. */
int decant_relaxation_take(const decant_choice *choices, const int64_t *offsets, double ceiling,
                           decant_choice_table *table);

/* The exchanges of all layers, steepest first; those of one layer keep their order, no two being equally steep.
 *
 *   exchanges   as many as there are candidates; filled
 *
 * Returns how many there are. */
int64_t decant_relaxation_exchanges(const decant_choice_table *table, decant_exchange *exchanges);

/* Relaxes the problem. The smallest candidates keep the budget.
 *
 *   exchanges   as many as there are candidates; scratch
 *   blocked     [layers]; scratch */
decant_relaxation decant_relaxation_solve(const decant_choice_table *table, int64_t budget,
                                          decant_exchange *exchanges, bool *blocked);

/* What a candidate costs in the relaxed problem, its bytes priced at the rate; times rate.bytes. */
static inline decant_wide decant_relaxation_cost(decant_whole_choice candidate, decant_exchange rate)
{
    return (decant_wide)candidate.error * rate.bytes + (decant_wide)candidate.bytes * rate.error;
}

#endif
