/* The model families that decant knows; a new one is its own file and one line here. */
#include "stages/families/families.h"

#include <string.h>

decant_status decant_family_find(const decant_model_config *config, const decant_family **family,
                                 decant_error *err)
{
    static const decant_family *const families[] = {&decant_family_llama};
    *family = NULL;
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        if (strcmp(config->architecture, families[i]->architecture) != 0)
            continue;
        *family = families[i];
        return DECANT_OK;
    }
    return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                        "config.json: architecture \"%s\" is not one that decant knows (%s)",
                        config->architecture, families[0]->architecture);
}
