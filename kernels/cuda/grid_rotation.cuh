/* Rotating tokens for products: y = x ŵᵀ of a matrix whose rows are rotated takes x rotated the same way. The
 * result is F16, which keeps eight times finer steps than BF16; so that nothing leaves its range, a token is
 * multiplied by a power of two that brings the largest value there can be, max |x| √rotation, under 2^15. It is
 * stored as operands of tensor cores, in the order in which the products read them. */
#ifndef DECANT_KERNELS_CUDA_GRID_ROTATION_CUH
#define DECANT_KERNELS_CUDA_GRID_ROTATION_CUH

#include "kernels/cuda/grid.cuh"

enum {
    ROW_LANES = 4,     /* of a warp, to each of its rows */
    VECTOR_BYTES = 16, /* of eight columns of x in F16 */
    OCTET_BITS = 3,
    OCTET = 1 << OCTET_BITS, /* columns */
    TILE_TOKENS = 8,         /* of one product */
};

/* How rotated tokens lie: vector (chunk, tile, token, t) is eight columns, t counts fastest. */
typedef struct operand_layout {
    int lane_words; /* of a row's plane: what a lane takes of a unit; a power of two */
    int chunks;     /* of a word of codes: four times the grid's dimension */
    int tiles;      /* of eight tokens */
    int places;     /* for tokens in a tile: 1, 2, 4 or 8 */
    int beside;     /* units that lie between each other, chunk by chunk; 1: one after the other */
    int units;      /* a multiple of these */
    bool arranged;  /* lanes have every fourth octet of a unit each, not a word: grid_arranged.cuh */
} operand_layout;

static __host__ __device__ __forceinline__ int64_t unit_vectors(const operand_layout &layout)
{
    return (int64_t)ROW_LANES * layout.lane_words * layout.chunks * layout.tiles * layout.places;
}

static __host__ __device__ __forceinline__ int octets_of(const operand_layout &layout)
{
    return layout.units * ROW_LANES * layout.lane_words * layout.chunks;
}

/* Where the columns 8 · octet … of a token lie: of a unit a row's lanes take their words one after the other,
 * or its octets in turn. */
static __device__ __forceinline__ int vector_of(const operand_layout &layout, int octet, int token)
{
    const int lane_bits = 31 - __clz(layout.lane_words), beside_bits = 31 - __clz(layout.beside);
    const int word = (int)((unsigned)octet / (unsigned)layout.chunks),
              place_in_word = octet - word * layout.chunks;
    const int lane = word >> lane_bits, own = word & (layout.lane_words - 1), unit = lane / ROW_LANES;
    const int in_unit = lane % ROW_LANES * layout.chunks + place_in_word;
    const int t = layout.arranged ? in_unit % ROW_LANES : lane % ROW_LANES,
              chunk = layout.arranged ? in_unit / ROW_LANES : place_in_word;
    const int step = (((unit >> beside_bits) << lane_bits) + own) * layout.chunks + chunk;
    const int place =
        ((step << beside_bits) + (unit & (layout.beside - 1))) * layout.tiles + token / TILE_TOKENS;
    return (place * layout.places + token % TILE_TOKENS) * ROW_LANES + t;
}

/* The exponent of the power of two for a token whose largest magnitude has these bits as BF16. */
static __device__ __forceinline__ int exponent_for(int largest_bits, int rotation_bits)
{
    const int below = (largest_bits >> 7) - 126; /* the magnitude is less than 2^below */
    return min(max(15 - below - (rotation_bits + 1) / 2, -120), 120);
}

static __device__ __forceinline__ float power_of_two(int exponent)
{
    return __int_as_float((exponent + 127) << 23);
}

/* ---- the transform ---- */

/* Values lie in shared memory with eight unused after every 64, so that the accesses of a step fall into
 * different banks. */
static __host__ __device__ __forceinline__ int work_place(int column)
{
    return column + (column >> 6 << 3);
}

/* STEPS steps of the transform of 2^STEPS values. */
template <int STEPS> static __device__ __forceinline__ void butterflies(float *values)
{
#pragma unroll
    for (int bit = 1; bit < 1 << STEPS; bit *= 2)
#pragma unroll
        for (int j = 0; j < 1 << STEPS; j++) {
            if (j & bit)
                continue;
            const float a = values[j], b = values[j + bit];
            values[j] = a + b;
            values[j + bit] = a - b;
        }
}

/* The steps `first` … of `columns` values, by all threads of the block. */
template <int STEPS> static __device__ __forceinline__ void rotate_steps(float *work, int columns, int first)
{
    const int apart = 1 << first, stride = work_place(apart);
    for (int i = threadIdx.x; i < columns >> STEPS; i += blockDim.x) {
        float *own = work + work_place((i >> first << (first + STEPS)) | (i & (apart - 1)));
        float values[1 << STEPS];
#pragma unroll
        for (int j = 0; j < 1 << STEPS; j++)
            values[j] = own[j * stride];
        butterflies<STEPS>(values);
#pragma unroll
        for (int j = 0; j < 1 << STEPS; j++)
            own[j * stride] = values[j];
    }
    __syncthreads();
}

/* The signs of the columns 8 · octet …, a bit each. */
static __device__ __forceinline__ uint32_t signs_of(uint64_t seed, int octet)
{
    return (uint32_t)(decant_random_bits(seed, 0, (uint64_t)octet / 8) >> octet % 8 * 8) & 255u;
}

/* The largest of a value over the block; `parts` [warps of the block], which a barrier freed. A barrier is
 * passed. */
static __device__ __forceinline__ int block_largest(int value, int *parts)
{
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2)
        value = max(value, __shfl_xor_sync(0xffffffffu, value, offset));
    if (threadIdx.x % 32 == 0)
        parts[threadIdx.x / 32] = value;
    __syncthreads();
    for (int i = 0; i < (int)blockDim.x / 32; i++)
        value = max(value, parts[i]);
    return value;
}

/* The largest magnitude of eight BF16, as its bits. */
static __device__ __forceinline__ int largest_bits_of(const uint4 &vector)
{
    const uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
    int largest = 0;
#pragma unroll
    for (int i = 0; i < 4; i++)
        largest = max(largest, max((int)(words[i] & 0x7fffu), (int)(words[i] >> 16 & 0x7fffu)));
    return largest;
}

/* Of the steps of a transform those that are left when the first three, and all others by threes, are taken. */
static __device__ __forceinline__ int more_steps(int steps)
{
    return steps < OCTET_BITS ? 0 : steps % 3;
}

/* The first steps of 2^MORE octets of columns: all up to three, and, where the octets lie as many columns apart
 * as the last MORE steps, these too. */
template <int MORE> static __device__ __forceinline__ void first_butterflies(float *values, int steps)
{
    if (steps >= OCTET_BITS)
        butterflies<OCTET_BITS + MORE>(values);
    else if (steps == 2) {
        butterflies<2>(values);
        butterflies<2>(values + 4);
    } else if (steps == 1)
#pragma unroll
        for (int i = 0; i < OCTET; i += 2)
            butterflies<1>(values + i);
}

/* begin_rotation where the last MORE steps are taken with the first. */
template <int MORE, typename Signs>
static __device__ __forceinline__ int begin_octets(float *work, const uint4 *x, int octets, int steps,
                                                   Signs signs)
{
    const int apart_bits = max(steps - OCTET_BITS - MORE, 0), apart = 1 << apart_bits;
    int largest = 0;
    for (int item = threadIdx.x; item < octets >> MORE; item += blockDim.x) {
        const int first = (item >> apart_bits << (apart_bits + MORE)) | (item & (apart - 1));
        uint4 vectors[1 << MORE];
        float values[OCTET << MORE];
#pragma unroll
        for (int i = 0; i < 1 << MORE; i++)
            vectors[i] = __ldcg(x + first + i * apart);
#pragma unroll
        for (int i = 0; i < 1 << MORE; i++) {
            const uint32_t words[4] = {vectors[i].x, vectors[i].y, vectors[i].z, vectors[i].w};
            const uint32_t own = signs(first + i * apart);
            largest = max(largest, largest_bits_of(vectors[i]));
#pragma unroll
            for (int j = 0; j < OCTET; j++) {
                const uint32_t bits = j % 2 ? words[j / 2] & 0xffff0000u : words[j / 2] << 16;
                values[i * OCTET + j] = __uint_as_float(bits ^ (own >> j & 1u) << 31);
            }
        }
        first_butterflies<MORE>(values, steps);
#pragma unroll
        for (int i = 0; i < 1 << MORE; i++) {
            float4 *target = (float4 *)(work + work_place((first + i * apart) * OCTET));
            const float *own = values + i * OCTET;
            target[0] = make_float4(own[0], own[1], own[2], own[3]);
            target[1] = make_float4(own[4], own[5], own[6], own[7]);
        }
    }
    return largest;
}

/* The work array from octets of BF16, whole pieces, with signs(octet), a bit each, and the first steps of all
 * `steps`; by all threads of the block. The largest magnitude that this thread saw, as its bits. */
template <typename Signs>
static __device__ __forceinline__ int begin_rotation(float *work, const uint4 *x, int octets, int steps,
                                                     Signs signs)
{
    const int more = more_steps(steps);
    return more == 0   ? begin_octets<0>(work, x, octets, steps, signs)
           : more == 1 ? begin_octets<1>(work, x, octets, steps, signs)
                       : begin_octets<2>(work, x, octets, steps, signs);
}

/* The other steps; a barrier must have been passed. */
static __device__ __forceinline__ void finish_rotation(float *work, int columns, int steps)
{
    for (int first = OCTET_BITS; first + more_steps(steps) < steps; first += 3)
        rotate_steps<3>(work, columns, first);
}

/* Eight values as F16. */
static __device__ __forceinline__ uint4 octet_of_halves(const float (&values)[OCTET], float factor)
{
    __half2 pairs[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        pairs[i] = __floats2half2_rn(values[2 * i] * factor, values[2 * i + 1] * factor);
    uint4 vector;
    memcpy(&vector, pairs, sizeof vector);
    return vector;
}

/* An octet of the work array as F16. */
static __device__ __forceinline__ uint4 rotated_octet(const float *work, int octet, float factor)
{
    const float4 *source = (const float4 *)(work + work_place(octet * OCTET));
    const float4 a = source[0], b = source[1];
    const float values[OCTET] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
    return octet_of_halves(values, factor);
}

/* ---- ahead of a product ---- */

enum {
    ROTATION_MAXIMUM = 1 << 15, /* columns of a piece */
    SIGN_COLUMNS = 64,          /* whose signs are drawn at once */
};

/* Tokens that are rotated for a product, by a kernel of its own ahead of it or by its blocks (grid_runs.cuh).
 */
typedef struct token_rotation {
    const __nv_bfloat16 *x; /* [tokens, columns] */
    uint4 *operands;        /* as `layout` says; places of tokens beyond the last are left as they are */
    float *token_scales;    /* [tokens]: what undoes the power of two of a token */
    operand_layout layout;
    int tokens, columns, rotation_bits;
    float rotation_scale;
    uint64_t seed;
} token_rotation;

/* The octets of run `run` of `runs` of a token, which are some whole pieces. */
typedef struct octet_range {
    int first, count;
} octet_range;

static __device__ __forceinline__ octet_range run_of(const token_rotation &call, int run, int runs)
{
    const int piece_bits = max(call.rotation_bits, OCTET_BITS), pieces = call.columns >> piece_bits;
    const int first = (pieces * run / runs << piece_bits) / OCTET;
    return {first, (pieces * (run + 1) / runs << piece_bits) / OCTET - first};
}

/* The signs of a run's columns, drawn [columns / SIGN_COLUMNS + 2]; a barrier must follow. */
static __device__ __forceinline__ void draw_signs(const token_rotation &call, int run, int runs,
                                                  uint64_t *drawn)
{
    const octet_range own = run_of(call, run, runs);
    const int first = own.first * OCTET / SIGN_COLUMNS,
              last = (own.first + own.count - 1) * OCTET / SIGN_COLUMNS;
    for (int i = first + (int)threadIdx.x; i <= last; i += blockDim.x)
        drawn[i - first] = call.rotation_bits > 0 ? decant_random_bits(call.seed, 0, (uint64_t)i) : 0;
}

/* Those of an octet of the run, a bit each. */
static __device__ __forceinline__ uint32_t drawn_signs(const uint64_t *drawn, const octet_range &own, int octet)
{
    const int column = (own.first + octet) * OCTET;
    return (uint32_t)(drawn[column / SIGN_COLUMNS - own.first * OCTET / SIGN_COLUMNS] >>
                      column % SIGN_COLUMNS) &
           255u;
}

/* Run `run` of `runs` of a token, by a block, which has drawn its signs. work: of work_place(columns of the
 * run) floats; parts: of the block's warps. */
static __device__ __forceinline__ void rotate_run(const token_rotation &call, int token, int run, int runs,
                                                  float *work, const uint64_t *drawn, int *parts)
{
    const octet_range own = run_of(call, run, runs);
    const int octets = call.columns / OCTET, all = octets_of(call.layout);
    const uint4 *x = (const uint4 *)(call.x + (int64_t)token * call.columns);
    __syncthreads();
    int largest = 0;
    if (runs > 1)
#pragma unroll 4
        for (int octet = threadIdx.x; octet < octets; octet += blockDim.x)
            largest = max(largest, largest_bits_of(__ldcg(x + octet)));
    largest = max(largest, begin_rotation(work, x + own.first, own.count, call.rotation_bits,
                                          [&](int octet) { return drawn_signs(drawn, own, octet); }));
    largest = block_largest(largest, parts);
    finish_rotation(work, own.count * OCTET, call.rotation_bits);
    const int exponent = exponent_for(largest, call.rotation_bits);
    const float factor = power_of_two(exponent) * call.rotation_scale;
    for (int octet = threadIdx.x; octet < own.count; octet += blockDim.x)
        call.operands[vector_of(call.layout, own.first + octet, token)] = rotated_octet(work, octet, factor);
    if (run > 0)
        return;
    for (int octet = octets + (int)threadIdx.x; octet < all; octet += blockDim.x)
        call.operands[vector_of(call.layout, octet, token)] = make_uint4(0, 0, 0, 0);
    if (threadIdx.x == 0)
        call.token_scales[token] = power_of_two(-exponent);
}

cudaError_t decant_cuda_rotate_tokens(const decant_cuda_context *context, const token_rotation &call);

#endif
