/* The bit planes of a warp's rows in token_tiles.cuh, on their way through a ring in shared memory to
 * registers. Knows nothing of what codes stand for, nor of x. */
#ifndef DECANT_KERNELS_CUDA_TOKEN_TILES_CODES_CUH
#define DECANT_KERNELS_CUDA_TOKEN_TILES_CODES_CUH

#include "kernels/cuda/packed.cuh"
#include "kernels/cuda/tensor_core.cuh"
#include "kernels/cuda/token_tiles_block.cuh"

template <int PLANES> constexpr int UNIT_BYTES = PLANES *HALVES *DECANT_WARP *VECTOR_BYTES; /* of a warp */

/* Where a lane finds its words of the first unit, in its two rows. */
typedef struct lane_planes {
    const uint32_t *rows[HALVES];
} lane_planes;

static __device__ __forceinline__ lane_planes planes_of_lane(const decant_packed_view &packed, int first_row)
{
    const int lane = threadIdx.x % DECANT_WARP;
    lane_planes own;
#pragma unroll
    for (int half = 0; half < HALVES; half++)
        own.rows[half] = decant_row_planes(packed, min(first_row + half * 8 + lane / 4, packed.rows - 1)) +
                         lane % 4 * LANE_WORDS;
    return own;
}

/* Starts copying a lane's words of one unit; planes beyond the last are zeros. WHOLE: rows of planes can be
 * read sixteen bytes at a time. */
template <int PLANES, bool WHOLE>
static __device__ __forceinline__ void fetch_unit(const decant_packed_view &packed, const lane_planes &own,
                                                  int unit, uint32_t slot)
{
    static_assert((int)UNIT_WORDS == (int)DECANT_PIECE_WORDS, "units are as far apart as pieces");
    const int lane = threadIdx.x % DECANT_WARP, word = unit * UNIT_WORDS + lane % 4 * LANE_WORDS;
#pragma unroll
    for (int half = 0; half < HALVES; half++) {
        const uint32_t *source = own.rows[half] + (int64_t)unit * packed.order.piece;
#pragma unroll
        for (int bit = 0; bit < PLANES; bit++, source += packed.order.plane) {
            const uint32_t target = slot + ((half * PLANES + bit) * DECANT_WARP + lane) * VECTOR_BYTES;
            if constexpr (WHOLE) {
                decant_copy_line_16(target, source, word < packed.words);
            } else {
#pragma unroll
                for (int i = 0; i < LANE_WORDS; i++) {
                    const bool valid = word + i < packed.words;
                    decant_copy_4(target + i * 4, valid ? source + i : packed.planes, valid);
                }
            }
        }
    }
}

template <int PLANES> struct unit_planes {
    uint4 words[HALVES][PLANES];
};

template <int PLANES>
static __device__ __forceinline__ void load_planes(unit_planes<PLANES> &planes, const unsigned char *slot)
{
    const int lane = threadIdx.x % DECANT_WARP;
#pragma unroll
    for (int half = 0; half < HALVES; half++)
#pragma unroll
        for (int bit = 0; bit < PLANES; bit++)
            planes.words[half][bit] =
                *(const uint4 *)(slot + ((half * PLANES + bit) * DECANT_WARP + lane) * VECTOR_BYTES);
}

#endif
