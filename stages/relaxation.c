/* The relaxed bit allocation: from their smallest candidates upwards, the layers' convex hulls are followed,
 * steepest exchange first, until the budget is used up. Searches nothing and chooses nothing; that is
 * allocate.c.
 *
 * Source: Sinha, Zoltners 1979, "The multiple-choice knapsack problem"; Dyer 1984. */
#include "stages/relaxation.h"

#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>

static const double LARGEST_ERROR = 1e300; /* sums of errors stay finite */

static decant_status check_layer(const decant_choice *choices, int64_t count, int64_t layer, int64_t *smallest,
                                 int64_t *largest, decant_error *err)
{
    *smallest = INT64_MAX;
    *largest = 0;
    if (count <= 0 || count > INT_MAX)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "layer %" PRId64 " has no candidates to choose from",
                            layer);
    for (int64_t i = 0; i < count; i++) {
        decant_choice choice = choices[i];
        if (!(choice.error >= 0 && choice.error <= LARGEST_ERROR) || choice.bytes <= 0)
            return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                                "candidate %" PRId64 " of layer %" PRId64 " has %" PRId64
                                " bytes and a predicted loss increase of %g; no allocation can count with that",
                                i, layer, choice.bytes, choice.error);
        *smallest = choice.bytes < *smallest ? choice.bytes : *smallest;
        *largest = choice.bytes > *largest ? choice.bytes : *largest;
    }
    return DECANT_OK;
}

decant_status decant_relaxation_check(const decant_choice *choices, const int64_t *offsets, int64_t layers,
                                      int64_t budget, decant_error *err)
{
    int64_t smallest_total = 0, largest_total = 0, smallest, largest;
    for (int64_t l = 0; l < layers; l++) {
        decant_status status =
            check_layer(choices + offsets[l], offsets[l + 1] - offsets[l], l, &smallest, &largest, err);
        if (status != DECANT_OK)
            return status;
        if (largest > DECANT_RELAXATION_BYTES_MAXIMUM - largest_total)
            return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                                "the largest candidates together exceed %" PRId64 " bytes",
                                DECANT_RELAXATION_BYTES_MAXIMUM);
        smallest_total += smallest;
        largest_total += largest;
    }
    if (smallest_total > budget)
        return DECANT_ERROR(err, DECANT_ERROR_USAGE,
                            "a budget of %" PRId64 " bytes cannot be kept: the smallest that can is %" PRId64,
                            budget, smallest_total);
    return DECANT_OK;
}

static int by_bytes(const void *left, const void *right)
{
    const decant_whole_choice *a = left, *b = right;
    if (a->bytes != b->bytes)
        return a->bytes < b->bytes ? -1 : 1;
    if (a->error != b->error)
        return a->error < b->error ? -1 : 1;
    return (a->index > b->index) - (a->index < b->index);
}

/* Drops candidates that another one beats or equals in both bytes and error; of equals the first stays. */
static int64_t drop_dominated(decant_whole_choice *candidates, int64_t count)
{
    qsort(candidates, (size_t)count, sizeof *candidates, by_bytes);
    int64_t kept = 0;
    for (int64_t i = 0; i < count; i++)
        if (kept == 0 || candidates[i].error < candidates[kept - 1].error)
            candidates[kept++] = candidates[i];
    return kept;
}

int decant_relaxation_take(const decant_choice *choices, const int64_t *offsets, double ceiling,
                           decant_choice_table *table)
{
    int exponent;
    frexp(ceiling, &exponent);
    exponent -= DECANT_RELAXATION_ERROR_LOG2;
    table->first[0] = 0;
    for (int64_t l = 0; l < table->layers; l++) {
        decant_whole_choice *candidates = table->candidates + table->first[l];
        int64_t count = 0;
        for (int64_t i = offsets[l]; i < offsets[l + 1]; i++)
            if (choices[i].error <= ceiling)
                candidates[count++] = (decant_whole_choice){
                    choices[i].bytes, llround(ldexp(choices[i].error, -exponent)), (int)(i - offsets[l])};
        table->number[l] = l;
        table->first[l + 1] = table->first[l] + drop_dominated(candidates, count);
    }
    return exponent;
}

/* Is a worth at least as much per byte as b? */
static bool is_as_steep(decant_exchange a, decant_exchange b)
{
    return (decant_wide)a.error * b.bytes >= (decant_wide)b.error * a.bytes;
}

static int by_steepness(const void *left, const void *right)
{
    const decant_exchange *a = left, *b = right;
    bool before = is_as_steep(*a, *b), after = is_as_steep(*b, *a);
    if (before != after)
        return before ? -1 : 1;
    return (a->layer > b->layer) - (a->layer < b->layer);
}

int64_t decant_relaxation_exchanges(const decant_choice_table *table, decant_exchange *exchanges)
{
    int64_t count = 0;
    for (int64_t l = 0; l < table->layers; l++) {
        int64_t begin = count;
        for (int64_t i = table->first[l] + 1; i < table->first[l + 1]; i++) {
            decant_whole_choice from = table->candidates[i - 1], to = table->candidates[i];
            decant_exchange next = {to.bytes - from.bytes, from.error - to.error, l};
            while (count > begin && is_as_steep(next, exchanges[count - 1])) {
                count--; /* `from` is above the hull */
                next.bytes += exchanges[count].bytes;
                next.error += exchanges[count].error;
            }
            exchanges[count++] = next;
        }
    }
    qsort(exchanges, (size_t)count, sizeof *exchanges, by_steepness);
    return count;
}

decant_relaxation decant_relaxation_solve(const decant_choice_table *table, int64_t budget,
                                          decant_exchange *exchanges, bool *blocked)
{
    int64_t room = budget, count = decant_relaxation_exchanges(table, exchanges);
    decant_wide error = 0;
    for (int64_t l = 0; l < table->layers; l++) {
        room -= table->candidates[table->first[l]].bytes;
        error += table->candidates[table->first[l]].error;
        blocked[l] = false;
    }
    decant_relaxation result = {.rate = {.bytes = 1}};
    bool is_full = false;
    for (int64_t i = 0; i < count; i++) {
        decant_exchange next = exchanges[i];
        if (next.bytes > room && !is_full) {
            is_full = true;
            result.rate = next;
            result.bound = error * next.bytes - (decant_wide)room * next.error;
        }
        /* Beyond the relaxed optimum, what still fits rounds the solution; a layer cannot skip an exchange. */
        if (next.bytes > room || blocked[next.layer]) {
            blocked[next.layer] = true;
        } else {
            room -= next.bytes;
            error -= next.error;
        }
    }
    if (!is_full)
        result.bound = error;
    result.error = error < INT64_MAX ? (int64_t)error : INT64_MAX;
    return result;
}
