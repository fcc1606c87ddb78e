/* x Sᵀ for 1 to 32 tokens, S the CSR part of a packed matrix. An entry meets one value of each token, which in
 * x lie a row apart; so x is turned first. Then a block takes the entries of some rows (token_entries.cuh). */
#include "kernels/cuda/token_sparse.h"

#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/token_entries.cuh"
#include "kernels/cuda/token_turn.cuh"

enum {
    THREADS = 256,
    TURN_THREADS = 128,
    BLOCKS_EACH = 4,     /* to a multiprocessor */
    BLOCKS_WANTED = 256, /* where rows are not too few or too many */
    ROWS_LEAST = 8,      /* of a block */
    ROWS_MAXIMUM = 32,
};

/* ---- x, turned ---- */

typedef struct turn_call {
    const __nv_bfloat16 *x; /* [tokens, columns] */
    __nv_bfloat16 *turned;
    int tokens, columns;
} turn_call;

/* A thread takes eight tokens of a column. */
template <int TOKENS>
__global__ void __launch_bounds__(TURN_THREADS) turn_kernel(const __grid_constant__ turn_call call)
{
    constexpr int VECTORS = TOKENS / DECANT_VECTOR_TOKENS; /* of a column, each for another block */
    const int column = (int)(blockIdx.x / VECTORS * TURN_THREADS + threadIdx.x),
              first_token = (int)(blockIdx.x % VECTORS) * DECANT_VECTOR_TOKENS;
    decant_let_next_kernel_begin();
    decant_wait_for_earlier_kernels();
    if (column >= call.columns)
        return;
    decant_turn_vector(call.x, call.tokens, call.columns, TOKENS, column, first_token, call.turned);
}

size_t decant_turned_bytes(decant_matrix x)
{
    return (size_t)(x.columns * decant_turned_tokens(x.rows)) * sizeof(__nv_bfloat16);
}

decant_status decant_cuda_turn(decant_backend *backend, decant_matrix x, __nv_bfloat16 *turned,
                               decant_error *err)
{
    const turn_call call = {(const __nv_bfloat16 *)x.data, turned, (int)x.rows, (int)x.columns};
    const int tokens = decant_turned_tokens(x.rows);
    const unsigned blocks =
        (unsigned)((x.columns + TURN_THREADS - 1) / TURN_THREADS * tokens / DECANT_VECTOR_TOKENS);
    const auto kernel = tokens == 8 ? turn_kernel<8> : tokens == 16 ? turn_kernel<16> : turn_kernel<32>;
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(
        decant_launch_early(decant_cuda_context_of(backend), kernel, blocks, TURN_THREADS, 0, call), "turn",
        err));
    return decant_cuda_launched(backend, "turn", err);
}

/* ---- the product ---- */

typedef struct sparse_call {
    decant_packed_view packed;
    const __nv_bfloat16 *turned;
    float *products; /* [tokens, rows] */
    int tokens, block_rows;
} sparse_call;

template <int TOKENS>
__global__ void __launch_bounds__(THREADS, BLOCKS_EACH) entries_kernel(const __grid_constant__ sparse_call call)
{
    extern __shared__ __align__(16) float shared[];
    const decant_packed_view &packed = call.packed;
    const int first_row = (int)blockIdx.x * call.block_rows;
    decant_row_entries<THREADS, TOKENS> entries;
    decant_let_next_kernel_begin();
    entries.open(packed, first_row, min(call.block_rows, packed.rows - first_row), shared);
    decant_wait_for_earlier_kernels();
    entries.multiply(packed, first_row, call.turned, call.tokens, call.products);
}

size_t decant_token_sparse_bytes(decant_matrix x, const decant_packed_matrix *packed)
{
    size_t total = 0;
    decant_scratch_reserve(&total, decant_turned_bytes(x));
    decant_scratch_reserve(&total, (size_t)(x.rows * packed->rows) * sizeof(float));
    return total;
}

template <int TOKENS> static cudaError_t launch(decant_cuda_context *context, const sparse_call &call)
{
    const int blocks = (call.packed.rows + call.block_rows - 1) / call.block_rows;
    const size_t shared_bytes = (size_t)decant_row_entries<THREADS, TOKENS>::bytes(call.block_rows);
    return decant_launch_early(context, entries_kernel<TOKENS>, (unsigned)blocks, THREADS, shared_bytes, call);
}

decant_status decant_cuda_token_sparse(decant_backend *backend, decant_matrix x,
                                       const decant_packed_matrix *packed, void *scratch,
                                       const float **products, decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    size_t total = 0;
    const size_t turned_at = decant_scratch_reserve(&total, decant_turned_bytes(x));
    const size_t products_at = decant_scratch_reserve(&total, 0);
    __nv_bfloat16 *turned = (__nv_bfloat16 *)((char *)scratch + turned_at);
    float *target = (float *)((char *)scratch + products_at);
    DECANT_RETURN_ON_FAILURE(decant_cuda_turn(backend, x, turned, err));
    const int rows = (int)packed->rows, wanted = (rows + BLOCKS_WANTED - 1) / BLOCKS_WANTED;
    const int block_rows = wanted < ROWS_LEAST ? ROWS_LEAST : wanted < ROWS_MAXIMUM ? wanted : ROWS_MAXIMUM;
    const sparse_call call = {decant_packed_view_of(packed), turned, target, (int)x.rows, block_rows};
    const int tokens = decant_turned_tokens(x.rows);
    const cudaError_t code = tokens == 8    ? launch<8>(context, call)
                             : tokens == 16 ? launch<16>(context, call)
                                            : launch<32>(context, call);
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(code, "token_sparse", err));
    *products = target;
    return decant_cuda_launched(backend, "token_sparse", err);
}
