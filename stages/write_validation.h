/* What validation found, in the container: attributes of its root, see docs/container.md. */
#ifndef DECANT_STAGES_WRITE_VALIDATION_H
#define DECANT_STAGES_WRITE_VALIDATION_H

#include "io/container.h"
#include "stages/validate.h"

/* Collective. The container's own record of what it is worth; set before it is finished. */
decant_status decant_validation_write(decant_container_writer *writer, const decant_validation_result *result,
                                      decant_error *err);

#endif
