/* A fuzzer's input as a file: what decant reads is named by a path. One file in memory, reused by every execution,
 * because making files on a disk would take most of the time. */
#ifndef DECANT_TESTS_FUZZ_INPUT_FILE_H
#define DECANT_TESTS_FUZZ_INPUT_FILE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* The entry point of every target; libFuzzer calls it, and replay.c in the tests. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size_bytes);

/* The path of a file that holds the input until the next call. */
static const char *input_file(const uint8_t *data, size_t size_bytes)
{
    static int descriptor = -1;
    static char path[32];
    if (descriptor < 0) {
        descriptor = memfd_create("input", 0);
        snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
    }
    if (descriptor < 0 || ftruncate(descriptor, 0) != 0 || ftruncate(descriptor, (off_t)size_bytes) != 0 ||
        pwrite(descriptor, data, size_bytes, 0) != (ssize_t)size_bytes)
        abort();
    return path;
}

#endif
