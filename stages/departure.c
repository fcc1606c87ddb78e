/* See departure.h. */
#include "stages/departure.h"

#include "base/memory.h"
#include "stages/level_bytes.h"

#include <assert.h>
#include <string.h>

/* Each array begins on a boundary that suits every element type. */
static size_t padded_bytes(const decant_departing_array *array)
{
    return decant_memory_aligned_bytes((size_t)array->count * array->element_bytes);
}

void decant_departure_add(decant_departure *departure, decant_departing_array array)
{
    assert(departure->count < DECANT_DEPARTURE_ARRAYS);
    departure->arrays[departure->count++] = array;
}

/* Room for all arrays. The next matrix is seldom larger: a model has few shapes. */
static decant_status make_room(decant_departure *departure, decant_error *err)
{
    const decant_memory_kernels *memory = departure->backend->memory;
    size_t wanted = 0;
    for (int i = 0; i < departure->count; i++)
        wanted += padded_bytes(&departure->arrays[i]);
    if (wanted <= departure->host_bytes)
        return DECANT_OK;
    memory->release_host(departure->backend, &departure->host);
    departure->host_bytes = 0;
    decant_status status =
        memory->allocate_host(departure->backend, wanted, "a layer on its way to disk", &departure->host, err);
    if (status == DECANT_OK)
        departure->host_bytes = wanted;
    return status;
}

decant_status decant_departure_begin(decant_departure *departure, decant_error *err)
{
    decant_status status = make_room(departure, err);
    char *host = departure->host;
    for (int i = 0; status == DECANT_OK && i < departure->count; i++) {
        const decant_departing_array *array = &departure->arrays[i];
        status = departure->backend->memory->begin_download(departure->backend, host, array->device,
                                                            (size_t)array->count * array->element_bytes, err);
        host += padded_bytes(array);
    }
    return status;
}

/* In place, from the front: a narrow value never reaches a wide one that is still to be read. */
static void narrow(void *values, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        uint32_t wide;
        memcpy(&wide, (const char *)values + 4 * i, sizeof wide);
        uint16_t narrowed = (uint16_t)wide;
        memcpy((char *)values + 2 * i, &narrowed, sizeof narrowed);
    }
}

/* In place too; exponents have an array of their own. */
static decant_status write_exponents(const decant_departing_array *array, void *levels,
                                     decant_container_writer *writer, decant_error *err)
{
    const int64_t rows = array->count / array->levels;
    void *exponents;
    decant_status status = decant_memory_allocate((size_t)rows, "exponents of levels", &exponents, err);
    if (status != DECANT_OK)
        return status;
    status = decant_levels_to_bytes(levels, rows, array->levels, levels, exponents, err);
    if (status == DECANT_OK)
        status = decant_container_write(writer, array->exponents, 0, rows, exponents, err);
    decant_memory_free(exponents);
    return status;
}

decant_status decant_departure_write(decant_departure *departure, decant_container_writer *writer,
                                     decant_error *err)
{
    decant_status status = DECANT_OK;
    char *host = departure->host;
    for (int i = 0; status == DECANT_OK && i < departure->count; i++) {
        const decant_departing_array *array = &departure->arrays[i];
        if (array->is_narrowed)
            narrow(host, array->count);
        if (array->levels > 0)
            status = write_exponents(array, host, writer, err);
        if (status == DECANT_OK)
            status = decant_container_write(writer, array->id, 0, array->count, host, err);
        host += padded_bytes(array);
    }
    departure->count = 0;
    return status;
}

void decant_departure_free(decant_departure *departure)
{
    decant_error unread;
    if (departure->host) {
        departure->backend->memory->finish_downloads(departure->backend, &unread);
        departure->backend->memory->release_host(departure->backend, &departure->host);
    }
    *departure = (decant_departure){0};
}
