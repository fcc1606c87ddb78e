/* Reading attributes of a container, declared in container.h: of the kind the caller expects, or refused. */
#include "io/container_reader.h"

#include "base/memory.h"

#include <stdio.h>

enum { TEXT_LARGEST_BYTES = 64 << 20 };

/* Opens an attribute of one element of the given class. */
static decant_status open_attribute(const decant_container *container, const char *path, const char *name,
                                    H5T_class_t class, hid_t *attribute, hid_t *type, decant_error *err)
{
    decant_status status = DECANT_OK;
    hid_t object = H5I_INVALID_HID, space = H5I_INVALID_HID;
    *attribute = *type = H5I_INVALID_HID;
    DECANT_TRY(decant_container_open_object(container, path, &object, err));
    if (H5Aexists(object, name) <= 0)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: %s has no attribute %s", container->path, path, name);
    *attribute = H5Aopen(object, name, H5P_DEFAULT);
    space = *attribute < 0 ? H5I_INVALID_HID : H5Aget_space(*attribute);
    *type = *attribute < 0 ? H5I_INVALID_HID : H5Aget_type(*attribute);
    if (space < 0 || *type < 0)
        DECANT_HDF5_FAIL(err, DECANT_ERROR_INPUT, "%s: attribute %s of %s", container->path, name, path);
    if (H5Tget_class(*type) != class || H5Sget_simple_extent_npoints(space) != 1)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: attribute %s of %s is of another kind than belongs there",
                    container->path, name, path);
done:
    if (space >= 0)
        H5Sclose(space);
    if (object >= 0)
        H5Oclose(object);
    return status;
}

static void close_attribute(hid_t attribute, hid_t type)
{
    if (type >= 0)
        H5Tclose(type);
    if (attribute >= 0)
        H5Aclose(attribute);
}

decant_status decant_container_get_text(const decant_container *container, const char *path, const char *name,
                                        char *text, size_t size, decant_error *err)
{
    decant_status status = DECANT_OK;
    hid_t attribute, type;
    void *whole = NULL;
    DECANT_TRY(open_attribute(container, path, name, H5T_STRING, &attribute, &type, err));
    size_t stored_bytes = H5Tget_size(type);
    if (H5Tis_variable_str(type) != 0 || stored_bytes == 0 || stored_bytes > TEXT_LARGEST_BYTES)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: attribute %s of %s is no text of fixed length",
                    container->path, name, path);
    DECANT_TRY(decant_memory_allocate(stored_bytes + 1, name, &whole, err));
    if (H5Aread(attribute, type, whole) < 0)
        DECANT_HDF5_FAIL(err, DECANT_ERROR_INPUT, "%s: attribute %s of %s", container->path, name, path);
    snprintf(text, size, "%s", (const char *)whole);
done:
    close_attribute(attribute, type);
    decant_memory_free(whole);
    return status;
}

decant_status decant_container_get_integer(const decant_container *container, const char *path,
                                           const char *name, int64_t *value, decant_error *err)
{
    decant_status status = DECANT_OK;
    hid_t attribute, type;
    DECANT_TRY(open_attribute(container, path, name, H5T_INTEGER, &attribute, &type, err));
    if (H5Tequal(type, H5T_STD_I64LE) <= 0 || H5Aread(attribute, H5T_NATIVE_INT64, value) < 0)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: attribute %s of %s is no 64-bit integer", container->path,
                    name, path);
done:
    close_attribute(attribute, type);
    return status;
}

decant_status decant_container_get_real(const decant_container *container, const char *path, const char *name,
                                        double *value, decant_error *err)
{
    decant_status status = DECANT_OK;
    hid_t attribute, type;
    DECANT_TRY(open_attribute(container, path, name, H5T_FLOAT, &attribute, &type, err));
    if (H5Tequal(type, H5T_IEEE_F64LE) <= 0 || H5Aread(attribute, H5T_NATIVE_DOUBLE, value) < 0)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: attribute %s of %s is no 64-bit real number", container->path,
                    name, path);
done:
    close_attribute(attribute, type);
    return status;
}
