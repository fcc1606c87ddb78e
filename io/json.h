/* What io's readers of JSON share: strict parsing with messages that name the file and the key. The values are
 * cJSON's. Knows nothing of what the keys mean. */
#ifndef DECANT_IO_JSON_H
#define DECANT_IO_JSON_H

#include "base/error.h"

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Parses a text that is one JSON object and nothing else but white space. `origin` is named in messages.
 * *object is freed with cJSON_Delete; NULL on failure. */
decant_status decant_json_parse(const char *text, size_t size_bytes, const char *origin, cJSON **object,
                                decant_error *err);

/* The member `key`, NULL when it is absent or null. DECANT_ERROR_INPUT when the object has it twice: readers
 * differ in which one they take. */
decant_status decant_json_member(const cJSON *object, const char *key, const char *origin, const cJSON **member,
                                 decant_error *err);

/* The value of a JSON number that is an integer in [smallest, largest], both within ±2^53. */
bool decant_json_is_integer(const cJSON *number, int64_t smallest, int64_t largest, int64_t *value);

#endif
