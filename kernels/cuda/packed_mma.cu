/* y = x ŵᵀ for up to sixteen tokens in BF16 on tensor cores and codes of five bits and more, so that a
 * looked-up level serves all tokens at once and the time hardly depends on how many there are. Needs rows of x
 * that can be read sixteen bytes at a time; packed_vectors.cu takes the rest.
 *
 * A block owns sixteen rows; its warps take turns at units of 128 columns and add their sums up in order at the
 * end. Products do not care about the order of their terms as long as both operands have the same one, so the
 * four lanes of a row take a byte each of a word of 32 columns: with t = lane % 4, terms 2t, 2t+1, 2t+8, 2t+9
 * of the two mma of a word are columns 8t … 8t+3 and 8t+4 … 8t+7. A lane's share of x is then sixteen bytes in
 * one piece, and its codes are one byte of each bit plane. */
#include "kernels/cuda/packed.cuh"
#include "kernels/cuda/tensor_core.cuh"

enum {
    ROWS = 16, /* of a block */
    WARPS = 8,
    THREADS = WARPS * DECANT_WARP,
    WORDS = 4, /* of a unit: 128 columns */
    WORD_COLUMNS = 32,
    TILE_TOKENS = 8, /* of one mma */
    BITS_LEAST = 5,
};

/* Words of a row's table of levels, two to a word. */
template <int BITS> constexpr int TABLE_WORDS = (1 << BITS) / 2;

/* The tables of the block's rows, levels rounded to BF16. */
template <int BITS>
static __device__ __forceinline__ void fill_tables(const decant_packed_view &packed, int first_row,
                                                   uint32_t *tables)
{
    constexpr int WIDTH = TABLE_WORDS<BITS>;
    for (int i = threadIdx.x; i < ROWS * WIDTH; i += THREADS) {
        const int row = min(first_row + i / WIDTH, packed.rows - 1);
        const __half *two = packed.levels + ((int64_t)row << BITS) + i % WIDTH * 2;
        tables[i] = decant_pair(__half2float(two[0]), __half2float(two[1]));
    }
}

/* The words of a unit of one row, all planes; zeros beyond the last word. */
template <int BITS, bool WHOLE>
static __device__ __forceinline__ void load_planes(uint32_t (&planes)[BITS][WORDS], const uint32_t *row_planes,
                                                   int words, const decant_planes_order &order, int first_word)
{
#pragma unroll
    for (int bit = 0; bit < BITS; bit++) {
        const uint32_t *source = row_planes + bit * order.plane + decant_word_place(order, first_word);
        if constexpr (WHOLE) {
            const uint4 four = *(const uint4 *)source;
            planes[bit][0] = four.x;
            planes[bit][1] = four.y;
            planes[bit][2] = four.z;
            planes[bit][3] = four.w;
        } else {
#pragma unroll
            for (int word = 0; word < WORDS; word++)
                planes[bit][word] = first_word + word < words ? source[word] : 0;
        }
    }
}

/* The levels of a lane's eight columns of one word as four pairs of BF16; byte = lane % 4. */
template <int BITS>
static __device__ __forceinline__ void look_up(uint32_t (&pairs)[4], const uint32_t (&planes)[BITS][WORDS],
                                               int word, int byte, const uint32_t *table)
{
    const uint16_t *levels = (const uint16_t *)table;
    uint32_t low = 0, high = 0; /* eight codes, a byte each */
#pragma unroll
    for (int bit = 0; bit < BITS; bit++) {
        uint32_t plane = __byte_perm(planes[bit][word], 0, 0x4440u + byte);
        low |= (plane & 15u) * (0x00204081u << bit) & 0x01010101u << bit;
        high |= (plane >> 4) * (0x00204081u << bit) & 0x01010101u << bit;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        pairs[i] = levels[low >> 16 * i & 255u] | (uint32_t)levels[low >> (16 * i + 8) & 255u] << 16;
        pairs[i + 2] = levels[high >> 16 * i & 255u] | (uint32_t)levels[high >> (16 * i + 8) & 255u] << 16;
    }
}

/* A lane's share of x in one word: eight columns of one token; zeros beyond the last column or token. */
static __device__ __forceinline__ uint4 load_share(const __nv_bfloat16 *x, int token, int tokens, int column,
                                                   int columns)
{
    if (token >= tokens || column >= columns)
        return make_uint4(0, 0, 0, 0);
    return *(const uint4 *)(x + (int64_t)token * columns + column);
}

/* sums += the products of one unit. The lane's rows are lane / 4 and lane / 4 + 8 of the block. */
template <int BITS, int TILES, bool WHOLE>
static __device__ __forceinline__ void add_unit(float (&sums)[TILES][4], const decant_packed_view &packed,
                                                int first_row, int unit, const __nv_bfloat16 *x, int tokens,
                                                const uint32_t *tables)
{
    const int lane = threadIdx.x % DECANT_WARP, own_row = lane / 4, byte = lane % 4;
    const int upper = min(first_row + own_row, packed.rows - 1);
    const int lower = min(first_row + own_row + 8, packed.rows - 1);
    uint32_t upper_planes[BITS][WORDS], lower_planes[BITS][WORDS];
    load_planes<BITS, WHOLE>(upper_planes, decant_row_planes(packed, upper), packed.words, packed.order,
                             unit * WORDS);
    load_planes<BITS, WHOLE>(lower_planes, decant_row_planes(packed, lower), packed.words, packed.order,
                             unit * WORDS);
    const uint32_t *upper_table = tables + own_row * TABLE_WORDS<BITS>;
    const uint32_t *lower_table = upper_table + 8 * TABLE_WORDS<BITS>;
#pragma unroll
    for (int word = 0; word < WORDS; word++) {
        const int column = (unit * WORDS + word) * WORD_COLUMNS + DECANT_OCTET * byte;
        uint32_t high[4], low[4];
        look_up<BITS>(high, upper_planes, word, byte, upper_table);
        look_up<BITS>(low, lower_planes, word, byte, lower_table);
        const uint32_t first[4] = {high[0], low[0], high[1], low[1]};
        const uint32_t second[4] = {high[2], low[2], high[3], low[3]};
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            uint4 share = load_share(x, tile * TILE_TOKENS + own_row, tokens, column, packed.columns);
            decant_mma(sums[tile], first, share.x, share.y);
            decant_mma(sums[tile], second, share.z, share.w);
        }
    }
}

/* The sparse part of the block's rows, two rows a warp. A row has no more entries than columns, so the longest
 * costs its warp no more than the dense part did: the rows need no balancing. */
template <int TILES>
static __device__ __forceinline__ void add_sparse(float (&sums)[ROWS][TILES * TILE_TOKENS],
                                                  const decant_packed_view &packed, int first_row,
                                                  const __nv_bfloat16 *x, int tokens)
{
    const int lane = threadIdx.x % DECANT_WARP, warp = threadIdx.x / DECANT_WARP;
    for (int own_row = warp; own_row < ROWS; own_row += WARPS) {
        const int row = min(first_row + own_row, packed.rows - 1);
        const uint32_t end = packed.row_offsets[row + 1];
        float own[TILES * TILE_TOKENS] = {};
        for (uint32_t i = packed.row_offsets[row] + lane; i < end; i += DECANT_WARP) {
            const float value = __half2float(packed.sparse_values[i]);
            const __nv_bfloat16 *column = x + packed.sparse_columns[i];
#pragma unroll
            for (int t = 0; t < TILES * TILE_TOKENS; t++)
                if (t < tokens)
                    own[t] += value * decant_to_float(column[(int64_t)t * packed.columns]);
        }
#pragma unroll
        for (int t = 0; t < TILES * TILE_TOKENS; t++) {
            if (t >= tokens)
                break;
            const float sum = decant_warp_sum(own[t]);
            if (lane == 0)
                sums[own_row][t] = sum;
        }
    }
}

template <int BITS, int TILES, bool WHOLE>
__global__ void __launch_bounds__(THREADS)
    packed_mma_kernel(const decant_packed_view packed, const __nv_bfloat16 *x, int tokens, bool sparse,
                      bool accumulate, __nv_bfloat16 *y)
{
    constexpr int TOKENS = TILES * TILE_TOKENS;
    __shared__ uint32_t tables[ROWS * TABLE_WORDS<BITS>];
    __shared__ float parts[WARPS][ROWS][TOKENS], sparse_sums[ROWS][TOKENS];
    const int lane = threadIdx.x % DECANT_WARP, warp = threadIdx.x / DECANT_WARP;
    const int first_row = blockIdx.x * ROWS, units = (packed.words + WORDS - 1) / WORDS;
    fill_tables<BITS>(packed, first_row, tables);
    if (sparse)
        add_sparse<TILES>(sparse_sums, packed, first_row, x, tokens);
    __syncthreads(); /* the tables are there */
    float sums[TILES][4] = {};
    for (int unit = warp; unit < units; unit += WARPS)
        add_unit<BITS, TILES, WHOLE>(sums, packed, first_row, unit, x, tokens, tables);
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int c = 0; c < 4; c++)
            parts[warp][lane / 4 + 8 * (c / 2)][tile * TILE_TOKENS + 2 * (lane % 4) + c % 2] = sums[tile][c];
    __syncthreads(); /* so are all sums */
    for (int i = threadIdx.x; i < ROWS * tokens; i += THREADS) {
        const int own_row = i % ROWS, token = i / ROWS, row = first_row + own_row;
        if (row >= packed.rows)
            continue;
        float sum = sparse ? sparse_sums[own_row][token] : 0.0f;
        for (int part = 0; part < WARPS; part++)
            sum += parts[part][own_row][token];
        __nv_bfloat16 *target = y + (int64_t)token * packed.rows + row;
        *target = decant_from_float<__nv_bfloat16>(accumulate ? decant_to_float(*target) + sum : sum);
    }
}

/* ---- the choice of a kernel ---- */

/* The arguments of a launch. */
typedef struct mma_call {
    decant_packed_view packed;
    const __nv_bfloat16 *x;
    __nv_bfloat16 *y;
    int tokens;
    bool sparse, accumulate;
    cudaStream_t stream;
} mma_call;

template <int BITS, int TILES, bool WHOLE> static void launch(const mma_call &call)
{
    const unsigned blocks = (unsigned)((call.packed.rows + ROWS - 1) / ROWS);
    packed_mma_kernel<BITS, TILES, WHOLE><<<blocks, THREADS, 0, call.stream>>>(
        call.packed, call.x, call.tokens, call.sparse, call.accumulate, call.y);
}

template <int BITS> static void launch_width(const mma_call &call)
{
    const bool whole = call.packed.words % WORDS == 0 && (uintptr_t)call.packed.planes % 16 == 0;
    if (call.tokens <= TILE_TOKENS)
        whole ? launch<BITS, 1, true>(call) : launch<BITS, 1, false>(call);
    else
        whole ? launch<BITS, 2, true>(call) : launch<BITS, 2, false>(call);
}

bool decant_cuda_packed_has_mma(decant_matrix x, const decant_packed_matrix *packed)
{
    return packed->bits >= BITS_LEAST && x.element == DECANT_BF16 &&
           decant_has_vectors<__nv_bfloat16>(x.columns, x.data);
}

decant_status decant_cuda_packed_mma(decant_backend *backend, decant_matrix x,
                                     const decant_packed_matrix *packed, bool sparse, bool accumulate,
                                     decant_matrix y, decant_error *err)
{
    const mma_call call = {decant_packed_view_of(packed),
                           (const __nv_bfloat16 *)x.data,
                           (__nv_bfloat16 *)y.data,
                           (int)x.rows,
                           sparse,
                           accumulate,
                           decant_cuda_of(backend)->stream};
    static void (*const widths[])(const mma_call &) = {launch_width<5>, launch_width<6>, launch_width<7>,
                                                       launch_width<8>};
    if (packed->bits < BITS_LEAST || packed->bits > DECANT_BITS_MAXIMUM)
        return DECANT_ERROR(err, DECANT_ERROR_BUG, "packed_linear: codes of %d bits", packed->bits);
    widths[packed->bits - BITS_LEAST](call);
    return decant_cuda_launched(backend, "packed_mma", err);
}
