/* A folder of output while it is being written: it stands beside its place as PATH.partial and takes the final
 * name only when everything in it is complete and on disk. The first file in it is a mark, so that what is
 * replaced or cleared away is only ever such a folder, never somebody's own. Local to one process; knows
 * nothing of what the files hold. */
#ifndef DECANT_IO_PARTIAL_FOLDER_H
#define DECANT_IO_PARTIAL_FOLDER_H

#include "base/error.h"

#include <dirent.h>
#include <stdbool.h>
#include <stddef.h>

typedef struct decant_partial_folder {
    char *path, *partial; /* owned */
    const char *mark;     /* name of the file that marks such folders; borrowed */
    bool overwrite;       /* PATH may exist, with a mark, and is then replaced */
    bool is_mine;         /* made here, so to be removed here */
    DIR *directory;       /* the partial folder, locked, owned: making sure of it and clearing open no other */
} decant_partial_folder;

/* Makes PATH.partial with the mark in it, clearing the remains of another job.
 *   mark, text   name and contents of the mark
 * DECANT_ERROR_USAGE when PATH exists and may not be replaced, when what stands in either place has files but
 * no mark, or has a folder in it, or another process is writing there; DECANT_ERROR_DISK when it cannot be
 * made, DECANT_ERROR_FILES when too many are open. On failure the folder is closed. */
decant_status decant_partial_folder_make(const char *path, bool overwrite, const char *mark, const char *text,
                                         decant_partial_folder *folder, decant_error *err);

/* A new file in it with these bytes. */
decant_status decant_partial_folder_write(const decant_partial_folder *folder, const char *name,
                                          const void *data, size_t size_bytes, decant_error *err);

/* Gives the folder its final name, in one step; what it replaces is removed. */
decant_status decant_partial_folder_publish(decant_partial_folder *folder, decant_error *err);

/* Frees; removes what was made here and not published. Takes one that is all zero. */
void decant_partial_folder_close(decant_partial_folder *folder);

#endif
