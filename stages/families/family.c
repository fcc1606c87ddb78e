/* The model families that decant knows; a new one is its own file and one line here. */
#include "stages/families/families.h"

#include <stdio.h>
#include <string.h>

decant_status decant_family_find(const decant_model_config *config, const decant_family **family,
                                 decant_error *err)
{
    static const decant_family *const families[] = {
        &decant_family_llama,
        &decant_family_mistral,
        &decant_family_qwen2,
        &decant_family_qwen3,
    };
    char known[256] = "";
    size_t length = 0;
    *family = NULL;
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        if (strcmp(config->architecture, families[i]->architecture) == 0) {
            *family = families[i];
            return DECANT_OK;
        }
        if (length < sizeof known)
            length += (size_t)snprintf(known + length, sizeof known - length, "%s%s", i > 0 ? ", " : "",
                                       families[i]->architecture);
    }
    return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                        "config.json: architecture \"%s\" is not one that decant knows (%s)",
                        config->architecture, known);
}

decant_status decant_family_read(const char *path, decant_model_config *config, const decant_family **family,
                                 decant_error *err)
{
    decant_error unreadable;
    *family = NULL;
    decant_status status = decant_model_config_read(path, config, &unreadable);
    if (status == DECANT_OK || config->architecture[0]) {
        decant_status found = decant_family_find(config, family, err);
        if (found != DECANT_OK)
            return found;
    }
    if (status != DECANT_OK)
        *err = unreadable;
    return status;
}
