/* The multiple-choice knapsack of the bit allocator, solved exactly. Knows only bytes and errors.
 *
 * Errors become whole numbers of a unit so small that a good solution counts about 2^60 of them: finer than a
 * sum of doubles would be, and every sum and comparison is exact, in any order, on any machine. The relaxed
 * problem (relaxation.h) gives a bound, and a first solution close to it.
 *
 * The search assumes that the optimum is no worse than a ceiling. Under that assumption most candidates are
 * ruled out by what they would cost in the relaxed problem, and most layers are settled. The open layers are
 * added one by one to a list of partial solutions, ascending in bytes and descending in error. A partial
 * solution goes when another one is as small and as good, or when the relaxed optimum of the layers to come
 * lifts it over the ceiling. The ceiling starts close to the bound and rises until there is a solution below
 * it. That one is the optimum: what was dropped on the way is worse. The last ceiling is the first solution's
 * error.
 *
 * Layers are added from the last to the first. Among partial solutions with the same sums one stands for all,
 * and the way back from the optimum begins at the first layer, which so can take its first candidate.
 *
 * Source: Pisinger 1995, "A minimal algorithm for the multiple-choice knapsack problem", for lists of partial
 * solutions under the relaxed bound; the rising ceiling stands in for its growing core. */
#include "stages/allocate.h"

#include "base/memory.h"
#include "stages/relaxation.h"

#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdbool.h>

enum { FIRST_CEILING = 16 }; /* the search starts 2^-16 of the way from the bound to the first solution */

static const double ROUNDED_UP = 1 + 1e-9; /* more than all roundings of a sum of doubles together */

/* A partial solution: one candidate for each layer added so far. */
typedef struct sums {
    int64_t bytes, error;
} sums;

/* The relaxed problem of the layers to come: after the first i exchanges they have bytes[i] and error[i]. */
typedef struct relaxed_rest {
    int64_t count;
    decant_exchange *exchanges; /* [count], steepest first */
    int64_t *bytes;             /* [count + 1] */
    decant_wide *error;         /* [count + 1] */
} relaxed_rest;

typedef struct knapsack {
    int64_t budget;
    int error_exponent;         /* errors are in units of 2^error_exponent */
    decant_choice_table all;    /* undominated candidates */
    decant_choice_table open;   /* what a ceiling leaves open, the last layer first */
    decant_exchange *exchanges; /* of `all`, then of `open`, steepest first */
    relaxed_rest rest;
    bool *blocked;    /* [layers], scratch of the relaxation */
    sums *states;     /* the lists, one after the other; owned */
    int64_t capacity; /* of states */
    int64_t *level; /* [layers + 2]: the list of k open layers is states[level[k]] … states[level[k + 1] − 1] */
    int64_t *front;      /* for each candidate of a layer, the state to be combined with it next */
    int64_t states_kept; /* under all ceilings */
} knapsack;

/* ---- open layers ---- */

static decant_wide least_cost(const decant_choice_table *all, int64_t layer, decant_exchange rate)
{
    decant_wide least = decant_relaxation_cost(all->candidates[all->first[layer]], rate);
    for (int64_t i = all->first[layer] + 1; i < all->first[layer + 1]; i++) {
        decant_wide cost = decant_relaxation_cost(all->candidates[i], rate);
        least = cost < least ? cost : least;
    }
    return least;
}

/* Fills search->open with the candidates that a solution of at most `ceiling` may contain. Layers with a single
 * such candidate are settled: their choices go to `chosen`, their sums become the first state. */
static void open_layers(knapsack *search, const decant_relaxation *relaxed, int64_t ceiling, int *chosen)
{
    const decant_choice_table *all = &search->all;
    decant_choice_table *open = &search->open;
    decant_wide slack = (decant_wide)ceiling * relaxed->rate.bytes - relaxed->bound;
    sums settled = {0, 0};
    open->layers = open->first[0] = 0;
    for (int64_t l = all->layers - 1; l >= 0; l--) {
        int64_t begin = open->first[open->layers], count = begin;
        decant_wide least = least_cost(all, l, relaxed->rate);
        for (int64_t i = all->first[l]; i < all->first[l + 1]; i++)
            if (decant_relaxation_cost(all->candidates[i], relaxed->rate) - least <= slack)
                open->candidates[count++] = all->candidates[i];
        if (count - begin == 1) {
            chosen[l] = open->candidates[begin].index;
            settled.bytes += open->candidates[begin].bytes;
            settled.error += open->candidates[begin].error;
        } else {
            open->number[open->layers++] = l;
            open->first[open->layers] = count;
        }
    }
    search->states[0] = settled;
    search->level[0] = 0;
    search->level[1] = 1;
}

/* ---- partial states ---- */

/* The relaxed problem of the open layers after layer k. `count` exchanges of all open layers are in
 * search->exchanges, steepest first, which stays true of a part of them. */
static void relax_rest(knapsack *search, int64_t k, int64_t count)
{
    const decant_choice_table *open = &search->open;
    relaxed_rest *rest = &search->rest;
    rest->count = rest->bytes[0] = 0;
    rest->error[0] = 0;
    for (int64_t l = k + 1; l < open->layers; l++) {
        rest->bytes[0] += open->candidates[open->first[l]].bytes;
        rest->error[0] += open->candidates[open->first[l]].error;
    }
    for (int64_t i = 0; i < count; i++) {
        decant_exchange next = search->exchanges[i];
        if (next.layer <= k)
            continue;
        int64_t n = rest->count++;
        rest->exchanges[n] = next;
        rest->bytes[n + 1] = rest->bytes[n] + next.bytes;
        rest->error[n + 1] = rest->error[n] - next.error;
    }
}

/* Does the relaxed rest lift the state over the ceiling? The rest's smallest candidates fit. `place` is
 * rest->count for the first state; as states grow in bytes it moves down to the exchanges that fit. */
static bool is_over_ceiling(const relaxed_rest *rest, sums state, int64_t budget, int64_t ceiling,
                            int64_t *place)
{
    int64_t room = budget - state.bytes;
    while (rest->bytes[*place] > room)
        (*place)--;
    decant_wide excess = state.error + rest->error[*place] - ceiling;
    if (excess <= 0)
        return false;
    if (*place == rest->count || excess > rest->exchanges[*place].error)
        return true;
    decant_exchange next = rest->exchanges[*place];
    return excess * next.bytes > (decant_wide)(room - rest->bytes[*place]) * next.error;
}

static decant_status keep_state(knapsack *search, int64_t count, sums state, decant_error *err)
{
    if (count == DECANT_ALLOCATION_STATES_MAXIMUM)
        return DECANT_ERROR(
            err, DECANT_ERROR_MEMORY,
            "the best allocation is not found within %d partial solutions: errors fall with bytes "
            "at nearly one rate in all layers; offer fewer candidates",
            DECANT_ALLOCATION_STATES_MAXIMUM);
    if (count == search->capacity) {
        void *memory = search->states;
        decant_status status = decant_memory_resize(2 * (size_t)count * sizeof state,
                                                    "partial solutions of the bit allocation", &memory, err);
        if (status != DECANT_OK)
            return status;
        search->states = memory;
        search->capacity = 2 * count;
    }
    search->states[count] = state;
    return DECANT_OK;
}

/* The smallest sum of a state in list k and a candidate of open layer k that has not been passed yet; false
 * when there is none. The lists of sums, one for each candidate, are merged on the way. */
static bool next_sum(knapsack *search, int64_t k, sums *sum)
{
    const decant_whole_choice *candidates = search->open.candidates + search->open.first[k];
    int64_t count = search->open.first[k + 1] - search->open.first[k], end = search->level[k + 1], best = -1;
    *sum = (sums){INT64_MAX, INT64_MAX};
    for (int64_t j = 0; j < count; j++) {
        if (search->front[j] == end)
            continue;
        sums base = search->states[search->front[j]];
        sums this = {base.bytes + candidates[j].bytes, base.error + candidates[j].error};
        if (this.bytes < sum->bytes || (this.bytes == sum->bytes && this.error < sum->error)) {
            *sum = this;
            best = j;
        }
    }
    if (best >= 0)
        search->front[best]++;
    return best >= 0;
}

/* Makes the list of k + 1 open layers from the list of k. */
static decant_status add_layer(knapsack *search, int64_t k, int64_t ceiling, decant_error *err)
{
    int64_t count = search->level[k + 1], place = search->rest.count, least_error = INT64_MAX;
    for (int64_t j = 0; j < search->open.first[k + 1] - search->open.first[k]; j++)
        search->front[j] = search->level[k];
    sums sum;
    while (next_sum(search, k, &sum) && sum.bytes <= search->budget - search->rest.bytes[0]) {
        if (sum.error >= least_error)
            continue;
        least_error = sum.error;
        if (is_over_ceiling(&search->rest, sum, search->budget, ceiling, &place))
            continue;
        decant_status status = keep_state(search, count, sum, err);
        if (status != DECANT_OK)
            return status;
        count++;
    }
    search->level[k + 2] = count;
    return DECANT_OK;
}

/* Is the state in list k? No two states of a list have equal bytes. */
static bool is_in_list(const knapsack *search, int64_t k, sums state)
{
    int64_t low = search->level[k], high = search->level[k + 1];
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (search->states[middle].bytes < state.bytes)
            low = middle + 1;
        else
            high = middle;
    }
    return low < search->level[k + 1] && search->states[low].bytes == state.bytes &&
           search->states[low].error == state.error;
}

/* Follows the lists back from the best state and writes what it is made of to `chosen`. */
static void trace(const knapsack *search, sums state, int *chosen)
{
    const decant_choice_table *open = &search->open;
    for (int64_t k = open->layers - 1; k >= 0; k--) {
        decant_whole_choice taken = {.index = INT_MAX};
        for (int64_t i = open->first[k]; i < open->first[k + 1]; i++) {
            decant_whole_choice last = open->candidates[i];
            sums before = {state.bytes - last.bytes, state.error - last.error};
            if (last.index < taken.index && is_in_list(search, k, before))
                taken = last;
        }
        chosen[open->number[k]] = taken.index;
        state.bytes -= taken.bytes;
        state.error -= taken.error;
    }
}

/* Looks for the best solution of at most `ceiling`; *found says whether there is one. */
static decant_status search_below(knapsack *search, const decant_relaxation *relaxed, int64_t ceiling,
                                  int *chosen, bool *found, decant_error *err)
{
    *found = false;
    open_layers(search, relaxed, ceiling, chosen);
    int64_t layers = search->open.layers;
    int64_t exchanges = decant_relaxation_exchanges(&search->open, search->exchanges);
    for (int64_t k = 0; k < layers; k++) {
        relax_rest(search, k, exchanges);
        decant_status status = add_layer(search, k, ceiling, err);
        if (status != DECANT_OK)
            return status;
        search->states_kept += search->level[k + 2] - search->level[k + 1];
        if (search->level[k + 2] == search->level[k + 1])
            return DECANT_OK;
    }
    /* Errors descend in a list. */
    sums best = search->states[search->level[layers + 1] - 1];
    *found = best.bytes <= search->budget && best.error <= ceiling;
    if (*found)
        trace(search, best, chosen);
    return DECANT_OK;
}

/* ---- the whole ---- */

/* Takes and relaxes the candidates, beginning with units for the errors of the smallest ones; finer units
 * follow when a much better solution comes to light. */
static decant_relaxation prepare(knapsack *search, const decant_choice *choices, const int64_t *offsets)
{
    int64_t layers = search->all.layers;
    double ceiling = 0;
    for (int64_t l = 0; l < layers; l++) {
        decant_choice smallest = choices[offsets[l]];
        for (int64_t i = offsets[l] + 1; i < offsets[l + 1]; i++)
            if (choices[i].bytes < smallest.bytes)
                smallest = choices[i];
        ceiling += smallest.error;
    }
    ceiling *= ROUNDED_UP;
    for (;;) {
        search->error_exponent = decant_relaxation_take(choices, offsets, ceiling, &search->all);
        decant_relaxation relaxed =
            decant_relaxation_solve(&search->all, search->budget, search->exchanges, search->blocked);
        if (ceiling == 0 || relaxed.error >= INT64_C(1) << (DECANT_RELAXATION_ERROR_LOG2 - 2)) {
            int64_t reached = llround(ldexp(ceiling, -search->error_exponent));
            relaxed.error = relaxed.error < reached ? relaxed.error : reached;
            return relaxed;
        }
        ceiling = ldexp((double)(relaxed.error + layers), search->error_exponent) * ROUNDED_UP;
    }
}

/* What was chosen, in the caller's numbers. Each error was rounded to whole units for the bound, and their sum
 * is a rounded one. */
static decant_allocation add_up(const knapsack *search, const decant_choice *choices, const int64_t *offsets,
                                int64_t bound, const int *chosen)
{
    int64_t layers = search->all.layers;
    decant_allocation result = {.states = search->states_kept};
    for (int64_t l = 0; l < layers; l++) {
        result.bytes += choices[offsets[l] + chosen[l]].bytes;
        result.error += choices[offsets[l] + chosen[l]].error;
    }
    result.lower_bound = bound > layers ? ldexp((double)(bound - layers), search->error_exponent) : 0;
    if (result.lower_bound > result.error)
        result.lower_bound = result.error;
    return result;
}

static decant_status find_best(knapsack *search, const decant_choice *choices, const int64_t *offsets,
                               int *chosen, decant_allocation *allocation, decant_error *err)
{
    decant_relaxation relaxed = prepare(search, choices, offsets);
    int64_t bound = (int64_t)((relaxed.bound + relaxed.rate.bytes - 1) / relaxed.rate.bytes);
    int64_t gap = relaxed.error - bound, ceiling = -1;
    decant_status status = DECANT_OK;
    bool found = search->all.layers == 0;
    for (int shift = FIRST_CEILING; shift >= 0 && !found; shift--) {
        if (ceiling == bound + (gap >> shift))
            continue;
        ceiling = bound + (gap >> shift);
        DECANT_TRY(search_below(search, &relaxed, ceiling, chosen, &found, err));
    }
    if (!found)
        DECANT_FAIL(err, DECANT_ERROR_BUG, "no allocation was found within %" PRId64 " bytes", search->budget);
    *allocation = add_up(search, choices, offsets, bound, chosen);

done:
    return status;
}

static void *place(char *block, size_t *used, int64_t count, size_t size)
{
    void *result = block ? block + *used : NULL;
    *used += ((size_t)count * size + sizeof(decant_wide) - 1) / sizeof(decant_wide) * sizeof(decant_wide);
    return result;
}

/* Shares a block out among the arrays; returns its size, which is all it does when block is NULL. */
static size_t lay_out(knapsack *search, int64_t layers, int64_t candidates, char *block)
{
    size_t used = 0;
    decant_choice_table *tables[] = {&search->all, &search->open};
    for (int i = 0; i < 2; i++) {
        tables[i]->layers = layers;
        tables[i]->first = place(block, &used, layers + 1, sizeof *tables[i]->first);
        tables[i]->number = place(block, &used, layers, sizeof *tables[i]->number);
        tables[i]->candidates = place(block, &used, candidates, sizeof *tables[i]->candidates);
    }
    search->exchanges = place(block, &used, candidates, sizeof *search->exchanges);
    search->rest.exchanges = place(block, &used, candidates, sizeof *search->rest.exchanges);
    search->rest.bytes = place(block, &used, candidates + 1, sizeof *search->rest.bytes);
    search->rest.error = place(block, &used, candidates + 1, sizeof *search->rest.error);
    search->blocked = place(block, &used, layers, sizeof *search->blocked);
    search->level = place(block, &used, layers + 2, sizeof *search->level);
    search->front = place(block, &used, candidates, sizeof *search->front);
    return used;
}

decant_status decant_allocate(const decant_choice *choices, const int64_t *offsets, int64_t layers,
                              int64_t budget, int *chosen, decant_allocation *allocation, decant_error *err)
{
    void *block = NULL, *states = NULL;
    knapsack search = {.capacity = 1024};
    decant_status status;
    DECANT_TRY(decant_relaxation_check(choices, offsets, layers, budget, err));
    search.budget = budget < DECANT_RELAXATION_BYTES_MAXIMUM ? budget : DECANT_RELAXATION_BYTES_MAXIMUM;
    size_t size_bytes = lay_out(&search, layers, offsets[layers], NULL);
    DECANT_TRY(decant_memory_allocate(size_bytes, "the candidates of the bit allocation", &block, err));
    lay_out(&search, layers, offsets[layers], block);
    DECANT_TRY(decant_memory_allocate((size_t)search.capacity * sizeof(sums),
                                      "partial solutions of the bit allocation", &states, err));
    search.states = states;
    status = find_best(&search, choices, offsets, chosen, allocation, err);

done:
    decant_memory_free(search.states);
    decant_memory_free(block);
    return status;
}
