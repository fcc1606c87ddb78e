/* Host memory, counted: how much is held now, and how much was held at the peak.
 * The counters are the process's, as the heap is; besides them only what signal handlers know is global. */
#ifndef DECANT_BASE_MEMORY_H
#define DECANT_BASE_MEMORY_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

/* Allocates size_bytes of zeroed memory, aligned to 64 bytes; size 0 gives a valid pointer.
 *   what     named in the message when memory runs out ("Fisher sums of model.layers.3.mlp.up_proj")
 *   memory   receives the block, NULL on failure; the caller frees it with decant_memory_free
 * Returns DECANT_ERROR_MEMORY when there is not enough. */
decant_status decant_memory_allocate(size_t size_bytes, const char *what, void **memory, decant_error *err);

/* The same of any content, for memory that is filled at once: nobody has to touch its pages before. */
decant_status decant_memory_allocate_unset(size_t size_bytes, const char *what, void **memory,
                                           decant_error *err);

enum { DECANT_MEMORY_ALIGNMENT = 64 }; /* bytes, of every block */

/* Bytes that an array takes in a block that several share, so that the next one is aligned as a block is. */
static inline size_t decant_memory_aligned_bytes(size_t size_bytes)
{
    return (size_bytes + DECANT_MEMORY_ALIGNMENT - 1) / DECANT_MEMORY_ALIGNMENT * DECANT_MEMORY_ALIGNMENT;
}

/* Copies by up to 8 threads: one core copies a third of what a bus to a device takes, and new pages slower
 * still. The two may not overlap. */
void decant_memory_copy(void *target, const void *source, size_t size_bytes);

/* Changes the size of a block to size_bytes, keeping the contents (new bytes are zero). *memory may be NULL.
 * On failure the old block stays valid. */
decant_status decant_memory_resize(size_t size_bytes, const char *what, void **memory, decant_error *err);

/* Makes room for one more element at the end of an array that grows: where `count` elements fill its *room, the
 * room is doubled, from 64 elements on.
 *   array   the block, NULL while *room is 0; on failure it and *room stay as they were */
decant_status decant_memory_grow(size_t element_bytes, int64_t count, int64_t *room, const char *what,
                                 void **array, decant_error *err);

/* Frees a block; NULL is allowed. */
void decant_memory_free(void *memory);

/* A copy of a string, freed with decant_memory_free. */
decant_status decant_memory_copy_string(const char *string, char **copy, decant_error *err);

typedef struct decant_memory_usage {
    int64_t blocks;     /* live blocks */
    int64_t bytes;      /* live bytes, as asked for */
    int64_t peak_bytes; /* largest value of bytes so far */
} decant_memory_usage;

decant_memory_usage decant_memory_usage_now(void);

#endif
