/* What the tests of config.json share: a good one with one text replaced, and refusals that name the key.
 * Include it once. */
#ifndef DECANT_TESTS_CONFIG_CASE_H
#define DECANT_TESTS_CONFIG_CASE_H

#include "io/model_config.h"

#include "tests/io/scratch.h"

enum { CONFIG_BYTES = 2048 };

/* `good` with the first occurrence of one text replaced; text [CONFIG_BYTES]. */
static inline void replace_in(const char *good, const char *old, const char *new, char text[CONFIG_BYTES])
{
    const char *place = strstr(good, old);
    assert_non_null(place);
    snprintf(text, CONFIG_BYTES, "%.*s%s%s", (int)(place - good), good, new, place + strlen(old));
}

static inline decant_status parse(const char *text, decant_model_config *config, decant_error *err)
{
    return decant_model_config_parse(text, strlen(text), "somewhere/config.json", config, err);
}

/* A change for which `good` is refused, and what the message has to say. */
typedef struct refused_change {
    const char *old, *new, *named;
} refused_change;

static inline void refuses(const char *good, const refused_change *changes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        char text[CONFIG_BYTES];
        decant_error err = {0};
        decant_model_config config;
        replace_in(good, changes[i].old, changes[i].new, text);
        assert_status(parse(text, &config, &err), DECANT_ERROR_INPUT);
        assert_message(&err, changes[i].named);
        assert_message(&err, "somewhere/config.json");
        assert_null(config.json);
    }
    assert_int_equal(decant_memory_usage_now().blocks, 0);
}

#endif
