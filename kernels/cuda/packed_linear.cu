/* y = x ŵᵀ from the packed form; the way depends on the shapes alone:
 *
 *     very few tokens, up to 6 bits, BF16   packed_parities.cu   binary tensor cores, nothing is looked up
 *     up to 32 tokens, up to 4 bits, BF16,
 *     larger matrices or several, Hopper    packed_pairs.cu      sparse tensor cores, tables of pairs of levels
 *     up to 32 tokens otherwise             packed_tiles.cu      tensor cores, levels in registers
 *     up to 16 tokens, wider codes, BF16    packed_mma.cu        tensor cores, a lookup each
 *     up to 16 tokens otherwise             packed_vectors.cu    F32, or rows of x of odd lengths
 *     up to 64 tokens, up to 4 bits, BF16   the first three, in two lots
 *     more tokens                           here                 decoded, then cuBLAS
 *
 * In the last, rows are decoded into a tile of scratch, in the activations' type, small enough to be still in
 * the L2 cache when the product reads it.
 *
 * The sparse part is folded into the decoded tile, or multiplied in or before the kernel, unless
 * DECANT_CUDA_SPARSE=cusparse: then the dense part goes these ways without it and cuSPARSE adds x Sᵀ to y.
 * Folded costs one more pass over the few sparse entries; cuSPARSE reads and writes y again. In BF16, folding
 * rounds level + value once, cuSPARSE rounds y twice. */
#include "kernels/cuda/packed.cuh"

extern "C" {
#include "kernels/packed_input.h"
}

#include <climits>

enum {
    THREADS = 256,
    TILE_BYTES = 32 << 20,
    TILE_ROWS_MULTIPLE = 256,
    LOT_TOKENS = 32, /* the most that are multiplied without decoding */
    PAIRS_TOKENS_FEW = 8,
    PAIRS_TOKENS_AT_ONCE = 3,       /* so many of several matrices before parities of each */
    PAIRS_TOKENS_AT_ONCE_SMALL = 2, /* of codes of four bits and few weights */
    PARITIES_TOKENS = 16,
    PARITIES_COLUMNS = 8192,             /* at most, of more than two tokens */
    PARITIES_WEIGHTS = 24 << 20,         /* at least, of those */
    PARITIES_ENTRIES_WEIGHTS = 64 << 20, /* less than that beside the sparse part */
    PAIRS_WEIGHTS = 16 << 20,            /* at least, of others */
    PAIRS_WEIGHTS_NARROW = 64 << 20,     /* of narrow codes and many rows */
    PAIRS_WEIGHTS_LEAST = 8 << 20,       /* of several matrices, or of wide codes and many tokens */
    MAKING_TOKENS = 3,                   /* by pairs that make what they take, of codes below four bits */
    MAKING_TOKENS_NARROW = 4,            /* by parities, of codes of two bits */
    MAKING_WEIGHTS_NARROW = 128 << 20,   /* and so many weights */
};

/* Dense columns of an octet leave together when the row's addresses allow. */
template <typename T>
static __device__ __forceinline__ void store_octet(T *target, const float (&values)[DECANT_OCTET], int count,
                                                   bool vectors)
{
    if (vectors) {
        decant_store(target, values);
        return;
    }
#pragma unroll
    for (int i = 0; i < DECANT_OCTET; i++)
        if (i < count)
            target[i] = decant_from_float<T>(values[i]);
}

/* Of each level there are so many copies that the lanes of a warp meet in no bank of shared memory, as far as
 * making them takes less than reading them. */
template <int BITS> constexpr int LEVEL_COPIES = BITS <= 5 ? DECANT_WARP : 1024 >> BITS;

/* One block a row: row first_row + blockIdx.x of the matrix becomes row blockIdx.x of the tile. */
template <typename T, int BITS>
__global__ void __launch_bounds__(THREADS)
    decode_kernel(const decant_packed_view packed, int first_row, bool sparse, bool vectors, T *tile)
{
    constexpr int LEVELS = 1 << BITS, COPIES = LEVEL_COPIES<BITS>;
    __shared__ float levels[LEVELS * COPIES];
    const int row = first_row + blockIdx.x, octets = (packed.columns + DECANT_OCTET - 1) / DECANT_OCTET;
    const uint32_t *planes = decant_row_planes(packed, row);
    const float *own_levels = levels + threadIdx.x % COPIES;
    T *target = tile + (int64_t)blockIdx.x * packed.columns;
    int octet = threadIdx.x;
    uint2 codes = {0, 0};
    if (octet < octets) /* on their way while the levels come */
        codes = decant_octet_codes(planes, BITS, packed.order, octet);
    for (int i = threadIdx.x; i < LEVELS * COPIES; i += THREADS)
        levels[i] = __half2float(packed.levels[(int64_t)row * LEVELS + i / COPIES]);
    __syncthreads();
    while (octet < octets) {
        float values[DECANT_OCTET];
#pragma unroll
        for (int i = 0; i < DECANT_OCTET / 2; i++) {
            values[i] = own_levels[(codes.x >> 8 * i & 255u) * COPIES];
            values[i + 4] = own_levels[(codes.y >> 8 * i & 255u) * COPIES];
        }
        const int done = octet;
        octet += THREADS;
        if (octet < octets)
            codes = decant_octet_codes(planes, BITS, packed.order, octet);
        store_octet(target + done * DECANT_OCTET, values, packed.columns - done * DECANT_OCTET, vectors);
    }
    if (!sparse)
        return;
    __syncthreads(); /* the dense values are written before the sparse ones take their place */
    for (uint32_t i = packed.row_offsets[row] + threadIdx.x; i < packed.row_offsets[row + 1]; i += THREADS) {
        const uint32_t column = packed.sparse_columns[i];
        const float level = own_levels[decant_column_code(planes, BITS, packed.order, column) * COPIES];
        target[column] = decant_from_float<T>(level + __half2float(packed.sparse_values[i]));
    }
}

template <int BITS>
static decant_status decode_bits(decant_backend *backend, const decant_packed_matrix *packed, int64_t first_row,
                                 int64_t count, bool sparse, void *tile, decant_error *err)
{
    return decant_by_activation(backend, [&](auto activation) {
        using T = decltype(activation);
        cudaStream_t stream = decant_cuda_of(backend)->stream;
        decode_kernel<T, BITS>
            <<<(unsigned)count, THREADS, 0, stream>>>(decant_packed_view_of(packed), (int)first_row, sparse,
                                                      packed->columns % DECANT_OCTET == 0, (T *)tile);
        return decant_cuda_launched(backend, "decode", err);
    });
}

static decant_status decode(decant_backend *backend, const decant_packed_matrix *packed, int64_t first_row,
                            int64_t count, bool sparse, void *tile, decant_error *err)
{
    decant_status (*const by_bits[])(decant_backend *, const decant_packed_matrix *, int64_t, int64_t, bool,
                                     void *, decant_error *) = {decode_bits<2>, decode_bits<3>, decode_bits<4>,
                                                                decode_bits<5>, decode_bits<6>, decode_bits<7>,
                                                                decode_bits<8>};
    return by_bits[packed->bits - DECANT_BITS_MINIMUM](backend, packed, first_row, count, sparse, tile, err);
}

static decant_status multiply_decoded(decant_backend *backend, decant_matrix x,
                                      const decant_packed_matrix *packed, bool sparse, bool accumulate,
                                      decant_matrix y, decant_error *err)
{
    const size_t element_bytes = decant_element_bytes(backend->activation);
    int64_t at_once =
        TILE_BYTES / (int64_t)element_bytes / packed->columns / TILE_ROWS_MULTIPLE * TILE_ROWS_MULTIPLE;
    if (at_once < TILE_ROWS_MULTIPLE)
        at_once = TILE_ROWS_MULTIPLE;
    if (at_once > packed->rows)
        at_once = packed->rows;
    void *tile;
    DECANT_RETURN_ON_FAILURE(
        decant_cuda_scratch(backend, (size_t)(at_once * packed->columns) * element_bytes, &tile, err));
    for (int64_t row = 0; row < packed->rows; row += at_once) {
        int64_t count = packed->rows - row < at_once ? packed->rows - row : at_once;
        DECANT_RETURN_ON_FAILURE(decode(backend, packed, row, count, sparse, tile, err));
        decant_cuda_product product = {
            .m = x.rows,
            .n = count,
            .k = packed->columns,
            .element = x.element,
            .a = x.data,
            .a_stride = x.columns,
            .b = tile,
            .b_stride = packed->columns,
            .b_transposed = true,
            .accumulate = accumulate,
            .c = (char *)y.data + (size_t)row * element_bytes,
            .c_element = y.element,
            .c_stride = y.columns,
        };
        DECANT_RETURN_ON_FAILURE(decant_cuda_multiply(backend, &product, "packed_linear", err));
    }
    return DECANT_OK;
}

static int64_t weights_of(const decant_packed_matrix *packed)
{
    return packed->rows * packed->columns;
}

static int64_t weights_of_all(const decant_packed_product *products, int count)
{
    int64_t weights = 0;
    for (int i = 0; i < count; i++)
        weights += weights_of(products[i].packed);
    return weights;
}

/* Parities cost by the token, lookups by the code: where the one overtakes the other (tests/gpu/RESULTS.md).
 * With more than two tokens that depends on the matrix, too: codes of three bits are looked up sooner where
 * rows are long or the matrix is small, and beside the sparse part where rows are long, and those of three bits
 * where the matrix is large. */
static bool gains_by_parities(decant_matrix x, const decant_packed_matrix *packed)
{
    static const int most[] = {0, 0, 4, 4, 2, 1, 1}; /* tokens, of codes of 2 to 6 bits */
    if (packed->bits > 6 || x.rows > most[packed->bits])
        return false;
    if (x.rows <= 2)
        return true;
    const bool many_columns = packed->columns > PARITIES_COLUMNS;
    if (packed->sparse.count > 0)
        return !many_columns && (packed->bits < 3 || weights_of(packed) < PARITIES_ENTRIES_WEIGHTS);
    return packed->bits < 3 || (!many_columns && weights_of(packed) >= PARITIES_WEIGHTS);
}

static bool takes_parities(decant_backend *backend, decant_matrix x, const decant_packed_matrix *packed)
{
    const decant_packed_way way = decant_cuda_context_of(backend)->packed_way;
    const bool wanted =
        way == DECANT_PACKED_PARITIES || (way == DECANT_PACKED_FASTEST && gains_by_parities(x, packed));
    return wanted && x.rows <= PARITIES_TOKENS && decant_cuda_packed_has_parities(backend, x, packed);
}

/* Where pairs have been faster than tiles (tests/bench/DECODE.md): from some number of weights on, because
 * tables take their time to fill. Narrower codes are looked up in registers as fast, but for many tokens of few
 * rows. Several matrices at once save what a launch takes. Fewer than the least have not been measured. */
static bool gains_by_pairs(decant_backend *backend, decant_matrix x, const decant_packed_product *products,
                           int count)
{
    const decant_packed_matrix *first = products[0].packed;
    const bool wide = first->bits == 4 || first->sparse.count > 0,
               few_rows =
                   x.rows > PAIRS_TOKENS_FEW && decant_cuda_packed_pairs_own_rows(backend, products, count);
    const int64_t weights = weights_of_all(products, count);
    if (count > 1 || (wide && x.rows > PAIRS_TOKENS_FEW))
        return weights >= PAIRS_WEIGHTS_LEAST;
    return weights >= (wide || few_rows ? PAIRS_WEIGHTS : PAIRS_WEIGHTS_NARROW);
}

static bool takes_pairs(decant_backend *backend, decant_matrix x, const decant_packed_product *products,
                        int count)
{
    const decant_packed_way way = decant_cuda_context_of(backend)->packed_way;
    const bool wanted = way == DECANT_PACKED_PAIRS || way == DECANT_PACKED_PAIRS_BEFORE ||
                        (way == DECANT_PACKED_FASTEST && gains_by_pairs(backend, x, products, count));
    return wanted && decant_cuda_packed_has_pairs(backend, x, products, count);
}

/* Codes looked up twice take less than rows decoded once (tests/gpu/RESULTS.md). */
static bool takes_halves(decant_backend *backend, decant_matrix x, const decant_packed_matrix *packed)
{
    decant_matrix half = x;
    half.rows = LOT_TOKENS;
    return x.rows > LOT_TOKENS && x.rows <= 2 * LOT_TOKENS &&
           decant_cuda_context_of(backend)->packed_way == DECANT_PACKED_FASTEST &&
           decant_cuda_packed_has_tiles(backend, half, packed);
}

static decant_status multiply_halves(decant_backend *backend, decant_matrix x,
                                     const decant_packed_matrix *packed, bool accumulate, decant_matrix y,
                                     decant_error *err)
{
    DECANT_RETURN_ON_FAILURE(decant_cuda_packed_linear(backend, decant_matrix_rows(x, 0, LOT_TOKENS), packed,
                                                       accumulate, decant_matrix_rows(y, 0, LOT_TOKENS), err));
    const int64_t left = x.rows - LOT_TOKENS;
    return decant_cuda_packed_linear(backend, decant_matrix_rows(x, LOT_TOKENS, left), packed, accumulate,
                                     decant_matrix_rows(y, LOT_TOKENS, left), err);
}

decant_status decant_cuda_packed_prepare(decant_backend *backend, decant_packed_matrix *packed,
                                         decant_error *err)
{
    DECANT_RETURN_ON_FAILURE(decant_cuda_join_entries(backend, packed, err));
    return decant_cuda_arrange_planes(backend, packed, err);
}

/* The sparse part is added by cuSPARSE, behind. */
static bool adds_sparse_by_library(decant_backend *backend, const decant_packed_matrix *packed)
{
    return packed->sparse.count > 0 && decant_cuda_context_of(backend)->sparse_by_library;
}

decant_status decant_cuda_packed_linear(decant_backend *backend, decant_matrix x,
                                        const decant_packed_matrix *packed, bool accumulate, decant_matrix y,
                                        decant_error *err)
{
    if (x.rows == 0 || packed->rows == 0)
        return DECANT_OK;
    if (takes_halves(backend, x, packed))
        return multiply_halves(backend, x, packed, accumulate, y, err);
    const decant_packed_input input = {.x = x};
    const decant_packed_product product = {packed, y};
    const bool by_library = adds_sparse_by_library(backend, packed);
    const bool folded = packed->sparse.count > 0 && !by_library;
    if (takes_parities(backend, x, packed))
        DECANT_RETURN_ON_FAILURE(decant_cuda_packed_parities(backend, x, packed, folded, accumulate, y, err));
    else if (takes_pairs(backend, x, &product, 1))
        DECANT_RETURN_ON_FAILURE(
            decant_cuda_packed_pairs(backend, &input, &product, 1, folded, accumulate, err));
    else if (decant_cuda_context_of(backend)->packed_way != DECANT_PACKED_LOOKUPS &&
             decant_cuda_packed_has_tiles(backend, x, packed))
        DECANT_RETURN_ON_FAILURE(decant_cuda_packed_tiles(backend, x, packed, folded, accumulate, y, err));
    else if (x.rows <= DECANT_PACKED_VECTORS_MAXIMUM && decant_cuda_packed_has_mma(x, packed))
        DECANT_RETURN_ON_FAILURE(decant_cuda_packed_mma(backend, x, packed, folded, accumulate, y, err));
    else if (x.rows <= DECANT_PACKED_VECTORS_MAXIMUM)
        DECANT_RETURN_ON_FAILURE(decant_cuda_packed_vectors(backend, x, packed, folded, accumulate, y, err));
    else
        DECANT_RETURN_ON_FAILURE(multiply_decoded(backend, x, packed, folded, accumulate, y, err));
    return by_library ? decant_cuda_sparse_linear(backend, x, packed, y, err) : DECANT_OK;
}

/* ---- several matrices ---- */

/* Whether these, which pairs can multiply at once, are multiplied so: of one matrix, whether packed_linear
 * takes pairs. */
static bool takes_pairs_at_once(decant_backend *backend, decant_matrix x, const decant_packed_product *products,
                                int count)
{
    if (x.rows == 0 || products[0].packed->rows == 0 || adds_sparse_by_library(backend, products[0].packed))
        return false;
    for (int i = 0; i < count; i++) {
        const decant_packed_matrix *packed = products[i].packed;
        const bool small = packed->bits == 4 && weights_of(packed) <= PAIRS_WEIGHTS;
        const int fewest = count == 1 ? INT_MAX : small ? PAIRS_TOKENS_AT_ONCE_SMALL : PAIRS_TOKENS_AT_ONCE;
        if (x.rows < fewest && takes_parities(backend, x, packed))
            return false;
    }
    return takes_pairs(backend, x, products, count);
}

/* Where pairs that make what they take are faster than any way behind an operation that makes it
 * (tests/bench/decode/several_tokens.md). Parities stay ahead with two tokens, and for codes of two bits with
 * few in large matrices; fewer weights have not been measured. */
static bool gains_by_making(decant_matrix x, const decant_packed_product *products, int count)
{
    const decant_packed_matrix *first = products[0].packed;
    const int64_t weights = weights_of_all(products, count);
    const bool parities =
        x.rows < MAKING_TOKENS || (first->bits == 2 && x.rows <= MAKING_TOKENS_NARROW &&
                                   weights >= MAKING_WEIGHTS_NARROW && first->columns <= PARITIES_COLUMNS);
    return weights >= PAIRS_WEIGHTS_LEAST && !(parities && (first->bits < 4 || x.rows == 1));
}

/* Whether pairs multiply these, making what they take of the input. */
static bool takes_pairs_making(decant_backend *backend, const decant_packed_input *input,
                               const decant_packed_product *products, int count)
{
    return decant_packed_input_is_made(input) &&
           decant_cuda_context_of(backend)->packed_way == DECANT_PACKED_FASTEST &&
           decant_cuda_packed_has_pairs(backend, input->x, products, count) &&
           decant_cuda_packed_pairs_make_x(input, products) && gains_by_making(input->x, products, count);
}

static bool multiplies_by_pairs(decant_backend *backend, const decant_packed_input *input,
                                const decant_packed_product *products, int count)
{
    return takes_pairs_at_once(backend, input->x, products, count) ||
           takes_pairs_making(backend, input, products, count);
}

/* Products of up to DECANT_PAIRS_MATRICES matrices: those of the same form at once. Pairs make what they take
 * of the input themselves; for any other way it is made, once, and the input is that from then on. */
static decant_status multiply_alike(decant_backend *backend, decant_packed_input *input,
                                    const decant_packed_product *products, int count, bool accumulate,
                                    decant_error *err)
{
    bool done[DECANT_PAIRS_MATRICES] = {};
    for (int i = 0; i < count; i++) {
        if (done[i])
            continue;
        decant_packed_product alike[DECANT_PAIRS_MATRICES] = {products[i]};
        int places[DECANT_PAIRS_MATRICES] = {i}, found = 1;
        for (int j = i + 1; j < count; j++) {
            alike[found] = products[j];
            places[found] = j;
            found += !done[j] && decant_cuda_packed_has_pairs(backend, input->x, alike, found + 1);
        }
        bool pairs = multiplies_by_pairs(backend, input, alike, found);
        if (!pairs && found > 1) {
            found = 1;
            pairs = multiplies_by_pairs(backend, input, alike, found);
        }
        if (!pairs || !decant_cuda_packed_pairs_make_x(input, alike)) {
            decant_matrix x;
            DECANT_RETURN_ON_FAILURE(decant_packed_input_make(backend, input, &x, err));
            *input = {.x = x};
            pairs = pairs && decant_cuda_packed_has_pairs(backend, x, alike, found); /* x lies elsewhere now */
            found = pairs ? found : 1;
        }
        if (pairs)
            DECANT_RETURN_ON_FAILURE(decant_cuda_packed_pairs(
                backend, input, alike, found, products[i].packed->sparse.count > 0, accumulate, err));
        else
            DECANT_RETURN_ON_FAILURE(decant_cuda_packed_linear(backend, input->x, products[i].packed,
                                                               accumulate, products[i].y, err));
        for (int k = 0; k < found; k++)
            done[places[k]] = true;
    }
    return DECANT_OK;
}

decant_status decant_cuda_packed_products(decant_backend *backend, const decant_packed_input *input,
                                          const decant_packed_product *products, int count, bool accumulate,
                                          decant_error *err)
{
    decant_packed_input left = *input;
    for (int i = 0; i < count; i += DECANT_PAIRS_MATRICES)
        DECANT_RETURN_ON_FAILURE(multiply_alike(
            backend, &left, products + i, count - i < DECANT_PAIRS_MATRICES ? count - i : DECANT_PAIRS_MATRICES,
            accumulate, err));
    return DECANT_OK;
}
