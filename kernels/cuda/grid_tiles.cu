/* y = x ŵᵀ for up to 32 rotated tokens in BF16 and a matrix on a grid with one scale a row, as token_tiles.cuh
 * says.
 *
 * Of a grid of single numbers, up to four bits, a row's scale makes levels of the points: packed_tiles.cu has
 * the decoder. Of a grid of pairs, up to eight bits, a code is the number of an operand's word, both of whose
 * BF16 are neighbouring columns: it is looked up in a table of the grid, which all rows share, in shared
 * memory, and the row's scale multiplies the sum. The table is there once for each lane, so that a lane reads
 * its own bank whatever its code.
 *
 * The planes of a word become eight words of four codes, a byte each: byte i of bytes[n][e] is code 8i + 4e +
 * n. */
#include "kernels/cuda/grid_tiles.h"

#include "kernels/cuda/token_tiles.cuh"

enum { PLANES_MAXIMUM = 8, ENTRY_BYTES = 256, DIGIT_PLANES = 4 };

/* ---- codes ---- */

/* Digits of four bits of the codes n, n + 4, … of a word; planes beyond `count` are zeros. */
template <int PLANES>
static __device__ __forceinline__ void gather_digits(uint32_t (&digits)[4], const unit_planes<PLANES> &planes,
                                                     int half, int word, int first)
{
    const uint32_t ones = 0x55555555u, twos = 0x33333333u;
    uint32_t own[DIGIT_PLANES];
#pragma unroll
    for (int i = 0; i < DIGIT_PLANES; i++)
        own[i] = first + i < PLANES ? word_of(planes.words[half][first + i < PLANES ? first + i : 0], word) : 0;
    const uint32_t even = merge(ones, own[0], own[1] << 1), odd = merge(ones, own[0] >> 1, own[1]);
    const uint32_t upper_even = merge(ones, own[2], own[3] << 1), upper_odd = merge(ones, own[2] >> 1, own[3]);
    digits[0] = merge(twos, even, upper_even << 2);
    digits[1] = merge(twos, odd, upper_odd << 2);
    digits[2] = merge(twos, even >> 2, upper_even);
    digits[3] = merge(twos, odd >> 2, upper_odd);
}

template <int PLANES>
static __device__ __forceinline__ void gather_bytes(uint32_t (&bytes)[4][2], const unit_planes<PLANES> &planes,
                                                    int half, int word)
{
    const uint32_t fours = 0x0f0f0f0fu;
    uint32_t lower[4], upper[4] = {};
    gather_digits<PLANES>(lower, planes, half, word, 0);
    if (PLANES > DIGIT_PLANES)
        gather_digits<PLANES>(upper, planes, half, word, DIGIT_PLANES);
#pragma unroll
    for (int n = 0; n < 4; n++) {
        bytes[n][0] = merge(fours, lower[n], upper[n] << 4);
        bytes[n][1] = merge(fours, lower[n] >> 4, upper[n]);
    }
}

/* ---- the decoder ---- */

template <int PLANES_OF_CODES> struct point_decoder {
    static constexpr int PLANES = PLANES_OF_CODES, STEPS = 4, BLOCKS = 1;
    static constexpr int SHARED_BYTES = ENTRY_BYTES << PLANES;
    static constexpr bool APART = false, SCALED = true;

    __device__ __forceinline__ void load(const tiles_call &call, int, unsigned char *shared)
    {
        const int words = DECANT_WARP << call.packed.bits;
        for (int i = threadIdx.x; i < words; i += THREADS) {
            const int entry = i / DECANT_WARP, lane = i % DECANT_WARP;
            *(uint32_t *)(shared + entry * ENTRY_BYTES + lane * 4) =
                decant_pair(call.points[2 * entry], call.points[2 * entry + 1]);
        }
    }

    /* A word: eight chunks of four codes. */
    template <int TILES>
    __device__ __forceinline__ void add_step(float (&sums)[TILES][4], const unit_planes<PLANES> &planes,
                                             const tiles_call &, int step, const unsigned char *x,
                                             const unsigned char *shared)
    {
        const uint32_t lane = threadIdx.x % DECANT_WARP;
        uint32_t bytes[HALVES][4][2];
#pragma unroll
        for (int half = 0; half < HALVES; half++)
            gather_bytes<PLANES>(bytes[half], planes, half, step);
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
            uint32_t pairs[4][HALVES];
#pragma unroll
            for (int n = 0; n < 4; n++)
#pragma unroll
                for (int half = 0; half < HALVES; half++) { /* an entry is 256 bytes, a lane's word at 4 lane */
                    const uint32_t place =
                        __byte_perm(bytes[half][n][chunk % 2], 4 * lane, 0x5504u | (uint32_t)(chunk / 2) << 4);
                    pairs[n][half] = *(const uint32_t *)(shared + place);
                }
            const uint32_t first[4] = {pairs[0][0], pairs[0][1], pairs[1][0], pairs[1][1]};
            const uint32_t second[4] = {pairs[2][0], pairs[2][1], pairs[3][0], pairs[3][1]};
            multiply_chunk<TILES>(sums, first, second, chunk, x);
        }
    }
};

/* ---- the calls ---- */

bool decant_cuda_grid_has_tiles(decant_backend *backend, decant_matrix x, const decant_grid_matrix *matrix)
{
    const decant_grid_form *form = &matrix->form;
    const bool one_scale = form->group >= matrix->columns;
    const bool decodes = form->dimension == 1
                             ? form->code_bits <= 4
                             : form->dimension == 2 && form->code_bits <= PLANES_MAXIMUM && !form->has_offsets;
    return decodes && one_scale && x.element == DECANT_BF16 && x.rows <= TOKENS_MAXIMUM &&
           decant_has_vectors<__nv_bfloat16>(x.columns, x.data) &&
           decant_cuda_of(backend)->shared_memory_bytes >=
               (size_t)SHARED_BYTES<point_decoder<PLANES_MAXIMUM>, 4>;
}

static tiles_call call_of(const decant_grid_matrix *matrix, const float *points, int tokens)
{
    const decant_grid_view view = decant_grid_view_of(matrix, points);
    tiles_call call = {};
    call.packed.planes = view.planes;
    call.packed.rows = view.rows;
    call.packed.columns = view.columns;
    call.packed.bits = view.code_bits;
    call.packed.words = view.words;
    call.points = points;
    call.scales = view.scales;
    call.offsets = view.offsets;
    call.waits = true; /* nobody promised that the weights are complete */
    call.tokens = tokens;
    return call;
}

decant_status decant_cuda_grid_tiles_scratch(decant_backend *backend, decant_matrix x,
                                             const decant_grid_matrix *matrix, size_t *size_bytes,
                                             decant_error *err)
{
    tiles_call call = call_of(matrix, NULL, (int)x.rows);
    return prepare(decant_cuda_context_of(backend), &call, size_bytes, err);
}

decant_status decant_cuda_grid_tiles(decant_backend *backend, decant_matrix x, const decant_grid_matrix *matrix,
                                     const float *points, void *scratch, bool accumulate, decant_matrix y,
                                     decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    tiles_call call = call_of(matrix, points, (int)x.rows);
    call.x = (const __nv_bfloat16 *)x.data;
    call.y = (__nv_bfloat16 *)y.data;
    call.accumulate = accumulate;
    call.parts = (float *)scratch;
    size_t parts_bytes;
    DECANT_RETURN_ON_FAILURE(prepare(context, &call, &parts_bytes, err));
    const int bits = call.packed.bits;
    const cudaError_t code = matrix->form.dimension == 1 ? decant_launch_level_tiles(context, &call)
                             : bits <= 4                 ? launch_tiles<point_decoder<4>>(context, call)
                             : bits <= 6                 ? launch_tiles<point_decoder<6>>(context, call)
                                                         : launch_tiles<point_decoder<8>>(context, call);
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(code, "grid_tiles", err));
    return decant_cuda_launched(backend, "grid_tiles", err);
}
