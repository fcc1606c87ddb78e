/* A fuzzer's input as a file: what decant reads is named by a path. One file, reused by
 * every execution, in memory where the system has /dev/shm. */
#ifndef DECANT_TESTS_FUZZ_INPUT_FILE_H
#define DECANT_TESTS_FUZZ_INPUT_FILE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* The entry point of every target; libFuzzer calls it, and replay.c in the tests. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size_bytes);

static char input_path[64];

static inline void remove_input(void)
{
    unlink(input_path);
}

/* The path of a file that holds the input until the next call. */
static inline const char *input_file(const uint8_t *data, size_t size_bytes)
{
    static int descriptor = -1;
    if (descriptor < 0) {
        snprintf(input_path, sizeof input_path, "%s/decant-input-XXXXXX",
                 access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
        descriptor = mkstemp(input_path);
        atexit(remove_input);
    }
    if (descriptor < 0 || ftruncate(descriptor, 0) != 0 || ftruncate(descriptor, (off_t)size_bytes) != 0 ||
        pwrite(descriptor, data, size_bytes, 0) != (ssize_t)size_bytes)
        abort();
    return input_path;
}

#endif
