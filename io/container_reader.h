/* What the files that read a container share. Only io/ includes this header. */
#ifndef DECANT_IO_CONTAINER_READER_H
#define DECANT_IO_CONTAINER_READER_H

#include "io/container.h"
#include "io/hdf5_support.h"

struct decant_container {
    hid_t file;
    char *path;          /* owned */
    uint64_t size_bytes; /* of the file */
};

/* Opens the dataset or group at a path that leads over hard links alone; closed with H5Oclose.
 * DECANT_ERROR_INPUT, and *object negative, when there is none. */
decant_status decant_container_open_object(const decant_container *container, const char *path, hid_t *object,
                                           decant_error *err);

#endif
