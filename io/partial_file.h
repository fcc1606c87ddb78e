/* An output while it is being written: a file beside it, named PATH.partial, that takes the final name only
 * when it is complete and on disk. Knows nothing of what is in it, and nothing of ranks: rank 0 makes it, the
 * others join. */
#ifndef DECANT_IO_PARTIAL_FILE_H
#define DECANT_IO_PARTIAL_FILE_H

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct decant_partial_file {
    char *path, *partial; /* owned */
    bool overwrite;       /* PATH may exist and is then replaced */
    bool is_mine;         /* made here, so to be removed here */
    int descriptor;       /* of the partial file; -1 before make or join */
    uint64_t free_bytes;  /* on the disk when it was made */
} decant_partial_file;

/* Whether an output may come to be at PATH: DECANT_ERROR_USAGE when something is there and may not be replaced,
 * or is neither a file nor a link, such as a folder or a device, which overwrite is not for. */
decant_status decant_partial_file_check_place(const char *path, bool overwrite, decant_error *err);

/* Remembers the names. On failure the file is closed; decant_partial_file_close takes it too. */
decant_status decant_partial_file_name(const char *path, bool overwrite, decant_partial_file *file,
                                       decant_error *err);

/* Makes the file, empty, replacing the remains of another job. DECANT_ERROR_USAGE when PATH exists and may not
 * be replaced, or another process is writing to it; DECANT_ERROR_DISK when it cannot be made. *inode receives
 * its number for join. */
decant_status decant_partial_file_make(decant_partial_file *file, uint64_t *inode, decant_error *err);

/* Opens what rank 0 made. DECANT_ERROR_DISK when this machine sees another file under the name, or none. */
decant_status decant_partial_file_join(decant_partial_file *file, uint64_t inode, decant_error *err);

/* Takes bytes [begin, end) of the file on the disk now, where the filesystem can; else compares with what was
 * free. DECANT_ERROR_DISK when there is no room. The file's size stays. */
decant_status decant_partial_file_reserve(decant_partial_file *file, uint64_t begin, uint64_t end,
                                          decant_error *err);

/* Lets the disk begin with what was written so far, so that a later flush has less left to wait for. */
void decant_partial_file_begin_flush(const decant_partial_file *file);

/* What this process wrote is on the disk afterwards. */
decant_status decant_partial_file_flush(decant_partial_file *file, decant_error *err);

/* Gives the file its final name, in a way that outlives a crash of the machine. */
decant_status decant_partial_file_publish(decant_partial_file *file, decant_error *err);

/* Closes; removes what was made here and not published. */
void decant_partial_file_close(decant_partial_file *file);

#endif
