/* See config_reader.h. */
#include "io/config_reader.h"

#include "io/json.h"

#include <limits.h>
#include <string.h>

decant_status decant_config_read_integer(decant_config_reader reader, const char *key, int64_t absent,
                                         int64_t *value, decant_error *err)
{
    const cJSON *member;
    decant_status status = decant_json_member(reader.object, key, reader.origin, &member, err);
    if (status != DECANT_OK)
        return status;
    if (!member && absent > 0) {
        *value = absent;
        return DECANT_OK;
    }
    if (!member)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: has no \"%s%s\"", reader.origin, reader.prefix, key);
    if (!decant_json_is_integer(member, 1, INT_MAX, value))
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: \"%s%s\" is no integer from 1 to %d", reader.origin,
                            reader.prefix, key, INT_MAX);
    return DECANT_OK;
}

decant_status decant_config_read_int(decant_config_reader reader, const char *key, int64_t absent, int *value,
                                     decant_error *err)
{
    int64_t wide = 0;
    decant_status status = decant_config_read_integer(reader, key, absent, &wide, err);
    *value = (int)wide;
    return status;
}

decant_status decant_config_read_real(decant_config_reader reader, const char *key, double largest, bool *found,
                                      double *value, decant_error *err)
{
    const cJSON *member;
    *found = false;
    decant_status status = decant_json_member(reader.object, key, reader.origin, &member, err);
    if (status != DECANT_OK || !member)
        return status;
    if (!cJSON_IsNumber(member) || !(member->valuedouble > 0 && member->valuedouble <= largest))
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: \"%s%s\" is no number above 0 and up to %g",
                            reader.origin, reader.prefix, key, largest);
    *found = true;
    *value = member->valuedouble;
    return DECANT_OK;
}

decant_status decant_config_read_flag(decant_config_reader reader, const char *key, bool *value,
                                      decant_error *err)
{
    const cJSON *member;
    *value = false;
    decant_status status = decant_json_member(reader.object, key, reader.origin, &member, err);
    if (status != DECANT_OK || !member)
        return status;
    if (!cJSON_IsBool(member))
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: \"%s%s\" is neither true nor false", reader.origin,
                            reader.prefix, key);
    *value = cJSON_IsTrue(member);
    return DECANT_OK;
}

decant_status decant_config_require_absent(decant_config_reader reader, const char *key, const char *why,
                                           decant_error *err)
{
    const cJSON *member;
    decant_status status = decant_json_member(reader.object, key, reader.origin, &member, err);
    if (status == DECANT_OK && member)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: \"%s%s\" is set: %s", reader.origin, reader.prefix,
                            key, why);
    return status;
}

decant_status decant_config_require_false(decant_config_reader reader, const char *key, decant_error *err)
{
    bool value;
    decant_status status = decant_config_read_flag(reader, key, &value, err);
    if (status == DECANT_OK && value)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: \"%s%s\" is true, which decant does not compute",
                            reader.origin, reader.prefix, key);
    return status;
}

decant_status decant_config_require_text(decant_config_reader reader, const char *key, const char *expected,
                                         decant_error *err)
{
    const cJSON *member;
    decant_status status = decant_json_member(reader.object, key, reader.origin, &member, err);
    if (status == DECANT_OK && member &&
        (!cJSON_IsString(member) || strcmp(member->valuestring, expected) != 0))
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: \"%s%s\" is not \"%s\", the only one decant computes",
                            reader.origin, reader.prefix, key, expected);
    return status;
}

decant_status decant_config_require_one(decant_config_reader reader, const char *key, decant_error *err)
{
    const cJSON *member;
    decant_status status = decant_json_member(reader.object, key, reader.origin, &member, err);
    if (status == DECANT_OK && member && (!cJSON_IsNumber(member) || member->valuedouble != 1))
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: \"%s%s\" is not 1, the only value decant computes",
                            reader.origin, reader.prefix, key);
    return status;
}

bool decant_config_has_key(decant_config_reader reader, const char *key)
{
    return cJSON_GetObjectItemCaseSensitive(reader.object, key) != NULL;
}

decant_status decant_config_find_object(decant_config_reader reader, const char *key, const cJSON **object,
                                        decant_error *err)
{
    decant_status status = decant_json_member(reader.object, key, reader.origin, object, err);
    if (status == DECANT_OK && *object && !cJSON_IsObject(*object))
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: \"%s%s\" is no object", reader.origin, reader.prefix,
                            key);
    return status;
}
