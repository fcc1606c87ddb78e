/* y = x ŵᵀ for several tokens in BF16, levels of up to four bits, as token_tiles.cuh says: a lane keeps the
 * levels of its two rows in registers, as bytes, and byte permutations look four codes up at a time, so that
 * nothing of the weights passes through shared memory but their bit planes.
 *
 * The planes of a word become four words of eight codes, four bits each; word n has columns n, n + 4, n + 8, …
 * of the 32. Four codes pick four lower and four upper bytes of their levels, which are then joined to two
 * pairs of F16: columns 8c + n and 8c + 4 + n.
 *
 * For the sparse part x is turned before, by token_sparse.cu. */
#include "kernels/cuda/token_sparse.h"
#include "kernels/cuda/token_tiles.cuh"

#include <algorithm>

enum { PLANES_MAXIMUM = 4 };

/* ---- levels in registers ---- */

/* The levels of one row: byte i % 4 of word i / 4 is the lower or upper byte of level i. */
template <int BITS> struct row_levels {
    static constexpr int WORDS = BITS == 4 ? 4 : 2;
    uint32_t lower[WORDS], upper[WORDS];
};

/* Levels i … i + 3 of a row. */
template <int BITS> static __device__ __forceinline__ uint2 levels_at(const tiles_call &call, int row, int i)
{
    return *(const uint2 *)(call.packed.levels + ((int64_t)row << BITS) + i);
}

template <int BITS>
static __device__ __forceinline__ void load_levels(row_levels<BITS> &levels, const tiles_call &call, int row)
{
#pragma unroll
    for (int i = 0; i < row_levels<BITS>::WORDS; i++) {
        levels.lower[i] = levels.upper[i] = 0;
        if (i * 4 >= 1 << BITS)
            continue;
        const uint2 four = levels_at<BITS>(call, min(row, call.packed.rows - 1), i * 4);
        levels.lower[i] = __byte_perm(four.x, four.y, 0x6420);
        levels.upper[i] = __byte_perm(four.x, four.y, 0x7531);
    }
}

/* Bytes of first and second as the lower four digits of `which` tell: 0 … 7, in digits of four bits. */
static __device__ __forceinline__ uint32_t permute(uint32_t first, uint32_t second, uint32_t which)
{
    uint32_t bytes;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(first), "r"(second), "r"(which));
    return bytes;
}

/* ---- codes ---- */

/* (bits & mask) | more, likewise. */
static __device__ __forceinline__ uint32_t mask_and_add(uint32_t bits, uint32_t mask, uint32_t more)
{
    uint32_t sum;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(sum) : "r"(bits), "r"(mask), "r"(more));
    return sum;
}

static __device__ __forceinline__ uint32_t shift_right(uint32_t value, uint32_t factor)
{
    return __umulhi(value, factor);
}

/* Eight codes, a digit of four bits each: those of columns n, n + 4, … of a word are codes n. A permutation
 * picks a byte by three bits; `which` tells for the fourth: digit i is i, or 4 + i where the code has it. */
template <int BITS> struct word_codes {
    uint32_t within[4], which[BITS == 4 ? 4 : 1];
};

template <int BITS>
static __device__ __forceinline__ void gather_codes(word_codes<BITS> &codes, const uint32_t (&planes)[BITS],
                                                    const shift_factors &shifts)
{
    const uint32_t ones = 0x55555555u, twos = 0x33333333u, fours = 0x44444444u, digits = 0x32103210u;
    const uint32_t even = decant_merge(ones, planes[0], planes[1] << 1);
    const uint32_t odd = decant_merge(ones, shift_right(planes[0], shifts.one), planes[1]);
    const uint32_t third = BITS > 2 ? planes[BITS > 2 ? 2 : 0] : 0;
    const uint32_t third_even = third & ones, third_odd = shift_right(third, shifts.one) & ones;
    codes.within[0] = decant_merge(twos, even, third_even * shifts.two_left);
    codes.within[1] = decant_merge(twos, odd, third_odd * shifts.two_left);
    codes.within[2] = decant_merge(twos, shift_right(even, shifts.two), third_even);
    codes.within[3] = decant_merge(twos, shift_right(odd, shifts.two), third_odd);
    if constexpr (BITS == 4) {
        const uint32_t fourth = planes[3];
        codes.which[0] = mask_and_add(fourth << 2, fours, digits);
        codes.which[1] = mask_and_add(fourth << 1, fours, digits);
        codes.which[2] = mask_and_add(fourth, fours, digits);
        codes.which[3] = mask_and_add(shift_right(fourth, shifts.one), fours, digits);
    }
}

/* The levels of codes n as pairs of F16: pairs[c] is of codes 2c and 2c + 1. */
template <int BITS>
static __device__ __forceinline__ void look_up(uint32_t (&pairs)[4], const word_codes<BITS> &codes, int n,
                                               const row_levels<BITS> &levels, const shift_factors &shifts)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const uint32_t own = half ? shift_right(codes.within[n], shifts.sixteen) : codes.within[n];
        uint32_t lower = permute(levels.lower[0], levels.lower[1], own);
        uint32_t upper = permute(levels.upper[0], levels.upper[1], own);
        if constexpr (BITS == 4) {
            const uint32_t which = half ? shift_right(codes.which[n], shifts.sixteen) : codes.which[n];
            lower = permute(lower, permute(levels.lower[2], levels.lower[3], own), which);
            upper = permute(upper, permute(levels.upper[2], levels.upper[3], own), which);
        }
        pairs[2 * half] = __byte_perm(lower, upper, 0x5140);
        pairs[2 * half + 1] = __byte_perm(lower, upper, 0x7362);
    }
}

/* ---- the decoder ---- */

static __device__ __forceinline__ uint32_t word_of(const uint4 &four, int word)
{
    return word == 0 ? four.x : word == 1 ? four.y : word == 2 ? four.z : four.w;
}

template <int BITS> struct level_decoder {
    static constexpr int PLANES = BITS;
    row_levels<BITS> levels[HALVES];

    __device__ __forceinline__ void load(const tiles_call &call, int first_row)
    {
#pragma unroll
        for (int half = 0; half < HALVES; half++)
            load_levels<BITS>(levels[half], call, first_row + half * 8 + (int)threadIdx.x % DECANT_WARP / 4);
    }

    /* Two words: four chunks each. */
    template <int TILES>
    __device__ __forceinline__ void add_step(float (&sums)[TILES][4], const unit_planes<BITS> &planes,
                                             const tiles_call &call, int step, const unsigned char *x)
    {
#pragma unroll
        for (int word = 0; word < 2; word++) {
            uint32_t pairs[HALVES][4][4];
#pragma unroll
            for (int half = 0; half < HALVES; half++) {
                uint32_t own[BITS];
                word_codes<BITS> codes;
#pragma unroll
                for (int bit = 0; bit < BITS; bit++)
                    own[bit] = word_of(planes.words[half][bit], step * 2 + word);
                gather_codes<BITS>(codes, own, call.shifts);
#pragma unroll
                for (int n = 0; n < 4; n++)
                    look_up<BITS>(pairs[half][n], codes, n, levels[half], call.shifts);
            }
#pragma unroll
            for (int chunk = 0; chunk < 4; chunk++) {
                const uint32_t first[4] = {pairs[0][0][chunk], pairs[1][0][chunk], pairs[0][1][chunk],
                                           pairs[1][1][chunk]};
                const uint32_t second[4] = {pairs[0][2][chunk], pairs[1][2][chunk], pairs[0][3][chunk],
                                            pairs[1][3][chunk]};
                multiply_chunk<TILES>(sums, first, second, word * 4 + chunk, x);
            }
        }
    }
};

/* ---- the calls ---- */

static cudaError_t launch_width(decant_cuda_context *context, const tiles_call &call)
{
    return call.packed.bits == 2   ? launch_tiles<level_decoder<2>>(context, call)
           : call.packed.bits == 3 ? launch_tiles<level_decoder<3>>(context, call)
                                   : launch_tiles<level_decoder<4>>(context, call);
}

bool decant_cuda_packed_has_tiles(decant_backend *backend, decant_matrix x, const decant_packed_matrix *packed)
{
    typedef level_decoder<PLANES_MAXIMUM> widest;
    const int most = std::max(BLOCK_BYTES<widest, 2>, BLOCK_BYTES<widest, 4>);
    return packed->bits <= PLANES_MAXIMUM && x.element == DECANT_BF16 && x.rows <= TOKENS_MAXIMUM &&
           decant_has_vectors<__nv_bfloat16>(x.columns, x.data) &&
           decant_cuda_of(backend)->shared_memory_bytes >= (size_t)most;
}

decant_status decant_cuda_packed_tiles(decant_backend *backend, decant_matrix x,
                                       const decant_packed_matrix *packed, bool sparse, bool accumulate,
                                       decant_matrix y, decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    tiles_call call = {};
    call.packed = decant_packed_view_of(packed);
    call.x = (const __nv_bfloat16 *)x.data;
    call.y = (__nv_bfloat16 *)y.data;
    call.tokens = (int)x.rows;
    call.accumulate = accumulate;
    size_t total = 0, parts_bytes;
    DECANT_RETURN_ON_FAILURE(prepare(context, &call, &parts_bytes, err));
    const size_t parts_at = decant_scratch_reserve(&total, parts_bytes);
    const size_t turned_at = decant_scratch_reserve(&total, sparse ? decant_turned_bytes(x) : 0);
    const size_t products_at =
        decant_scratch_reserve(&total, sparse ? (size_t)(x.rows * packed->rows) * sizeof(float) : 0);
    void *scratch;
    DECANT_RETURN_ON_FAILURE(decant_cuda_scratch(backend, total, &scratch, err));
    call.parts = (float *)((char *)scratch + parts_at);
    if (sparse) {
        __nv_bfloat16 *turned = (__nv_bfloat16 *)((char *)scratch + turned_at);
        DECANT_RETURN_ON_FAILURE(decant_cuda_turn(backend, x, turned, err));
        call.turned = turned;
        call.products = (float *)((char *)scratch + products_at);
    }
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(launch_width(context, call), "packed_tiles", err));
    return decant_cuda_launched(backend, "packed_tiles", err);
}
