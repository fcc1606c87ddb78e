/* Writing a container with all ranks, declared in container.h.
 *
 * Two phases, because HDF5 1.10 hangs when one rank cannot write metadata that all ranks hold in common:
 *   structure  rank 0 alone makes datasets and attributes, in memory; their layout depends on the calls alone
 *   data       rank 0 has stored the structure; all ranks have the file open together through MPI-IO, and each
 * writes its parts independently. Nobody changes the structure on disk decant_container_begin leads from the
 * first to the second, a define back again. Each rank keeps a list of the parts it wrote with their CRC-32;
 * finish gathers the lists, which must cover every dataset exactly once, combines them into the checksums of
 * whole datasets, and stores the structure once more. */
#include "io/container.h"

#include "base/memory.h"
#include "io/checksum.h"
#include "io/container_parts.h"
#include "io/container_structure.h"
#include "io/hdf5_support.h"
#include "io/partial_file.h"
#include "io/patience.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* For opening a file together, which takes milliseconds, or some seconds where many do it at once. */
static const double PATIENCE_S = 60;

typedef struct dataset {
    char path[DECANT_CONTAINER_PATH_BYTES];
    decant_stored type;
    decant_shape shape;
    int64_t elements;
    decant_stretch place; /* rank 0 */
} dataset;

struct decant_container_writer {
    decant_ranks *ranks; /* borrowed */
    decant_partial_file file;
    decant_structure structure; /* rank 0 */
    hid_t data;                 /* the file as all ranks have it open in the data phase; else negative */
    hid_t target;               /* the dataset written last, and its number; negative when none is open */
    int target_id;
    dataset *datasets;
    int64_t dataset_count, dataset_room;
    uint64_t data_end;      /* rank 0: where the last data end in the file */
    size_t lazy_bytes;      /* written by this rank since the disk was last told to begin */
    decant_part_list parts; /* that this rank wrote */
    decant_status failed;   /* this rank's first failed write, and its record */
    decant_error failure;
};

/* ---- what all phases use ---- */

static bool is_first(const decant_container_writer *writer)
{
    return writer->ranks->rank == 0;
}

/* Makes room for one more element of an array that grows. */
static decant_status grow(void **array, int64_t count, int64_t *room, size_t element_bytes, const char *what,
                          decant_error *err)
{
    if (count < *room)
        return DECANT_OK;
    int64_t larger = *room ? *room * 2 : 64;
    decant_status status = decant_memory_resize((size_t)larger * element_bytes, what, array, err);
    if (status == DECANT_OK)
        *room = larger;
    return status;
}

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

/* "/a", "/a/b": absolute, no empty part, no "." */
static bool is_valid_path(const char *path)
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
    if (status == DECANT_OK && is_first(writer))
        status = decant_partial_file_make(&writer->file, &inode, err);
    DECANT_TRY(decant_ranks_agree(writer->ranks, status, err));
    DECANT_TRY(decant_ranks_broadcast(writer->ranks, 0, &inode, sizeof inode, err));
    status = is_first(writer) ? decant_structure_create(&writer->structure, err)
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

/* ---- phases ---- */

/* Collective in the data phase, else nothing. */
static decant_status close_data(decant_container_writer *writer, decant_error *err)
{
    decant_status status = DECANT_OK;
    if (writer->target >= 0 && H5Dclose(writer->target) < 0)
        status = decant_hdf5_fail(err, DECANT_ERROR_DISK, __FILE__, __LINE__, "%s: cannot be closed",
                                  writer->file.partial);
    writer->target = H5I_INVALID_HID;
    hid_t data = writer->data;
    writer->data = H5I_INVALID_HID;
    if (data >= 0 && H5Fclose(data) < 0 && status == DECANT_OK)
        status = decant_hdf5_fail(err, DECANT_ERROR_DISK, __FILE__, __LINE__, "%s: cannot be closed",
                                  writer->file.partial);
    return status;
}

/* Collective. From the data phase to the structure phase; all data so far are on the disk afterwards. */
static decant_status enter_structure(decant_container_writer *writer, decant_error *err)
{
    decant_status status = DECANT_OK;
    if (writer->data < 0)
        return DECANT_OK;
    status = close_data(writer, err);
    if (status == DECANT_OK)
        status = decant_partial_file_flush(&writer->file, err);
    return decant_ranks_agree(writer->ranks, status, err);
}

/* Local: what can keep this rank from opening the file is met here, before all ranks open it together. */
static decant_status prepare_to_open(decant_container_writer *writer, hid_t *access_list, decant_error *err)
{
    *access_list = H5Pcreate(H5P_FILE_ACCESS);
    if (*access_list < 0 || H5Pset_libver_bounds(*access_list, H5F_LIBVER_V18, H5F_LIBVER_V110) < 0 ||
        H5Pset_fapl_mpio(*access_list, writer->ranks->communicator, MPI_INFO_NULL) < 0)
        return decant_hdf5_fail(err, DECANT_ERROR_DISK, __FILE__, __LINE__, "%s: cannot be opened",
                                writer->file.partial);
    int descriptor = open(writer->file.partial, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    if (descriptor < 0)
        return DECANT_ERROR(err, DECANT_ERROR_DISK, "%s: cannot be opened: %s", writer->file.partial,
                            strerror(errno));
    close(descriptor);
    return DECANT_OK;
}

/* Collective. All ranks open the file through MPI-IO. */
static decant_status open_together(decant_container_writer *writer, decant_error *err)
{
    decant_status status = DECANT_OK;
    decant_patience patience;
    hid_t access_list;
    DECANT_TRY(decant_ranks_agree(writer->ranks, prepare_to_open(writer, &access_list, err), err));
    /* Open MPI's ranks wait for each other for ever when one of them cannot open the file; rank 0 is the first
     * to lose its patience, so that one line tells it. */
    decant_patience_begin(&patience, is_first(writer) ? PATIENCE_S : 1.5 * PATIENCE_S, writer->ranks->rank,
                          writer->file.partial);
    writer->data = H5Fopen(writer->file.partial, H5F_ACC_RDWR, access_list);
    if (writer->data < 0)
        status = decant_hdf5_fail(err, DECANT_ERROR_DISK, __FILE__, __LINE__, "%s: cannot be opened",
                                  writer->file.partial);
    status = decant_ranks_agree(writer->ranks, status, err);
    decant_patience_end(&patience);
    if (status != DECANT_OK && writer->data >= 0) {
        /* Open here and not everywhere: closing would wait for the other ranks for ever. */
        unlink(writer->file.partial);
        decant_ranks_abort(writer->ranks, err);
    }
done:
    if (access_list >= 0)
        H5Pclose(access_list);
    return status;
}

/* Rank 0: where the datasets' data lie, freed with decant_memory_free. */
static decant_status list_places(const decant_container_writer *writer, decant_stretch **places, int64_t *count,
                                 decant_error *err)
{
    void *memory;
    decant_status status = decant_memory_allocate((size_t)writer->dataset_count * sizeof **places,
                                                  "the container's structure", &memory, err);
    *places = memory;
    *count = 0;
    for (int64_t i = 0; status == DECANT_OK && i < writer->dataset_count; i++)
        if (writer->datasets[i].elements > 0)
            (*places)[(*count)++] = writer->datasets[i].place;
    return status;
}

/* Rank 0. */
static decant_status store_structure(decant_container_writer *writer, decant_error *err)
{
    decant_stretch *places;
    int64_t count;
    decant_status status = list_places(writer, &places, &count, err);
    if (status == DECANT_OK)
        status = decant_structure_store(&writer->structure, writer->file.descriptor, writer->file.partial,
                                        places, count, err);
    decant_memory_free(places);
    return status;
}

decant_status decant_container_begin(decant_container_writer *writer, decant_error *err)
{
    decant_status status = DECANT_OK;
    if (writer->data >= 0)
        return DECANT_OK;
    if (is_first(writer))
        status = store_structure(writer, err);
    DECANT_TRY(decant_ranks_agree(writer->ranks, status, err));
    DECANT_TRY(open_together(writer, err));
done:
    return status;
}

/* ---- define ---- */

/* Checks a definition and makes room for it; local, but the same on every rank. */
static decant_status check_definition(decant_container_writer *writer, const char *path, decant_stored type,
                                      const decant_shape *shape, int64_t *elements, decant_error *err)
{
    if (!is_valid_path(path))
        return DECANT_ERROR(err, DECANT_ERROR_BUG, "%.200s: is no path of a dataset", path);
    if (!decant_hdf5_count(type, shape, elements))
        return DECANT_ERROR(err, DECANT_ERROR_BUG, "%s: its shape is not possible", path);
    void *datasets = writer->datasets;
    decant_status status = grow(&datasets, writer->dataset_count, &writer->dataset_room,
                                sizeof *writer->datasets, "the container's datasets", err);
    writer->datasets = datasets;
    return status;
}

/* Rank 0: makes the dataset, its space on the disk being taken first, while nothing has happened to the file.
 */
static decant_status make_dataset(decant_container_writer *writer, dataset *made, decant_error *err)
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
    DECANT_TRY(enter_structure(writer, err));
    status = check_definition(writer, path, type, shape, &elements, err);
    DECANT_TRY(decant_ranks_agree(writer->ranks, status, err));
    dataset *made = &writer->datasets[writer->dataset_count];
    *made = (dataset){.type = type, .shape = *shape, .elements = elements};
    snprintf(made->path, sizeof made->path, "%s", path);
    if (is_first(writer))
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
    if (is_first(writer))
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

static decant_status write_part(decant_container_writer *writer, int id, int64_t first, int64_t count,
                                const void *data, decant_error *err)
{
    decant_status status = DECANT_OK;
    char what[DECANT_ERROR_MESSAGE_BYTES];
    if (id < 0 || id >= writer->dataset_count)
        DECANT_FAIL(err, DECANT_ERROR_BUG, "%s: no dataset has the number %d", writer->file.partial, id);
    const dataset *target = &writer->datasets[id];
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

/* ---- finish ---- */

/* Collective. The checksums of all datasets, the same on every rank. */
static decant_status find_checksums(decant_container_writer *writer, uint32_t **checksums, decant_error *err)
{
    decant_status status = DECANT_OK;
    void *all = NULL, *memory = NULL;
    size_t all_bytes = 0;
    DECANT_TRY(decant_ranks_gather(writer->ranks, writer->parts.parts,
                                   (size_t)writer->parts.count * sizeof(decant_part), &all, &all_bytes, err));
    status =
        decant_memory_allocate((size_t)writer->dataset_count * sizeof **checksums, "checksums", &memory, err);
    *checksums = memory;
    DECANT_TRY(decant_ranks_agree(writer->ranks, status, err));
    int64_t count = (int64_t)(all_bytes / sizeof(decant_part)), next = 0;
    decant_parts_sort(all, count);
    for (int64_t number = 0; number < writer->dataset_count; number++) {
        const dataset *whole = &writer->datasets[number];
        DECANT_TRY(decant_parts_combine(all, count, number, whole->elements, decant_stored_bytes(whole->type),
                                        whole->path, &next, &(*checksums)[number], err));
    }
done:
    decant_memory_free(all);
    return status;
}

/* Rank 0. */
static decant_status seal(decant_container_writer *writer, decant_error *err)
{
    decant_stretch *places;
    int64_t count;
    decant_status status = list_places(writer, &places, &count, err);
    if (status == DECANT_OK)
        status = decant_container_seal(writer->file.partial, places, count, err);
    decant_memory_free(places);
    return status;
}

static decant_status count_dataset(void *context, const char *path, decant_stored type,
                                   const decant_shape *shape, decant_error *err)
{
    (void)path;
    (void)type;
    (void)shape;
    (void)err;
    ++*(int64_t *)context;
    return DECANT_OK;
}

/* Rank 0: the file opens, and has all datasets where they belong. */
static decant_status read_back(decant_container_writer *writer, decant_error *err)
{
    decant_status status = DECANT_OK;
    decant_container *container = NULL;
    int64_t found = 0;
    DECANT_TRY(decant_container_open(writer->file.partial, &container, err));
    DECANT_TRY(decant_container_each(container, count_dataset, &found, err));
    if (found != writer->dataset_count)
        DECANT_FAIL(err, DECANT_ERROR_DISK, "%s: has %lld datasets, not the %lld that were written",
                    writer->file.partial, (long long)found, (long long)writer->dataset_count);
done:
    decant_container_close(&container);
    return status;
}

/* Rank 0, when all data are on the disk: everything but the final name. */
static decant_status complete(decant_container_writer *writer, const uint32_t *checksums, decant_error *err)
{
    decant_status status = DECANT_OK;
    for (int64_t i = 0; i < writer->dataset_count; i++)
        DECANT_TRY(
            decant_structure_set_checksum(&writer->structure, writer->datasets[i].path, checksums[i], err));
    DECANT_TRY(store_structure(writer, err));
    DECANT_TRY(seal(writer, err));
    DECANT_TRY(read_back(writer, err));
done:
    return status;
}

const char *decant_container_partial_path(const decant_container_writer *writer)
{
    return writer->file.partial;
}

decant_status decant_container_settle(decant_container_writer *writer, decant_error *err)
{
    decant_status status = writer->failed;
    uint32_t *checksums = NULL;
    if (status != DECANT_OK)
        *err = writer->failure;
    DECANT_TRY(decant_ranks_agree(writer->ranks, status, err));
    DECANT_TRY(enter_structure(writer, err));
    DECANT_TRY(find_checksums(writer, &checksums, err));
    if (is_first(writer))
        status = complete(writer, checksums, err);
    DECANT_TRY(decant_ranks_agree(writer->ranks, status, err));
done:
    decant_memory_free(checksums);
    return status;
}

decant_status decant_container_finish(decant_container_writer **writer, decant_error *err)
{
    decant_status status = DECANT_OK;
    DECANT_TRY(decant_container_settle(*writer, err));
    if (is_first(*writer))
        status = decant_partial_file_publish(&(*writer)->file, err);
    DECANT_TRY(decant_ranks_agree((*writer)->ranks, status, err));
done:
    decant_container_discard(writer);
    return status;
}

void decant_container_discard(decant_container_writer **writer)
{
    decant_error ignored;
    if (!*writer)
        return;
    close_data(*writer, &ignored);
    decant_structure_free(&(*writer)->structure);
    decant_partial_file_close(&(*writer)->file); /* removes what was not published */
    decant_memory_free((*writer)->datasets);
    decant_part_list_free(&(*writer)->parts);
    decant_memory_free(*writer);
    *writer = NULL;
}
