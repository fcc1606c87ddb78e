/* Rotary position embedding, in place: component i of a head's first half turns with component i of its second.
 */
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/operations.h"

enum { THREADS = 256 };

/* A thread turns N pairs of one head at one token. direction is 1, or −1 to turn back. */
template <typename T, int N>
__global__ void __launch_bounds__(THREADS) rotary_kernel(T *x, int heads, int half, const float *cosines,
                                                         const float *sines, float direction, int64_t pairs)
{
    int64_t pair = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * N;
    if (pair >= pairs)
        return;
    int64_t head = pair / half, token = head / heads;
    int i = (int)(pair - head * half);
    T *first = x + head * 2 * half + i, *second = first + half;
    float a[N], b[N], cosine[N], sine[N];
    decant_load(first, a);
    decant_load(second, b);
    decant_load(cosines + token * half + i, cosine);
    decant_load(sines + token * half + i, sine);
#pragma unroll
    for (int j = 0; j < N; j++) {
        float s = direction * sine[j], turned = a[j] * cosine[j] - b[j] * s;
        b[j] = b[j] * cosine[j] + a[j] * s;
        a[j] = turned;
    }
    decant_store(first, a);
    decant_store(second, b);
}

decant_status decant_cuda_rotary(decant_backend *backend, decant_matrix x, int heads, const float *cosines,
                                 const float *sines, bool inverse, decant_error *err)
{
    int64_t pairs = x.rows * x.columns / 2;
    if (pairs == 0)
        return DECANT_OK;
    return decant_by_activation(backend, [&](auto activation) {
        using T = decltype(activation);
        const int N = DECANT_VECTOR<T>;
        cudaStream_t stream = decant_cuda_of(backend)->stream;
        T *target = (T *)x.data;
        int half = (int)(x.columns / heads / 2);
        float direction = inverse ? -1.0f : 1.0f;
        bool vectors = decant_has_vectors<T>(half, target, cosines, sines);
        int64_t per_block = (int64_t)THREADS * (vectors ? N : 1);
        unsigned blocks = (unsigned)((pairs + per_block - 1) / per_block);
        if (vectors)
            rotary_kernel<T, N>
                <<<blocks, THREADS, 0, stream>>>(target, heads, half, cosines, sines, direction, pairs);
        else
            rotary_kernel<T, 1>
                <<<blocks, THREADS, 0, stream>>>(target, heads, half, cosines, sines, direction, pairs);
        return decant_cuda_launched(backend, "rotary", err);
    });
}
