/* A file in memory that costs only where something was written: the rest reads as zeros. */
#ifndef DECANT_IO_SPARSE_MEMORY_H
#define DECANT_IO_SPARSE_MEMORY_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

typedef struct decant_sparse_page decant_sparse_page;

/* All zero to begin with; freed with decant_sparse_memory_free. */
typedef struct decant_sparse_memory {
    decant_sparse_page *pages; /* owned; ascending */
    int64_t count, room;
} decant_sparse_memory;

decant_status decant_sparse_memory_write(decant_sparse_memory *memory, uint64_t offset, const void *data,
                                         size_t size_bytes, decant_error *err);
void decant_sparse_memory_read(const decant_sparse_memory *memory, uint64_t offset, void *data,
                               size_t size_bytes);
void decant_sparse_memory_free(decant_sparse_memory *memory);

#endif
