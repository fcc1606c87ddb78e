/* Each block is preceded by a 64-byte header that remembers its size, so that freeing can be counted. */
#include "base/memory.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { COPY_THREADS = 8, COPY_PIECE_BYTES = 1 << 20 };

typedef struct block_header {
    size_t size_bytes;
} block_header;

static atomic_int_fast64_t live_blocks, live_bytes, peak_bytes;

static void count(int64_t blocks, int64_t bytes)
{
    atomic_fetch_add(&live_blocks, blocks);
    int_fast64_t now = atomic_fetch_add(&live_bytes, bytes) + bytes;
    int_fast64_t peak = atomic_load(&peak_bytes);
    while (now > peak && !atomic_compare_exchange_weak(&peak_bytes, &peak, now)) {
    }
}

static block_header *header_of(void *memory)
{
    return (block_header *)((char *)memory - DECANT_MEMORY_ALIGNMENT);
}

decant_status decant_memory_allocate_unset(size_t size_bytes, const char *what, void **memory,
                                           decant_error *err)
{
    *memory = NULL;
    size_t rounded = decant_memory_aligned_bytes(size_bytes);
    if (rounded < size_bytes || rounded > SIZE_MAX - DECANT_MEMORY_ALIGNMENT)
        return DECANT_ERROR(err, DECANT_ERROR_MEMORY, "%s: %zu bytes cannot be addressed", what, size_bytes);
    char *block = aligned_alloc(DECANT_MEMORY_ALIGNMENT, rounded + DECANT_MEMORY_ALIGNMENT);
    if (!block)
        return DECANT_ERROR(err, DECANT_ERROR_MEMORY, "no memory for %s (%.3f GB); use more ranks", what,
                            (double)size_bytes / 1e9);
    ((block_header *)block)->size_bytes = size_bytes;
    count(1, (int64_t)size_bytes);
    *memory = block + DECANT_MEMORY_ALIGNMENT;
    return DECANT_OK;
}

decant_status decant_memory_allocate(size_t size_bytes, const char *what, void **memory, decant_error *err)
{
    decant_status status = decant_memory_allocate_unset(size_bytes, what, memory, err);
    if (status == DECANT_OK)
        memset(*memory, 0, size_bytes);
    return status;
}

void decant_memory_copy(void *target, const void *source, size_t size_bytes)
{
    size_t piece = (size_bytes + COPY_THREADS - 1) / COPY_THREADS;
    piece = piece < COPY_PIECE_BYTES ? COPY_PIECE_BYTES : piece;
    int64_t pieces = (int64_t)((size_bytes + piece - 1) / piece);
#pragma omp parallel for schedule(static, 1) if (pieces > 1)
    for (int64_t i = 0; i < pieces; i++) {
        size_t offset = (size_t)i * piece, left = size_bytes - offset;
        memcpy((char *)target + offset, (const char *)source + offset, left < piece ? left : piece);
    }
}

decant_status decant_memory_resize(size_t size_bytes, const char *what, void **memory, decant_error *err)
{
    void *larger;
    decant_status status = decant_memory_allocate(size_bytes, what, &larger, err);
    if (status != DECANT_OK)
        return status;
    if (*memory) {
        size_t old_bytes = header_of(*memory)->size_bytes;
        memcpy(larger, *memory, old_bytes < size_bytes ? old_bytes : size_bytes);
        decant_memory_free(*memory);
    }
    *memory = larger;
    return DECANT_OK;
}

decant_status decant_memory_grow(size_t element_bytes, int64_t count, int64_t *room, const char *what,
                                 void **array, decant_error *err)
{
    enum { FIRST_ROOM = 64 };
    if (count < *room)
        return DECANT_OK;
    int64_t larger = *room > 0 ? 2 * *room : FIRST_ROOM;
    decant_status status = decant_memory_resize((size_t)larger * element_bytes, what, array, err);
    if (status == DECANT_OK)
        *room = larger;
    return status;
}

void decant_memory_free(void *memory)
{
    if (!memory)
        return;
    block_header *header = header_of(memory);
    count(-1, -(int64_t)header->size_bytes);
    free(header);
}

decant_status decant_memory_copy_string(const char *string, char **copy, decant_error *err)
{
    size_t size_bytes = strlen(string) + 1;
    void *block;
    decant_status status = decant_memory_allocate(size_bytes, "a name", &block, err);
    *copy = block;
    if (status == DECANT_OK)
        memcpy(*copy, string, size_bytes);
    return status;
}

decant_memory_usage decant_memory_usage_now(void)
{
    return (decant_memory_usage){atomic_load(&live_blocks), atomic_load(&live_bytes), atomic_load(&peak_bytes)};
}
