/* A file mapped read-only into memory. Knows nothing of what is in it. */
#ifndef DECANT_IO_MAPPED_FILE_H
#define DECANT_IO_MAPPED_FILE_H

#include "base/error.h"

#include <stddef.h>

typedef struct decant_mapped_file {
    const unsigned char *data; /* NULL when size_bytes is 0 */
    size_t size_bytes;
} decant_mapped_file;

/* DECANT_ERROR_INPUT, naming path, when it is missing, unreadable or no regular file. */
decant_status decant_mapped_file_open(const char *path, decant_mapped_file *file, decant_error *err);
void decant_mapped_file_close(decant_mapped_file *file); /* takes a file that is closed or all zero */

/* Advice on bytes of a mapped file: they will be read soon, so that reading them from disk may begin; or not
 * again soon, so that memory may be used for other things. Reading them stays possible either way. */
void decant_mapped_file_expect(const void *data, size_t size_bytes);
void decant_mapped_file_dismiss(const void *data, size_t size_bytes);

#endif
