/* Types, transfers and messages declared in hdf5_support.h. */
#include "io/hdf5_support.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* MPI-IO counts in ints, so a transfer stays well below 2 GiB. */
static const int64_t piece_bytes = INT64_C(1) << 30;

/* ---- messages ---- */

void decant_hdf5_silence(void)
{
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
}

/* Keeps the first description, which is the innermost one when walking upward. */
static herr_t keep_first(unsigned int number, const H5E_error2_t *entry, void *text)
{
    (void)number;
    const char **reason = text;
    if (!*reason && entry->desc && *entry->desc)
        *reason = entry->desc;
    return 0;
}

decant_status decant_hdf5_fail(decant_error *err, decant_status status, const char *source, int line,
                               const char *format, ...)
{
    char what[DECANT_ERROR_MESSAGE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    const char *reason = NULL;
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_first, &reason);
    decant_error_set(err, status, source, line, "%s: %s", what, reason ? reason : "HDF5 gives no reason");
    for (char *byte = err->message; *byte; byte++) /* some of HDF5's reasons come with line breaks */
        if (*byte == '\n' || *byte == '\r' || *byte == '\t')
            *byte = ' ';
    return status;
}

/* ---- types ---- */

size_t decant_stored_bytes(decant_stored type)
{
    static const size_t bytes[] = {
        [DECANT_STORED_U8] = 1,  [DECANT_STORED_U16] = 2,  [DECANT_STORED_U32] = 4,
        [DECANT_STORED_I32] = 4, [DECANT_STORED_I64] = 8,  [DECANT_STORED_F16] = 2,
        [DECANT_STORED_F32] = 4, [DECANT_STORED_BF16] = 2, [DECANT_STORED_F64] = 8,
    };
    return bytes[type];
}

decant_stored decant_stored_of_element(decant_element element)
{
    return element == DECANT_F32   ? DECANT_STORED_F32
           : element == DECANT_F16 ? DECANT_STORED_F16
                                   : DECANT_STORED_BF16;
}

/* IEEE binary16, laid out as h5py does for NumPy's float16. */
static hid_t half_type(void)
{
    enum { SIGN_BIT = 15, EXPONENT_BIT = 10, EXPONENT_BITS = 5, MANTISSA_BITS = 10, BIAS = 15 };
    hid_t type = H5Tcopy(H5T_IEEE_F32LE);
    if (type < 0)
        return type;
    if (H5Tset_fields(type, SIGN_BIT, EXPONENT_BIT, EXPONENT_BITS, 0, MANTISSA_BITS) >= 0 &&
        H5Tset_size(type, 2) >= 0 && H5Tset_ebias(type, BIAS) >= 0)
        return type;
    H5Tclose(type);
    return H5I_INVALID_HID;
}

hid_t decant_hdf5_type(decant_stored type)
{
    switch (type) {
    case DECANT_STORED_U8:
        return H5Tcopy(H5T_STD_U8LE);
    case DECANT_STORED_U16:
    case DECANT_STORED_BF16:
        return H5Tcopy(H5T_STD_U16LE);
    case DECANT_STORED_U32:
        return H5Tcopy(H5T_STD_U32LE);
    case DECANT_STORED_I32:
        return H5Tcopy(H5T_STD_I32LE);
    case DECANT_STORED_I64:
        return H5Tcopy(H5T_STD_I64LE);
    case DECANT_STORED_F16:
        return half_type();
    case DECANT_STORED_F32:
        return H5Tcopy(H5T_IEEE_F32LE);
    case DECANT_STORED_F64:
        return H5Tcopy(H5T_IEEE_F64LE);
    }
    return H5I_INVALID_HID;
}

bool decant_hdf5_stored(hid_t hdf5_type, decant_stored *type)
{
    static const decant_stored candidates[] = {DECANT_STORED_U8,  DECANT_STORED_U16, DECANT_STORED_U32,
                                               DECANT_STORED_I32, DECANT_STORED_I64, DECANT_STORED_F16,
                                               DECANT_STORED_F32, DECANT_STORED_F64};
    for (size_t i = 0; i < sizeof candidates / sizeof *candidates; i++) {
        hid_t candidate = decant_hdf5_type(candidates[i]);
        bool same = candidate >= 0 && H5Tequal(candidate, hdf5_type) > 0;
        if (candidate >= 0)
            H5Tclose(candidate);
        if (same) {
            *type = candidates[i];
            return true;
        }
    }
    return false;
}

hid_t decant_hdf5_text_type(size_t size_bytes)
{
    hid_t type = H5Tcopy(H5T_C_S1);
    if (type < 0)
        return type;
    if (H5Tset_size(type, size_bytes) >= 0 && H5Tset_cset(type, H5T_CSET_UTF8) >= 0)
        return type;
    H5Tclose(type);
    return H5I_INVALID_HID;
}

/* ---- transfers ---- */

bool decant_hdf5_count(decant_stored type, const decant_shape *shape, int64_t *elements)
{
    int64_t bytes;
    *elements = 1;
    if (shape->dimensions < 0 || shape->dimensions > DECANT_CONTAINER_DIMENSIONS)
        return false;
    for (int d = 0; d < shape->dimensions; d++)
        if (shape->extent[d] < 0 || __builtin_mul_overflow(*elements, shape->extent[d], elements))
            return false;
    return !__builtin_mul_overflow(*elements, (int64_t)decant_stored_bytes(type), &bytes);
}

/* A box of the dataset that is one contiguous stretch of its elements. */
typedef struct box {
    hsize_t start[DECANT_CONTAINER_DIMENSIONS], extent[DECANT_CONTAINER_DIMENSIONS];
    int64_t elements;
} box;

/* The largest box of at most `most` elements that begins at element `first` and is contiguous: along one
 * dimension, and whole in the dimensions after it. */
static box box_at(const decant_shape *shape, int64_t first, int64_t most)
{
    box result = {.elements = 1};
    int64_t stride[DECANT_CONTAINER_DIMENSIONS];
    int last = shape->dimensions - 1;
    for (int d = last; d >= 0; d--)
        stride[d] = d == last ? 1 : stride[d + 1] * shape->extent[d + 1];
    int along = 0;
    while (along < last && (first % stride[along] != 0 || most < stride[along]))
        along++;
    for (int d = 0; d <= last; d++) {
        int64_t start = first / stride[d] % shape->extent[d], extent = 1;
        if (d == along) {
            extent = shape->extent[d] - start < most / stride[d] ? shape->extent[d] - start : most / stride[d];
            result.elements = extent * stride[d];
        } else if (d > along) {
            extent = shape->extent[d];
        }
        result.start[d] = (hsize_t)start;
        result.extent[d] = (hsize_t)extent;
    }
    return result;
}

static decant_status transfer_box(hid_t dataset, decant_hdf5_direction direction, hid_t type, const box *part,
                                  void *data, decant_status failure, const char *what, decant_error *err)
{
    decant_status status = DECANT_OK;
    hsize_t elements = (hsize_t)part->elements;
    hid_t memory_space = H5Screate_simple(1, &elements, NULL);
    hid_t file_space = H5Dget_space(dataset);
    if (memory_space < 0 || file_space < 0)
        DECANT_HDF5_FAIL(err, failure, "%s", what);
    if (H5Sget_simple_extent_ndims(file_space) > 0 &&
        H5Sselect_hyperslab(file_space, H5S_SELECT_SET, part->start, NULL, part->extent, NULL) < 0)
        DECANT_HDF5_FAIL(err, failure, "%s", what);
    herr_t moved = direction == DECANT_HDF5_WRITE
                       ? H5Dwrite(dataset, type, memory_space, file_space, H5P_DEFAULT, data)
                       : H5Dread(dataset, type, memory_space, file_space, H5P_DEFAULT, data);
    if (moved < 0)
        DECANT_HDF5_FAIL(err, failure, "%s", what);
done:
    if (file_space >= 0)
        H5Sclose(file_space);
    if (memory_space >= 0)
        H5Sclose(memory_space);
    return status;
}

decant_status decant_hdf5_transfer(hid_t dataset, decant_hdf5_direction direction, decant_stored type,
                                   const decant_shape *shape, int64_t first, int64_t count, void *data,
                                   decant_status failure, const char *what, decant_error *err)
{
    decant_status status = DECANT_OK;
    size_t element_bytes = decant_stored_bytes(type);
    int64_t most = piece_bytes / (int64_t)element_bytes;
    char *at = data;
    hid_t hdf5_type = decant_hdf5_type(type);
    if (hdf5_type < 0)
        DECANT_HDF5_FAIL(err, failure, "%s", what);
    while (count > 0) {
        box part = box_at(shape, first, count < most ? count : most);
        DECANT_TRY(transfer_box(dataset, direction, hdf5_type, &part, at, failure, what, err));
        first += part.elements;
        count -= part.elements;
        at += (size_t)part.elements * element_bytes;
    }
done:
    if (hdf5_type >= 0)
        H5Tclose(hdf5_type);
    return status;
}
