/* A queue of tasks in POSIX threads: one mutex guards the list and every task in it, one condition wakes the
 * worker, another those who wait. */
#include "base/worker.h"

#include "base/memory.h"

#include <pthread.h>
#include <string.h>

struct decant_worker {
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t submitted, finished;
    decant_task *first, *last; /* waiting to be run */
    bool ending;
};

/* The next task, or NULL when there is none and none will come. */
static decant_task *take(decant_worker *worker)
{
    pthread_mutex_lock(&worker->mutex);
    while (!worker->first && !worker->ending)
        pthread_cond_wait(&worker->submitted, &worker->mutex);
    decant_task *task = worker->first;
    if (task)
        worker->first = task->next;
    pthread_mutex_unlock(&worker->mutex);
    return task;
}

static void *work(void *argument)
{
    decant_worker *worker = argument;
    for (decant_task *task = take(worker); task; task = take(worker)) {
        decant_error error;
        decant_status status = task->run(task->argument, &error);
        pthread_mutex_lock(&worker->mutex);
        task->status = status;
        if (status != DECANT_OK)
            task->error = error;
        task->done = true;
        pthread_cond_broadcast(&worker->finished);
        pthread_mutex_unlock(&worker->mutex);
    }
    return NULL;
}

decant_status decant_worker_create(decant_worker **worker, decant_error *err)
{
    *worker = NULL;
    void *memory;
    decant_status status = decant_memory_allocate(sizeof **worker, "a thread", &memory, err);
    if (status != DECANT_OK)
        return status;
    decant_worker *made = memory;
    pthread_mutex_init(&made->mutex, NULL);
    pthread_cond_init(&made->submitted, NULL);
    pthread_cond_init(&made->finished, NULL);
    int code = pthread_create(&made->thread, NULL, work, made);
    if (code != 0) {
        decant_memory_free(memory);
        return DECANT_ERROR(err, DECANT_ERROR_MEMORY, "a thread cannot be started: %s", strerror(code));
    }
    *worker = made;
    return DECANT_OK;
}

void decant_worker_destroy(decant_worker **worker)
{
    decant_worker *ending = *worker;
    if (!ending)
        return;
    pthread_mutex_lock(&ending->mutex);
    ending->ending = true;
    pthread_cond_signal(&ending->submitted);
    pthread_mutex_unlock(&ending->mutex);
    pthread_join(ending->thread, NULL);
    pthread_cond_destroy(&ending->finished);
    pthread_cond_destroy(&ending->submitted);
    pthread_mutex_destroy(&ending->mutex);
    decant_memory_free(ending);
    *worker = NULL;
}

void decant_worker_submit(decant_worker *worker, decant_task *task)
{
    pthread_mutex_lock(&worker->mutex);
    task->worker = worker;
    task->next = NULL;
    task->done = false;
    if (worker->first)
        worker->last->next = task;
    else
        worker->first = task;
    worker->last = task;
    pthread_cond_signal(&worker->submitted);
    pthread_mutex_unlock(&worker->mutex);
}

decant_status decant_task_wait(decant_task *task, decant_error *err)
{
    decant_worker *worker = task->worker;
    if (!worker)
        return DECANT_OK;
    pthread_mutex_lock(&worker->mutex);
    while (!task->done)
        pthread_cond_wait(&worker->finished, &worker->mutex);
    pthread_mutex_unlock(&worker->mutex);
    decant_status status = task->status;
    if (status != DECANT_OK)
        *err = task->error;
    *task = (decant_task){.run = task->run, .argument = task->argument};
    return status;
}
