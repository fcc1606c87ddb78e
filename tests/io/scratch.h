/* For tests of what reads files: a folder of the test's own, and what a refusal must look like. */
#ifndef DECANT_TESTS_IO_SCRATCH_H
#define DECANT_TESTS_IO_SCRATCH_H

#include "base/error.h"
#include "base/memory.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define assert_ok(call)               assert_status((call), DECANT_OK)
#define assert_status(call, expected) assert_status_at((call), (expected), &err, __FILE__, __LINE__)

static inline void assert_status_at(decant_status status, decant_status expected, const decant_error *err,
                                    const char *file, int line)
{
    if (status != expected)
        print_error("%s:%d: status %d (%s), expected %d: %s\n", file, line, (int)status,
                    decant_status_sentence(status), (int)expected, status == DECANT_OK ? "" : err->message);
    _assert_int_equal((uintmax_t)status, (uintmax_t)expected, file, line);
}

/* The message has `named` in it and is one line. */
static inline void assert_message(const decant_error *err, const char *named)
{
    if (!strstr(err->message, named) || strpbrk(err->message, "\r\n"))
        fail_msg("\"%s\" is not in the message \"%s\"", named, err->message);
}

typedef struct scratch {
    char folder[64];
    int64_t live_blocks; /* before the test */
} scratch;

/* Setup and teardown of a test; *state is a scratch. Fails when the test leaves memory behind. */
static inline int scratch_make(void **state)
{
    scratch *made = calloc(1, sizeof *made);
    snprintf(made->folder, sizeof made->folder, "/tmp/decant-test-XXXXXX");
    made->live_blocks = decant_memory_usage_now().blocks;
    *state = made;
    return mkdtemp(made->folder) ? 0 : -1;
}

static inline int scratch_remove(void **state)
{
    scratch *made = *state;
    char command[128];
    snprintf(command, sizeof command, "rm -r '%s'", made->folder);
    int result = system(command) == 0 && decant_memory_usage_now().blocks == made->live_blocks ? 0 : -1;
    free(made);
    return result;
}

static inline void scratch_path(const scratch *at, const char *name, char *path, size_t size)
{
    snprintf(path, size, "%s/%s", at->folder, name);
}

static inline void scratch_write(const scratch *at, const char *name, const void *data, size_t size_bytes)
{
    char path[256];
    scratch_path(at, name, path, sizeof path);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, size_bytes, file), size_bytes);
    assert_int_equal(fclose(file), 0);
}

/* How many bytes the file has, which are now in data. */
static inline size_t scratch_read(const scratch *at, const char *name, void *data, size_t size)
{
    char path[256];
    scratch_path(at, name, path, sizeof path);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    size_t got = fread(data, 1, size, file);
    assert_int_equal(fclose(file), 0);
    return got;
}

#endif
