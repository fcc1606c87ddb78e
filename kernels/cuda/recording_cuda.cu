/* Recordings of the CUDA backend: CUDA graphs, captured from the stream that all work is issued on.
 *
 * The work is issued once before it is captured: by then scratch has grown to what it needs, libraries have
 * chosen and loaded their kernels, and nothing is left that must not be captured. A graph refers to the scratch
 * of that time. Work that still cannot be captured, as a library's that waits for the device, is issued anew at
 * each replay; an error of its own shows up there. */
#include "kernels/cuda/context.h"

extern "C" {
#include "base/memory.h"
}

struct decant_recording {
    decant_work work;
    cudaGraphExec_t graph; /* NULL: the work is issued anew */
};

static cudaGraphExec_t capture(decant_cuda *cuda, decant_work work)
{
    decant_error unused;
    cudaGraph_t graph = NULL;
    cudaGraphExec_t executable = NULL;
    if (cudaStreamBeginCapture(cuda->stream, cudaStreamCaptureModeThreadLocal) != cudaSuccess) {
        cudaGetLastError();
        return NULL;
    }
    const decant_status status = work.issue(work.context, &unused);
    const cudaError_t code = cudaStreamEndCapture(cuda->stream, &graph);
    if (status == DECANT_OK && code == cudaSuccess && graph &&
        cudaGraphInstantiate(&executable, graph, 0) != cudaSuccess)
        executable = NULL;
    if (graph)
        cudaGraphDestroy(graph);
    cudaGetLastError();
    return executable;
}

static decant_status record(decant_backend *backend, decant_work work, decant_recording **recording,
                            decant_error *err)
{
    *recording = NULL;
    DECANT_RETURN_ON_FAILURE(work.issue(work.context, err));
    DECANT_RETURN_ON_FAILURE(backend->memory->synchronize(backend, err));
    void *memory;
    DECANT_RETURN_ON_FAILURE(decant_memory_allocate(sizeof **recording, "a recording", &memory, err));
    *recording = (decant_recording *)memory;
    (*recording)->work = work;
    (*recording)->graph = capture(decant_cuda_of(backend), work);
    return DECANT_OK;
}

static decant_status replay(decant_backend *backend, const decant_recording *recording, decant_error *err)
{
    if (!recording->graph)
        return recording->work.issue(recording->work.context, err);
    return decant_cuda_check(cudaGraphLaunch(recording->graph, decant_cuda_of(backend)->stream), "a recording",
                             err);
}

static void drop(decant_backend *backend, decant_recording **recording)
{
    if (!*recording)
        return;
    cudaStreamSynchronize(decant_cuda_of(backend)->stream); /* it may still be running */
    if ((*recording)->graph)
        cudaGraphExecDestroy((*recording)->graph);
    decant_memory_free(*recording);
    *recording = NULL;
}

extern const decant_recording_kernels decant_cuda_recording_kernels = {
    .record = record,
    .replay = replay,
    .drop = drop,
};
