/* Keys of a JSON object of numbers, flags and names, each read with its bounds. What is wrong is
 * DECANT_ERROR_INPUT with the key's name; a key that is null counts as absent. */
#ifndef DECANT_IO_CONFIG_READER_H
#define DECANT_IO_CONFIG_READER_H

#include "base/error.h"

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdint.h>

/* A config object and the name its messages use. */
typedef struct decant_config_reader {
    const cJSON *object;
    const char *origin;
    const char *prefix; /* of key names in messages: "" or "rope_parameters." */
} decant_config_reader;

/* An integer from 1 to INT_MAX; `absent` when the key is, or an error when that is 0. */
decant_status decant_config_read_integer(decant_config_reader reader, const char *key, int64_t absent,
                                         int64_t *value, decant_error *err);
decant_status decant_config_read_int(decant_config_reader reader, const char *key, int64_t absent, int *value,
                                     decant_error *err);

/* A number in (0, largest]; *value is left alone when the key is absent. */
decant_status decant_config_read_real(decant_config_reader reader, const char *key, double largest, bool *found,
                                      double *value, decant_error *err);

/* false when absent */
decant_status decant_config_read_flag(decant_config_reader reader, const char *key, bool *value,
                                      decant_error *err);

/* Absent; the message ends in `why`. */
decant_status decant_config_require_absent(decant_config_reader reader, const char *key, const char *why,
                                           decant_error *err);

/* Absent, or false. */
decant_status decant_config_require_false(decant_config_reader reader, const char *key, decant_error *err);

/* Absent, or exactly this text. */
decant_status decant_config_require_text(decant_config_reader reader, const char *key, const char *expected,
                                         decant_error *err);

/* Absent, or 1. */
decant_status decant_config_require_one(decant_config_reader reader, const char *key, decant_error *err);

/* Whether the key is there, null or not. */
bool decant_config_has_key(decant_config_reader reader, const char *key);

/* The object `key`, or NULL when it is absent. */
decant_status decant_config_find_object(decant_config_reader reader, const char *key, const cJSON **object,
                                        decant_error *err);

#endif
