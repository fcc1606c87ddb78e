/* How long the bit allocator takes on tables of the size of real models: time, partial solutions kept, and how
 * far the optimum is above the Lagrangian bound. Run it from a build directory: tests/bench/bench_allocate */
#include "base/log.h"
#include "stages/allocate.h"
#include "tests/stages/model_tables.h"

#include <inttypes.h>
#include <stdio.h>

static const double average_bits[] = {2.2, 2.5, 3, 3.25, 3.5, 4, 4.5, 5.5, 7};

static void bench_table(const char *model, int blocks, int64_t hidden, int64_t intermediate, table_kind kind)
{
    model_table table = model_table_make(kind, blocks, hidden, intermediate, 1);
    int *chosen = calloc((size_t)table.layers, sizeof *chosen);
    for (size_t i = 0; i < sizeof average_bits / sizeof *average_bits; i++) {
        int64_t budget = (int64_t)(average_bits[i] * (double)table.weights / 8);
        decant_allocation allocation;
        decant_error err;
        double start_s = decant_clock_s();
        decant_status status =
            decant_allocate(table.choices, table.offsets, table.layers, budget, chosen, &allocation, &err);
        double seconds = decant_clock_s() - start_s;
        printf("%-4s %-12s %5.2f bits  %8.4f s  ", model, table_names[kind], average_bits[i], seconds);
        if (status == DECANT_OK)
            printf("%9" PRId64 " states  gap %.2e  unused %" PRId64 " bytes\n", allocation.states,
                   (allocation.error - allocation.lower_bound) / allocation.error, budget - allocation.bytes);
        else
            printf("%s\n", err.message);
    }
    free(chosen);
    model_table_free(&table);
}

int main(void)
{
    for (table_kind kind = 0; kind < TABLE_KINDS; kind++) {
        bench_table("7B", 32, 4096, 11008, kind);
        bench_table("65B", 80, 8192, 22016, kind);
    }
    return 0;
}
