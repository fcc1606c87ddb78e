/* A file mapped read-only into memory. Knows nothing of what is in it. */
#ifndef DECANT_IO_MAPPED_FILE_H
#define DECANT_IO_MAPPED_FILE_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>

typedef struct decant_mapped_file {
    const unsigned char *data; /* NULL when size_bytes is 0 */
    size_t size_bytes;
    int place; /* for mapped_file.c alone */
} decant_mapped_file;

/* DECANT_ERROR_INPUT, naming path, when it is missing, unreadable or no regular file. */
decant_status decant_mapped_file_open(const char *path, decant_mapped_file *file, decant_error *err);
void decant_mapped_file_close(decant_mapped_file *file); /* takes a file that is closed or all zero */

/* A byte that could not be read, by a fault of its disk or because the file was cut, reads as zero. To be asked
 * after bytes were read and before anything that was made of them is trusted.
 *
 * check   returns status when all could be read so far, else DECANT_ERROR_INPUT in its place, naming path
 * unread  whether there was such a byte; *offset becomes the place of the first in the file */
decant_status decant_mapped_file_check(const decant_mapped_file *file, const char *path, decant_status status,
                                       decant_error *err);
bool decant_mapped_file_is_unread(const decant_mapped_file *file, size_t *offset);

/* Advice on bytes of a mapped file, and of no other memory, which would lose what it holds: they will be read
 * soon, so that reading them from disk may begin; or not again soon, so that memory may be used for other
 * things. Reading them stays possible either way. */
void decant_mapped_file_expect(const void *data, size_t size_bytes);
void decant_mapped_file_dismiss(const void *data, size_t size_bytes);

#endif
