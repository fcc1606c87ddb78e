/* See guided_order.h. */
#include "kernels/guided_order.h"

#include "base/memory.h"

#include <stdlib.h>

typedef struct ranked_column {
    float diagonal;
    int32_t column;
} ranked_column;

static int compare(const void *a, const void *b)
{
    const ranked_column *first = a, *second = b;
    if (first->diagonal != second->diagonal)
        return first->diagonal > second->diagonal ? -1 : 1;
    return first->column < second->column ? -1 : 1;
}

decant_status decant_guided_order(const float *diagonal, int64_t columns, int32_t *order, decant_error *err)
{
    ranked_column *ranked;
    decant_status status =
        decant_memory_allocate((size_t)columns * sizeof *ranked, "an order of columns", (void **)&ranked, err);
    if (status != DECANT_OK)
        return status;
    for (int64_t j = 0; j < columns; j++)
        ranked[j] = (ranked_column){diagonal[j], (int32_t)j};
    qsort(ranked, (size_t)columns, sizeof *ranked, compare);
    for (int64_t j = 0; j < columns; j++)
        order[j] = ranked[j].column;
    decant_memory_free(ranked);
    return DECANT_OK;
}
