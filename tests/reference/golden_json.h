/* Golden numbers that are kept as JSON. */
#ifndef DECANT_TESTS_REFERENCE_GOLDEN_JSON_H
#define DECANT_TESTS_REFERENCE_GOLDEN_JSON_H

#include "tests/reference/golden.h"

#include <cjson/cJSON.h>

/* The file of this name, which the caller frees by cJSON_Delete. */
static inline cJSON *read_golden_json(const char *name)
{
    char *text = read_golden_file(name);
    cJSON *golden = cJSON_Parse(text);
    assert_non_null(golden);
    free(text);
    return golden;
}

#endif
