/* The bookkeeping that container_parts.h describes. */
#include "io/container_parts.h"

#include "base/memory.h"
#include "io/checksum.h"

#include <stdlib.h>
#include <zlib.h>

decant_status decant_part_list_add(decant_part_list *list, int64_t dataset, int64_t first, int64_t count,
                                   const void *data, size_t size_bytes, decant_error *err)
{
    decant_part *last = list->count ? &list->parts[list->count - 1] : NULL;
    if (last && last->dataset == dataset && last->first + last->count == first) {
        last->count += count;
        last->checksum = decant_checksum((uint32_t)last->checksum, data, size_bytes);
        return DECANT_OK;
    }
    decant_status status = decant_memory_grow(sizeof *list->parts, list->count, &list->room,
                                              "the list of written parts", (void **)&list->parts, err);
    if (status == DECANT_OK)
        list->parts[list->count++] = (decant_part){dataset, first, count, decant_checksum(0, data, size_bytes)};
    return status;
}

void decant_part_list_free(decant_part_list *list)
{
    decant_memory_free(list->parts);
    *list = (decant_part_list){0};
}

static int compare_parts(const void *left, const void *right)
{
    const decant_part *a = left, *b = right;
    if (a->dataset != b->dataset)
        return a->dataset < b->dataset ? -1 : 1;
    return (a->first > b->first) - (a->first < b->first);
}

void decant_parts_sort(decant_part *parts, int64_t count)
{
    if (count)
        qsort(parts, (size_t)count, sizeof *parts, compare_parts);
}

decant_status decant_parts_combine(const decant_part *parts, int64_t count, int64_t dataset, int64_t elements,
                                   size_t element_bytes, const char *path, int64_t *next, uint32_t *checksum,
                                   decant_error *err)
{
    int64_t covered = 0;
    *checksum = 0;
    for (; *next < count && parts[*next].dataset == dataset && parts[*next].first == covered; ++*next) {
        const decant_part *part = &parts[*next];
        z_off_t part_bytes = (z_off_t)(part->count * (int64_t)element_bytes);
        *checksum = (uint32_t)crc32_combine(*checksum, (uLong)part->checksum, part_bytes);
        covered += part->count;
    }
    if (*next < count && parts[*next].dataset == dataset && parts[*next].first < covered)
        return DECANT_ERROR(err, DECANT_ERROR_BUG, "%s: element %lld was written twice", path,
                            (long long)parts[*next].first);
    if (covered != elements)
        return DECANT_ERROR(err, DECANT_ERROR_BUG, "%s: element %lld was not written", path,
                            (long long)covered);
    return DECANT_OK;
}
