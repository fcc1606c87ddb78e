/* What the container's writer and reader share: element types, transfers of flat ranges, and HDF5's failures as
 * one-line messages. Only io/ includes this header. Knows nothing of checksums or of ranks. */
#ifndef DECANT_IO_HDF5_SUPPORT_H
#define DECANT_IO_HDF5_SUPPORT_H

#include "io/container.h"

#define H5_USE_110_API /* later libraries have other defaults for some names */
#include <hdf5.h>

/* Stops the library from printing its error stack; messages go through decant_hdf5_fail. */
void decant_hdf5_silence(void);

/* Fills the record with "WHAT: the innermost reason that HDF5 gives" and returns status. To be called before
 * any other HDF5 call, which would clear the reason. */
decant_status decant_hdf5_fail(decant_error *err, decant_status status, const char *source, int line,
                               const char *format, ...) __attribute__((format(printf, 5, 6)));

/* DECANT_FAIL with HDF5's reason. */
#define DECANT_HDF5_FAIL(err, code, ...)                                                                       \
    do {                                                                                                       \
        status = decant_hdf5_fail((err), (code), __FILE__, __LINE__, __VA_ARGS__);                             \
        goto done;                                                                                             \
    } while (0)

/* The HDF5 type of a stored type, in the file and in memory; closed with H5Tclose. Negative on failure. */
hid_t decant_hdf5_type(decant_stored type);

/* The stored type of an HDF5 type; false when there is none. BF16 is seen as U16. */
bool decant_hdf5_stored(hid_t hdf5_type, decant_stored *type);

/* A fixed-length text type of size_bytes bytes, NUL included; closed with H5Tclose. Negative on failure. */
hid_t decant_hdf5_text_type(size_t size_bytes);

/* The number of elements of a shape; false when it has a negative extent, too many dimensions, or more bytes of
 * `type` than int64_t counts. */
bool decant_hdf5_count(decant_stored type, const decant_shape *shape, int64_t *elements);

typedef enum decant_hdf5_direction { DECANT_HDF5_READ, DECANT_HDF5_WRITE } decant_hdf5_direction;

/* Moves elements [first, first + count) in row-major order between the dataset and data, in pieces of at most 1
 * GiB; the range lies within the shape. Independent of other ranks.
 *   failure, what   the status and the beginning of the message when it fails */
decant_status decant_hdf5_transfer(hid_t dataset, decant_hdf5_direction direction, decant_stored type,
                                   const decant_shape *shape, int64_t first, int64_t count, void *data,
                                   decant_status failure, const char *what, decant_error *err);

#endif
