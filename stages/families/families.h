/* The families by name, for decant_family_find alone. */
#ifndef DECANT_STAGES_FAMILIES_FAMILIES_H
#define DECANT_STAGES_FAMILIES_FAMILIES_H

#include "stages/model.h"

extern const decant_family decant_family_llama;
extern const decant_family decant_family_mistral;
extern const decant_family decant_family_opt;
extern const decant_family decant_family_qwen2;
extern const decant_family decant_family_qwen3;

#endif
