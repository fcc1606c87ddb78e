/* See error_table.h. */
#include "stages/error_table.h"

#include "base/memory.h"
#include "stages/allocate.h"

#include <stdlib.h>

_Static_assert(sizeof(decant_candidate) == 72, "travels between ranks as it is: no padding");
_Static_assert(sizeof(decant_table_row) == 24 + DECANT_CANDIDATES * sizeof(decant_candidate), "the same");

static int by_matrix(const void *left, const void *right)
{
    const decant_table_row *a = left, *b = right;
    return (a->matrix > b->matrix) - (a->matrix < b->matrix);
}

decant_status decant_error_table_gather(decant_ranks *ranks, const decant_table_row *part, int64_t part_rows,
                                        decant_error_table *table, decant_error *err)
{
    *table = (decant_error_table){0};
    void *all = NULL;
    size_t all_bytes = 0;
    decant_status status =
        decant_ranks_gather(ranks, part, (size_t)part_rows * sizeof *part, &all, &all_bytes, err);
    if (status != DECANT_OK)
        return status;
    table->rows = all;
    table->layers = (int64_t)(all_bytes / sizeof *table->rows);
    qsort(table->rows, (size_t)table->layers, sizeof *table->rows, by_matrix);
    return DECANT_OK;
}

void decant_error_table_free(decant_error_table *table)
{
    decant_memory_free(table->rows);
    *table = (decant_error_table){0};
}

void decant_error_table_extent(const decant_error_table *table, int64_t *weights, int64_t *smallest_bytes)
{
    *weights = *smallest_bytes = 0;
    for (int64_t layer = 0; layer < table->layers; layer++) {
        const decant_table_row *row = &table->rows[layer];
        int64_t smallest = row->candidate[0].bytes;
        for (int i = 1; i < row->candidates; i++)
            smallest = row->candidate[i].bytes < smallest ? row->candidate[i].bytes : smallest;
        *weights += row->weights;
        *smallest_bytes += smallest;
    }
}

static void summarize(const decant_error_table *table, const int *chosen, decant_plan_summary *summary)
{
    *summary = (decant_plan_summary){0};
    for (int64_t layer = 0; layer < table->layers; layer++) {
        const decant_table_row *row = &table->rows[layer];
        summary->weights += row->weights;
        summary->bytes += row->candidate[chosen[layer]].bytes;
        summary->predicted += row->candidate[chosen[layer]].predicted;
        summary->from_sums += row->candidate[chosen[layer]].from_sums;
    }
    summary->bits = 8.0 * (double)summary->bytes / (double)summary->weights;
    summary->lower_bound = summary->predicted;
}

static bool has_choice(const decant_error_table *table)
{
    for (int64_t layer = 0; layer < table->layers; layer++)
        if (table->rows[layer].candidates > 1)
            return true;
    return false;
}

decant_status decant_error_table_choose(const decant_error_table *table, int64_t budget_bytes, int *chosen,
                                        decant_plan_summary *summary, decant_error *err)
{
    decant_status status;
    decant_choice *choices = NULL;
    int64_t *offsets = NULL;
    decant_allocation allocation = {0};
    if (!has_choice(table) && budget_bytes < 0) {
        for (int64_t layer = 0; layer < table->layers; layer++)
            chosen[layer] = 0;
        summarize(table, chosen, summary);
        return DECANT_OK;
    }
    DECANT_TRY(decant_memory_allocate((size_t)table->layers * DECANT_CANDIDATES * sizeof *choices,
                                      "the allocator's candidates", (void **)&choices, err));
    DECANT_TRY(decant_memory_allocate((size_t)(table->layers + 1) * sizeof *offsets, "the allocator's layers",
                                      (void **)&offsets, err));
    for (int64_t layer = 0; layer < table->layers; layer++) {
        const decant_table_row *row = &table->rows[layer];
        offsets[layer + 1] = offsets[layer] + row->candidates;
        for (int i = 0; i < row->candidates; i++)
            choices[offsets[layer] + i] = (decant_choice){row->candidate[i].bytes, row->candidate[i].predicted};
    }
    DECANT_TRY(decant_allocate(choices, offsets, table->layers, budget_bytes, chosen, &allocation, err));
    summarize(table, chosen, summary);
    summary->lower_bound = allocation.lower_bound;
done:
    decant_memory_free(choices);
    decant_memory_free(offsets);
    return status;
}
