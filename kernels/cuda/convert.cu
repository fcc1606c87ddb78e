/* Arrays from one element type to another. */
#include "kernels/cuda/elements.cuh"

enum { THREADS = 256 };

template <typename Source, typename Target, int N>
__global__ void __launch_bounds__(THREADS) convert_kernel(const Source *source, Target *target, int64_t count)
{
    int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * N;
    if (i + N <= count) {
        float values[N];
        decant_load(source + i, values);
        decant_store(target + i, values);
    } else {
        for (; i < count; i++)
            target[i] = decant_from_float<Target>(decant_to_float(source[i]));
    }
}

template <typename Source, typename Target>
static void convert(cudaStream_t stream, const void *source, void *target, int64_t count)
{
    const int N = 8;
    bool aligned = ((uintptr_t)source | (uintptr_t)target) % 16 == 0;
    unsigned blocks = decant_blocks_for(count, THREADS, aligned ? N : 1);
    if (aligned)
        convert_kernel<Source, Target, N>
            <<<blocks, THREADS, 0, stream>>>((const Source *)source, (Target *)target, count);
    else
        convert_kernel<Source, Target, 1>
            <<<blocks, THREADS, 0, stream>>>((const Source *)source, (Target *)target, count);
}

template <typename Source>
static void convert_to(cudaStream_t stream, const void *source, decant_element element, void *target,
                       int64_t count)
{
    switch (element) {
    case DECANT_F32:
        convert<Source, float>(stream, source, target, count);
        break;
    case DECANT_F16:
        convert<Source, __half>(stream, source, target, count);
        break;
    case DECANT_BF16:
        convert<Source, __nv_bfloat16>(stream, source, target, count);
        break;
    }
}

decant_status decant_cuda_convert(decant_backend *backend, cudaStream_t stream, decant_element source_element,
                                  const void *source, decant_element target_element, void *target,
                                  int64_t count, decant_error *err)
{
    if (count == 0)
        return DECANT_OK;
    switch (source_element) {
    case DECANT_F32:
        convert_to<float>(stream, source, target_element, target, count);
        break;
    case DECANT_F16:
        convert_to<__half>(stream, source, target_element, target, count);
        break;
    case DECANT_BF16:
        convert_to<__nv_bfloat16>(stream, source, target_element, target, count);
        break;
    }
    return decant_cuda_launched(backend, "convert", err);
}

decant_status decant_cuda_as_floats(decant_backend *backend, const decant_matrix *vectors, int count,
                                    const float **floats, decant_error *err)
{
    int64_t columns = vectors[0].columns, stride = (columns + 3) / 4 * 4; /* rows stay aligned to 16 bytes */
    void *scratch = nullptr;
    for (int i = 0; i < count; i++) {
        floats[i] = (const float *)vectors[i].data;
        if (vectors[i].element == DECANT_F32)
            continue;
        if (!scratch)
            DECANT_RETURN_ON_FAILURE(
                decant_cuda_scratch(backend, (size_t)(count * stride) * sizeof(float), &scratch, err));
        float *target = (float *)scratch + i * stride;
        floats[i] = target;
        DECANT_RETURN_ON_FAILURE(decant_cuda_convert(backend, decant_cuda_of(backend)->stream,
                                                     vectors[i].element, vectors[i].data, DECANT_F32, target,
                                                     columns, err));
    }
    return DECANT_OK;
}
