/* The products of other programs, as bench_decode_peers calls them: one file each, which knows the program's
 * own sources. Nothing of decant is known here. */
#ifndef DECANT_TESTS_BENCH_PEERS_H
#define DECANT_TESTS_BENCH_PEERS_H

#include <cuda_runtime.h>

/* y = x wᵀ, all arrays on the device. SqueezeLLM: x, y and table F32, and y is added to. any-precision: F16. */
typedef struct peer_product {
    int bits, rows, columns, tokens;
    void *codes; /* in the program's own order, which bench_decode_peers.cu reads too */
    void *table; /* [rows, 2^bits] */
    void *x, *y; /* [tokens, columns], [tokens, rows] */

    /* SqueezeLLM's sparse part, none when offsets is NULL */
    void *offsets, *indices, *values; /* by rows; F32 */
    int full_count;                   /* rows that are stored in full and are empty above; 0: none */
    void *full_rows, *full_indices;   /* F32 [columns, full_count]; which they are */
} peer_product;

/* Launches on cudaStreamPerThread. bits 3 or 4, rows and columns multiples of 128. */
void squeezellm_multiply(const peer_product *product);

/* bits 3 or 4, rows a multiple of 16, columns of 32; false when it has no kernel for so many tokens. */
bool any_precision_multiply(const peer_product *product, cudaStream_t stream);

#endif
