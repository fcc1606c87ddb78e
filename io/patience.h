/* Calls that wait for the other ranks inside a library and may do so for ever when one of them failed in there.
 * There is then nobody left to agree with: the process ends with a message, and the launcher ends the other
 * ranks. */
#ifndef DECANT_IO_PATIENCE_H
#define DECANT_IO_PATIENCE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct decant_patience {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool is_watched, is_over;
    double seconds;
    int rank;
    const char *path, *call, *reason; /* borrowed */
} decant_patience;

/* Seconds for a call in which so many bytes of a file may have to reach the disk: ten minutes, in which a file
 * system may come back from a failover, and what 10 MB/s take. */
double decant_patience_for_bytes(int64_t bytes);

/* From now on until the end the call has `seconds`; after that `path`, a file that is not finished, is removed,
 * one line is printed, and the process ends with the exit status of DECANT_ERROR_DISK. Without a thread to
 * watch with, it is not watched.
 *   call     what is done on all ranks together, for the line: "opening it"
 *   reason   what failed before, told in the line too; NULL: nothing that is known */
void decant_patience_begin(decant_patience *patience, double seconds, int rank, const char *path,
                           const char *call, const char *reason);
void decant_patience_end(decant_patience *patience);

#endif
