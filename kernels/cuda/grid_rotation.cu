/* Tokens rotated ahead of their product, as operands of tensor cores. See grid_rotation.cuh. */
#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/grid_rotation.cuh"

enum {
    ROTATE_THREADS = 1024,
    ROTATE_COLUMNS = 2048, /* of a block at least */
};

/* A block rotates some whole pieces of a token. */
__global__ void __launch_bounds__(ROTATE_THREADS)
    rotate_tokens_kernel(const __grid_constant__ token_rotation call)
{
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ int parts[ROTATE_THREADS / DECANT_WARP];
    __shared__ uint64_t drawn[ROTATION_MAXIMUM / SIGN_COLUMNS + 2];
    const int token = (int)blockIdx.x % call.tokens, run = (int)blockIdx.x / call.tokens;
    const int runs = (int)gridDim.x / call.tokens;
    decant_let_next_kernel_begin();
    draw_signs(call, run, runs, drawn);
    decant_wait_for_earlier_kernels();
    rotate_run(call, token, run, runs, (float *)shared, drawn, parts);
}

cudaError_t decant_cuda_rotate_tokens(const decant_cuda_context *context, const token_rotation &call)
{
    const int piece = 1 << (call.rotation_bits < OCTET_BITS ? OCTET_BITS : call.rotation_bits);
    const int pieces = call.columns / piece, each = piece < ROTATE_COLUMNS ? ROTATE_COLUMNS / piece : 1;
    const int runs = (pieces + each - 1) / each, longest = (pieces + runs - 1) / runs * piece;
    return decant_launch_early(context, rotate_tokens_kernel, (unsigned)(runs * call.tokens), ROTATE_THREADS,
                               (size_t)work_place(longest) * sizeof(float), call);
}
