/* What the benches of products of few tokens share: the shapes, the timing of launches in a CUDA graph over
 * weights that the L2 cache does not hold, and the 16-bit product that all are measured beside. Included once
 * by each. */
#ifndef DECANT_TESTS_DECODE_BENCH_CUH
#define DECANT_TESTS_DECODE_BENCH_CUH

#include "kernels/counter_random.h"
#include "kernels/cuda/context.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cuda_bf16.h>
#include <functional>
#include <vector>

enum { REPLAYS = 7, CHECKED_ROWS = 24, LAUNCHES_AT_LEAST = 32, COPIES_MAXIMUM = 64, THREADS = 256 };
static const double ROTATED_BYTES = 320e6;
static const int SHAPES[][2] = {{4096, 4096}, {11008, 4096}, {4096, 11008},
                                {8192, 8192}, {22016, 8192}, {8192, 22016}};

#define MUST(call)                                                                                             \
    do {                                                                                                       \
        const int code_ = (int)(call);                                                                         \
        if (code_ != 0) {                                                                                      \
            fprintf(stderr, "%s: %s: code %d\n", program_invocation_short_name, #call, code_);                 \
            exit(1);                                                                                           \
        }                                                                                                      \
    } while (0)

/* What each of them holds; weights: the 16-bit ones of all copies. */
typedef struct decode_bench {
    decant_backend *backend;
    cudaStream_t stream;
    __nv_bfloat16 *weights;
    void *x_data, *y_data;
    std::vector<__nv_bfloat16> x;
} decode_bench;

static void *to_device(const void *host, size_t bytes)
{
    void *device;
    MUST(cudaMalloc(&device, bytes));
    MUST(cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice));
    return device;
}

/* ---- random numbers that depend on their index alone ---- */

[[maybe_unused]] static __host__ __device__ uint64_t mix(uint64_t index)
{
    index = (index + 0x9e3779b97f4a7c15u) * 0xbf58476d1ce4e5b9u; /* splitmix64 */
    index = (index ^ index >> 27) * 0x94d049bb133111ebu;
    return index ^ index >> 31;
}

[[maybe_unused]] static __host__ __device__ float
normal_value(uint64_t index) /* near enough: a sum of eight uniform numbers */
{
    const uint64_t bits = mix(index);
    float sum = 0;
    for (int i = 0; i < 8; i++)
        sum += (float)(bits >> 8 * i & 255u);
    return (sum - 1020.0f) / 209.0f;
}

[[maybe_unused]] static __global__ void fill_words(uint64_t *words, int64_t count)
{
    for (int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x; i < count; i += (int64_t)gridDim.x * THREADS)
        words[i] = mix((uint64_t)i);
}

[[maybe_unused]] static __global__ void fill_weights(__nv_bfloat16 *weights, int64_t count)
{
    for (int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x; i < count; i += (int64_t)gridDim.x * THREADS)
        weights[i] = __float2bfloat16_rn(0.02f * normal_value((uint64_t)i));
}

/* Random words whose bits are those of `random` alone, and those of `fixed`: 16-bit numbers that are neither
 * large nor undefined, or any words. */
enum : uint32_t {
    NUMBERS_RANDOM = 0x807f807fu,
    NUMBERS_FIXED = 0x3c003c00u,
    WORDS_RANDOM = ~0u,
    WORDS_FIXED = 0
};

__global__ void random_words_kernel(uint32_t *words, int64_t count, uint32_t random, uint32_t fixed)
{
    for (int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x; i < count; i += (int64_t)gridDim.x * THREADS)
        words[i] = ((uint32_t)decant_random_bits(1, 0, (uint64_t)i) & random) | fixed;
}

[[maybe_unused]] static void *make_random(decode_bench *b, size_t bytes, uint32_t random, uint32_t fixed)
{
    void *device;
    MUST(cudaMalloc(&device, bytes));
    random_words_kernel<<<2048, THREADS, 0, b->stream>>>((uint32_t *)device, (int64_t)(bytes / 4), random,
                                                         fixed);
    MUST(cudaGetLastError());
    return device;
}

/* A graph of `launches` of them, one behind the other, behind one that has ended. */
static cudaGraphExec_t graph_of(decode_bench *b, int launches, const std::function<void(int)> &launch)
{
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    launch(0);
    MUST(cudaStreamSynchronize(b->stream));
    MUST(cudaStreamBeginCapture(b->stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < launches; i++)
        launch(i);
    MUST(cudaStreamEndCapture(b->stream, &graph));
    MUST(cudaGraphInstantiate(&executable, graph, 0));
    MUST(cudaGraphDestroy(graph));
    return executable;
}

/* Microseconds of a launch: the median replay of a graph of `launches` of them. */
static double time_us(decode_bench *b, int launches, const std::function<void(int)> &launch)
{
    cudaEvent_t begin, end;
    MUST(cudaEventCreate(&begin));
    MUST(cudaEventCreate(&end));
    cudaGraphExec_t executable = graph_of(b, launches, launch);
    std::vector<float> times;
    for (int i = 0; i < REPLAYS + 2; i++) {
        float ms;
        MUST(cudaEventRecord(begin, b->stream));
        MUST(cudaGraphLaunch(executable, b->stream));
        MUST(cudaEventRecord(end, b->stream));
        MUST(cudaEventSynchronize(end));
        MUST(cudaEventElapsedTime(&ms, begin, end));
        if (i >= 2)
            times.push_back(ms);
    }
    std::sort(times.begin(), times.end());
    MUST(cudaGraphExecDestroy(executable));
    MUST(cudaEventDestroy(begin));
    MUST(cudaEventDestroy(end));
    return 1e3 * times[times.size() / 2] / launches;
}

/* So many copies of a matrix do not fit the L2 cache several times. */
static int copies_of(double bytes)
{
    return (int)std::min<double>(COPIES_MAXIMUM, ROTATED_BYTES / bytes + 2);
}

static void require(decant_status status, const decant_error *err)
{
    if (status == DECANT_OK)
        return;
    fprintf(stderr, "%s: %s\n", program_invocation_short_name, err->message);
    exit(1);
}

/* Bytes of all copies of the 16-bit weights of the largest shape. */
[[maybe_unused]] static size_t weights_bytes(void)
{
    size_t most = 0;
    for (const auto &shape : SHAPES) {
        const size_t bytes = 2 * (size_t)shape[0] * (size_t)shape[1];
        most = std::max(most, bytes * (size_t)copies_of((double)bytes));
    }
    return most;
}

/* The 16-bit product. */
static void multiply_dense(decode_bench *b, decant_matrix x, decant_matrix weight)
{
    decant_error err;
    const decant_matrix y = {b->y_data, DECANT_BF16, x.rows, weight.rows};
    require(b->backend->model->linear(b->backend, x, weight, false, y, &err), &err);
}

/* Microseconds of what multiplies by 16-bit weights, another copy each time. */
static double time_weights(decode_bench *b, int rows, int columns,
                           const std::function<void(decant_matrix weight)> &multiply)
{
    const int copies = copies_of(2.0 * rows * columns);
    return time_us(b, std::max<int>(copies, LAUNCHES_AT_LEAST), [&](int i) {
        multiply({b->weights + (int64_t)(i % copies) * rows * columns, DECANT_BF16, rows, columns});
    });
}

/* Microseconds of the 16-bit product. */
[[maybe_unused]] static double time_dense(decode_bench *b, int rows, int columns, int tokens)
{
    return time_weights(b, rows, columns, [&](decant_matrix weight) {
        multiply_dense(b, {b->x_data, DECANT_BF16, tokens, columns}, weight);
    });
}

static std::vector<int> read_list(const char *text)
{
    std::vector<int> numbers;
    for (char *end; *text; text = *end ? end + 1 : end)
        numbers.push_back((int)strtol(text, &end, 10));
    return numbers;
}

#endif
