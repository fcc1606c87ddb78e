/* The two places a model's weights come from, behind decant_weight_source: a folder of safetensors, or a
 * container. */
#ifndef DECANT_STAGES_SOURCE_H
#define DECANT_STAGES_SOURCE_H

#include "io/container.h"
#include "io/safetensors.h"
#include "stages/model.h"

/* Borrows the open model; nothing to free. */
decant_weight_source decant_source_of_model(const decant_safetensors *model);

typedef struct decant_container_source decant_container_source;

/* Reads tensors out of a container as they are asked for and keeps whole ones in memory until destroyed.
 * Borrows the container. */
decant_status decant_container_source_create(const decant_container *container,
                                             decant_container_source **source, decant_error *err);
void decant_container_source_destroy(decant_container_source **source); /* takes NULL, sets NULL */
decant_weight_source decant_source_of_container(decant_container_source *source);

/* For who wants to know whether layers can be read, of a container whose checksums have been compared: of
 * codes, most of a file and codes whatever their bits, only type and shape are looked at from now on, and the
 * planes of what is read hold nothing. */
void decant_container_source_skip_codes(decant_container_source *source);

/* The model's config as the container keeps it. */
decant_status decant_container_config(const decant_container *container, const char *origin,
                                      decant_model_config *config, decant_error *err);

#endif
