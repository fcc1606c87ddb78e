/* A file for bytes that memory has no room for and that nobody needs after the job: it has no name, so it is
 * gone when it is closed or its process ends, however it ends. */
#ifndef DECANT_IO_SCRATCH_FILE_H
#define DECANT_IO_SCRATCH_FILE_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

typedef struct decant_scratch_file {
    const char *folder; /* borrowed, for messages; NULL: not open */
    int descriptor;
} decant_scratch_file;

/* DECANT_ERROR_DISK, naming the folder, when no file can be made there. */
decant_status decant_scratch_file_open(const char *folder, decant_scratch_file *file, decant_error *err);
void decant_scratch_file_close(decant_scratch_file *file); /* takes a file that is closed or all zero */

/* All of the bytes, or DECANT_ERROR_DISK. */
decant_status decant_scratch_file_write(const decant_scratch_file *file, uint64_t offset, const void *data,
                                        size_t size_bytes, decant_error *err);
decant_status decant_scratch_file_read(const decant_scratch_file *file, uint64_t offset, void *data,
                                       size_t size_bytes, decant_error *err);

/* Advice: the bytes will be read soon. */
void decant_scratch_file_expect(const decant_scratch_file *file, uint64_t offset, size_t size_bytes);

/* Gives the room of these bytes back, where the file system can. */
void decant_scratch_file_discard(const decant_scratch_file *file, uint64_t offset, size_t size_bytes);

#endif
