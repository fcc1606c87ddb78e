/* The structure of a container that is being written: datasets, groups and attributes, made by one process
 * alone, so that a failure is this process's alone and the layout depends on nothing but the calls. HDF5 builds
 * it in a file in memory, where the data are holes, because it does not survive a disk that fails while it
 * writes; from there it is stored into the real file. Only io/ includes this header. */
#ifndef DECANT_IO_CONTAINER_STRUCTURE_H
#define DECANT_IO_CONTAINER_STRUCTURE_H

#include "io/container_seal.h"
#include "io/hdf5_memory.h"

/* All zero to begin with. */
typedef struct decant_structure {
    decant_hdf5_memory memory;
    hid_t file, driver;
    bool is_open; /* file and driver are valid */
} decant_structure;

/* An attribute: text when text is not NULL, else integer or real. */
typedef struct decant_attribute {
    char path[DECANT_CONTAINER_PATH_BYTES];
    char name[64];
    enum { DECANT_ATTRIBUTE_TEXT, DECANT_ATTRIBUTE_INTEGER, DECANT_ATTRIBUTE_REAL } kind;
    char *text; /* owned by whoever keeps the attribute */
    int64_t integer;
    double real;
} decant_attribute;

/* Makes an empty structure; it stays where it is until it is freed. DECANT_ERROR_MEMORY when that fails, as for
 * all that follows. Freed with decant_structure_free, which takes one that is all zero. */
decant_status decant_structure_create(decant_structure *structure, decant_error *err);
void decant_structure_free(decant_structure *structure);

/* Makes a dataset and the groups above it, with a checksum of 0.
 *   place   receives where in the file its data go; empty when it has no elements */
decant_status decant_structure_define(decant_structure *structure, const char *path, decant_stored type,
                                      const decant_shape *shape, decant_stretch *place, decant_error *err);

/* Makes an attribute. DECANT_ERROR_BUG when there is no such object or it has the attribute already. */
decant_status decant_structure_set(decant_structure *structure, const decant_attribute *attribute,
                                   decant_error *err);

/* Replaces the checksum of a dataset. */
decant_status decant_structure_set_checksum(decant_structure *structure, const char *path, uint32_t checksum,
                                            decant_error *err);

/* Writes the structure into a file, whose data stay as they are, and sets its size.
 *   descriptor, path   the file
 *   data, data_count   where the datasets' data lie; sorted here
 * DECANT_ERROR_DISK when it cannot be written. */
decant_status decant_structure_store(decant_structure *structure, int descriptor, const char *path,
                                     decant_stretch *data, int64_t data_count, decant_error *err);

#endif
