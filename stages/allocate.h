/* The bit allocator: one candidate for every linear layer, so that the predicted loss increase is least and all
 * that is stored fits the budget, in whole bytes. Pure: no MPI, no files, no kernels.
 *
 * Source: the linearity theorem (arXiv 2411.17525, section 5): the loss increase is the sum over layers, so the
 * choice is a multiple-choice knapsack, solved exactly. */
#ifndef DECANT_STAGES_ALLOCATE_H
#define DECANT_STAGES_ALLOCATE_H

#include "base/error.h"

#include <stdint.h>

/* Partial solutions that the search may hold, of 16 bytes each. Tables of real models need thousands; only
 * candidates whose errors fall in proportion to their bytes, at one rate in all layers, come near. */
enum { DECANT_ALLOCATION_STATES_MAXIMUM = 1 << 24 };

/* One candidate of one layer. */
typedef struct decant_choice {
    int64_t bytes; /* everything stored for the layer: codes, levels, sparse; > 0 */
    double error;  /* predicted loss increase; >= 0, finite */
} decant_choice;

typedef struct decant_allocation {
    int64_t bytes;      /* of the chosen candidates together, <= budget */
    double error;       /* their predicted loss increase, added in layer order */
    double lower_bound; /* Lagrangian bound: no choice within the budget is below it */
    int64_t states;     /* partial solutions that the search kept, for the log */
} decant_allocation;

/* Chooses a candidate for each layer.
 *   choices   [offsets[layers]]; layer l has the candidates offsets[l] … offsets[l + 1] − 1, at least one
 *   budget    bytes
 *   chosen    [layers]: index within the layer's candidates
 * Among optimal solutions the one with fewer bytes is taken, then the one whose choices come first. The result
 * is the same on every machine.
 *
 * DECANT_ERROR_USAGE when even the smallest candidates exceed the budget, naming the smallest budget that
 * works. DECANT_ERROR_INPUT for a layer without candidates, or with one outside the ranges above.
 * DECANT_ERROR_MEMORY, and no worse choice instead, when more than DECANT_ALLOCATION_STATES_MAXIMUM are needed.
 */
decant_status decant_allocate(const decant_choice *choices, const int64_t *offsets, int64_t layers,
                              int64_t budget, int *chosen, decant_allocation *allocation, decant_error *err);

#endif
