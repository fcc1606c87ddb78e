/* Strict parsing declared in json.h. */
#include "io/json.h"

#include "base/memory.h"

#include <string.h>

static bool is_json_space(char byte)
{
    return byte == ' ' || byte == '\t' || byte == '\n' || byte == '\r';
}

decant_status decant_json_parse(const char *text, size_t size_bytes, const char *origin, cJSON **object,
                                decant_error *err)
{
    decant_status status = DECANT_OK;
    void *copy = NULL;
    cJSON *root = NULL;
    *object = NULL;
    /* cJSON before 1.7.18 looks one byte past a text that ends after a comma: parse a copy that ends in NUL. */
    DECANT_TRY(decant_memory_allocate(size_bytes + 1, "JSON text", &copy, err));
    if (size_bytes)
        memcpy(copy, text, size_bytes);
    if (memchr(copy, '\0', size_bytes))
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: is no JSON: it has a NUL byte", origin);
    const char *start = copy;
    const char *end = start;
    root = cJSON_ParseWithLengthOpts(start, size_bytes, &end, false);
    while (root && is_json_space(*end))
        end++;
    if (!root || end != start + size_bytes)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: is no JSON: cannot be read from byte %td on", origin,
                    end - start);
    if (!cJSON_IsObject(root))
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: is no JSON object", origin);
    *object = root;
    root = NULL;
done:
    cJSON_Delete(root);
    decant_memory_free(copy);
    return status;
}

decant_status decant_json_member(const cJSON *object, const char *key, const char *origin, const cJSON **member,
                                 decant_error *err)
{
    const cJSON *found = NULL, *child;
    *member = NULL;
    cJSON_ArrayForEach(child, object)
    {
        if (!child->string || strcmp(child->string, key) != 0)
            continue;
        if (found)
            return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: has the key \"%s\" twice", origin, key);
        found = child;
    }
    *member = found && !cJSON_IsNull(found) ? found : NULL;
    return DECANT_OK;
}

bool decant_json_is_integer(const cJSON *number, int64_t smallest, int64_t largest, int64_t *value)
{
    if (!cJSON_IsNumber(number))
        return false;
    double real = number->valuedouble;
    if (!(real >= (double)smallest && real <= (double)largest) || real != (double)(int64_t)real)
        return false;
    *value = (int64_t)real;
    return true;
}
