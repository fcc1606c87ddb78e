/* The codes of a block of packed_parities.cu on their way to its rings in shared memory: how planes may lie in
 * memory, where a warp's next unit is, and the copies that bring it. Knows nothing of x, of levels, nor of how
 * long a ring is. */
#ifndef DECANT_KERNELS_CUDA_PARITY_CODES_CUH
#define DECANT_KERNELS_CUDA_PARITY_CODES_CUH

#include "kernels/cuda/packed.cuh"
#include "kernels/cuda/parity_block.cuh"
#include "kernels/cuda/tensor_core.cuh"

/* How planes lie: rows of them, to be read by words or sixteen bytes at a time, or arranged (packed.cuh): then
 * a unit lies as it will in a slot, and the units of a tile follow each other. */
enum planes_form { PLANES_BY_WORDS, PLANES_BY_ROWS, PLANES_ARRANGED };

template <planes_form FORM> struct form_constant {
    static constexpr planes_form value = FORM;
};

/* For the host: launch(form_constant) of the kernel for planes that lie so. */
template <typename Launch> static cudaError_t by_form(planes_form form, const Launch &launch)
{
    switch (form) {
    case PLANES_BY_WORDS:
        return launch(form_constant<PLANES_BY_WORDS>());
    case PLANES_BY_ROWS:
        return launch(form_constant<PLANES_BY_ROWS>());
    default:
        return launch(form_constant<PLANES_ARRANGED>());
    }
}

static_assert((int)UNIT_WORDS == (int)DECANT_PIECE_WORDS && (int)TILE_ROWS == (int)DECANT_GROUP_ROWS,
              "a unit is a piece of a group of rows");

/* Where the next unit that a warp fetches is. */
typedef struct plane_source {
    const uint32_t *words; /* a lane's, of the first that the warp brings its team */
    int tile, unit;        /* of the block, of the tile */
} plane_source;

/* Words of an arranged unit, and between its planes. */
template <int BITS> constexpr int ARRANGED_WORDS = UNIT_BYTES<BITS> / 4;
enum { ARRANGED_PLANE_WORDS = OPERAND_BYTES / 4 };

template <int BITS, planes_form FORM>
static __device__ __forceinline__ plane_source source_of(const decant_packed_view &packed,
                                                         const block_share &share, int tile, int unit)
{
    const int lane = threadIdx.x % DECANT_WARP, member = threadIdx.x / DECANT_WARP % TEAM<BITS>;
    if constexpr (FORM == PLANES_ARRANGED)
        return {packed.planes + (int64_t)(share.first_tile + tile) * TILE_ROWS * BITS * packed.words +
                    unit * ARRANGED_WORDS<BITS> + member * ARRANGED_PLANE_WORDS + lane * LANE_WORDS,
                tile, unit};
    const int row = min((share.first_tile + tile) * TILE_ROWS + lane / 4, packed.rows - 1);
    const int word = unit * UNIT_WORDS + lane % 4 * LANE_WORDS;
    return {packed.planes + ((int64_t)row * BITS + member) * packed.words + word, tile, unit};
}

/* ONCE: what is copied is the first to make room in the L2 cache. */
template <bool ONCE>
static __device__ __forceinline__ void copy_codes(uint32_t target, const uint32_t *source, bool valid)
{
    if constexpr (ONCE)
        decant_copy_line_once_16(target, source, valid);
    else
        decant_copy_line_16(target, source, valid);
}

/* Starts copying a lane's words of one unit to its place in a slot and goes on to the next. */
template <int BITS, planes_form FORM, bool ONCE>
static __device__ __forceinline__ void fetch_unit(const decant_packed_view &packed, const block_share &share,
                                                  plane_source &source, uint32_t target)
{
    constexpr int STEP = TEAM<BITS>;
    const int member = threadIdx.x / DECANT_WARP % STEP;
    const int left = packed.words - (source.unit * UNIT_WORDS + (int)threadIdx.x % 4 * LANE_WORDS);
    const int plane_words = FORM == PLANES_ARRANGED ? (int)ARRANGED_PLANE_WORDS : packed.words;
    const uint32_t *words = source.words;
    target += member * OPERAND_BYTES;
#pragma unroll
    for (int bit = 0; bit < BITS; bit += STEP, words += STEP * plane_words) {
        if constexpr (FORM == PLANES_BY_WORDS) {
#pragma unroll
            for (int i = 0; i < LANE_WORDS; i++)
                decant_copy_4(target + bit * OPERAND_BYTES + i * 4, i < left ? words + i : packed.planes,
                              i < left);
        } else {
            copy_codes<ONCE>(target + bit * OPERAND_BYTES, words, FORM == PLANES_ARRANGED || left > 0);
        }
    }
    source.words += FORM == PLANES_ARRANGED ? ARRANGED_WORDS<BITS> : (int)UNIT_WORDS;
    if (++source.unit < share.units)
        return;
    if constexpr (FORM == PLANES_ARRANGED) { /* the next tile follows */
        source.unit = 0;
        source.tile++;
    } else {
        source = source_of<BITS, FORM>(packed, share, source.tile + 1, 0);
    }
}

#endif
