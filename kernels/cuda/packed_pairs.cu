/* y = x ŵᵀ for some tokens in BF16 on tensor cores, codes of up to four bits: two neighbouring columns are
 * looked up together, and what is looked up serves sixteen tokens.
 *
 * A block owns two tiles of sixteen rows. A row's table has an entry for each pair of codes, both levels,
 * rounded to BF16, in one word; and it is there four times, because the four lanes that share a row would
 * otherwise meet in one bank: [entry][half of the tile][lane], so that a lane reads its own bank whatever its
 * code.
 *
 * The block's warps take units of 512 columns in turns and add their sums up in order at the end. Of the
 * sixteen words of a unit a lane (g = lane / 4, t = lane % 4) takes words 4t … 4t + 3, sixteen bytes of every
 * plane. The planes of a word become entry numbers, four to a word, by exchanging blocks of two bits and then
 * of four.
 *
 * Products do not care about the order of their terms as long as both operands have the same one (the terms of
 * a product are listed in tensor_core.cuh): a lane's share of x for two products is eight columns, sixteen
 * bytes. A warp copies x for the words c, c + 4, c + 8, c + 12 of its unit, a quarter of it, ahead of using it.
 */
#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/packed.cuh"
#include "kernels/cuda/tensor_core.cuh"
#include "kernels/cuda/token_sparse.h"

enum {
    TILE_ROWS = 16,
    ROW_TILES = 2, /* of a block */
    ROWS = TILE_ROWS * ROW_TILES,
    HALVES = 2, /* of a tile: rows g and g + 8 of a lane */
    WARPS = 8,
    THREADS = WARPS * DECANT_WARP,
    UNIT_WORDS = 16,
    QUARTERS = 4,    /* of a unit; also the words a lane has of it */
    PLANE_WORD = 32, /* columns of a word of a plane */
    TILE_TOKENS = 8, /* of one product */
    CHUNKS = 4,      /* of sixteen bytes, a lane's share of x in one word */
    STAGES = 2,      /* quarters of x that are there or under way */
    CHUNK_BYTES = 16,
    QUARTER_BYTES = CHUNKS * DECANT_WARP * CHUNK_BYTES, /* of x, of eight tokens */
    PLANES_MAXIMUM = 4,
    GROUP_TOKENS = 16, /* of a block */
};

template <int BITS> constexpr int ENTRIES = 1 << 2 * BITS;
template <int BITS> constexpr int TABLE_BYTES = ENTRIES<BITS> *HALVES *DECANT_WARP * 4; /* of a tile */

/* The arguments of a launch. */
typedef struct pairs_call {
    decant_packed_view packed;
    const __nv_bfloat16 *x; /* [tokens, columns] */
    __nv_bfloat16 *y;       /* [tokens, rows] */
    int tokens, groups;
    const float *sparse; /* [tokens, rows] or NULL: the product of the sparse part */
    bool accumulate;
} pairs_call;

/* ---- tables ---- */

/* The number of the entry whose first column has this code and whose second has code 0: the bits of plane b of
 * both columns are at places 2b and 2b + 1. */
static __device__ __forceinline__ int entry_of(int code)
{
    int entry = 0;
#pragma unroll
    for (int bit = 0; bit < PLANES_MAXIMUM; bit++)
        entry |= (code >> bit & 1) << 2 * bit;
    return entry;
}

/* The tables of both tiles. A thread takes a row and the code of the first column, and goes through those of
 * the second; four copies are sixteen bytes. Levels pass through shared memory: `levels` [ROWS, 2^BITS].
 * Barriers. */
template <int BITS>
static __device__ __forceinline__ void fill_tables(const decant_packed_view &packed, int first_row,
                                                   uint16_t *levels, unsigned char *tables)
{
    constexpr int LEVELS = 1 << BITS;
    for (int i = threadIdx.x; i < ROWS * LEVELS; i += THREADS) {
        const int row = min(first_row + i / LEVELS, packed.rows - 1);
        levels[i] =
            (uint16_t)decant_pair(__half2float(packed.levels[(int64_t)row * LEVELS + i % LEVELS]), 0.0f);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < ROWS * LEVELS; i += THREADS) {
        const int own = i % TILE_ROWS, code = i / TILE_ROWS % LEVELS, tile = i / TILE_ROWS / LEVELS;
        const uint16_t *row = levels + (tile * TILE_ROWS + own) * LEVELS;
        const uint32_t first = row[code];
        unsigned char *target = tables + tile * TABLE_BYTES<BITS> + entry_of(code) * HALVES * DECANT_WARP * 4 +
                                own * CHUNK_BYTES; /* rows 0 … 7 are the upper half, four lanes each */
#pragma unroll
        for (int second = 0; second < LEVELS; second++) {
            const uint32_t pair = first | (uint32_t)row[second] << 16;
            *(uint4 *)(target + 2 * entry_of(second) * HALVES * DECANT_WARP * 4) =
                make_uint4(pair, pair, pair, pair);
        }
    }
}

/* Four words of entry numbers, a byte each, from a word of each plane: byte b of numbers[0], [2], [1] and [3]
 * is of columns 8b and 8b + 1, 8b + 2 and 8b + 3, 8b + 4 and 8b + 5, 8b + 6 and 8b + 7. */
template <int BITS>
static __device__ __forceinline__ void number_pairs(uint32_t (&numbers)[4], const uint32_t (&planes)[BITS])
{
    const uint32_t low_twos = 0x33333333u, low_fours = 0x0f0f0f0fu;
    const uint32_t second = planes[1], third = BITS > 2 ? planes[2 % BITS] : 0,
                   fourth = BITS > 3 ? planes[3 % BITS] : 0;
    const uint32_t even = (planes[0] & low_twos) | (second << 2 & ~low_twos);
    const uint32_t odd = (planes[0] >> 2 & low_twos) | (second & ~low_twos);
    const uint32_t upper_even = (third & low_twos) | (fourth << 2 & ~low_twos);
    const uint32_t upper_odd = (third >> 2 & low_twos) | (fourth & ~low_twos);
    numbers[0] = (even & low_fours) | (upper_even << 4 & ~low_fours);
    numbers[1] = (even >> 4 & low_fours) | (upper_even & ~low_fours);
    numbers[2] = (odd & low_fours) | (upper_odd << 4 & ~low_fours);
    numbers[3] = (odd >> 4 & low_fours) | (upper_odd & ~low_fours);
}

/* ---- codes ---- */

/* A lane's words of one unit: of its row in each half of each tile, all planes. */
template <int BITS> struct unit_codes {
    uint4 planes[ROW_TILES][HALVES][BITS];
};

template <int BITS, bool WHOLE>
static __device__ __forceinline__ void load_unit(unit_codes<BITS> &codes, const decant_packed_view &packed,
                                                 int first_row, int unit)
{
    const int lane = threadIdx.x % DECANT_WARP, word = unit * UNIT_WORDS + lane % 4 * QUARTERS;
#pragma unroll
    for (int tile = 0; tile < ROW_TILES; tile++)
#pragma unroll
        for (int half = 0; half < HALVES; half++) {
            const int row = min(first_row + tile * TILE_ROWS + half * 8 + lane / 4, packed.rows - 1);
            const uint32_t *source = decant_row_planes(packed, row) + word;
#pragma unroll
            for (int bit = 0; bit < BITS; bit++, source += packed.words) {
                uint4 four = make_uint4(0, 0, 0, 0);
                if constexpr (WHOLE) {
                    if (word < packed.words)
                        four = __ldcs((const uint4 *)source);
                } else {
                    four.x = word < packed.words ? source[0] : 0;
                    four.y = word + 1 < packed.words ? source[1] : 0;
                    four.z = word + 2 < packed.words ? source[2] : 0;
                    four.w = word + 3 < packed.words ? source[3] : 0;
                }
                codes.planes[tile][half][bit] = four;
            }
        }
}

static __device__ __forceinline__ uint32_t word_of(const uint4 &four, int word)
{
    return word == 0 ? four.x : word == 1 ? four.y : word == 2 ? four.z : four.w;
}

/* ---- activations ---- */

/* Starts copying a quarter of x: words quarter, quarter + 4, … of the unit, which lanes t = 0, 1, … take. Chunk
 * `chunk` of lane l lies where that of lane l ^ 2 chunk would, so that neither copies nor reads meet in a bank.
 */
template <int TILES>
static __device__ __forceinline__ void fetch_quarter(const pairs_call &call, int first_token, int unit,
                                                     int quarter, uint32_t stage)
{
    const int lane = threadIdx.x % DECANT_WARP, chunk = lane % CHUNKS, taker = lane / CHUNKS % 4;
    const int column = ((unit * 4 + taker) * QUARTERS + quarter) * PLANE_WORD + chunk * 8;
#pragma unroll
    for (int i = 0; i < TILES * TILE_TOKENS / 2; i++) {
        const int own = 2 * i + lane / 16, token = first_token + own;
        const bool valid = token < call.tokens && column < call.packed.columns;
        const int place = chunk * DECANT_WARP + ((own % TILE_TOKENS * 4 + taker) ^ 2 * chunk);
        decant_copy_16(stage + own / TILE_TOKENS * QUARTER_BYTES + place * CHUNK_BYTES,
                       valid ? call.x + (int64_t)token * call.packed.columns + column : call.x, valid);
    }
}

/* ---- products ---- */

/* sums += the products of a quarter of a unit. */
template <int BITS, int TILES>
static __device__ __forceinline__ void add_quarter(float (&sums)[ROW_TILES][TILES][4],
                                                   const unit_codes<BITS> &codes, int quarter,
                                                   const unsigned char *stage, const unsigned char *tables)
{
    const uint32_t lane = threadIdx.x % DECANT_WARP;
#pragma unroll
    for (int tile = 0; tile < ROW_TILES; tile++) {
        uint32_t numbers[HALVES][4];
#pragma unroll
        for (int half = 0; half < HALVES; half++) {
            uint32_t planes[BITS];
#pragma unroll
            for (int bit = 0; bit < BITS; bit++)
                planes[bit] = word_of(codes.planes[tile][half][bit], quarter);
            number_pairs<BITS>(numbers[half], planes);
        }
        const unsigned char *table = tables + tile * TABLE_BYTES<BITS>;
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
            uint32_t pairs[4][HALVES]; /* an entry is 256 bytes, a lane's word in it at 4 lane */
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int half = 0; half < HALVES; half++) {
                    const uint32_t offset = __byte_perm(numbers[half][i], 4 * lane, 0x5504u | chunk << 4);
                    pairs[i][half] = *(const uint32_t *)(table + half * DECANT_WARP * 4 + offset);
                }
            const uint32_t first[4] = {pairs[0][0], pairs[0][1], pairs[2][0], pairs[2][1]};
            const uint32_t second[4] = {pairs[1][0], pairs[1][1], pairs[3][0], pairs[3][1]};
#pragma unroll
            for (int tokens = 0; tokens < TILES; tokens++) {
                const uint4 x = *(const uint4 *)(stage + tokens * QUARTER_BYTES +
                                                 (chunk * DECANT_WARP + (lane ^ 2 * chunk)) * CHUNK_BYTES);
                decant_mma(sums[tile][tokens], first, x.x, x.y);
                decant_mma(sums[tile][tokens], second, x.z, x.w);
            }
        }
    }
}

/* ---- the kernel ---- */

/* Where a block's arrays lie in shared memory, in bytes. The warps' sums take the place of x in the end. */
template <int BITS, int TILES> struct shared_layout {
    static constexpr int TOKENS = TILES * TILE_TOKENS;
    static constexpr int STAGE_BYTES = TILES * QUARTER_BYTES;
    static constexpr int STAGES_AT = ROW_TILES * TABLE_BYTES<BITS>;
    static constexpr int STAGES_BYTES = WARPS * STAGES * STAGE_BYTES;
    static constexpr int PARTS_BYTES = WARPS * ROWS * TOKENS * 4;
    static constexpr int LEVELS_AT = STAGES_AT + (STAGES_BYTES > PARTS_BYTES ? STAGES_BYTES : PARTS_BYTES);
    static constexpr int TOTAL = LEVELS_AT + ROWS * (1 << BITS) * 2;
};

template <int BITS, int TILES, bool WHOLE>
__global__ void __launch_bounds__(THREADS, 1) packed_pairs_kernel(const __grid_constant__ pairs_call call)
{
    using layout = shared_layout<BITS, TILES>;
    constexpr int TOKENS = layout::TOKENS;
    extern __shared__ __align__(128) unsigned char shared[];
    float(*parts)[ROWS][TOKENS] = (float(*)[ROWS][TOKENS])(shared + layout::STAGES_AT);
    const decant_packed_view &packed = call.packed;
    const int lane = threadIdx.x % DECANT_WARP, warp = threadIdx.x / DECANT_WARP;
    const int first_row = (int)blockIdx.x / call.groups * ROWS,
              first_token = (int)blockIdx.x % call.groups * GROUP_TOKENS;
    const int units = (packed.words + UNIT_WORDS - 1) / UNIT_WORDS;
    const int count = units > warp ? (units - warp + WARPS - 1) / WARPS : 0; /* units warp, warp + WARPS, … */
    unsigned char *stages = shared + layout::STAGES_AT + warp * STAGES * layout::STAGE_BYTES;
    const uint32_t stages_address = decant_shared_address(stages);

    unit_codes<BITS> codes, next;
    load_unit<BITS, WHOLE>(codes, packed, first_row, warp); /* zeros where there is none */
    fill_tables<BITS>(packed, first_row, (uint16_t *)(shared + layout::LEVELS_AT), shared);
    decant_let_next_kernel_begin();
    decant_wait_for_earlier_kernels();
#pragma unroll
    for (int quarter = 0; quarter < STAGES - 1; quarter++) {
        if (count > 0)
            fetch_quarter<TILES>(call, first_token, warp, quarter,
                                 stages_address + quarter * layout::STAGE_BYTES);
        decant_copy_commit();
    }
    __syncthreads(); /* the tables are there */

    float sums[ROW_TILES][TILES][4] = {};
    for (int i = 0; i < count; i++) {
        const int unit = warp + i * WARPS;
        load_unit<BITS, WHOLE>(next, packed, first_row, unit + WARPS);
#pragma unroll
        for (int quarter = 0; quarter < QUARTERS; quarter++) {
            const int ahead = quarter + STAGES - 1;
            __syncwarp(); /* all lanes are done with the stage that is filled now */
            if (ahead < QUARTERS || i + 1 < count)
                fetch_quarter<TILES>(call, first_token, ahead < QUARTERS ? unit : unit + WARPS,
                                     ahead % QUARTERS, stages_address + ahead % STAGES * layout::STAGE_BYTES);
            decant_copy_commit();
            decant_copy_wait<STAGES - 1>();
            __syncwarp();
            add_quarter<BITS, TILES>(sums, codes, quarter, stages + quarter % STAGES * layout::STAGE_BYTES,
                                     shared);
        }
        codes = next;
    }
    decant_copy_wait<0>();
    __syncthreads(); /* x is spent */
#pragma unroll
    for (int tile = 0; tile < ROW_TILES; tile++)
#pragma unroll
        for (int tokens = 0; tokens < TILES; tokens++)
#pragma unroll
            for (int c = 0; c < 4; c++)
                parts[warp][tile * TILE_ROWS + lane / 4 + 8 * (c / 2)]
                     [tokens * TILE_TOKENS + 2 * (lane % 4) + c % 2] = sums[tile][tokens][c];
    __syncthreads();
    for (int i = threadIdx.x; i < ROWS * TOKENS; i += THREADS) {
        const int own_row = i % ROWS, own_token = i / ROWS, row = first_row + own_row,
                  token = first_token + own_token;
        if (row >= packed.rows || token >= call.tokens)
            continue;
        float sum = call.sparse ? call.sparse[(int64_t)token * packed.rows + row] : 0.0f;
        for (int part = 0; part < WARPS; part++)
            sum += parts[part][own_row][own_token];
        __nv_bfloat16 *target = call.y + (int64_t)token * packed.rows + row;
        *target = decant_from_float<__nv_bfloat16>(call.accumulate ? decant_to_float(*target) + sum : sum);
    }
}

/* ---- the choice of a kernel ---- */

template <int BITS, int TILES, bool WHOLE>
static cudaError_t launch(decant_cuda_context *context, const pairs_call &call)
{
    const unsigned blocks = (unsigned)((call.packed.rows + ROWS - 1) / ROWS * call.groups);
    return decant_launch_early(context, packed_pairs_kernel<BITS, TILES, WHOLE>, blocks, THREADS,
                               shared_layout<BITS, TILES>::TOTAL, call);
}

template <int BITS> static cudaError_t launch_width(decant_cuda_context *context, const pairs_call &call)
{
    const bool whole = call.packed.words % QUARTERS == 0 && (uintptr_t)call.packed.planes % 16 == 0;
    if (call.tokens <= TILE_TOKENS)
        return whole ? launch<BITS, 1, true>(context, call) : launch<BITS, 1, false>(context, call);
    return whole ? launch<BITS, 2, true>(context, call) : launch<BITS, 2, false>(context, call);
}

bool decant_cuda_packed_has_pairs(decant_backend *backend, decant_matrix x, const decant_packed_matrix *packed)
{
    return packed->bits <= PLANES_MAXIMUM && x.element == DECANT_BF16 &&
           decant_has_vectors<__nv_bfloat16>(x.columns, x.data) &&
           decant_cuda_of(backend)->shared_memory_bytes >= (size_t)shared_layout<PLANES_MAXIMUM, 2>::TOTAL;
}

decant_status decant_cuda_packed_pairs(decant_backend *backend, decant_matrix x,
                                       const decant_packed_matrix *packed, bool sparse, bool accumulate,
                                       decant_matrix y, decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    pairs_call call = {};
    call.packed = decant_packed_view_of(packed);
    call.x = (const __nv_bfloat16 *)x.data;
    call.y = (__nv_bfloat16 *)y.data;
    call.tokens = (int)x.rows;
    call.groups = (call.tokens + GROUP_TOKENS - 1) / GROUP_TOKENS;
    if (sparse) {
        void *scratch;
        DECANT_RETURN_ON_FAILURE(
            decant_cuda_scratch(backend, decant_token_sparse_bytes(x, packed), &scratch, err));
        DECANT_RETURN_ON_FAILURE(decant_cuda_token_sparse(backend, x, packed, scratch, &call.sparse, err));
    }
    call.accumulate = accumulate;
    const cudaError_t code = packed->bits == 2   ? launch_width<2>(context, call)
                             : packed->bits == 3 ? launch_width<3>(context, call)
                                                 : launch_width<4>(context, call);
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(code, "packed_pairs", err));
    return decant_cuda_launched(backend, "packed_pairs", err);
}
