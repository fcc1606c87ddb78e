/* Which parts of which datasets a rank has written, with their checksums; and the checksum of a whole dataset
 * from the parts of all ranks. Only io/ includes this header. Knows nothing of files. */
#ifndef DECANT_IO_CONTAINER_PARTS_H
#define DECANT_IO_CONTAINER_PARTS_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

/* A stretch of a dataset; travels between ranks as bytes. */
typedef struct decant_part {
    int64_t dataset;
    int64_t first, count; /* elements */
    uint64_t checksum;    /* CRC-32 of their bytes */
} decant_part;

typedef struct decant_part_list {
    decant_part *parts; /* owned */
    int64_t count, room;
} decant_part_list;

/* Adds a part. One that goes on where the last one ended is joined to it, so that rows written one by one stay
 * one. */
decant_status decant_part_list_add(decant_part_list *list, int64_t dataset, int64_t first, int64_t count,
                                   const void *data, size_t size_bytes, decant_error *err);
void decant_part_list_free(decant_part_list *list);

/* Puts parts in the order of datasets and elements, as decant_parts_combine takes them. */
void decant_parts_sort(decant_part *parts, int64_t count);

/* The checksum of dataset number `dataset` from the sorted parts.
 *   next    where its parts begin; moved behind them
 *   path    named in messages
 * DECANT_ERROR_BUG when they do not cover its elements, or cover one twice. */
decant_status decant_parts_combine(const decant_part *parts, int64_t count, int64_t dataset, int64_t elements,
                                   size_t element_bytes, const char *path, int64_t *next, uint32_t *checksum,
                                   decant_error *err);

#endif
