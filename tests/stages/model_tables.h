/* Error tables of the size and shape that real models give, made up from a seed: for the tests and the
 * benchmark of the bit allocator. Sizes are what the container stores; errors fall by about four a bit, times a
 * layer's sensitivity that spreads over several decades. */
#ifndef DECANT_TESTS_MODEL_TABLES_H
#define DECANT_TESTS_MODEL_TABLES_H

#include "stages/allocate.h"

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

/* splitmix64 (Steele, Lea, Flood 2014). */
static inline uint64_t random_bits(uint64_t *seed)
{
    uint64_t bits = *seed += 0x9e3779b97f4a7c15u;
    bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9u;
    bits = (bits ^ bits >> 27) * 0x94d049bb133111ebu;
    return bits ^ bits >> 31;
}

static inline double random_uniform(uint64_t *seed)
{
    return (double)(random_bits(seed) >> 11) / 9007199254740992.0;
}

static inline int64_t random_below(uint64_t *seed, int64_t end)
{
    return (int64_t)(random_bits(seed) % (uint64_t)end);
}

typedef enum table_kind {
    TABLE_DENSE,       /* 2 to 8 bits */
    TABLE_TWO_WIDTHS,  /* 3 and 4 bits: few distinct sizes */
    TABLE_SPARSE,      /* six widths, each with and without 0.45 % taken out: twelve candidates */
    TABLE_UNEVEN,      /* the same with up to 1 % of random bytes on top: sums of bytes never meet */
    TABLE_ONE_CURVE,   /* 2 to 8 bits, all layers on one error curve times their sensitivity, as without data */
    TABLE_SAME_LAYERS, /* blocks do not differ at all: most solutions tie */
    TABLE_KINDS
} table_kind;

static const char *const table_names[TABLE_KINDS] = {"dense 2-8", "dense 3-4", "sparse",
                                                     "uneven",    "one curve", "same layers"};

typedef struct model_table {
    int64_t layers, weights;
    int64_t *offsets;
    decant_choice *choices;
} model_table;

enum { MODEL_LINEARS = 7, MODEL_CANDIDATES_MAXIMUM = 12 };

static inline int table_add_layer(table_kind kind, int64_t rows, int64_t columns, double sensitivity,
                                  uint64_t *seed, decant_choice *choices)
{
    static const int sparse_bits[] = {2, 3, 4, 5, 6, 8}, two_bits[] = {3, 4},
                     dense_bits[] = {2, 3, 4, 5, 6, 7, 8};
    bool sparse = kind == TABLE_SPARSE || kind == TABLE_UNEVEN;
    const int *widths = sparse ? sparse_bits : kind == TABLE_TWO_WIDTHS ? two_bits : dense_bits;
    int n_widths = sparse ? 6 : kind == TABLE_TWO_WIDTHS ? 2 : 7, count = 0;
    for (int i = 0; i < n_widths; i++)
        for (int taken_out = 0; taken_out <= sparse; taken_out++) {
            int bits = widths[i];
            int64_t bytes = rows * ((columns + 31) / 32 * 4 * bits + 2 * (INT64_C(1) << bits));
            double error = sensitivity * pow(4, -bits);
            if (kind != TABLE_ONE_CURVE && kind != TABLE_SAME_LAYERS)
                error *= 0.7 + 0.6 * random_uniform(seed);
            if (taken_out) {
                bytes += (rows + 1) * 4 + (int64_t)(0.0045 * (double)(rows * columns)) * 4;
                error *= 0.3 + 0.4 * random_uniform(seed);
            }
            if (kind == TABLE_UNEVEN)
                bytes += random_below(seed, bytes / 100);
            choices[count++] = (decant_choice){bytes, error};
        }
    return count;
}

/* The linear layers of a LLaMA of so many blocks. Freed by model_table_free. */
static inline model_table model_table_make(table_kind kind, int blocks, int64_t hidden, int64_t intermediate,
                                           uint64_t seed)
{
    model_table table = {.layers = (int64_t)blocks * MODEL_LINEARS};
    table.offsets = calloc((size_t)table.layers + 1, sizeof *table.offsets);
    table.choices = calloc((size_t)table.layers * MODEL_CANDIDATES_MAXIMUM, sizeof *table.choices);
    for (int64_t l = 0; l < table.layers; l++) {
        int place = (int)(l % MODEL_LINEARS); /* q, k, v, o, gate, up, down */
        int64_t rows = place == 4 || place == 5 ? intermediate : hidden,
                columns = place == 6 ? intermediate : hidden;
        double spread =
            kind == TABLE_SAME_LAYERS ? place : 6 * random_uniform(&seed) + 4 * random_uniform(&seed);
        table.offsets[l + 1] = table.offsets[l] + table_add_layer(kind, rows, columns, exp(spread - 3), &seed,
                                                                  table.choices + table.offsets[l]);
        table.weights += rows * columns;
    }
    return table;
}

static inline void model_table_free(model_table *table)
{
    free(table->offsets);
    free(table->choices);
}

#endif
