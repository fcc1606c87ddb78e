/* From the bit planes of a matrix on a grid to operands of tensor cores: a code is the number of an entry of a
 * table in shared memory, which all rows share, and what it finds there are pairs of F16 that stand side by
 * side in a row, as the product wants them.
 *
 * The table is there for every lane anew, each copy in banks of its own, so that a warp's look-ups never meet
 * whatever their codes: entries of four bytes 32 times, those of eight bytes, which half a warp reads at a
 * time, sixteen times. Grids of very many points have as many copies as there is room for. */
#ifndef DECANT_KERNELS_CUDA_GRID_POINTS_CUH
#define DECANT_KERNELS_CUDA_GRID_POINTS_CUH

#include "kernels/cuda/bit_merge.cuh"

#include <cuda_fp16.h>
#include <stdint.h>

enum {
    ENTRY_STRIDE = 128,      /* bytes from one entry to the next: all banks once */
    TABLE_BYTES = 128 << 10, /* the most that a table of more than 256 entries takes */
    BYTE_PLANES = 8,         /* planes that make one byte of a code */
    DIGIT_PLANES = 4,        /* and half of it */
    WORD_BYTES = 8,          /* words of four codes, a byte each, that a word of every plane becomes */
};

/* ---- bits ---- */

/* Four bits, of the planes `first` and the next three, of each code of a word: digit i of digits[n] is of code
 * 4i + n. */
template <int PLANES>
static __device__ __forceinline__ void gather_digits(uint32_t (&digits)[4], const uint32_t (&planes)[PLANES],
                                                     int first)
{
    const uint32_t ones = 0x55555555u, twos = 0x33333333u;
    uint32_t own[DIGIT_PLANES];
#pragma unroll
    for (int i = 0; i < DIGIT_PLANES; i++)
        own[i] = first + i < PLANES ? planes[first + i < PLANES ? first + i : 0] : 0;
    const uint32_t even = decant_merge(ones, own[0], own[1] << 1),
                   odd = decant_merge(ones, own[0] >> 1, own[1]);
    const uint32_t upper_even = decant_merge(ones, own[2], own[3] << 1);
    const uint32_t upper_odd = decant_merge(ones, own[2] >> 1, own[3]);
    digits[0] = decant_merge(twos, even, upper_even << 2);
    digits[1] = decant_merge(twos, odd, upper_odd << 2);
    digits[2] = decant_merge(twos, even >> 2, upper_even);
    digits[3] = decant_merge(twos, odd >> 2, upper_odd);
}

/* Pairs of digits as bytes: byte i of bytes[2n + e] has digit 2i + e of lower[n] and of upper[n]. */
static __device__ __forceinline__ void join_digits(uint32_t (&bytes)[WORD_BYTES], const uint32_t (&lower)[4],
                                                   const uint32_t (&upper)[4])
{
    const uint32_t fours = 0x0f0f0f0fu;
#pragma unroll
    for (int n = 0; n < 4; n++) {
        bytes[2 * n] = decant_merge(fours, lower[n], upper[n] << 4);
        bytes[2 * n + 1] = decant_merge(fours, lower[n] >> 4, upper[n]);
    }
}

/* The codes of a word of every plane: byte i of low[2n + e], and of high beyond eight planes, is of code
 * 8i + 4e + n. */
template <int PLANES> struct word_codes {
    uint32_t low[WORD_BYTES], high[PLANES > BYTE_PLANES ? WORD_BYTES : 1];
};

template <int PLANES>
static __device__ __forceinline__ void gather_codes(word_codes<PLANES> &codes, const uint32_t (&planes)[PLANES])
{
    const uint32_t none[4] = {};
    uint32_t lower[4], upper[4];
    gather_digits<PLANES>(lower, planes, 0);
    gather_digits<PLANES>(upper, planes, DIGIT_PLANES);
    join_digits(codes.low, lower, upper);
    if constexpr (PLANES > BYTE_PLANES) {
        gather_digits<PLANES>(lower, planes, BYTE_PLANES);
        join_digits(codes.high, lower, none);
    }
}

/* ---- the table ---- */

/* The table as a lane sees it. */
typedef struct point_table {
    uint32_t address; /* of the lane's copy of the first entry, in shared memory */
    uint32_t stride;  /* from one entry to the next, in bytes; ENTRY_STRIDE up to 256 entries */
} point_table;

/* `shared`: where the table begins. */
template <int ENTRY_BYTES>
static __device__ __forceinline__ point_table table_of_lane(const void *shared, uint32_t stride)
{
    const uint32_t copies = stride / ENTRY_BYTES;
    return {(uint32_t)__cvta_generic_to_shared(shared) + threadIdx.x % 32 % copies * ENTRY_BYTES, stride};
}

/* The address of the entry of code 8i + 4e + n. */
template <int PLANES>
static __device__ __forceinline__ uint32_t entry_of(const point_table &table, const word_codes<PLANES> &codes,
                                                    int i, int e, int n)
{
    if constexpr (PLANES <= BYTE_PLANES)
        return __dp4a(codes.low[2 * n + e], (uint32_t)ENTRY_STRIDE << 8 * i, table.address);
    else
        return __dp4a(codes.high[2 * n + e], 1u << 8 * i, 0u) * (table.stride << BYTE_PLANES) +
               __dp4a(codes.low[2 * n + e], table.stride << 8 * i, table.address);
}

template <int PLANES>
static __device__ __forceinline__ uint32_t entry_word(const point_table &table, const word_codes<PLANES> &codes,
                                                      int i, int e, int n)
{
    uint32_t word; /* by address: of a pointer the table's place would have to be added each time */
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(entry_of<PLANES>(table, codes, i, e, n)));
    return word;
}

/* Of code 8i + k. */
template <int PLANES>
static __device__ __forceinline__ uint2 entry_words(const point_table &table, const word_codes<PLANES> &codes,
                                                    int i, int k)
{
    uint2 words;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
                 : "=r"(words.x), "=r"(words.y)
                 : "r"(entry_of<PLANES>(table, codes, i, k / 4, k % 4)));
    return words;
}

static __device__ __forceinline__ uint32_t half_pair(float low, float high)
{
    const __half2 pair = __floats2half2_rn(low, high);
    uint32_t bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
}

/* Pairs under their scale and offset. */
template <int COUNT>
static __device__ __forceinline__ void scale_pairs(uint32_t (&pairs)[COUNT], __half2 scale_and_offset)
{
    const __half2 scale = __low2half2(scale_and_offset), offset = __high2half2(scale_and_offset);
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        __half2 own;
        memcpy(&own, &pairs[i], sizeof own);
        own = __hfma2(own, scale, offset);
        memcpy(&pairs[i], &own, sizeof own);
    }
}

/* ---- what codes become ---- */

/* A decoder's word of codes is 32 · P columns: STEPS times STEP_CHUNKS chunks of eight columns, and a chunk is
 * four pairs of F16. An entry is what the table has for an index, once more where it is four bytes long. */
template <int P, int PLANES> struct point_decoder;

/* Single numbers of up to four bits: two codes make an index of eight bits. */
template <> struct point_decoder<1, 4> {
    static constexpr int STEPS = 4, STEP_CHUNKS = 1, ENTRY_BYTES = 4;
    word_codes<8> codes;

    static __host__ __device__ __forceinline__ int index_bits(int)
    {
        return 8;
    }

    __device__ __forceinline__ void gather(const uint32_t (&planes)[4])
    {
        uint32_t digits[4];
        gather_digits<4>(digits, planes, 0);
        const uint32_t lower[4] = {digits[0], digits[2], 0, 0}, upper[4] = {digits[1], digits[3], 0, 0};
        join_digits(codes.low, lower, upper); /* of pair n of four columns: 2n and 2n + 1 */
    }

    __device__ __forceinline__ void look_up(uint32_t (&pairs)[1][4], int step, const point_table &table) const
    {
#pragma unroll
        for (int pair = 0; pair < 4; pair++)
            pairs[0][pair] = entry_word<8>(table, codes, step, pair / 2, pair % 2);
    }

    static __device__ __forceinline__ uint2 entry(const float *points, int bits, int index)
    {
        const int first = index & 15, second = index >> 4;
        const uint32_t pair =
            half_pair(first >> bits ? 0.0f : points[first], second >> bits ? 0.0f : points[second]);
        return make_uint2(pair, pair);
    }
};

/* Single numbers of more bits: an entry has the number twice, and a pair is put together from two. */
template <> struct point_decoder<1, 8> {
    static constexpr int STEPS = 4, STEP_CHUNKS = 1, ENTRY_BYTES = 4;
    word_codes<8> codes;

    static __host__ __device__ __forceinline__ int index_bits(int)
    {
        return 8;
    }

    __device__ __forceinline__ void gather(const uint32_t (&planes)[8])
    {
        gather_codes<8>(codes, planes);
    }

    __device__ __forceinline__ void look_up(uint32_t (&pairs)[1][4], int step, const point_table &table) const
    {
#pragma unroll
        for (int pair = 0; pair < 4; pair++) {
            const int n = pair % 2 * 2;
            pairs[0][pair] = decant_merge(0xffffu, entry_word<8>(table, codes, step, pair / 2, n),
                                          entry_word<8>(table, codes, step, pair / 2, n + 1));
        }
    }

    static __device__ __forceinline__ uint2 entry(const float *points, int bits, int index)
    {
        const float point = index >> bits ? 0.0f : points[index];
        return make_uint2(half_pair(point, point), half_pair(point, point));
    }
};

/* How many bits number the entries: a byte's, or as many as a longer code has. */
template <int PLANES> static __host__ __device__ __forceinline__ int code_index_bits(int bits)
{
    return PLANES <= BYTE_PLANES ? PLANES : bits;
}

/* Pairs. */
template <int PLANES> struct point_decoder<2, PLANES> {
    static constexpr int STEPS = 8, STEP_CHUNKS = 1, ENTRY_BYTES = 4;
    word_codes<PLANES> codes;

    static __host__ __device__ __forceinline__ int index_bits(int bits)
    {
        return code_index_bits<PLANES>(bits);
    }

    __device__ __forceinline__ void gather(const uint32_t (&planes)[PLANES])
    {
        gather_codes<PLANES>(codes, planes);
    }

    __device__ __forceinline__ void look_up(uint32_t (&pairs)[1][4], int step, const point_table &table) const
    {
#pragma unroll
        for (int n = 0; n < 4; n++)
            pairs[0][n] = entry_word<PLANES>(table, codes, step / 2, step % 2, n);
    }

    static __device__ __forceinline__ uint2 entry(const float *points, int bits, int index)
    {
        const uint32_t pair = index >> bits ? 0u : half_pair(points[2 * index], points[2 * index + 1]);
        return make_uint2(pair, pair);
    }
};

/* Triples: eight codes are three chunks. An entry has the first two numbers and the last two, so that of two
 * codes only the pair in the middle has to be put together. */
template <int PLANES> struct point_decoder<3, PLANES> {
    static constexpr int STEPS = 4, STEP_CHUNKS = 3, ENTRY_BYTES = 8;
    word_codes<PLANES> codes;

    static __host__ __device__ __forceinline__ int index_bits(int bits)
    {
        return code_index_bits<PLANES>(bits);
    }

    __device__ __forceinline__ void gather(const uint32_t (&planes)[PLANES])
    {
        gather_codes<PLANES>(codes, planes);
    }

    __device__ __forceinline__ void look_up(uint32_t (&pairs)[3][4], int step, const point_table &table) const
    {
#pragma unroll
        for (int half = 0; half < 4; half++) {
            const uint2 first = entry_words<PLANES>(table, codes, step, 2 * half),
                        second = entry_words<PLANES>(table, codes, step, 2 * half + 1);
            const int pair = 3 * half;
            pairs[pair / 4][pair % 4] = first.x;
            pairs[(pair + 1) / 4][(pair + 1) % 4] = __byte_perm(first.y, second.x, 0x5432);
            pairs[(pair + 2) / 4][(pair + 2) % 4] = second.y;
        }
    }

    static __device__ __forceinline__ uint2 entry(const float *points, int bits, int index)
    {
        const float *own = points + 3 * index;
        return index >> bits ? make_uint2(0, 0)
                             : make_uint2(half_pair(own[0], own[1]), half_pair(own[1], own[2]));
    }
};

/* Four numbers. */
template <int PLANES> struct point_decoder<4, PLANES> {
    static constexpr int STEPS = 16, STEP_CHUNKS = 1, ENTRY_BYTES = 8;
    word_codes<PLANES> codes;

    static __host__ __device__ __forceinline__ int index_bits(int bits)
    {
        return code_index_bits<PLANES>(bits);
    }

    __device__ __forceinline__ void gather(const uint32_t (&planes)[PLANES])
    {
        gather_codes<PLANES>(codes, planes);
    }

    __device__ __forceinline__ void look_up(uint32_t (&pairs)[1][4], int step, const point_table &table) const
    {
        const uint2 first = entry_words<PLANES>(table, codes, step / 4, step % 4 * 2),
                    second = entry_words<PLANES>(table, codes, step / 4, step % 4 * 2 + 1);
        pairs[0][0] = first.x;
        pairs[0][1] = first.y;
        pairs[0][2] = second.x;
        pairs[0][3] = second.y;
    }

    static __device__ __forceinline__ uint2 entry(const float *points, int bits, int index)
    {
        const float *own = points + 4 * index;
        return index >> bits ? make_uint2(0, 0)
                             : make_uint2(half_pair(own[0], own[1]), half_pair(own[2], own[3]));
    }
};

/* Bytes from one entry to the next, as far as there is room: for many tokens half as much. */
static inline uint32_t table_stride(int index_bits, bool many_tokens)
{
    const uint32_t most = (uint32_t)(many_tokens ? TABLE_BYTES / 2 : TABLE_BYTES) >> index_bits;
    return most < ENTRY_STRIDE ? most : ENTRY_STRIDE;
}

/* The first entry that this thread puts into the table. */
template <typename Decoder> static __device__ __forceinline__ uint2 first_entry(const float *points, int bits)
{
    return Decoder::entry(points, bits, (int)threadIdx.x % (1 << Decoder::index_bits(bits)));
}

/* Fills the table and says how this lane reads it; a barrier must follow. THREADS, a power of two, share the
 * copies of an entry where they are more than there are entries. */
template <typename Decoder, int THREADS>
static __device__ __forceinline__ point_table load_table(uint2 first, const float *points, int bits,
                                                         uint32_t stride, unsigned char *shared)
{
    const int count = 1 << Decoder::index_bits(bits), vectors = (int)stride / 16;
    const int sharers = THREADS > count ? THREADS / count : 1, own = (int)threadIdx.x % count;
    for (int index = own; index < count; index += THREADS) {
        const uint2 entry = index == own ? first : Decoder::entry(points, bits, index);
        for (int i = (int)threadIdx.x / count; i < vectors; i += sharers)
            *(uint4 *)(shared + index * (int)stride + (i + index) % vectors * 16) =
                make_uint4(entry.x, entry.y, entry.x, entry.y);
    }
    return table_of_lane<Decoder::ENTRY_BYTES>(shared, stride);
}

#endif
