/* Reading matrices on grids eight codes at a time: bit planes to codes, codes to what they stand for. */
#ifndef DECANT_KERNELS_CUDA_GRID_OCTET_CUH
#define DECANT_KERNELS_CUDA_GRID_OCTET_CUH

#include "kernels/cuda/grid.cuh"
#include "kernels/cuda/grid_arranged.cuh"
#include "kernels/cuda/packed.cuh"

template <int P>
static __device__ __forceinline__ void decant_grid_point(const __half *table, uint32_t code, float (&q)[P])
{
    if constexpr (P == 2 || P == 4) {
#pragma unroll
        for (int i = 0; i < P / 2; i++) {
            const float2 pair = __half22float2(((const __half2 *)table)[code * (P / 2) + i]);
            q[2 * i] = pair.x;
            q[2 * i + 1] = pair.y;
        }
    } else {
#pragma unroll
        for (int i = 0; i < P; i++)
            q[i] = __half2float(table[code * P + i]);
    }
}

template <int P>
static __device__ __forceinline__ void decant_grid_point(const float *table, uint32_t code, float (&q)[P])
{
#pragma unroll
    for (int i = 0; i < P; i++)
        q[i] = table[code * P + i];
}

/* The codes 4 · quad … of a lane of an arranged unit, a byte each. */
template <int BITS>
static __device__ __forceinline__ uint32_t decant_arranged_quad(const uint32_t *unit, int lane, int quad)
{
    uint32_t packed[BITS], codes[WORD_BYTES], own = 0;
#pragma unroll
    for (int k = 0; k < BITS; k++)
        packed[k] = unit[arranged_place(BITS, lane, k)];
    unpack_codes<BITS>(codes, packed);
#pragma unroll
    for (int n = 0; n < 4; n++)
        own |= ((quad % 2 ? codes[2 * n + 1] : codes[2 * n]) >> quad / 2 * 8 & 255u) << n * 8;
    return own;
}

/* The codes 8 · octet … of a row of an arranged matrix, a byte each, as decant_octet_codes leaves them. Of
 * single numbers they are a lane's, of pairs those of two lanes. */
static __device__ __forceinline__ uint2 decant_arranged_codes(const decant_grid_view &view, int row, int octet)
{
    const int unit = octet / (ARRANGED_WORDS * DECANT_WORD_OCTETS), bits = view.code_bits;
    const int own =
        octet % (ARRANGED_WORDS * DECANT_WORD_OCTETS) * view.dimension; /* of columns, in the unit */
    const int first_lane = row % ARRANGED_ROWS * ARRANGED_WORDS + own % ARRANGED_WORDS;
    const int second_lane = first_lane + view.dimension - 1;
    const int first_quad = own / ARRANGED_WORDS * (2 / view.dimension),
              second_quad = first_quad + 2 - view.dimension;
    const uint32_t *words =
        view.planes +
        ((int64_t)(row / ARRANGED_ROWS) * (view.words / ARRANGED_WORDS) + unit) * ARRANGED_LANES * bits;
    return by_bits(bits, [&](auto constant) {
        constexpr int BITS = decltype(constant)::value;
        return make_uint2(decant_arranged_quad<BITS>(words, first_lane, first_quad),
                          decant_arranged_quad<BITS>(words, second_lane, second_quad));
    });
}

/* The columns 8 · P · octet … of a row, before it is rotated back; what stands behind the last is of no
 * meaning. table    the grid's points, as decant_grid_point reads them */
template <int P, typename Point>
static __device__ __forceinline__ void decant_grid_octet(const decant_grid_view &view, const Point *table,
                                                         int row, int octet, float (&values)[DECANT_OCTET * P])
{
    const uint32_t *planes = view.planes + (int64_t)row * view.code_bits * view.words;
    const decant_planes_order order = decant_planes_order_of(view.code_bits, view.words, false);
    const int low_bits = min(view.code_bits, 8), last = view.codes - 1;
    const uint2 low = view.arranged ? decant_arranged_codes(view, row, octet)
                                    : decant_octet_codes(planes, low_bits, order, octet);
    uint2 high = {0, 0};
    if (view.code_bits > 8)
        high = decant_octet_codes(planes + 8 * view.words, view.code_bits - 8, order, octet);
    float2 scale = decant_grid_scale_of(view, row, min(octet * DECANT_OCTET, last));
#pragma unroll
    for (int c = 0; c < DECANT_OCTET; c++) {
        const int shift = 8 * (c % 4);
        const uint32_t code =
            ((c < 4 ? low.x : low.y) >> shift & 255u) | ((c < 4 ? high.x : high.y) >> shift & 255u) << 8;
        if (!view.octets_share_scales)
            scale = decant_grid_scale_of(view, row, min(octet * DECANT_OCTET + c, last));
        float q[P];
        decant_grid_point<P>(table, code, q);
#pragma unroll
        for (int i = 0; i < P; i++)
            values[c * P + i] = decant_grid_value(q[i], scale.x, scale.y);
    }
}

#endif
