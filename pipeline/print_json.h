/* Results as JSON, for programs. */
#ifndef DECANT_PIPELINE_PRINT_JSON_H
#define DECANT_PIPELINE_PRINT_JSON_H

#include "base/error.h"

#include <cjson/cJSON.h>
#include <stdio.h>

/* Prints an object or an array, and frees it, after a failure too. DECANT_ERROR_MEMORY when there is none for
 * its text, or was none for the whole of it (NULL). */
decant_status decant_print_json(cJSON *value, FILE *stream, decant_error *err);

#endif
