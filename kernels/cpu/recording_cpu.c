/* Recordings of the CPU backend: calls cost little here, so the work is simply issued anew. */
#include "kernels/cpu/cpu.h"

#include "base/memory.h"

struct decant_recording {
    decant_work work;
};

static decant_status record(decant_backend *backend, decant_work work, decant_recording **recording,
                            decant_error *err)
{
    (void)backend;
    decant_status status;
    *recording = NULL;
    DECANT_TRY(decant_memory_allocate(sizeof **recording, "a recording", (void **)recording, err));
    (*recording)->work = work;
    DECANT_TRY(work.issue(work.context, err));
done:
    if (status != DECANT_OK) {
        decant_memory_free(*recording);
        *recording = NULL;
    }
    return status;
}

static decant_status replay(decant_backend *backend, const decant_recording *recording, decant_error *err)
{
    (void)backend;
    return recording->work.issue(recording->work.context, err);
}

static void drop(decant_backend *backend, decant_recording **recording)
{
    (void)backend;
    decant_memory_free(*recording);
    *recording = NULL;
}

const decant_recording_kernels decant_cpu_recording_kernels = {
    .record = record, .replay = replay, .drop = drop};
