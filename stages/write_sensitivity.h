/* The measured sensitivities in the container: /sensitivity, see docs/container.md. For stages/write.c. */
#ifndef DECANT_STAGES_WRITE_SENSITIVITY_H
#define DECANT_STAGES_WRITE_SENSITIVITY_H

#include "io/container.h"
#include "stages/sensitivity.h"

/* Dataset numbers. */
typedef struct decant_sensitivity_ids {
    int value, candidate, alone, noise, noised; /* the last two only where there was noise */
} decant_sensitivity_ids;

/* Collective. Nothing where nothing was measured. */
decant_status decant_sensitivity_define(decant_container_writer *writer, const decant_sensitivity *sensitivity,
                                        decant_sensitivity_ids *ids, decant_error *err);

/* Local, by one rank. */
decant_status decant_sensitivity_write(decant_container_writer *writer, const decant_sensitivity *sensitivity,
                                       const decant_sensitivity_ids *ids, decant_error *err);

#endif
