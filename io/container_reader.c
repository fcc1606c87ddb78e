/* Reading a container, declared in container.h.
 *
 * A container is trusted only after its seal was found to fit, and even then each link, type and shape is
 * looked at before use: only hard links, datasets that lie contiguously in this very file, whole within it, of
 * a type that decant stores. Local: no communication. */
#include "io/container_reader.h"

#include "base/memory.h"
#include "io/checksum.h"
#include "io/container_seal.h"

#include <stdio.h>
#include <string.h>

/* ---- open ---- */

static decant_status open_file(decant_container *container, decant_error *err)
{
    decant_status status = DECANT_OK;
    hsize_t size_bytes;
    hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    /* A finished container does not change, and not every cluster's filesystem can lock. */
    if (access < 0 || H5Pset_file_locking(access, false, true) < 0)
        DECANT_HDF5_FAIL(err, DECANT_ERROR_INPUT, "%s: cannot be opened", container->path);
    container->file = H5Fopen(container->path, H5F_ACC_RDONLY, access);
    if (container->file < 0 || H5Fget_filesize(container->file, &size_bytes) < 0)
        DECANT_HDF5_FAIL(err, DECANT_ERROR_INPUT, "%s: cannot be opened", container->path);
    container->size_bytes = size_bytes;
done:
    if (access >= 0)
        H5Pclose(access);
    return status;
}

static decant_status check_format(const decant_container *container, decant_error *err)
{
    decant_status status = DECANT_OK;
    char format[16];
    int64_t version = 0;
    DECANT_TRY(decant_container_get_text(container, "/", "format", format, sizeof format, err));
    if (strcmp(format, "decant") != 0)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: is no decant container", container->path);
    DECANT_TRY(decant_container_get_integer(container, "/", "schema_version", &version, err));
    if (version < 1 || version > DECANT_CONTAINER_VERSION)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: has schema version %lld, this program reads up to %d",
                    container->path, (long long)version, DECANT_CONTAINER_VERSION);
done:
    return status;
}

decant_status decant_container_open(const char *path, decant_container **container, decant_error *err)
{
    decant_status status = DECANT_OK;
    void *memory = NULL;
    *container = NULL;
    decant_hdf5_silence();
    DECANT_TRY(decant_container_check_seal(path, err));
    DECANT_TRY(decant_memory_allocate(sizeof **container, "a container", &memory, err));
    *container = memory;
    (*container)->file = H5I_INVALID_HID;
    DECANT_TRY(decant_memory_copy_string(path, &(*container)->path, err));
    DECANT_TRY(open_file(*container, err));
    DECANT_TRY(check_format(*container, err));
done:
    if (status != DECANT_OK)
        decant_container_close(container);
    return status;
}

void decant_container_close(decant_container **container)
{
    if (!*container)
        return;
    if ((*container)->file >= 0)
        H5Fclose((*container)->file);
    decant_memory_free((*container)->path);
    decant_memory_free(*container);
    *container = NULL;
}

const char *decant_container_path(const decant_container *container)
{
    return container->path;
}

/* ---- find things ---- */

typedef enum presence { ABSENT, PRESENT, UNREADABLE } presence;

/* Soft and external links may lead out of the file, so what is behind one is absent. */
static presence find_link(const decant_container *container, const char *path)
{
    H5L_info_t link;
    htri_t exists = H5Lexists(container->file, path, H5P_DEFAULT);
    if (exists <= 0)
        return exists == 0 ? ABSENT : UNREADABLE;
    if (H5Lget_info(container->file, path, &link, H5P_DEFAULT) < 0)
        return UNREADABLE;
    return link.type == H5L_TYPE_HARD ? PRESENT : ABSENT;
}

/* Nothing is in what is no group, and asking HDF5 there is an error, as where the file cannot be read. */
static presence find_group(const decant_container *container, const char *path)
{
    hid_t object = H5Oopen(container->file, path, H5P_DEFAULT);
    if (object < 0)
        return UNREADABLE;
    presence found = H5Iget_type(object) == H5I_GROUP ? PRESENT : ABSENT;
    H5Oclose(object);
    return found;
}

static presence find(const decant_container *container, const char *path)
{
    char prefix[DECANT_CONTAINER_PATH_BYTES];
    size_t length = strlen(path);
    if (length == 0 || length >= sizeof prefix || path[0] != '/')
        return ABSENT;
    if (length == 1)
        return PRESENT;
    presence found = PRESENT;
    for (const char *end = path; *end && found == PRESENT;) {
        end += 1 + strcspn(end + 1, "/");
        snprintf(prefix, sizeof prefix, "%.*s", (int)(end - path), path);
        found = end[-1] == '/' ? ABSENT : find_link(container, prefix);
        if (found == PRESENT && *end)
            found = find_group(container, prefix);
    }
    return found;
}

bool decant_container_has(const decant_container *container, const char *path)
{
    return find(container, path) != ABSENT;
}

decant_status decant_container_open_object(const decant_container *container, const char *path, hid_t *object,
                                           decant_error *err)
{
    *object = H5I_INVALID_HID;
    presence found = find(container, path);
    if (found == ABSENT)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: has no %.256s", container->path, path);
    if (found == UNREADABLE)
        return decant_hdf5_fail(err, DECANT_ERROR_INPUT, __FILE__, __LINE__, "%s: %s cannot be read",
                                container->path, path);
    *object = H5Oopen(container->file, path, H5P_DEFAULT);
    if (*object < 0)
        return decant_hdf5_fail(err, DECANT_ERROR_INPUT, __FILE__, __LINE__, "%s: %s cannot be opened",
                                container->path, path);
    return DECANT_OK;
}

/* A dataset that passed all checks. */
typedef struct dataset {
    hid_t id;
    decant_stored type;
    decant_shape shape;
    int64_t elements;
} dataset;

static decant_status read_shape(const decant_container *container, const char *path, dataset *opened,
                                decant_error *err)
{
    decant_status status = DECANT_OK;
    hsize_t extent[DECANT_CONTAINER_DIMENSIONS] = {0};
    hid_t space = H5Dget_space(opened->id);
    H5S_class_t class = space < 0 ? H5S_NO_CLASS : H5Sget_simple_extent_type(space);
    if (class != H5S_SCALAR && class != H5S_SIMPLE)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: dataset %s has no shape", container->path, path);
    opened->shape.dimensions = H5Sget_simple_extent_ndims(space);
    if (opened->shape.dimensions < 0 || opened->shape.dimensions > DECANT_CONTAINER_DIMENSIONS)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: dataset %s has %d dimensions", container->path, path,
                    opened->shape.dimensions);
    if (opened->shape.dimensions > 0 && H5Sget_simple_extent_dims(space, extent, NULL) < 0)
        DECANT_HDF5_FAIL(err, DECANT_ERROR_INPUT, "%s: dataset %s", container->path, path);
    for (int d = 0; d < opened->shape.dimensions; d++)
        opened->shape.extent[d] = extent[d] <= INT64_MAX ? (int64_t)extent[d] : -1;
    if (!decant_hdf5_count(opened->type, &opened->shape, &opened->elements))
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: the shape of dataset %s is not possible", container->path,
                    path);
done:
    if (space >= 0)
        H5Sclose(space);
    return status;
}

/* The data lie in one stretch within this file. */
static decant_status check_storage(const decant_container *container, const char *path, const dataset *opened,
                                   decant_error *err)
{
    decant_status status = DECANT_OK;
    uint64_t size_bytes = (uint64_t)opened->elements * decant_stored_bytes(opened->type);
    hid_t creation = H5Dget_create_plist(opened->id);
    if (creation < 0 || H5Pget_layout(creation) != H5D_CONTIGUOUS || H5Pget_external_count(creation) != 0)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: dataset %s is not stored as decant stores it",
                    container->path, path);
    haddr_t offset = size_bytes ? H5Dget_offset(opened->id) : 0;
    if (offset == HADDR_UNDEF || offset > container->size_bytes ||
        size_bytes > container->size_bytes - offset || H5Dget_storage_size(opened->id) < size_bytes)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: dataset %s lies outside of the file", container->path, path);
done:
    if (creation >= 0)
        H5Pclose(creation);
    return status;
}

static decant_status read_type(const decant_container *container, const char *path, dataset *opened,
                               decant_error *err)
{
    char element[8];
    hid_t type = H5Dget_type(opened->id);
    bool is_known = type >= 0 && decant_hdf5_stored(type, &opened->type);
    if (type >= 0)
        H5Tclose(type);
    if (!is_known)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: dataset %s is of a type that decant does not store",
                            container->path, path);
    if (opened->type != DECANT_STORED_U16 || H5Aexists(opened->id, "element") <= 0)
        return DECANT_OK;
    decant_status status = decant_container_get_text(container, path, "element", element, sizeof element, err);
    if (status == DECANT_OK && strcmp(element, "BF16") == 0)
        opened->type = DECANT_STORED_BF16;
    return status;
}

/* Opens a dataset and checks what it claims; closed with H5Oclose, also on failure when opened->id is valid. */
static decant_status open_dataset(const decant_container *container, const char *path, dataset *opened,
                                  decant_error *err)
{
    decant_status status = DECANT_OK;
    *opened = (dataset){.id = H5I_INVALID_HID};
    DECANT_TRY(decant_container_open_object(container, path, &opened->id, err));
    if (H5Iget_type(opened->id) != H5I_DATASET)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: %s is no dataset", container->path, path);
    DECANT_TRY(read_type(container, path, opened, err));
    DECANT_TRY(read_shape(container, path, opened, err));
    DECANT_TRY(check_storage(container, path, opened, err));
done:
    return status;
}

static void close_dataset(dataset *opened)
{
    if (opened->id >= 0)
        H5Oclose(opened->id);
}

decant_status decant_container_describe(const decant_container *container, const char *path,
                                        decant_stored *type, decant_shape *shape, decant_error *err)
{
    dataset opened;
    decant_status status = open_dataset(container, path, &opened, err);
    *type = opened.type;
    *shape = opened.shape;
    close_dataset(&opened);
    return status;
}

/* ---- data ---- */

static decant_status transfer(const decant_container *container, const char *path, const dataset *opened,
                              int64_t first, int64_t count, void *data, decant_error *err)
{
    char what[DECANT_ERROR_MESSAGE_BYTES];
    snprintf(what, sizeof what, "%s: dataset %s cannot be read", container->path, path);
    return decant_hdf5_transfer(opened->id, DECANT_HDF5_READ, opened->type, &opened->shape, first, count, data,
                                DECANT_ERROR_INPUT, what, err);
}

static decant_status check_type(const decant_container *container, const char *path, const dataset *opened,
                                decant_stored type, decant_error *err)
{
    if (opened->type != type)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: dataset %s is not of the type that belongs there",
                            container->path, path);
    return DECANT_OK;
}

decant_status decant_container_read(const decant_container *container, const char *path, decant_stored type,
                                    const decant_shape *shape, void *data, decant_error *err)
{
    decant_status status = DECANT_OK;
    dataset opened;
    DECANT_TRY(open_dataset(container, path, &opened, err));
    DECANT_TRY(check_type(container, path, &opened, type, err));
    bool is_equal = opened.shape.dimensions == shape->dimensions;
    for (int d = 0; is_equal && d < shape->dimensions; d++)
        is_equal = opened.shape.extent[d] == shape->extent[d];
    if (!is_equal)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: dataset %s has not the shape that belongs there",
                    container->path, path);
    DECANT_TRY(transfer(container, path, &opened, 0, opened.elements, data, err));
    size_t size_bytes = (size_t)opened.elements * decant_stored_bytes(type);
    DECANT_TRY(decant_container_compare_checksum(container, path, decant_checksum(0, data, size_bytes), err));
done:
    close_dataset(&opened);
    return status;
}

decant_status decant_container_read_part(const decant_container *container, const char *path,
                                         decant_stored type, int64_t first, int64_t count, void *data,
                                         decant_error *err)
{
    decant_status status = DECANT_OK;
    dataset opened;
    DECANT_TRY(open_dataset(container, path, &opened, err));
    DECANT_TRY(check_type(container, path, &opened, type, err));
    if (first < 0 || count < 0 || first > opened.elements || count > opened.elements - first)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: dataset %s has %lld elements, too few for what belongs there",
                    container->path, path, (long long)opened.elements);
    DECANT_TRY(transfer(container, path, &opened, first, count, data, err));
done:
    close_dataset(&opened);
    return status;
}
