/* Writing a container with all ranks, declared in container.h: making it, defining datasets and attributes, and
 * writing parts. Each rank keeps a list of the parts it wrote with their CRC-32, for container_finish.c.
 * container_writer.h says why there are two phases. */
#include "io/container_writer.h"

#include "base/memory.h"
#include "io/checksum.h"

#include <stdio.h>
#include <string.h>

/* ---- what the functions below use ---- */

/* Collective. DECANT_ERROR_BUG on all ranks unless all bring the same digest. */
static decant_status require_equal(decant_ranks *ranks, uint32_t digest, const char *what, decant_error *err)
{
    int64_t values[2] = {(int64_t)digest, -(int64_t)digest};
    decant_status status = decant_ranks_maximum(ranks, values, 2, err);
    if (status == DECANT_OK && values[0] != -values[1])
        return DECANT_ERROR(err, DECANT_ERROR_BUG, "%s: the ranks disagree on the container's contents", what);
    return status;
}

static uint32_t digest_text(uint32_t digest, const char *text)
{
    return decant_checksum(digest, text, strlen(text) + 1);
}

bool decant_container_is_path(const char *path)
{
    size_t length = strlen(path);
    if (length < 2 || length >= DECANT_CONTAINER_PATH_BYTES || path[0] != '/' || path[length - 1] == '/')
        return false;
    return !strstr(path, "//") && !strstr(path, "/./") && strcmp(path + length - 2, "/.") != 0;
}

/* ---- create ---- */

/* Collective. Rank 0 makes the file, the others see it. */
static decant_status make_file(decant_container_writer *writer, const char *path, bool overwrite,
                               decant_error *err)
{
    decant_status status = DECANT_OK;
    uint64_t inode = 0;
    status = decant_partial_file_name(path, overwrite, &writer->file, err);
    if (status == DECANT_OK && decant_writer_is_first(writer))
        status = decant_partial_file_make(&writer->file, &inode, err);
    DECANT_TRY(decant_ranks_agree(writer->ranks, status, err));
    DECANT_TRY(decant_ranks_broadcast(writer->ranks, 0, &inode, sizeof inode, err));
    status = decant_writer_is_first(writer) ? decant_structure_create(&writer->structure, err)
                                            : decant_partial_file_join(&writer->file, inode, err);
    DECANT_TRY(decant_ranks_agree(writer->ranks, status, err));
done:
    return status;
}

decant_status decant_container_create(decant_ranks *ranks, const char *path, bool overwrite,
                                      decant_container_writer **writer, decant_error *err)
{
    void *memory = NULL;
    *writer = NULL;
    decant_hdf5_silence();
    decant_status status = decant_memory_allocate(sizeof **writer, "the container's writer", &memory, err);
    status = decant_ranks_agree(ranks, status, err);
    if (status != DECANT_OK) {
        decant_memory_free(memory);
        return status;
    }
    *writer = memory;
    (*writer)->ranks = ranks;
    (*writer)->file.descriptor = -1;
    (*writer)->data = (*writer)->target = H5I_INVALID_HID;
    DECANT_TRY(require_equal(ranks, digest_text(overwrite, path), path, err));
    DECANT_TRY(make_file(*writer, path, overwrite, err));
    DECANT_TRY(decant_container_set_text(*writer, "/", "format", "decant", err));
    DECANT_TRY(decant_container_set_integer(*writer, "/", "schema_version", DECANT_CONTAINER_VERSION, err));
done:
    if (status != DECANT_OK)
        decant_container_discard(writer);
    return status;
}

/* ---- define ---- */

/* Checks a definition and makes room for it; local, but the same on every rank. */
static decant_status check_definition(decant_container_writer *writer, const char *path, decant_stored type,
                                      const decant_shape *shape, int64_t *elements, decant_error *err)
{
    if (!decant_container_is_path(path))
        return DECANT_ERROR(err, DECANT_ERROR_BUG, "%.200s: is no path of a dataset", path);
    if (!decant_hdf5_count(type, shape, elements))
        return DECANT_ERROR(err, DECANT_ERROR_BUG, "%s: its shape is not possible", path);
    return decant_memory_grow(sizeof *writer->datasets, writer->dataset_count, &writer->dataset_room,
                              "the container's datasets", (void **)&writer->datasets, err);
}

/* Rank 0: makes the dataset, its space on the disk being taken first, while nothing has happened to the file.
 */
static decant_status make_dataset(decant_container_writer *writer, decant_written_dataset *made,
                                  decant_error *err)
{
    decant_status status = DECANT_OK;
    uint64_t size_bytes = (uint64_t)made->elements * decant_stored_bytes(made->type);
    if (size_bytes > 0)
        DECANT_TRY(
            decant_partial_file_reserve(&writer->file, writer->data_end, writer->data_end + size_bytes, err));
    DECANT_TRY(
        decant_structure_define(&writer->structure, made->path, made->type, &made->shape, &made->place, err));
    if (size_bytes > 0 &&
        (made->place.begin < writer->data_end || made->place.end > writer->data_end + size_bytes))
        DECANT_TRY(decant_partial_file_reserve(&writer->file, made->place.begin, made->place.end, err));
    if (made->place.end > writer->data_end)
        writer->data_end = made->place.end;
done:
    return status;
}

decant_status decant_container_define(decant_container_writer *writer, const char *path, decant_stored type,
                                      const decant_shape *shape, int *id, decant_error *err)
{
    decant_status status = DECANT_OK;
    int64_t elements = 0;
    uint32_t digest =
        decant_checksum(digest_text((uint32_t)type, path), &shape->dimensions, sizeof shape->dimensions);
    for (int d = 0; d < shape->dimensions && d < DECANT_CONTAINER_DIMENSIONS; d++)
        digest = decant_checksum(digest, &shape->extent[d], sizeof shape->extent[d]);
    DECANT_TRY(require_equal(writer->ranks, digest, path, err));
    DECANT_TRY(decant_writer_enter_structure(writer, err));
    status = check_definition(writer, path, type, shape, &elements, err);
    DECANT_TRY(decant_ranks_agree(writer->ranks, status, err));
    decant_written_dataset *made = &writer->datasets[writer->dataset_count];
    *made = (decant_written_dataset){.type = type, .shape = *shape, .elements = elements};
    snprintf(made->path, sizeof made->path, "%s", path);
    if (decant_writer_is_first(writer))
        status = make_dataset(writer, made, err);
    DECANT_TRY(decant_ranks_agree(writer->ranks, status, err));
    *id = (int)writer->dataset_count++;
done:
    return status;
}

/* ---- attributes ---- */

/* Collective. */
static decant_status set_attribute(decant_container_writer *writer, const char *path, const char *name,
                                   decant_attribute *attribute, uint32_t digest, decant_error *err)
{
    decant_status status = DECANT_OK;
    bool is_path = snprintf(attribute->path, sizeof attribute->path, "%s", path) < (int)sizeof attribute->path;
    bool is_name = snprintf(attribute->name, sizeof attribute->name, "%s", name) < (int)sizeof attribute->name;
    DECANT_TRY(require_equal(writer->ranks, digest_text(digest_text(digest, path), name), path, err));
    if (!is_path || !is_name)
        DECANT_FAIL(err, DECANT_ERROR_BUG, "%.200s: the name of an attribute is too long", path);
    if (decant_writer_is_first(writer))
        status = decant_structure_set(&writer->structure, attribute, err);
    DECANT_TRY(decant_ranks_agree(writer->ranks, status, err));
done:
    return status;
}

decant_status decant_container_set_text(decant_container_writer *writer, const char *path, const char *name,
                                        const char *text, decant_error *err)
{
    decant_attribute attribute = {.kind = DECANT_ATTRIBUTE_TEXT, .text = (char *)(uintptr_t)text};
    return set_attribute(writer, path, name, &attribute, digest_text(0, text), err);
}

decant_status decant_container_set_integer(decant_container_writer *writer, const char *path, const char *name,
                                           int64_t value, decant_error *err)
{
    decant_attribute attribute = {.kind = DECANT_ATTRIBUTE_INTEGER, .integer = value};
    return set_attribute(writer, path, name, &attribute, decant_checksum(1, &value, sizeof value), err);
}

decant_status decant_container_set_real(decant_container_writer *writer, const char *path, const char *name,
                                        double value, decant_error *err)
{
    decant_attribute attribute = {.kind = DECANT_ATTRIBUTE_REAL, .real = value};
    return set_attribute(writer, path, name, &attribute, decant_checksum(2, &value, sizeof value), err);
}

/* ---- write ---- */

/* Opens the dataset to write to; the last one stays open, because rows tend to come one by one. */
static decant_status open_target(decant_container_writer *writer, int id, decant_error *err)
{
    if (writer->target >= 0 && writer->target_id == id)
        return DECANT_OK;
    if (writer->target >= 0)
        H5Dclose(writer->target);
    writer->target = H5Dopen2(writer->data, writer->datasets[id].path, H5P_DEFAULT);
    writer->target_id = id;
    if (writer->target < 0)
        return decant_hdf5_fail(err, DECANT_ERROR_DISK, __FILE__, __LINE__, "%s: dataset %s cannot be opened",
                                writer->file.partial, writer->datasets[id].path);
    return DECANT_OK;
}

/* Left alone, the system keeps written data in memory for seconds, and the flush at the end waits for all of
 * them: the disk would stand still while layers are encoded and then hold everybody up. */
static void keep_disk_busy(decant_container_writer *writer, size_t written_bytes)
{
    const size_t enough_bytes = (size_t)32 << 20;
    writer->lazy_bytes += written_bytes;
    if (writer->lazy_bytes < enough_bytes)
        return;
    decant_partial_file_begin_flush(&writer->file);
    writer->lazy_bytes = 0;
}

void decant_container_defined(const decant_container_writer *writer, int id, decant_stored *type,
                              decant_shape *shape)
{
    *type = writer->datasets[id].type;
    *shape = writer->datasets[id].shape;
}

static decant_status write_part(decant_container_writer *writer, int id, int64_t first, int64_t count,
                                const void *data, decant_error *err)
{
    decant_status status = DECANT_OK;
    char what[DECANT_ERROR_MESSAGE_BYTES];
    if (id < 0 || id >= writer->dataset_count)
        DECANT_FAIL(err, DECANT_ERROR_BUG, "%s: no dataset has the number %d", writer->file.partial, id);
    const decant_written_dataset *target = &writer->datasets[id];
    if (first < 0 || count < 0 || first > target->elements || count > target->elements - first)
        DECANT_FAIL(err, DECANT_ERROR_BUG, "%s: the %lld elements from %lld on are outside of its %lld",
                    target->path, (long long)count, (long long)first, (long long)target->elements);
    if (count == 0)
        goto done;
    if (writer->data < 0)
        DECANT_FAIL(err, DECANT_ERROR_BUG, "%s: decant_container_begin comes before the first write",
                    target->path);
    DECANT_TRY(open_target(writer, id, err));
    snprintf(what, sizeof what, "%s: dataset %s cannot be written", writer->file.partial, target->path);
    /* The checksum first: it touches data of a mapped file that may not be readable, which a write would take
     * for a fault of its own. */
    DECANT_TRY(decant_part_list_add(&writer->parts, id, first, count, data,
                                    (size_t)count * decant_stored_bytes(target->type), err));
    DECANT_TRY(decant_hdf5_transfer(writer->target, DECANT_HDF5_WRITE, target->type, &target->shape, first,
                                    count, (void *)(uintptr_t)data, DECANT_ERROR_DISK, what, err));
    keep_disk_busy(writer, (size_t)count * decant_stored_bytes(target->type));
done:
    return status;
}

decant_status decant_container_write(decant_container_writer *writer, int id, int64_t first, int64_t count,
                                     const void *data, decant_error *err)
{
    decant_status status = write_part(writer, id, first, count, data, err);
    if (status != DECANT_OK && writer->failed == DECANT_OK) {
        writer->failed = status;
        writer->failure = *err;
    }
    return status;
}

/* ---- the end of a writer ---- */

const char *decant_container_partial_path(const decant_container_writer *writer)
{
    return writer->file.partial;
}

void decant_container_discard(decant_container_writer **writer)
{
    decant_error ignored;
    if (!*writer)
        return;
    decant_writer_close_data(*writer, true, &ignored);
    decant_structure_free(&(*writer)->structure);
    decant_partial_file_close(&(*writer)->file); /* removes what was not published */
    decant_memory_free((*writer)->datasets);
    decant_part_list_free(&(*writer)->parts);
    decant_memory_free(*writer);
    *writer = NULL;
}
