/* Where the blocks of a step's launches come to lie when each begins early (early_launch.cuh): a layer of four
 * products, a block for each multiprocessor, and attention, in clusters of four, behind the first of them. All
 * only wait: on the launch ahead, then for about as long as they do in a step.
 *
 *     pairs   products of which any two fit a multiprocessor
 *     turns   o and down take more than half of the shared memory, the others more than half of the
 *             registers: two of a kind never share a multiprocessor (step_block.cuh)
 *     late    as pairs, but nothing begins before attention has ended
 *
 * For each launch of a layer: multiprocessors that have two blocks or more of it, on average; microseconds from
 * the end of the launch ahead to its own end. usage: bench_placement */
#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/hopper.cuh"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

enum { LAYERS = 24, KINDS = 5, THREADS = 256, BLOCKS_MOST = 160, LAUNCHES = LAYERS * KINDS };

static void must(cudaError_t code, const char *what)
{
    if (code == cudaSuccess)
        return;
    fprintf(stderr, "bench_placement: %s: %s\n", what, cudaGetErrorString(code));
    exit(1);
}

typedef struct block_note {
    unsigned multiprocessor;
    unsigned long long begin, ready, end; /* nanoseconds */
} block_note;

typedef struct wait_call {
    block_note *notes; /* of the launch's blocks */
    unsigned cycles;   /* of work behind the wait */
    bool early, never;
} wait_call;

static __device__ __forceinline__ unsigned long long now_ns(void)
{
    unsigned long long time;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(time));
    return time;
}

static __device__ __forceinline__ void wait_a_while(const wait_call &call)
{
    const unsigned long long begin = now_ns();
    if (call.early)
        decant_let_next_kernel_begin();
    decant_wait_for_earlier_kernels();
    const unsigned long long ready = now_ns();
    const long long first = clock64();
    while (clock64() - first < call.cycles)
        ;
    if (threadIdx.x == 0) {
        unsigned multiprocessor;
        asm volatile("mov.u32 %0, %smid;" : "=r"(multiprocessor));
        call.notes[blockIdx.x] = {multiprocessor, begin, ready, now_ns()};
    }
}

/* A kernel that takes all its registers, because it might change their number. */
template <int REGISTERS>
__global__ void __maxnreg__(REGISTERS) waiting_kernel(const __grid_constant__ wait_call call)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    if (call.never)
        decant_registers_lower<REGISTERS>();
#endif
    wait_a_while(call);
}

static const char *const NAMES[KINDS] = {"q, k, v", "attention", "o", "gate, up", "down"};

static void issue_layers(const decant_cuda_context *context, const char *way, block_note *notes)
{
    static const double us[KINDS] = {6, 2, 3, 11, 6};
    const bool turns = strcmp(way, "turns") == 0, late = strcmp(way, "late") == 0;
    for (int launch = 0; launch < LAUNCHES; launch++) {
        const int kind = launch % KINDS;
        const bool attention = kind == 1, adds = kind == 2 || kind == 4;
        void (*kernel)(wait_call) = attention        ? waiting_kernel<96>
                                    : turns && !adds ? waiting_kernel<136>
                                                     : waiting_kernel<120>;
        const wait_call call = {notes + launch * BLOCKS_MOST, (unsigned)(us[kind] * 1700), !(attention && late),
                                false};
        const size_t bytes = attention ? 9 << 10 : turns && adds ? 115 << 10 : 104 << 10;
        must(decant_keep_shared_memory(kernel), "shared memory");
        must(decant_launch_early(context, kernel, attention ? 128 : (unsigned)context->shared.multiprocessors,
                                 THREADS, bytes, call, attention ? 4 : 1),
             "a launch");
    }
}

/* The mean over layers, the first ones left out. */
static void print_notes(const char *way, const std::vector<block_note> &notes, int multiprocessors,
                        float step_us)
{
    printf("%-6s %6.2f us a layer\n", way, step_us / LAYERS);
    for (int kind = 0; kind < KINDS; kind++) {
        double doubled = 0, us = 0, lead_us = 0, worst = 0;
        int layers = 0;
        for (int launch = kind + 2 * KINDS; launch < LAUNCHES; launch += KINDS, layers++) {
            std::vector<int> blocks(1024);
            unsigned long long before = 0, end = 0, last_begin = 0, first_begin = ~0ull;
            for (int i = 0; i < (kind == 1 ? 128 : multiprocessors); i++) {
                const block_note &note = notes[launch * BLOCKS_MOST + i];
                blocks[note.multiprocessor]++;
                end = std::max(end, note.end);
                last_begin = std::max(last_begin, note.begin);
                first_begin = std::min(first_begin, note.begin);
            }
            for (int i = 0; i < BLOCKS_MOST; i++)
                before = std::max(before, notes[(launch - 1) * BLOCKS_MOST + i].end);
            int twice = 0;
            for (int count : blocks)
                twice += count > 1;
            doubled += twice;
            worst = std::max(worst, (double)twice);
            us += (double)(end - before) * 1e-3;
            lead_us += ((double)before - (double)last_begin) * 1e-3;
        }
        printf(
            "  %-10s %5.1f doubled (at most %3.0f), %6.2f us; its last block begins %5.2f us before the end of "
            "the launch ahead\n",
            NAMES[kind], doubled / layers, worst, us / layers, lead_us / layers);
    }
}

int main(void)
{
    decant_cuda_context context = {};
    cudaDeviceProp properties;
    must(cudaGetDeviceProperties(&properties, 0), "the device");
    context.capability = 10 * properties.major + properties.minor;
    context.shared.multiprocessors = properties.multiProcessorCount;
    context.shared.shared_memory_bytes = properties.sharedMemPerBlockOptin;
    must(cudaStreamCreateWithFlags(&context.shared.stream, cudaStreamNonBlocking), "a stream");
    block_note *notes;
    must(cudaMalloc(&notes, sizeof *notes * LAUNCHES * BLOCKS_MOST), "memory");
    must(cudaMemset(notes, 0, sizeof *notes * LAUNCHES * BLOCKS_MOST), "memory");
    for (const char *way : {"pairs", "turns", "late"}) {
        cudaGraph_t graph;
        cudaGraphExec_t replay;
        cudaEvent_t begin, end;
        std::vector<block_note> host(LAUNCHES * BLOCKS_MOST);
        float ms;
        must(cudaEventCreate(&begin), "an event");
        must(cudaEventCreate(&end), "an event");
        must(cudaStreamBeginCapture(context.shared.stream, cudaStreamCaptureModeThreadLocal), "a graph");
        issue_layers(&context, way, notes);
        must(cudaStreamEndCapture(context.shared.stream, &graph), "a graph");
        must(cudaGraphInstantiate(&replay, graph, 0), "a graph");
        for (int run = 0; run < 3; run++) {
            must(cudaEventRecord(begin, context.shared.stream), "an event");
            must(cudaGraphLaunch(replay, context.shared.stream), "a graph");
            must(cudaEventRecord(end, context.shared.stream), "an event");
            must(cudaStreamSynchronize(context.shared.stream), "the work");
        }
        must(cudaEventElapsedTime(&ms, begin, end), "an event");
        must(cudaMemcpy(host.data(), notes, sizeof *notes * host.size(), cudaMemcpyDefault), "notes");
        print_notes(way, host, properties.multiProcessorCount, ms * 1e3f);
    }
    return 0;
}
