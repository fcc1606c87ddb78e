/* Writing the container: what goes into it, and which rank brings what. The schema is docs/container.md. */
#ifndef DECANT_STAGES_WRITE_H
#define DECANT_STAGES_WRITE_H

#include "base/ranks.h"
#include "io/container.h"
#include "io/safetensors.h"
#include "stages/error_table.h"
#include "stages/model.h"
#include "stages/sensitivity.h"
#include "stages/statistics.h"

/* Everything the container is made of. All ranks hold the same, but for what begins at `backend`. */
typedef struct decant_container_contents {
    const decant_model_config *config;
    const decant_family *family;
    const decant_safetensors *model;
    const decant_error_table *table;
    const int *chosen; /* [table->layers] */
    const decant_plan_summary *summary;
    const decant_statistics_origin *origin; /* sequences 0: a data-free run */
    const decant_sensitivity *sensitivity;
    uint64_t seed;       /* of the recipe that the layers were quantized by */
    const char *options; /* what decided the contents, one line */
    const char *device;  /* "cpu", "cuda bf16" …: the arithmetic that made the statistics */
    /* this rank's matrices */
    decant_backend *backend;
    int64_t quantized_count;
    const int64_t *matrices;           /* [quantized_count]: which of the table's rows each one is */
    decant_quantized_layer *quantized; /* [quantized_count]; each is emptied when it is written */
    const decant_container *earlier;   /* may be NULL */
    const bool *is_taken; /* [quantized_count]: written as `earlier` has it, which was made with the same choice
                             of the same row; `quantized` is empty then */
    decant_matrix *weights; /* [quantized_count] placed exact, or data NULL: read from the model; data
                               NULL afterwards, where the writing got to */
} decant_container_contents;

/* Collective. Writes everything; the container then stands complete at decant_container_partial_path(*writer),
 * to be validated there, and takes its name with decant_container_finish. On failure *writer is NULL and there
 * is no file of that name that was not there before. */
decant_status decant_write_container(decant_ranks *ranks, const char *path, bool overwrite,
                                     const decant_container_contents *contents,
                                     decant_container_writer **writer, decant_error *err);

#endif
