/* See boundaries.h. Bytes that leave the device do so through a few buffers that it can write to by itself;
 * from a file they come back through a ring of others, which is waited for each time it comes round. */
#include "stages/boundaries.h"

#include "base/memory.h"
#include "io/scratch_file.h"

#include <string.h>

enum { LOAD_BUFFERS = 8 };

typedef struct pending_save {
    int64_t record;
    size_t size_bytes;
} pending_save;

struct decant_boundaries {
    decant_backend *backend;
    int64_t record_count;
    size_t record_bytes;
    int64_t on_device;        /* records before this one are on the device */
    void **records;           /* [record_count], NULL when not saved, or in the file */
    decant_scratch_file file; /* closed when records are in memory */
    void *save_buffers[DECANT_BOUNDARY_SAVES];
    pending_save pending[DECANT_BOUNDARY_SAVES];
    int pending_count;
    void *load_buffers[LOAD_BUFFERS]; /* with a file */
    int next_load;
};

decant_status decant_boundaries_create(decant_backend *backend, int64_t records, size_t record_bytes,
                                       int64_t on_device, const char *scratch, decant_boundaries **boundaries,
                                       decant_error *err)
{
    const char *what = "activations between blocks";
    decant_status status;
    DECANT_TRY(decant_memory_allocate(sizeof **boundaries, what, (void **)boundaries, err));
    decant_boundaries *b = *boundaries;
    b->backend = backend;
    b->record_count = records;
    b->record_bytes = record_bytes;
    b->on_device = on_device;
    DECANT_TRY(decant_memory_allocate((size_t)records * sizeof *b->records, what, (void **)&b->records, err));
    for (int i = 0; i < DECANT_BOUNDARY_SAVES; i++)
        DECANT_TRY(backend->memory->allocate_host(backend, record_bytes, what, &b->save_buffers[i], err));
    if (scratch)
        DECANT_TRY(decant_scratch_file_open(scratch, &b->file, err));
    for (int i = 0; scratch && i < LOAD_BUFFERS; i++)
        DECANT_TRY(decant_memory_allocate(record_bytes, what, &b->load_buffers[i], err));
done:
    if (status != DECANT_OK)
        decant_boundaries_destroy(boundaries);
    return status;
}

static bool is_on_device(const decant_boundaries *boundaries, int64_t record)
{
    return record < boundaries->on_device;
}

static void drop(decant_boundaries *boundaries, int64_t record)
{
    void **place = &boundaries->records[record];
    if (is_on_device(boundaries, record))
        boundaries->backend->memory->release(boundaries->backend, place);
    else
        decant_memory_free(*place);
    *place = NULL;
}

void decant_boundaries_destroy(decant_boundaries **boundaries)
{
    decant_boundaries *b = *boundaries;
    decant_error unread;
    if (!b)
        return;
    if (b->pending_count > 0)
        b->backend->memory->finish_downloads(b->backend, &unread);
    for (int64_t i = 0; b->records && i < b->record_count; i++)
        drop(b, i);
    decant_memory_free(b->records);
    for (int i = 0; i < DECANT_BOUNDARY_SAVES; i++)
        b->backend->memory->release_host(b->backend, &b->save_buffers[i]);
    for (int i = 0; i < LOAD_BUFFERS; i++)
        decant_memory_free(b->load_buffers[i]);
    decant_scratch_file_close(&b->file);
    decant_memory_free(b);
    *boundaries = NULL;
}

/* A record's place on the device, taken when it is first wanted. */
static decant_status device_place(decant_boundaries *boundaries, int64_t record, size_t size_bytes,
                                  void **place, decant_error *err)
{
    decant_backend *backend = boundaries->backend;
    decant_status status = DECANT_OK;
    if (!boundaries->records[record])
        status = backend->memory->allocate(backend, size_bytes, "activations between blocks",
                                           &boundaries->records[record], err);
    *place = boundaries->records[record];
    return status;
}

static uint64_t offset_of(const decant_boundaries *boundaries, int64_t record)
{
    return (uint64_t)record * boundaries->record_bytes;
}

decant_status decant_boundaries_begin_save(decant_boundaries *boundaries, int64_t record, decant_matrix matrix,
                                           decant_error *err)
{
    decant_backend *backend = boundaries->backend;
    int index = boundaries->pending_count;
    void *place;
    decant_status status;
    if (is_on_device(boundaries, record)) {
        DECANT_TRY(device_place(boundaries, record, decant_matrix_bytes(matrix), &place, err));
        DECANT_TRY(backend->memory->copy(backend, place, matrix.data, decant_matrix_bytes(matrix), err));
        return DECANT_OK;
    }
    if (index == DECANT_BOUNDARY_SAVES)
        DECANT_FAIL(err, DECANT_ERROR_BUG, "more than %d records are on their way", DECANT_BOUNDARY_SAVES);
    DECANT_TRY(backend->memory->begin_download(backend, boundaries->save_buffers[index], matrix.data,
                                               decant_matrix_bytes(matrix), err));
    boundaries->pending[index] = (pending_save){record, decant_matrix_bytes(matrix)};
    boundaries->pending_count++;
done:
    return status;
}

static decant_status store(decant_boundaries *boundaries, const pending_save *save, const void *data,
                           decant_error *err)
{
    void **place = &boundaries->records[save->record];
    if (boundaries->file.folder)
        return decant_scratch_file_write(&boundaries->file, offset_of(boundaries, save->record), data,
                                         save->size_bytes, err);
    if (!*place) {
        decant_status status =
            decant_memory_allocate_unset(save->size_bytes, "activations between blocks", place, err);
        if (status != DECANT_OK)
            return status;
    }
    decant_memory_copy(*place, data, save->size_bytes);
    return DECANT_OK;
}

decant_status decant_boundaries_finish_saves(decant_boundaries *boundaries, decant_error *err)
{
    decant_backend *backend = boundaries->backend;
    int count = boundaries->pending_count;
    decant_status status = DECANT_OK;
    if (count == 0)
        return DECANT_OK;
    boundaries->pending_count = 0;
    DECANT_TRY(backend->memory->finish_downloads(backend, err));
    for (int i = 0; i < count; i++)
        DECANT_TRY(store(boundaries, &boundaries->pending[i], boundaries->save_buffers[i], err));
done:
    return status;
}

decant_status decant_boundaries_load(decant_boundaries *boundaries, int64_t record, decant_matrix matrix,
                                     decant_error *err)
{
    decant_backend *backend = boundaries->backend;
    const void *data = boundaries->records[record];
    size_t size_bytes = decant_matrix_bytes(matrix);
    decant_status status;
    if (is_on_device(boundaries, record))
        return backend->memory->copy(backend, matrix.data, data, size_bytes, err);
    if (boundaries->file.folder) {
        void *buffer = boundaries->load_buffers[boundaries->next_load];
        if (boundaries->next_load == 0)
            DECANT_TRY(backend->memory->synchronize(backend, err));
        boundaries->next_load = (boundaries->next_load + 1) % LOAD_BUFFERS;
        DECANT_TRY(decant_scratch_file_read(&boundaries->file, offset_of(boundaries, record), buffer,
                                            size_bytes, err));
        if (record + 1 < boundaries->record_count)
            decant_scratch_file_expect(&boundaries->file, offset_of(boundaries, record + 1),
                                       boundaries->record_bytes);
        data = buffer;
    }
    DECANT_TRY(backend->memory->upload(backend, matrix.data, data, size_bytes, err));
done:
    return status;
}

decant_status decant_boundaries_fetch(decant_boundaries *boundaries, int64_t record, void *host,
                                      size_t size_bytes, decant_error *err)
{
    decant_backend *backend = boundaries->backend;
    if (is_on_device(boundaries, record))
        return backend->memory->download(backend, host, boundaries->records[record], size_bytes, err);
    if (boundaries->file.folder)
        return decant_scratch_file_read(&boundaries->file, offset_of(boundaries, record), host, size_bytes,
                                        err);
    memcpy(host, boundaries->records[record], size_bytes);
    return DECANT_OK;
}

decant_status decant_boundaries_put(decant_boundaries *boundaries, int64_t record, const void *host,
                                    size_t size_bytes, decant_error *err)
{
    decant_backend *backend = boundaries->backend;
    void *place;
    if (!is_on_device(boundaries, record))
        return store(boundaries, &(pending_save){record, size_bytes}, host, err);
    decant_status status = device_place(boundaries, record, size_bytes, &place, err);
    return status == DECANT_OK ? backend->memory->upload(backend, place, host, size_bytes, err) : status;
}

void decant_boundaries_discard(decant_boundaries *boundaries, int64_t record)
{
    if (boundaries->file.folder && !is_on_device(boundaries, record))
        decant_scratch_file_discard(&boundaries->file, offset_of(boundaries, record), boundaries->record_bytes);
    drop(boundaries, record);
}
