/* The structure that container_structure.h describes. No object keeps times, so that the bytes do not depend on
 * the clock; and the format is HDF5 1.8's, whose metadata carry checksums and which every h5py reads. */
#include "io/container_structure.h"

#include "base/memory.h"
#include "io/file_bytes.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* ---- file ---- */

decant_status decant_structure_create(decant_structure *structure, decant_error *err)
{
    decant_status status = DECANT_OK;
    hid_t creation = H5Pcreate(H5P_FILE_CREATE), access = H5Pcreate(H5P_FILE_ACCESS);
    hid_t driver = H5I_INVALID_HID;
    if (creation < 0 || access < 0 || H5Pset_obj_track_times(creation, false) < 0 ||
        H5Pset_libver_bounds(access, H5F_LIBVER_V18, H5F_LIBVER_V110) < 0 ||
        decant_hdf5_memory_use(access, &structure->memory, &driver) < 0)
        DECANT_HDF5_FAIL(err, DECANT_ERROR_MEMORY, "the container's structure");
    structure->file = H5Fcreate("structure", H5F_ACC_TRUNC, creation, access);
    if (structure->file < 0)
        DECANT_HDF5_FAIL(err, DECANT_ERROR_MEMORY, "the container's structure");
    structure->driver = driver;
    structure->is_open = true;
    driver = H5I_INVALID_HID;
done:
    if (access >= 0)
        H5Pclose(access);
    if (creation >= 0)
        H5Pclose(creation);
    if (driver >= 0)
        H5FDunregister(driver);
    return status;
}

void decant_structure_free(decant_structure *structure)
{
    if (structure->is_open) {
        H5Fclose(structure->file);
        H5FDunregister(structure->driver);
        structure->is_open = false;
    }
    decant_sparse_memory_free(&structure->memory.bytes);
}

/* Writes a stretch of the structure into the file. */
static decant_status store_stretch(const decant_structure *structure, int descriptor, const char *path,
                                   decant_stretch stretch, decant_error *err)
{
    char buffer[8192];
    while (stretch.begin < stretch.end) {
        uint64_t left = stretch.end - stretch.begin;
        size_t part = left < sizeof buffer ? (size_t)left : sizeof buffer;
        decant_sparse_memory_read(&structure->memory.bytes, stretch.begin, buffer, part);
        decant_status status = decant_file_write_at(descriptor, path, stretch.begin, buffer, part, err);
        if (status != DECANT_OK)
            return status;
        stretch.begin += part;
    }
    return DECANT_OK;
}

decant_status decant_structure_store(decant_structure *structure, int descriptor, const char *path,
                                     decant_stretch *data, int64_t data_count, decant_error *err)
{
    decant_status status = DECANT_OK;
    void *memory = NULL;
    if (structure->is_open && H5Fflush(structure->file, H5F_SCOPE_GLOBAL) < 0)
        DECANT_HDF5_FAIL(err, DECANT_ERROR_MEMORY, "the container's structure");
    if (structure->memory.status != DECANT_OK) {
        *err = structure->memory.err;
        DECANT_TRY(structure->memory.status);
    }
    DECANT_TRY(decant_memory_allocate(((size_t)data_count + 1) * sizeof(decant_stretch),
                                      "the container's structure", &memory, err));
    decant_stretch *rest = memory;
    int64_t count = decant_stretches_invert(data, data_count, structure->memory.size_bytes, rest);
    for (int64_t i = 0; i < count; i++)
        DECANT_TRY(store_stretch(structure, descriptor, path, rest[i], err));
    if (ftruncate(descriptor, (off_t)structure->memory.size_bytes) != 0)
        DECANT_FAIL(err, DECANT_ERROR_DISK, "%s: cannot be written: %s", path, strerror(errno));
done:
    decant_memory_free(memory);
    return status;
}

/* ---- datasets ---- */

static decant_status make_groups(decant_structure *structure, const char *path, decant_error *err)
{
    decant_status status = DECANT_OK;
    char group[DECANT_CONTAINER_PATH_BYTES];
    hid_t creation = H5Pcreate(H5P_GROUP_CREATE);
    if (creation < 0 || H5Pset_obj_track_times(creation, false) < 0)
        DECANT_HDF5_FAIL(err, DECANT_ERROR_MEMORY, "the groups of %s", path);
    for (const char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        snprintf(group, sizeof group, "%.*s", (int)(slash - path), path);
        htri_t exists = H5Lexists(structure->file, group, H5P_DEFAULT);
        if (exists > 0)
            continue;
        hid_t id = H5I_INVALID_HID;
        if (exists == 0)
            id = H5Gcreate2(structure->file, group, H5P_DEFAULT, creation, H5P_DEFAULT);
        if (id < 0)
            DECANT_HDF5_FAIL(err, DECANT_ERROR_MEMORY, "group %s cannot be made", group);
        H5Gclose(id);
    }
done:
    if (creation >= 0)
        H5Pclose(creation);
    return status;
}

static hid_t make_space(const decant_shape *shape)
{
    hsize_t extent[DECANT_CONTAINER_DIMENSIONS];
    for (int d = 0; d < shape->dimensions; d++)
        extent[d] = (hsize_t)shape->extent[d];
    return shape->dimensions ? H5Screate_simple(shape->dimensions, extent, NULL) : H5Screate(H5S_SCALAR);
}

/* Contiguous, with its place in the file given now and not filled. */
static decant_status make_dataset(decant_structure *structure, const char *path, decant_stored type,
                                  const decant_shape *shape, hid_t *dataset, decant_error *err)
{
    decant_status status = DECANT_OK;
    hid_t hdf5_type = decant_hdf5_type(type), space = make_space(shape),
          creation = H5Pcreate(H5P_DATASET_CREATE);
    *dataset = H5I_INVALID_HID;
    if (hdf5_type < 0 || creation < 0 || space < 0 || H5Pset_obj_track_times(creation, false) < 0 ||
        H5Pset_layout(creation, H5D_CONTIGUOUS) < 0 || H5Pset_alloc_time(creation, H5D_ALLOC_TIME_EARLY) < 0 ||
        H5Pset_fill_time(creation, H5D_FILL_TIME_NEVER) < 0)
        DECANT_HDF5_FAIL(err, DECANT_ERROR_MEMORY, "dataset %s", path);
    *dataset = H5Dcreate2(structure->file, path, hdf5_type, space, H5P_DEFAULT, creation, H5P_DEFAULT);
    if (*dataset < 0)
        DECANT_HDF5_FAIL(err, DECANT_ERROR_MEMORY, "dataset %s cannot be made", path);
done:
    if (space >= 0)
        H5Sclose(space);
    if (creation >= 0)
        H5Pclose(creation);
    if (hdf5_type >= 0)
        H5Tclose(hdf5_type);
    return status;
}

decant_status decant_structure_define(decant_structure *structure, const char *path, decant_stored type,
                                      const decant_shape *shape, decant_stretch *place, decant_error *err)
{
    decant_status status = DECANT_OK;
    hid_t dataset = H5I_INVALID_HID;
    int64_t elements;
    decant_attribute checksum = {.name = "crc32", .kind = DECANT_ATTRIBUTE_INTEGER};
    decant_attribute element = {.name = "element", .kind = DECANT_ATTRIBUTE_TEXT, .text = "BF16"};
    *place = (decant_stretch){0};
    DECANT_TRY(make_groups(structure, path, err));
    DECANT_TRY(make_dataset(structure, path, type, shape, &dataset, err));
    if (decant_hdf5_count(type, shape, &elements) && elements > 0) {
        haddr_t offset = H5Dget_offset(dataset);
        if (offset == HADDR_UNDEF)
            DECANT_HDF5_FAIL(err, DECANT_ERROR_MEMORY, "dataset %s has no place", path);
        *place = (decant_stretch){offset, offset + (uint64_t)elements * decant_stored_bytes(type)};
    }
    snprintf(checksum.path, sizeof checksum.path, "%s", path);
    DECANT_TRY(decant_structure_set(structure, &checksum, err));
    if (type == DECANT_STORED_BF16) {
        snprintf(element.path, sizeof element.path, "%s", path);
        DECANT_TRY(decant_structure_set(structure, &element, err));
    }
done:
    if (dataset >= 0)
        H5Dclose(dataset);
    return status;
}

/* ---- attributes ---- */

/* Makes the attribute of an open object and writes it. */
static decant_status put(hid_t object, const decant_attribute *attribute, hid_t type, const void *value,
                         decant_error *err)
{
    decant_status status = DECANT_OK;
    hid_t space = H5Screate(H5S_SCALAR), made = H5I_INVALID_HID;
    if (space < 0 || H5Aexists(object, attribute->name) != 0)
        DECANT_FAIL(err, DECANT_ERROR_BUG, "%s has the attribute %s already", attribute->path, attribute->name);
    made = H5Acreate2(object, attribute->name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    if (made < 0 || H5Awrite(made, type, value) < 0)
        DECANT_HDF5_FAIL(err, DECANT_ERROR_MEMORY, "attribute %s of %s", attribute->name, attribute->path);
done:
    if (made >= 0)
        H5Aclose(made);
    if (space >= 0)
        H5Sclose(space);
    return status;
}

decant_status decant_structure_set(decant_structure *structure, const decant_attribute *attribute,
                                   decant_error *err)
{
    decant_status status = DECANT_OK;
    hid_t type = H5I_INVALID_HID;
    const void *value = attribute->text;
    hid_t object = H5Oopen(structure->file, attribute->path, H5P_DEFAULT);
    if (object < 0)
        DECANT_HDF5_FAIL(err, DECANT_ERROR_BUG, "attribute %s of %s", attribute->name, attribute->path);
    switch (attribute->kind) {
    case DECANT_ATTRIBUTE_TEXT:
        type = decant_hdf5_text_type(strlen(attribute->text) + 1);
        break;
    case DECANT_ATTRIBUTE_INTEGER:
        type = H5Tcopy(H5T_STD_I64LE);
        value = &attribute->integer;
        break;
    case DECANT_ATTRIBUTE_REAL:
        type = H5Tcopy(H5T_IEEE_F64LE);
        value = &attribute->real;
        break;
    }
    if (type < 0)
        DECANT_HDF5_FAIL(err, DECANT_ERROR_MEMORY, "attribute %s", attribute->name);
    DECANT_TRY(put(object, attribute, type, value, err));
done:
    if (type >= 0)
        H5Tclose(type);
    if (object >= 0)
        H5Oclose(object);
    return status;
}

decant_status decant_structure_set_checksum(decant_structure *structure, const char *path, uint32_t checksum,
                                            decant_error *err)
{
    decant_status status = DECANT_OK;
    int64_t value = checksum;
    hid_t dataset = H5Dopen2(structure->file, path, H5P_DEFAULT);
    hid_t attribute = dataset < 0 ? H5I_INVALID_HID : H5Aopen(dataset, "crc32", H5P_DEFAULT);
    if (attribute < 0 || H5Awrite(attribute, H5T_STD_I64LE, &value) < 0)
        DECANT_HDF5_FAIL(err, DECANT_ERROR_MEMORY, "the checksum of %s", path);
done:
    if (attribute >= 0)
        H5Aclose(attribute);
    if (dataset >= 0)
        H5Dclose(dataset);
    return status;
}
