/* Whether a container holds the model that it claims to hold. Checksums tell that it is what somebody wrote;
 * this tells that it fits together. Knows nothing of how a model computes. */
#ifndef DECANT_STAGES_MODEL_CHECK_H
#define DECANT_STAGES_MODEL_CHECK_H

#include "io/container.h"
#include "io/model_config.h"

/* Local. DECANT_ERROR_INPUT where the container, of this name, holds something else than a model: statistics.
 */
decant_status decant_model_check_kind(const decant_container *container, const char *path, decant_error *err);

/* DECANT_ERROR_INPUT where a container of this name and config was made of another model than that in the
 * folder, of that config: names the first key in which they differ. */
decant_status decant_model_check_same(const char *container, const decant_model_config *own, const char *folder,
                                      const decant_model_config *config, decant_error *err);

/* Local. Every weight that the config asks for is there, in the shape that it asks for. DECANT_ERROR_INPUT
 * names the first that is not. A container of an architecture that decant does not know, made without
 * calibration, is taken at its word. */
decant_status decant_model_check_shapes(const decant_container *container, decant_error *err);

/* Local. Every quantized layer can be read: its datasets have the shapes that its attributes say, and its
 * indices lie inside the matrix. Reads all but their codes, which it leaves to who compares checksums, a layer
 * at a time. */
decant_status decant_model_check_layers(const decant_container *container, decant_error *err);

#endif
