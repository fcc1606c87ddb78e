/* See patience.h. A thread sleeps until the end or the deadline, whichever comes first. It may not speak to
 * MPI, which other threads than the first one must not call. */
#include "io/patience.h"

#include "base/status.h"

#include <errno.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

double decant_patience_for_bytes(int64_t bytes)
{
    const double failover_s = 600, slowest_bytes_per_s = 10e6;
    return failover_s + (double)bytes / slowest_bytes_per_s;
}

static void give_up(const decant_patience *patience)
{
    const char *status = decant_status_sentence(DECANT_ERROR_DISK);
    if (patience->reason)
        fprintf(stderr, "decant: rank %d: %s: %s (and %s on all ranks together did not end within %.0f s)\n",
                patience->rank, status, patience->reason, patience->call, patience->seconds);
    else
        fprintf(
            stderr,
            "decant: rank %d: %s: %s: %s on all ranks together did not end within %.0f s, so one of them has "
            "failed inside MPI; look whether every machine can write there, and run the same command again\n",
            patience->rank, status, patience->path, patience->call, patience->seconds);
    unlink(patience->path);
    _exit(decant_status_exit(DECANT_ERROR_DISK));
}

static void *watch(void *argument)
{
    decant_patience *patience = argument;
    struct timespec end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += (time_t)patience->seconds;
    int code = 0;
    pthread_mutex_lock(&patience->lock);
    while (!patience->is_over && code != ETIMEDOUT)
        code = pthread_cond_timedwait(&patience->changed, &patience->lock, &end);
    if (!patience->is_over)
        give_up(patience);
    pthread_mutex_unlock(&patience->lock);
    return NULL;
}

void decant_patience_begin(decant_patience *patience, double seconds, int rank, const char *path,
                           const char *call, const char *reason)
{
    pthread_condattr_t attributes;
    *patience =
        (decant_patience){.seconds = seconds, .rank = rank, .path = path, .call = call, .reason = reason};
    pthread_mutex_init(&patience->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&patience->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    patience->is_watched = pthread_create(&patience->thread, NULL, watch, patience) == 0;
}

void decant_patience_end(decant_patience *patience)
{
    pthread_mutex_lock(&patience->lock);
    patience->is_over = true;
    pthread_cond_signal(&patience->changed);
    pthread_mutex_unlock(&patience->lock);
    if (patience->is_watched)
        pthread_join(patience->thread, NULL);
    pthread_cond_destroy(&patience->changed);
    pthread_mutex_destroy(&patience->lock);
}
