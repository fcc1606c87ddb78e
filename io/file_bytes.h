/* Bytes into files, all of them or a message that names the file. Knows nothing of what they are. */
#ifndef DECANT_IO_FILE_BYTES_H
#define DECANT_IO_FILE_BYTES_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

/* Makes a file that does not exist yet. DECANT_ERROR_DISK when it cannot be made. */
decant_status decant_file_create(const char *path, int *descriptor, decant_error *err);

/* Writes all of the data from where the descriptor stands. DECANT_ERROR_DISK when they cannot be written; path
 * is for messages, and below. */
decant_status decant_file_write(int descriptor, const char *path, const void *data, size_t size_bytes,
                                decant_error *err);

/* The same from byte `offset` of the file on; where the descriptor stands does not change. */
decant_status decant_file_write_at(int descriptor, const char *path, uint64_t offset, const void *data,
                                   size_t size_bytes, decant_error *err);

/* Closes, setting *descriptor to -1; on success the file is on the disk. */
decant_status decant_file_finish(int *descriptor, const char *path, decant_error *err);

#endif
