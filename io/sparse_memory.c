/* Pages of a fixed size in the order of their offsets. They are found by halving, and most come at the end. */
#include "io/sparse_memory.h"

#include "base/memory.h"

#include <stdbool.h>
#include <string.h>

enum { PAGE_BYTES = 4096 };

struct decant_sparse_page {
    uint64_t number; /* offset / PAGE_BYTES */
    void *bytes;     /* owned */
};

/* The place of page `number` among the pages, or where it would go. */
static int64_t find(const decant_sparse_memory *memory, uint64_t number, bool *found)
{
    int64_t low = 0, high = memory->count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (memory->pages[middle].number < number)
            low = middle + 1;
        else
            high = middle;
    }
    *found = low < memory->count && memory->pages[low].number == number;
    return low;
}

static decant_status insert(decant_sparse_memory *memory, int64_t place, uint64_t number, decant_error *err)
{
    void *bytes;
    decant_status status;
    status = decant_memory_grow(sizeof *memory->pages, memory->count, &memory->room, "a file in memory",
                                (void **)&memory->pages, err);
    if (status != DECANT_OK)
        return status;
    status = decant_memory_allocate(PAGE_BYTES, "a file in memory", &bytes, err);
    if (status != DECANT_OK)
        return status;
    memmove(memory->pages + place + 1, memory->pages + place,
            (size_t)(memory->count - place) * sizeof *memory->pages);
    memory->pages[place] = (decant_sparse_page){number, bytes};
    memory->count++;
    return DECANT_OK;
}

/* How much of size_bytes from offset on lies in one page. */
static size_t within_page(uint64_t offset, size_t size_bytes)
{
    size_t left = PAGE_BYTES - (size_t)(offset % PAGE_BYTES);
    return size_bytes < left ? size_bytes : left;
}

decant_status decant_sparse_memory_write(decant_sparse_memory *memory, uint64_t offset, const void *data,
                                         size_t size_bytes, decant_error *err)
{
    const char *from = data;
    while (size_bytes > 0) {
        bool found;
        int64_t place = find(memory, offset / PAGE_BYTES, &found);
        decant_status status = found ? DECANT_OK : insert(memory, place, offset / PAGE_BYTES, err);
        if (status != DECANT_OK)
            return status;
        size_t part = within_page(offset, size_bytes);
        memcpy((char *)memory->pages[place].bytes + offset % PAGE_BYTES, from, part);
        from += part;
        offset += part;
        size_bytes -= part;
    }
    return DECANT_OK;
}

void decant_sparse_memory_read(const decant_sparse_memory *memory, uint64_t offset, void *data,
                               size_t size_bytes)
{
    char *to = data;
    while (size_bytes > 0) {
        bool found;
        int64_t place = find(memory, offset / PAGE_BYTES, &found);
        size_t part = within_page(offset, size_bytes);
        if (found)
            memcpy(to, (const char *)memory->pages[place].bytes + offset % PAGE_BYTES, part);
        else
            memset(to, 0, part);
        to += part;
        offset += part;
        size_bytes -= part;
    }
}

void decant_sparse_memory_free(decant_sparse_memory *memory)
{
    for (int64_t i = 0; i < memory->count; i++)
        decant_memory_free(memory->pages[i].bytes);
    decant_memory_free(memory->pages);
    *memory = (decant_sparse_memory){0};
}
