/* The plan that a container holds: its layers, what each could have been coded as, and what was chosen; and how
 * it is shown. For `inspect` and `allocate`. One process; no MPI. */
#ifndef DECANT_PIPELINE_CONTAINER_PLAN_H
#define DECANT_PIPELINE_CONTAINER_PLAN_H

#include "io/container.h"
#include "stages/error_table.h"

#include <cjson/cJSON.h>
#include <stdio.h>

typedef struct decant_container_plan {
    decant_error_table table;
    int *chosen;        /* [table.layers] */
    char *names;        /* the names of the layers, a line each */
    char **name;        /* [table.layers] into names */
    bool predicts_loss; /* false: the table's predictions are relative errors times weights */
} decant_container_plan;

/* Fills an empty plan from an open container; `path` is its name in messages. DECANT_ERROR_INPUT when it holds
 * no model, or tables that contradict each other. Freed with decant_container_plan_free, after a failure too.
 */
decant_status decant_container_plan_read(const decant_container *container, const char *path,
                                         decant_container_plan *plan, decant_error *err);
void decant_container_plan_free(decant_container_plan *plan);

/* A line a layer with what was chosen for it; stored is in bits a weight. */
void decant_container_plan_print(const decant_container_plan *plan, FILE *stream);

/* The same as an array of objects; the caller frees it with cJSON_Delete. */
cJSON *decant_container_plan_as_json(const decant_container_plan *plan);

#endif
