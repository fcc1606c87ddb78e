/* The seal at the end of a container: a checksum over every byte of the file that is no dataset's data, so that
 * a change anywhere is found, and found before HDF5 follows what the bytes say. HDF5 itself does not look at
 * it: it follows the last byte that HDF5 knows of. Only io/ includes this header.
 *
 * All numbers are little-endian 64-bit integers:
 *   n pairs    begin and end of each stretch of the file that is no data, ascending
 *   n
 *   bytes      size of the file without the seal
 *   checksum   CRC-32 of the stretches in order, then of the seal up to here
 *   magic      16 bytes, "decant sealed 1\n" */
#ifndef DECANT_IO_CONTAINER_SEAL_H
#define DECANT_IO_CONTAINER_SEAL_H

#include "base/error.h"

#include <stdint.h>

typedef struct decant_stretch {
    uint64_t begin, end;
} decant_stretch;

/* What the data leave of [0, bytes): at most data_count + 1 stretches, ascending, none empty; their number is
 * returned.
 *   data   not empty, do not overlap, lie before `bytes`; sorted here */
int64_t decant_stretches_invert(decant_stretch *data, int64_t data_count, uint64_t bytes, decant_stretch *rest);

/* Appends the seal to a file that is otherwise complete and that nobody has open.
 *   data, data_count   where the datasets' data lie; not empty, do not overlap; sorted here
 * DECANT_ERROR_DISK when the file cannot be read or written. */
decant_status decant_container_seal(const char *path, decant_stretch *data, int64_t data_count,
                                    decant_error *err);

/* DECANT_ERROR_INPUT when path is no HDF5 file with a seal that fits it. */
decant_status decant_container_check_seal(const char *path, decant_error *err);

#endif
