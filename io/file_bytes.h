/* A file written from front to back, with messages that name it. Knows nothing of what is in it. */
#ifndef DECANT_IO_FILE_BYTES_H
#define DECANT_IO_FILE_BYTES_H

#include "base/error.h"

#include <stddef.h>

/* Makes a file that does not exist yet. DECANT_ERROR_DISK when it cannot be made. */
decant_status decant_file_create(const char *path, int *descriptor, decant_error *err);

/* Writes all of the data from where the descriptor stands. DECANT_ERROR_DISK when they cannot be written; path
 * is for messages, and below. */
decant_status decant_file_write(int descriptor, const char *path, const void *data, size_t size_bytes,
                                decant_error *err);

/* Closes, setting *descriptor to -1; on success the file is on the disk. */
decant_status decant_file_finish(int *descriptor, const char *path, decant_error *err);

#endif
