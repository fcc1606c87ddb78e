/* Puts the codes of a matrix on a grid into the order of its products (grid_arranged.cuh), in place: a tile of
 * rows takes the same bytes in both orders, so each block brings one to shared memory and writes it back. */
#include "kernels/cuda/grid.cuh"
#include "kernels/cuda/grid_arranged.cuh"
#include "kernels/cuda/grid_rotation.cuh"

enum { THREADS = 256 };

/* tile   [rows, bits, words], of this block
 * codes  of an octet of columns */
template <int BITS>
static __device__ __forceinline__ void arrange_tile(uint32_t *tile, int words, int codes_of_octet,
                                                    uint32_t *own)
{
    const int count = ARRANGED_ROWS * BITS * words;
    for (int i = threadIdx.x; i < count; i += THREADS)
        own[i] = tile[i];
    __syncthreads();
    for (int i = threadIdx.x; i < ARRANGED_ROWS * words; i += THREADS) {
        const int unit = i / ARRANGED_LANES, lane = i % ARRANGED_LANES;
        const uint32_t *row = own + lane / ARRANGED_WORDS * BITS * words;
        uint32_t planes[BITS], packed[BITS];
        word_codes<BITS> codes;
#pragma unroll
        for (int bit = 0; bit < BITS; bit++) {
            const uint32_t *of_unit = row + bit * words + unit * ARRANGED_WORDS;
            const uint32_t four[ARRANGED_WORDS] = {of_unit[0], of_unit[1], of_unit[2], of_unit[3]};
            planes[bit] = arranged_bits(four, lane % ARRANGED_WORDS, codes_of_octet);
        }
        gather_codes<BITS>(codes, planes);
        pack_codes<BITS>(packed, codes.low);
#pragma unroll
        for (int k = 0; k < BITS; k++)
            tile[unit * ARRANGED_LANES * BITS + arranged_place(BITS, lane, k)] = packed[k];
    }
}

__global__ void __launch_bounds__(THREADS)
    arrange_kernel(uint32_t *planes, int bits, int words, int codes_of_octet)
{
    extern __shared__ uint32_t shared[];
    uint32_t *tile = planes + (int64_t)blockIdx.x * ARRANGED_ROWS * bits * words;
    by_bits(bits, [&](auto constant) {
        arrange_tile<decltype(constant)::value>(tile, words, codes_of_octet, shared);
    });
}

static size_t tile_bytes(const decant_grid_matrix *matrix)
{
    return (size_t)(ARRANGED_ROWS * matrix->form.code_bits *
                    decant_grid_words(matrix->columns, matrix->form.dimension)) *
           sizeof(uint32_t);
}

/* Whether there are products for it that read faster so. In those of several tokens blocks wait for each other
 * (grid_runs.cuh), so all have to run at once; beside kernels of other processes they might not. */
static bool gains(const decant_backend *backend, const decant_grid_matrix *matrix)
{
    const decant_cuda_context *context = (const decant_cuda_context *)backend->state;
    const decant_grid_form *form = &matrix->form;
    const int64_t words = decant_grid_words(matrix->columns, form->dimension);
    const bool stretches_share_scales = form->group >= matrix->columns || form->group % STRETCH_COLUMNS == 0;
    return context->has_wgmma && !context->runs_beside_others && backend->activation == DECANT_BF16 &&
           has_arranged_form(form) && stretches_share_scales && form->rotation <= ROTATION_MAXIMUM &&
           matrix->rows % ARRANGED_ROWS == 0 && words % ARRANGED_WORDS == 0 &&
           (uintptr_t)matrix->planes % 16 == 0 && tile_bytes(matrix) <= context->shared.shared_memory_bytes;
}

decant_status decant_cuda_grid_arrange(decant_backend *backend, decant_grid_matrix *matrix, decant_error *err)
{
    const decant_cuda *cuda = decant_cuda_of(backend);
    const size_t bytes = tile_bytes(matrix);
    if (matrix->arranged || matrix->rows == 0 || !gains(backend, matrix))
        return DECANT_OK;
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(
        cudaFuncSetAttribute(arrange_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes),
        "shared memory of a kernel", err));
    arrange_kernel<<<(unsigned)(matrix->rows / ARRANGED_ROWS), THREADS, bytes, cuda->stream>>>(
        matrix->planes, matrix->form.code_bits, (int)decant_grid_words(matrix->columns, matrix->form.dimension),
        OCTET / matrix->form.dimension);
    DECANT_RETURN_ON_FAILURE(decant_cuda_launched(backend, "grid_arrange", err));
    matrix->arranged = true;
    return backend->memory->synchronize(backend, err); /* products read codes before earlier work is done */
}
