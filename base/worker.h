/* A thread beside the caller's, for work that should go on while the caller waits for something else: copies
 * into the device's reach, checksums. It takes tasks in the order they were submitted, one at a time, so that
 * results never depend on timing. Knows nothing of what the tasks do. */
#ifndef DECANT_BASE_WORKER_H
#define DECANT_BASE_WORKER_H

#include "base/error.h"

#include <stdbool.h>

typedef struct decant_worker decant_worker;

/* One piece of work. The submitter sets `run` and `argument`, owns the task and keeps both in place until
 * decant_task_wait has returned; the other fields are the worker's. A task of all zeros was never submitted. */
typedef struct decant_task {
    decant_status (*run)(void *argument, decant_error *err); /* may call no MPI */
    void *argument;
    decant_worker *worker;
    struct decant_task *next;
    decant_status status;
    decant_error error;
    bool done;
} decant_task;

/* Starts the thread. DECANT_ERROR_MEMORY when the system gives none. */
decant_status decant_worker_create(decant_worker **worker, decant_error *err);

/* Ends the thread once every submitted task is done; takes NULL, sets NULL. */
void decant_worker_destroy(decant_worker **worker);

/* Puts the task at the end of the queue; never fails and never waits for other tasks. */
void decant_worker_submit(decant_worker *worker, decant_task *task);

/* Waits until the task is done and returns what `run` returned, with its record. All zeros again afterwards but
 * for run and argument; a task that was never submitted is DECANT_OK. What the task wrote can be read. */
decant_status decant_task_wait(decant_task *task, decant_error *err);

#endif
