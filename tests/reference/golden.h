/* The golden numbers of tests/reference, for the tests that compare with them. */
#ifndef DECANT_TESTS_REFERENCE_GOLDEN_H
#define DECANT_TESTS_REFERENCE_GOLDEN_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* The whole file of this name, a zero behind it; the caller frees it. A missing one fails the test. */
static inline char *read_golden_file(const char *name)
{
    char path[4096];
    const char *root = getenv("DECANT_TEST_SOURCE");
    snprintf(path, sizeof path, "%s/tests/reference/%s", root ? root : ".", name);
    FILE *file = fopen(path, "rb");
    if (!file)
        fail_msg("cannot open %s", path);
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    const size_t size = (size_t)ftell(file);
    rewind(file);
    char *bytes = calloc(size + 1, 1);
    assert_non_null(bytes);
    assert_int_equal(fread(bytes, 1, size, file), size);
    fclose(file);
    return bytes;
}

/* The data of a tensor of a safetensors file, and its size where that is asked for: what "data_offsets" says
 * after its name in the header. */
static inline const void *golden_tensor(const char *bytes, const char *name, size_t *size_bytes)
{
    char quoted[64];
    size_t begin, end;
    uint64_t header_bytes;
    memcpy(&header_bytes, bytes, sizeof header_bytes);
    snprintf(quoted, sizeof quoted, "\"%s\"", name);
    const char *entry = strstr(bytes + 8, quoted);
    assert_non_null(entry);
    const char *offsets = strstr(entry, "\"data_offsets\":[");
    assert_non_null(offsets);
    assert_int_equal(sscanf(offsets, "\"data_offsets\":[%zu,%zu]", &begin, &end), 2);
    if (size_bytes)
        *size_bytes = end - begin;
    return bytes + 8 + header_bytes + begin;
}

#endif
