/* The model families that decant knows; a new one is its own file and one line here. */
#include "stages/families/families.h"

#include <stdio.h>
#include <string.h>

decant_status decant_family_find(const decant_model_config *config, const decant_family **family,
                                 decant_error *err)
{
    static const decant_family *const families[] = {
        &decant_family_llama, &decant_family_mistral, &decant_family_opt,
        &decant_family_qwen2, &decant_family_qwen3,
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

void decant_family_end_sizes(const decant_family *family, const decant_model_config *config, bool begins,
                             bool ends, decant_end_sizes *sizes)
{
    *sizes = (decant_end_sizes){0};
    for (int i = 0; i < DECANT_ENDS; i++) {
        decant_end_tensor tensor;
        decant_end which = (decant_end)i;
        bool has_it = decant_end_is_first(which) ? begins : ends;
        bool is_there = which == DECANT_END_HEAD && config->tied_head && begins;
        if (!has_it || is_there)
            continue;
        family->end(config, which, &tensor);
        *(tensor.rows == 1 ? &sizes->vectors : &sizes->matrices) += tensor.rows * tensor.columns;
    }
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
