/* See examine.h; inspect.c and reallocate.c have the longer two of these commands. */
#include "pipeline/examine.h"

#include "io/container.h"
#include "stages/model_check.h"

#include <string.h>

/* ---- verify ---- */

static decant_status verify(const decant_options *options, FILE *stream, decant_error *err)
{
    decant_container *container = NULL;
    int64_t datasets = 0, bytes = 0;
    char kind[32];
    decant_status status;
    DECANT_TRY(decant_container_open(options->container, &container, err));
    DECANT_TRY(decant_container_verify(container, &datasets, &bytes, err));
    DECANT_TRY(decant_container_get_text(container, "/", "kind", kind, sizeof kind, err));
    if (strcmp(kind, "model") == 0) {
        DECANT_TRY(decant_model_check_shapes(container, err));
        DECANT_TRY(decant_model_check_layers(container, err));
    }
    fprintf(stream, "%s: %lld datasets, %lld bytes, every checksum is right\n", options->container,
            (long long)datasets, (long long)bytes);
done:
    decant_container_close(&container);
    return status;
}

/* ---- compare ---- */

typedef struct comparison {
    const decant_container *mine, *other;
    const char *name;
    bool contents; /* compare what both have; false: only tell what the other lacks */
    int64_t differences;
    FILE *stream;
} comparison;

static void tell_difference(comparison *c, const char *path, const char *what, const char *where)
{
    fprintf(c->stream, "%s: %s%s\n", path, what, where);
    c->differences++;
}

static bool same_shape(const decant_shape *a, const decant_shape *b)
{
    bool same = a->dimensions == b->dimensions;
    for (int i = 0; same && i < a->dimensions; i++)
        same = a->extent[i] == b->extent[i];
    return same;
}

/* Contents are compared by the checksums that both files carry; `decant verify` tells whether these are true.
 */
static decant_status compare_dataset(void *context, const char *path, decant_stored type,
                                     const decant_shape *shape, decant_error *err)
{
    comparison *c = context;
    decant_stored other_type;
    decant_shape other_shape;
    int64_t checksum, other_checksum;
    decant_status status = DECANT_OK;
    if (!decant_container_has(c->other, path)) {
        tell_difference(c, path, "only in ", c->name);
        goto done;
    }
    if (!c->contents)
        goto done;
    DECANT_TRY(decant_container_describe(c->other, path, &other_type, &other_shape, err));
    DECANT_TRY(decant_container_get_integer(c->mine, path, "crc32", &checksum, err));
    DECANT_TRY(decant_container_get_integer(c->other, path, "crc32", &other_checksum, err));
    if (type != other_type || !same_shape(shape, &other_shape))
        tell_difference(c, path, "another type or shape", "");
    else if (checksum != other_checksum)
        tell_difference(c, path, "other contents", "");
done:
    return status;
}

static decant_status compare(const decant_options *options, FILE *stream, decant_error *err)
{
    decant_container *first = NULL, *second = NULL;
    decant_status status;
    DECANT_TRY(decant_container_open(options->container, &first, err));
    DECANT_TRY(decant_container_open(options->second_container, &second, err));
    comparison forth = {
        .mine = first, .other = second, .name = options->container, .contents = true, .stream = stream};
    comparison back = {.mine = second, .other = first, .name = options->second_container, .stream = stream};
    DECANT_TRY(decant_container_each(first, compare_dataset, &forth, err));
    DECANT_TRY(decant_container_each(second, compare_dataset, &back, err));
    int64_t differences = forth.differences + back.differences;
    if (differences > 0)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s and %s differ in %lld datasets", options->container,
                    options->second_container, (long long)differences);
    fprintf(stream, "the same contents, by their checksums; decant verify tells whether these are true\n");
done:
    decant_container_close(&first);
    decant_container_close(&second);
    return status;
}

decant_status decant_examine(const decant_options *options, FILE *stream, decant_error *err)
{
    switch (options->command) {
    case DECANT_COMMAND_INSPECT:
        return decant_inspect(options, stream, err);
    case DECANT_COMMAND_ALLOCATE:
        return decant_reallocate(options, stream, err);
    case DECANT_COMMAND_VERIFY:
        return verify(options, stream, err);
    default:
        return compare(options, stream, err);
    }
}
