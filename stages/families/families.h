/* The families by name, for decant_family_find alone. */
#ifndef DECANT_STAGES_FAMILIES_FAMILIES_H
#define DECANT_STAGES_FAMILIES_FAMILIES_H

#include "stages/model.h"

extern const decant_family decant_family_llama;

#endif
