/* What the two passes of attention share: queries are taken in blocks, and a block meets the keys from the
 * first that any of its queries sees up to its own last one. */
#ifndef DECANT_KERNELS_CPU_ATTENTION_H
#define DECANT_KERNELS_CPU_ATTENTION_H

#include "kernels/backend.h"

enum { DECANT_QUERY_BLOCK = 128 };

/* A block of queries of one head, and the keys it meets. */
typedef struct decant_query_block {
    int64_t first, count;         /* queries */
    int64_t first_key, key_count; /* keys */
} decant_query_block;

static inline int64_t decant_query_blocks(const decant_attention_shape *shape)
{
    return (shape->tokens + DECANT_QUERY_BLOCK - 1) / DECANT_QUERY_BLOCK;
}

/* The first key that the query sees; the last one is itself. */
static inline int64_t decant_first_key(const decant_attention_shape *shape, int64_t query)
{
    return shape->window > 0 && query >= shape->window ? query - shape->window + 1 : 0;
}

static inline decant_query_block decant_query_block_at(const decant_attention_shape *shape, int64_t index)
{
    decant_query_block block = {.first = index * DECANT_QUERY_BLOCK, .count = DECANT_QUERY_BLOCK};
    if (block.first + block.count > shape->tokens)
        block.count = shape->tokens - block.first;
    block.first_key = decant_first_key(shape, block.first);
    block.key_count = block.first + block.count - block.first_key;
    return block;
}

/* The keys that query `row` of the block sees, as places in the block's rows of scores: [*begin, *end). */
static inline void decant_query_sees(const decant_attention_shape *shape, const decant_query_block *block,
                                     int64_t row, int64_t *begin, int64_t *end)
{
    int64_t query = block->first + row;
    *begin = decant_first_key(shape, query) - block->first_key;
    *end = query + 1 - block->first_key;
}

/* Where a head's columns begin in a [T, heads · head_dimension] matrix, at one token. */
static inline float *decant_head_at(decant_matrix matrix, int64_t token, int64_t head, int64_t head_dimension)
{
    return (float *)matrix.data + token * matrix.columns + head * head_dimension;
}

/* scores [block->count, block->key_count] = q kᵀ / sqrt(head_dimension), unmasked. */
void decant_attention_scores(const decant_attention_shape *shape, const decant_query_block *block, int64_t head,
                             decant_matrix q, decant_matrix k, float *scores);

#endif
