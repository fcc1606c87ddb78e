/* A quantized linear layer as a container keeps it: its datasets and attributes, of either packed form, and the
 * grids that layers refer to. docs/container.md is the schema; reading a layer back is in source.c and
 * grid_source.c. */
#ifndef DECANT_STAGES_LAYER_FILE_H
#define DECANT_STAGES_LAYER_FILE_H

#include "io/container.h"
#include "stages/departure.h"
#include "stages/error_table.h"
#include "stages/model.h"
#include "stages/quantize.h"

/* Numbers of a layer's datasets; −1 for those that it does not have. */
typedef struct decant_layer_datasets {
    int codes, levels, exponents, row_offsets, columns, values, scales, offsets;
} decant_layer_datasets;

/* What a layer's attributes tell beside the candidate itself. */
typedef struct decant_layer_facts {
    const decant_table_row *row;
    const decant_candidate *choice;
    uint64_t seed;      /* of the signs of rotated layers */
    bool predicts_loss; /* choice->predicted is a loss increase */
} decant_layer_facts;

/* Collective: the layer's datasets and attributes. */
decant_status decant_layer_define(decant_container_writer *writer, const decant_linear *linear,
                                  const decant_layer_facts *facts, decant_layer_datasets *datasets,
                                  decant_error *err);

/* Notes the arrays of an encoded layer; one of its two forms is there. */
void decant_layer_depart(decant_departure *departure, const decant_layer_datasets *datasets,
                         const decant_encoded_layer *encoded);

/* Local. Writes a layer's datasets as an earlier container has them. DECANT_ERROR_INPUT when it has them not,
 * or of another size; their checksums are compared when the container checks its reads. */
decant_status decant_layer_copy(decant_container_writer *writer, const decant_container *earlier,
                                const decant_linear *linear, const decant_layer_datasets *datasets,
                                decant_error *err);

/* Grids that at least one layer was put on, each once. */
typedef struct decant_grid_datasets {
    int count;
    decant_candidate candidate[DECANT_CANDIDATES]; /* one that lies on the grid */
    int id[DECANT_CANDIDATES];
} decant_grid_datasets;

/* Collective: the datasets of all grids that chosen candidates lie on. */
decant_status decant_grids_define(decant_container_writer *writer, const decant_error_table *table,
                                  const int *chosen, decant_grid_datasets *grids, decant_error *err);

/* Local: one rank writes them all. */
decant_status decant_grids_write(decant_container_writer *writer, const decant_grid_datasets *grids,
                                 decant_error *err);

#endif
