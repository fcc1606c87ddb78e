/* Writing a container with all ranks, declared in container.h.
 *
 * Structure (datasets, groups, attributes) is made by collective HDF5 calls, in the order of the define calls,
 * so the file's layout does not depend on the number of ranks. Data go through MPI-IO independently: any rank,
 * any part. Each rank keeps a list of the parts it wrote with their CRC-32; when all is written the lists are
 * gathered, must cover every dataset exactly once, and are combined into the checksum of the whole dataset.
 *
 * A full disk is met as early as can be: rank 0 reserves a dataset's space when it is defined. HDF5's
 * collective calls cannot be agreed on from the inside: when flushing or closing fails on one rank, the others
 * may wait within the call, so that rank removes the partial file and ends the job. */
#include "io/container.h"

#include "base/memory.h"
#include "io/checksum.h"
#include "io/container_seal.h"
#include "io/hdf5_support.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <zlib.h>

typedef struct dataset {
    hid_t id;
    char path[DECANT_CONTAINER_PATH_BYTES];
    decant_stored type;
    decant_shape shape;
    int64_t elements;
    decant_stretch place; /* rank 0: where its data lie in the file; empty when there are none */
} dataset;

/* A stretch of a dataset that one rank wrote; travels between ranks as bytes. */
typedef struct part {
    int64_t dataset;
    int64_t first, count;
    uint64_t checksum;
} part;

struct decant_container_writer {
    decant_ranks *ranks;  /* borrowed */
    char *path, *partial; /* owned */
    bool overwrite;
    hid_t file;
    int descriptor;      /* rank 0's own, of the partial file; -1 elsewhere */
    uint64_t free_bytes; /* rank 0: room on the disk when the file was made */
    uint64_t data_end;   /* rank 0: where the last data end in the file */
    dataset *datasets;
    int64_t dataset_count, dataset_room;
    part *parts;
    int64_t part_count, part_room;
    decant_status failed; /* this rank's first failed write, and its record */
    decant_error failure;
};

/* --------------------------------------------------------------------------------------------- helpers ---- */

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

/* Collective. DECANT_ERROR_BUG on all ranks unless all bring the same digest: HDF5 would wait for ever. */
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

/* For a failure inside a collective HDF5 call, which the other ranks may be waiting in. Ends the job. */
static void give_up(decant_container_writer *writer, const decant_error *err)
{
    unlink(writer->partial);
    decant_ranks_abort(writer->ranks, err);
}

/* ---------------------------------------------------------------------------------------------- create ---- */

/* Rank 0: makes the partial file, empty. An older one is emptied rather than replaced, so that no machine of
 * the cluster remembers another file under the name. */
static decant_status make_partial(decant_container_writer *writer, decant_error *err)
{
    struct stat about;
    if (!writer->overwrite && lstat(writer->path, &about) == 0)
        return DECANT_ERROR(err, DECANT_ERROR_USAGE, "%s: exists already; --overwrite replaces it",
                            writer->path);
    writer->descriptor = open(writer->partial, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0666);
    if (writer->descriptor < 0)
        return DECANT_ERROR(err, DECANT_ERROR_DISK, "%s: cannot be made: %s", writer->partial, strerror(errno));
    bool is_locked = flock(writer->descriptor, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    if (is_locked || fstat(writer->descriptor, &about) != 0 || !S_ISREG(about.st_mode) ||
        ftruncate(writer->descriptor, 0) != 0) {
        close(writer->descriptor); /* not ours to remove */
        writer->descriptor = -1;
        return DECANT_ERROR(err, is_locked ? DECANT_ERROR_USAGE : DECANT_ERROR_DISK, "%s: %s", writer->partial,
                            is_locked ? "another job is writing it" : "is no file that can be written");
    }
    struct statvfs disk;
    writer->free_bytes = UINT64_MAX;
    if (fstatvfs(writer->descriptor, &disk) == 0)
        writer->free_bytes = (uint64_t)disk.f_bavail * (uint64_t)disk.f_frsize;
    return DECANT_OK;
}

/* Collective. Every rank must see the file that rank 0 made, not one of its own machine. */
static decant_status require_shared(decant_container_writer *writer, decant_error *err)
{
    decant_status status = DECANT_OK;
    struct stat about;
    uint64_t inode = 0;
    if (writer->ranks->rank == 0 && fstat(writer->descriptor, &about) == 0)
        inode = (uint64_t)about.st_ino;
    DECANT_TRY(decant_ranks_broadcast(writer->ranks, 0, &inode, sizeof inode, err));
    if (stat(writer->partial, &about) != 0 || (uint64_t)about.st_ino != inode)
        status = DECANT_ERROR(err, DECANT_ERROR_DISK,
                              "%s: rank %d does not see the file that rank 0 made; the output must be on a "
                              "filesystem that all machines share",
                              writer->partial, writer->ranks->rank);
    DECANT_TRY(decant_ranks_agree(writer->ranks, status, err));
done:
    return status;
}

/* Collective. Low bound 1.8: its metadata carry checksums, and every h5py reads them. */
static decant_status create_file(decant_container_writer *writer, decant_error *err)
{
    decant_status status = DECANT_OK;
    hid_t creation = H5Pcreate(H5P_FILE_CREATE);
    hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    if (creation < 0 || access < 0 || H5Pset_obj_track_times(creation, false) < 0 ||
        H5Pset_libver_bounds(access, H5F_LIBVER_V18, H5F_LIBVER_V110) < 0 ||
        H5Pset_fapl_mpio(access, writer->ranks->communicator, MPI_INFO_NULL) < 0)
        status = decant_hdf5_fail(err, DECANT_ERROR_DISK, __FILE__, __LINE__, "%s", writer->partial);
    DECANT_TRY(decant_ranks_agree(writer->ranks, status, err));
    writer->file = H5Fcreate(writer->partial, H5F_ACC_TRUNC, creation, access);
    if (writer->file < 0)
        status =
            decant_hdf5_fail(err, DECANT_ERROR_DISK, __FILE__, __LINE__, "%s: cannot be made", writer->partial);
    DECANT_TRY(decant_ranks_agree(writer->ranks, status, err));
done:
    if (access >= 0)
        H5Pclose(access);
    if (creation >= 0)
        H5Pclose(creation);
    return status;
}

/* This rank's part of create, before any communication. */
static decant_status prepare(decant_container_writer *writer, const char *path, decant_error *err)
{
    decant_status status = DECANT_OK;
    void *partial = NULL;
    size_t size = strlen(path) + sizeof ".partial";
    DECANT_TRY(decant_memory_copy_string(path, &writer->path, err));
    DECANT_TRY(decant_memory_allocate(size, "a path", &partial, err));
    writer->partial = partial;
    snprintf(writer->partial, size, "%s.partial", path);
    if (writer->ranks->rank == 0)
        DECANT_TRY(make_partial(writer, err));
done:
    return status;
}

decant_status decant_container_create(decant_ranks *ranks, const char *path, bool overwrite,
                                      decant_container_writer **writer, decant_error *err)
{
    decant_status status = DECANT_OK;
    void *memory = NULL;
    *writer = NULL;
    decant_hdf5_silence();
    status = decant_memory_allocate(sizeof **writer, "the container's writer", &memory, err);
    *writer = memory;
    DECANT_TRY(decant_ranks_agree(ranks, status, err));
    **writer = (decant_container_writer){.ranks = ranks, .overwrite = overwrite, .file = -1, .descriptor = -1};
    DECANT_TRY(require_equal(ranks, digest_text(overwrite, path), path, err));
    DECANT_TRY(decant_ranks_agree(ranks, prepare(*writer, path, err), err));
    DECANT_TRY(require_shared(*writer, err));
    DECANT_TRY(create_file(*writer, err));
    DECANT_TRY(decant_container_set_text(*writer, "/", "format", "decant", err));
    DECANT_TRY(decant_container_set_integer(*writer, "/", "schema_version", DECANT_CONTAINER_VERSION, err));
done:
    if (status != DECANT_OK)
        decant_container_discard(writer);
    return status;
}

/* ------------------------------------------------------------------------------------------ attributes ---- */

/* Makes the attribute of an open object and writes it; every rank makes the same calls. */
static decant_status put_attribute(hid_t object, const char *name, hid_t type, const void *value,
                                   const char *path, decant_error *err)
{
    decant_status status = DECANT_OK;
    hid_t space = H5Screate(H5S_SCALAR), attribute = H5I_INVALID_HID;
    if (space >= 0)
        attribute = H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    if (attribute < 0 || H5Awrite(attribute, type, value) < 0)
        DECANT_HDF5_FAIL(err, DECANT_ERROR_DISK, "%s: attribute %s", path, name);
done:
    if (attribute >= 0)
        H5Aclose(attribute);
    if (space >= 0)
        H5Sclose(space);
    return status;
}

/* Collective. type is closed here. */
static decant_status set_attribute(decant_container_writer *writer, const char *path, const char *name,
                                   hid_t type, const void *value, size_t value_bytes, decant_error *err)
{
    decant_status status = DECANT_OK;
    hid_t object = H5I_INVALID_HID;
    uint32_t digest = decant_checksum(digest_text(digest_text(0, path), name), value, value_bytes);
    DECANT_TRY(require_equal(writer->ranks, digest, path, err));
    object = type < 0 ? H5I_INVALID_HID : H5Oopen(writer->file, path, H5P_DEFAULT);
    if (object < 0)
        status = decant_hdf5_fail(err, DECANT_ERROR_BUG, __FILE__, __LINE__, "%s: attribute %s", path, name);
    DECANT_TRY(decant_ranks_agree(writer->ranks, status, err));
    status = put_attribute(object, name, type, value, path, err);
    DECANT_TRY(decant_ranks_agree(writer->ranks, status, err));
done:
    if (object >= 0)
        H5Oclose(object);
    if (type >= 0)
        H5Tclose(type);
    return status;
}

decant_status decant_container_set_text(decant_container_writer *writer, const char *path, const char *name,
                                        const char *text, decant_error *err)
{
    size_t size = strlen(text) + 1;
    return set_attribute(writer, path, name, decant_hdf5_text_type(size), text, size, err);
}

decant_status decant_container_set_integer(decant_container_writer *writer, const char *path, const char *name,
                                           int64_t value, decant_error *err)
{
    return set_attribute(writer, path, name, H5Tcopy(H5T_STD_I64LE), &value, sizeof value, err);
}

decant_status decant_container_set_real(decant_container_writer *writer, const char *path, const char *name,
                                        double value, decant_error *err)
{
    return set_attribute(writer, path, name, H5Tcopy(H5T_IEEE_F64LE), &value, sizeof value, err);
}

/* ---------------------------------------------------------------------------------------------- define ---- */

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

/* Makes the groups above a dataset, without times, so that the bytes do not depend on the clock. */
static decant_status make_groups(decant_container_writer *writer, const char *path, decant_error *err)
{
    decant_status status = DECANT_OK;
    char group[DECANT_CONTAINER_PATH_BYTES];
    hid_t creation = H5Pcreate(H5P_GROUP_CREATE);
    if (creation < 0 || H5Pset_obj_track_times(creation, false) < 0)
        DECANT_HDF5_FAIL(err, DECANT_ERROR_DISK, "%s", path);
    for (const char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        snprintf(group, sizeof group, "%.*s", (int)(slash - path), path);
        htri_t exists = H5Lexists(writer->file, group, H5P_DEFAULT);
        if (exists > 0)
            continue;
        hid_t id =
            exists < 0 ? H5I_INVALID_HID : H5Gcreate2(writer->file, group, H5P_DEFAULT, creation, H5P_DEFAULT);
        if (id < 0)
            DECANT_HDF5_FAIL(err, DECANT_ERROR_DISK, "%s: group %s cannot be made", writer->partial, group);
        H5Gclose(id);
    }
done:
    if (creation >= 0)
        H5Pclose(creation);
    return status;
}

static decant_status make_dataset(decant_container_writer *writer, dataset *made, decant_error *err)
{
    decant_status status = DECANT_OK;
    hsize_t extent[DECANT_CONTAINER_DIMENSIONS];
    for (int d = 0; d < made->shape.dimensions; d++)
        extent[d] = (hsize_t)made->shape.extent[d];
    hid_t type = decant_hdf5_type(made->type);
    hid_t creation = H5Pcreate(H5P_DATASET_CREATE);
    hid_t space =
        made->shape.dimensions ? H5Screate_simple(made->shape.dimensions, extent, NULL) : H5Screate(H5S_SCALAR);
    if (type < 0 || creation < 0 || space < 0 || H5Pset_obj_track_times(creation, false) < 0 ||
        H5Pset_layout(creation, H5D_CONTIGUOUS) < 0 || H5Pset_alloc_time(creation, H5D_ALLOC_TIME_EARLY) < 0 ||
        H5Pset_fill_time(creation, H5D_FILL_TIME_NEVER) < 0)
        DECANT_HDF5_FAIL(err, DECANT_ERROR_DISK, "%s: dataset %s", writer->partial, made->path);
    made->id = H5Dcreate2(writer->file, made->path, type, space, H5P_DEFAULT, creation, H5P_DEFAULT);
    if (made->id < 0)
        DECANT_HDF5_FAIL(err, DECANT_ERROR_DISK, "%s: dataset %s cannot be made", writer->partial, made->path);
done:
    if (space >= 0)
        H5Sclose(space);
    if (creation >= 0)
        H5Pclose(creation);
    if (type >= 0)
        H5Tclose(type);
    return status;
}

/* Takes [begin, end) of the file on the disk now. 0, or an errno: of a full disk, or of a filesystem that
 * cannot. */
static int reserve_space(int descriptor, uint64_t begin, uint64_t end)
{
    int code = EINTR;
    while (code == EINTR)
        code = fallocate(descriptor, FALLOC_FL_KEEP_SIZE, (off_t)begin, (off_t)(end - begin)) == 0 ? 0 : errno;
    return code;
}

static bool is_full(int code)
{
    return code == ENOSPC || code == EDQUOT || code == EFBIG;
}

/* Rank 0: takes [begin, end) of the disk, where the filesystem can; else compares with what was free. */
static decant_status reserve(decant_container_writer *writer, uint64_t begin, uint64_t end, decant_error *err)
{
    int code = end <= INT64_MAX ? reserve_space(writer->descriptor, begin, end) : EFBIG;
    if (code != 0 && !is_full(code) && end > writer->free_bytes)
        code = ENOSPC;
    if (!is_full(code))
        return DECANT_OK;
    return DECANT_ERROR(err, DECANT_ERROR_DISK, "%s: %.3f GB do not fit on the disk: %s", writer->partial,
                        (double)end / 1e9, strerror(code));
}

/* Rank 0: room for a dataset that HDF5 does not know of yet, so that a disk that is too small is met while
 * nothing has happened to the file. */
static decant_status reserve_ahead(decant_container_writer *writer, decant_stored type, int64_t elements,
                                   decant_error *err)
{
    uint64_t size_bytes = (uint64_t)elements * decant_stored_bytes(type);
    if (writer->descriptor < 0 || size_bytes == 0)
        return DECANT_OK;
    return reserve(writer, writer->data_end, writer->data_end + size_bytes, err);
}

/* Rank 0: notes where the data of a dataset lie, and takes what reserve_ahead could not know of. */
static decant_status reserve_place(decant_container_writer *writer, dataset *made, decant_error *err)
{
    uint64_t size_bytes = (uint64_t)made->elements * decant_stored_bytes(made->type);
    if (writer->descriptor < 0 || size_bytes == 0)
        return DECANT_OK;
    haddr_t offset = H5Dget_offset(made->id);
    if (offset == HADDR_UNDEF)
        return DECANT_ERROR(err, DECANT_ERROR_BUG, "%s: HDF5 gave it no place in the file", made->path);
    made->place = (decant_stretch){offset, offset + size_bytes};
    if (made->place.end > writer->data_end)
        writer->data_end = made->place.end;
    return reserve(writer, made->place.begin, made->place.end, err);
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
    status = check_definition(writer, path, type, shape, &elements, err);
    if (status == DECANT_OK)
        status = reserve_ahead(writer, type, elements, err);
    DECANT_TRY(decant_ranks_agree(writer->ranks, status, err));
    dataset *made = &writer->datasets[writer->dataset_count];
    *made = (dataset){.id = H5I_INVALID_HID, .type = type, .shape = *shape, .elements = elements};
    snprintf(made->path, sizeof made->path, "%s", path);
    DECANT_TRY(decant_ranks_agree(writer->ranks, make_groups(writer, path, err), err));
    status = make_dataset(writer, made, err);
    if (made->id >= 0)
        writer->dataset_count++;
    if (status == DECANT_OK)
        status = reserve_place(writer, made, err);
    DECANT_TRY(decant_ranks_agree(writer->ranks, status, err));
    *id = (int)(writer->dataset_count - 1);
    /* The checksums get their place now, so that finish does not move anything. */
    DECANT_TRY(decant_container_set_integer(writer, path, "crc32", 0, err));
    if (type == DECANT_STORED_BF16)
        DECANT_TRY(decant_container_set_text(writer, path, "element", "BF16", err));
done:
    return status;
}

/* ----------------------------------------------------------------------------------------------- write ---- */

/* Notes a part that was written; one that goes on where this rank's last one ended is joined to it. */
static decant_status note_part(decant_container_writer *writer, int id, int64_t first, int64_t count,
                               const void *data, decant_error *err)
{
    size_t size_bytes = (size_t)count * decant_stored_bytes(writer->datasets[id].type);
    part *last = writer->part_count ? &writer->parts[writer->part_count - 1] : NULL;
    if (last && last->dataset == id && last->first + last->count == first) {
        last->count += count;
        last->checksum = decant_checksum((uint32_t)last->checksum, data, size_bytes);
        return DECANT_OK;
    }
    void *parts = writer->parts;
    decant_status status = grow(&parts, writer->part_count, &writer->part_room, sizeof *writer->parts,
                                "the list of written parts", err);
    writer->parts = parts;
    if (status == DECANT_OK)
        writer->parts[writer->part_count++] = (part){id, first, count, decant_checksum(0, data, size_bytes)};
    return status;
}

static decant_status write_part(decant_container_writer *writer, int id, int64_t first, int64_t count,
                                const void *data, decant_error *err)
{
    decant_status status = DECANT_OK;
    char what[PATH_MAX];
    if (id < 0 || id >= writer->dataset_count)
        DECANT_FAIL(err, DECANT_ERROR_BUG, "%s: no dataset has the number %d", writer->partial, id);
    const dataset *target = &writer->datasets[id];
    if (first < 0 || count < 0 || first > target->elements || count > target->elements - first)
        DECANT_FAIL(err, DECANT_ERROR_BUG, "%s: elements %lld and the %lld after it are outside of its %lld",
                    target->path, (long long)first, (long long)count, (long long)target->elements);
    if (count == 0)
        goto done;
    snprintf(what, sizeof what, "%s: dataset %s cannot be written", writer->partial, target->path);
    DECANT_TRY(decant_hdf5_transfer(target->id, DECANT_HDF5_WRITE, target->type, &target->shape, first, count,
                                    (void *)(uintptr_t)data, DECANT_ERROR_DISK, what, err));
    DECANT_TRY(note_part(writer, id, first, count, data, err));
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

/* ---------------------------------------------------------------------------------------------- finish ---- */

static int compare_parts(const void *left, const void *right)
{
    const part *a = left, *b = right;
    if (a->dataset != b->dataset)
        return a->dataset < b->dataset ? -1 : 1;
    return (a->first > b->first) - (a->first < b->first);
}

/* The checksum of one dataset from its parts, [*next, …) of the sorted list; moves *next behind them. */
static decant_status combine(const dataset *whole, int64_t number, const part *parts, int64_t part_count,
                             int64_t *next, uint32_t *checksum, decant_error *err)
{
    int64_t covered = 0;
    size_t element_bytes = decant_stored_bytes(whole->type);
    *checksum = 0;
    for (; *next < part_count && parts[*next].dataset == number; ++*next) {
        const part *piece = &parts[*next];
        if (piece->first != covered)
            break;
        *checksum = (uint32_t)crc32_combine(*checksum, (uLong)piece->checksum,
                                            (z_off_t)(piece->count * (int64_t)element_bytes));
        covered += piece->count;
    }
    if (*next < part_count && parts[*next].dataset == number && parts[*next].first < covered)
        return DECANT_ERROR(err, DECANT_ERROR_BUG, "%s: element %lld was written twice", whole->path,
                            (long long)parts[*next].first);
    if (covered != whole->elements)
        return DECANT_ERROR(err, DECANT_ERROR_BUG, "%s: element %lld was not written", whole->path,
                            (long long)covered);
    return DECANT_OK;
}

/* Collective. The checksums of all datasets, the same on every rank. */
static decant_status find_checksums(decant_container_writer *writer, uint32_t *checksums, decant_error *err)
{
    decant_status status = DECANT_OK;
    void *all = NULL;
    size_t all_bytes = 0;
    DECANT_TRY(decant_ranks_gather(writer->ranks, writer->parts, (size_t)writer->part_count * sizeof(part),
                                   &all, &all_bytes, err));
    part *parts = all;
    int64_t part_count = (int64_t)(all_bytes / sizeof(part)), next = 0;
    if (part_count)
        qsort(parts, (size_t)part_count, sizeof *parts, compare_parts);
    for (int64_t number = 0; number < writer->dataset_count; number++)
        DECANT_TRY(
            combine(&writer->datasets[number], number, parts, part_count, &next, &checksums[number], err));
done:
    decant_memory_free(all);
    return status;
}

static decant_status store_checksum(const dataset *target, uint32_t checksum, decant_error *err)
{
    decant_status status = DECANT_OK;
    int64_t value = checksum;
    hid_t attribute = H5Aopen(target->id, "crc32", H5P_DEFAULT);
    if (attribute < 0 || H5Awrite(attribute, H5T_STD_I64LE, &value) < 0)
        DECANT_HDF5_FAIL(err, DECANT_ERROR_DISK, "%s: attribute crc32", target->path);
done:
    if (attribute >= 0)
        H5Aclose(attribute);
    return status;
}

/* Collective. Checks that all is written and stores the checksums. */
static decant_status complete(decant_container_writer *writer, decant_error *err)
{
    decant_status status = writer->failed;
    void *checksums = NULL;
    if (status != DECANT_OK)
        *err = writer->failure;
    else
        status = decant_memory_allocate((size_t)writer->dataset_count * sizeof(uint32_t), "checksums",
                                        &checksums, err);
    DECANT_TRY(decant_ranks_agree(writer->ranks, status, err));
    DECANT_TRY(find_checksums(writer, checksums, err));
    for (int64_t number = 0; number < writer->dataset_count && status == DECANT_OK; number++)
        status = store_checksum(&writer->datasets[number], ((const uint32_t *)checksums)[number], err);
    DECANT_TRY(decant_ranks_agree(writer->ranks, status, err));
done:
    decant_memory_free(checksums);
    return status;
}

/* Rank 0: room for the metadata that HDF5 still holds in memory. HDF5 does not tell over MPI-IO how far they
 * will reach, but not further than all of them put behind the last data. */
static decant_status reserve_metadata(decant_container_writer *writer, decant_error *err)
{
    size_t metadata_bytes = 0;
    if (writer->descriptor < 0)
        return DECANT_OK;
    if (H5Fget_mdc_size(writer->file, NULL, NULL, &metadata_bytes, NULL) < 0)
        return decant_hdf5_fail(err, DECANT_ERROR_DISK, __FILE__, __LINE__, "%s", writer->partial);
    return reserve(writer, 0, writer->data_end + metadata_bytes + 1, err);
}

/* Collective. Closes the file and everything open in it. */
static decant_status close_file(decant_container_writer *writer, decant_error *err)
{
    decant_status status = DECANT_OK;
    if (writer->file < 0)
        return DECANT_OK;
    for (int64_t i = 0; i < writer->dataset_count; i++)
        if (H5Dclose(writer->datasets[i].id) < 0)
            DECANT_HDF5_FAIL(err, DECANT_ERROR_DISK, "%s: cannot be closed", writer->partial);
    if (H5Fclose(writer->file) < 0)
        DECANT_HDF5_FAIL(err, DECANT_ERROR_DISK, "%s: cannot be closed", writer->partial);
    writer->file = H5I_INVALID_HID;
done:
    return status;
}

/* Rank 0: appends the seal to the closed file, opened anew so that a network filesystem shows what all ranks
 * wrote. */
static decant_status seal(decant_container_writer *writer, decant_error *err)
{
    decant_status status = DECANT_OK;
    void *memory = NULL;
    int64_t count = 0;
    int descriptor = open(writer->partial, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    if (descriptor < 0)
        DECANT_FAIL(err, DECANT_ERROR_DISK, "%s: cannot be opened again: %s", writer->partial, strerror(errno));
    DECANT_TRY(decant_memory_allocate((size_t)writer->dataset_count * sizeof(decant_stretch), "the seal",
                                      &memory, err));
    decant_stretch *places = memory;
    for (int64_t i = 0; i < writer->dataset_count; i++)
        if (writer->datasets[i].elements > 0)
            places[count++] = writer->datasets[i].place;
    DECANT_TRY(decant_container_seal(descriptor, writer->partial, places, count, err));
done:
    if (descriptor >= 0)
        close(descriptor);
    decant_memory_free(memory);
    return status;
}

/* PARTIAL becomes PATH; without overwrite only when there is no PATH. */
static int rename_partial(const decant_container_writer *writer)
{
    if (writer->overwrite)
        return rename(writer->partial, writer->path);
    int result = renameat2(AT_FDCWD, writer->partial, AT_FDCWD, writer->path, RENAME_NOREPLACE);
    struct stat about;
    if (result == 0 || (errno != EINVAL && errno != ENOSYS))
        return result;
    /* This filesystem cannot rule it out in one step. */
    if (lstat(writer->path, &about) == 0) {
        errno = EEXIST;
        return -1;
    }
    return rename(writer->partial, writer->path);
}

/* Rank 0: the file gets its final name, in a way that outlives a crash of the machine. */
static decant_status publish(decant_container_writer *writer, decant_error *err)
{
    decant_status status = DECANT_OK;
    char *copy = NULL;
    int directory = -1;
    DECANT_TRY(decant_memory_copy_string(writer->path, &copy, err));
    if (fsync(writer->descriptor) != 0)
        DECANT_FAIL(err, DECANT_ERROR_DISK, "%s: cannot be flushed: %s", writer->partial, strerror(errno));
    if (rename_partial(writer) != 0)
        DECANT_FAIL(err, DECANT_ERROR_DISK, "%s: cannot be renamed to %s: %s", writer->partial, writer->path,
                    strerror(errno));
    directory = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory >= 0)
        fsync(directory); /* some filesystems cannot, and lose nothing by it */
done:
    if (directory >= 0)
        close(directory);
    decant_memory_free(copy);
    return status;
}

static void release(decant_container_writer **writer)
{
    if ((*writer)->descriptor >= 0)
        close((*writer)->descriptor);
    decant_memory_free((*writer)->parts);
    decant_memory_free((*writer)->datasets);
    decant_memory_free((*writer)->partial);
    decant_memory_free((*writer)->path);
    decant_memory_free(*writer);
    *writer = NULL;
}

decant_status decant_container_finish(decant_container_writer **writer, decant_error *err)
{
    decant_status status = DECANT_OK;
    DECANT_TRY(complete(*writer, err));
    DECANT_TRY(decant_ranks_agree((*writer)->ranks, reserve_metadata(*writer, err), err));
    if (H5Fflush((*writer)->file, H5F_SCOPE_GLOBAL) < 0) {
        decant_hdf5_fail(err, DECANT_ERROR_DISK, __FILE__, __LINE__, "%s: cannot be flushed",
                         (*writer)->partial);
        give_up(*writer, err);
    }
    if (close_file(*writer, err) != DECANT_OK)
        give_up(*writer, err);
    if ((*writer)->descriptor >= 0) {
        status = seal(*writer, err);
        if (status == DECANT_OK)
            status = publish(*writer, err);
    }
    DECANT_TRY(decant_ranks_agree((*writer)->ranks, status, err));
    release(writer);
done:
    if (status != DECANT_OK)
        decant_container_discard(writer);
    return status;
}

void decant_container_discard(decant_container_writer **writer)
{
    if (!*writer)
        return;
    decant_error err = {0};
    /* What the disk is too full for is given back first, so that HDF5 can close in peace. */
    bool is_emptied = (*writer)->descriptor >= 0 && ftruncate((*writer)->descriptor, 0) == 0;
    (void)is_emptied;
    if (decant_ranks_agree((*writer)->ranks, DECANT_OK, &err) != DECANT_OK ||
        close_file(*writer, &err) != DECANT_OK)
        give_up(*writer, &err);
    if ((*writer)->descriptor >= 0)
        unlink((*writer)->partial);
    release(writer);
}
